"""Chunks of destinations: the values and gradients of all at once, for every size of chunk."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import FANOUT, LAYOUTS, NUM_NODES, WIDTH, features, hop

from jsage import aggregate, chunk
from jsage.nn import LSTM, Pool

OUT = 3
MODULES = {"max pool": Pool(OUT), "mean pool": Pool(OUT, reduce=aggregate.mean), "lstm": LSTM(OUT)}
TABLE = np.concatenate([features(1), features(5, 5 * NUM_NODES)])  # larger than all that a hop reads


def results(module, layout, order=None):
    """Values, and gradients of parameters, rows and edge weights."""
    block = hop("random", weighted=True)
    block = block._replace(
        edge_data={**block.edge_data, "number": jnp.arange(block.src.size).reshape(-1, FANOUT)}
    )
    h, block = LAYOUTS[layout](block, jnp.asarray(TABLE))
    params = module.init(jax.random.key(0), h, block)
    cotangent = jnp.asarray(features(2, NUM_NODES, OUT))

    def loss(params, h, weight):
        weighted = block._replace(edge_data={**block.edge_data, "weight": weight})
        out = module.apply(params, h, weighted, rngs=order)
        return (out * cotangent).sum(), out

    return jax.jit(jax.grad(loss, (0, 1, 2), has_aux=True))(params, h, block.edge_data["weight"])


@pytest.mark.parametrize("order", [None, {"order": jax.random.key(7)}], ids=["", "shuffled"])
@pytest.mark.parametrize("layout", ["indexed", "tree"])
@pytest.mark.parametrize("name", MODULES)
def test_values_and_gradients_are_those_of_all_at_once(name, layout, order, monkeypatch):
    if order and name != "lstm":
        pytest.skip("it draws no order")
    sizes = []
    cut = chunk._by_chunk
    monkeypatch.setattr(
        chunk, "_by_chunk", lambda fn, size, *rest: sizes.append(size) or cut(fn, size, *rest)
    )
    whole = results(MODULES[name], layout, order)
    assert not sizes
    for size in (3, 4):  # 8 destinations: the last chunk meets one once more, or none
        monkeypatch.setattr(chunk, "LIMIT", size * (1 + FANOUT) * WIDTH)
        parts = results(MODULES[name], layout, order)
        assert set(sizes) == {size}
        sizes.clear()
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), parts, whole)


@pytest.mark.parametrize("layout", ["indexed", "tree"])
def test_rows_that_are_not_read_may_hold_anything(layout, monkeypatch):
    monkeypatch.setattr(chunk, "LIMIT", 1)  # one destination at a time
    h, block = LAYOUTS[layout](hop("isolated nodes"), jnp.asarray(TABLE))
    live = block.read(jnp.ones(block.num_dst, bool), h.shape[0])
    module = Pool(OUT)
    params = module.init(jax.random.key(0), h, block)

    @jax.jit
    def run(h):
        return jax.value_and_grad(lambda params, h: module.apply(params, h, block).sum(), (0, 1))(params, h)

    clean, poisoned = run(h), run(jnp.where(live[:, None], h, jnp.nan))
    jax.tree.map(np.testing.assert_array_equal, clean, poisoned)


def test_no_array_of_all_the_rows_is_made():
    wide, fanout = 2**10, 2**5
    shape = lambda *sizes, dtype=jnp.float32: jax.ShapeDtypeStruct(sizes, dtype)  # noqa: E731
    block = chunk.Indexed(
        shape(wide, dtype=jnp.int32),
        shape(wide, fanout, dtype=jnp.int32),
        shape(wide, fanout, dtype=jnp.bool_),
    )
    module, table = Pool(), shape(2**16, 128)
    params = jax.eval_shape(module.init, jax.random.key(0), table, block)
    grad = jax.jit(jax.grad(lambda params, table, block: module.apply(params, table, block).sum()))
    memory = grad.lower(params, table, block).compile().memory_analysis()
    assert memory.temp_size_in_bytes < wide * fanout * 128 * 4
