"""Chunks of destinations: the values and gradients of all at once, for every size of chunk."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from helpers import FANOUT, LAYOUTS, NUM_NODES, WIDTH, features, hop

from jsage import aggregate
from jsage.blocks import Indexed, chunked
from jsage.nn import LSTM, Pool

OUT = 3
MODULES = {"max pool": Pool(OUT), "mean pool": Pool(OUT, reduce=aggregate.mean), "lstm": LSTM(OUT)}
TABLE = np.concatenate([features(1), features(5, 5 * NUM_NODES)])  # larger than all that a hop reads

quick = partial(
    jax.jit, compiler_options={"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
)
"""For programs that run once: compiled quickly rather than well."""


def weighted_hop(layout):
    """A hop with weights, and with whole numbers that no gradient is asked of."""
    block = hop("random", weighted=True)
    numbers = jnp.arange(block.src.size, dtype=jnp.int32).reshape(block.src.shape)
    return LAYOUTS[layout](
        block._replace(edge_data={**block.edge_data, "number": numbers}), jnp.asarray(TABLE)
    )


def parameters(module, h, block):
    return reference.filled(jax.eval_shape(module.init, jax.random.key(0), h, block))


def results(module, h, block):
    """Values, and gradients of parameters, rows and edge weights."""
    cotangent = jnp.asarray(features(2, NUM_NODES, OUT))

    def loss(params, h, weight):
        weighted = block._replace(edge_data={**block.edge_data, "weight": weight})
        out = module.apply(params, h, weighted, rngs={"order": jax.random.key(7)})
        return (out * cotangent).sum(), out

    grad = quick(jax.grad(loss, (0, 1, 2), has_aux=True))
    return grad(parameters(module, h, block), h, block.edge_data["weight"])


@pytest.mark.parametrize(
    (
        "name",
        "layout",
        "size",
    ),  # 8 destinations: a last chunk of 3 meets one of them once more, one of 4 none
    [
        ("max pool", "indexed", 3),
        ("max pool", "indexed", 4),
        ("max pool", "tree", 3),
        ("mean pool", "indexed", 3),
        ("lstm", "indexed", 3),
        ("lstm", "tree", 3),
    ],
)
def test_values_and_gradients_are_those_of_all_at_once(name, layout, size, monkeypatch):
    h, block = weighted_hop(layout)
    whole, sizes, cut = results(MODULES[name], h, block), [], chunked._by_chunk
    spy = lambda fn, size, *rest: sizes.append(size) or cut(fn, size, *rest)  # noqa: E731
    monkeypatch.setattr(chunked, "_by_chunk", spy)
    monkeypatch.setattr(chunked, "LIMIT", size * (1 + FANOUT) * WIDTH)
    parts = results(MODULES[name], h, block)
    assert set(sizes) == {size}
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), parts, whole)


@pytest.mark.parametrize("layout", ["indexed", "tree"])
def test_rows_that_are_not_read_may_hold_anything(layout, monkeypatch):
    monkeypatch.setattr(chunked, "LIMIT", 1)  # one destination at a time
    h, block = LAYOUTS[layout](hop("isolated nodes"), jnp.asarray(TABLE))
    valid = block.read(jnp.ones(block.num_dst, bool), h.shape[0])
    module = Pool(OUT)
    params = parameters(module, h, block)

    @quick
    def run(params, h):
        return jax.value_and_grad(lambda params, h: module.apply(params, h, block).sum(), (0, 1))(params, h)

    clean, poisoned = run(params, h), run(params, jnp.where(valid[:, None], h, jnp.nan))
    jax.tree.map(np.testing.assert_array_equal, clean, poisoned)


def test_no_array_of_all_the_rows_is_made():
    wide, fanout = 2**10, 2**5
    shape = lambda *sizes, dtype=jnp.float32: jax.ShapeDtypeStruct(sizes, dtype)  # noqa: E731
    block = Indexed(
        shape(wide, dtype=jnp.int32),
        shape(wide, fanout, dtype=jnp.int32),
        shape(wide, fanout, dtype=jnp.bool_),
    )
    module, table = Pool(), shape(2**16, 128)
    params = jax.eval_shape(module.init, jax.random.key(0), table, block)
    grad = jax.jit(jax.grad(lambda params, table, block: module.apply(params, table, block).sum()))
    memory = grad.lower(params, table, block).compile().memory_analysis()
    assert memory.temp_size_in_bytes < wide * fanout * 128 * 4
