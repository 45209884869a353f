"""Importance pooling against Algorithm 1 of PinSage in NumPy float64: layouts, gradients, padding, stacks."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from helpers import AWKWARD, LAYOUTS, NUM_NODES, WIDTH, features, hop, lay

from jsage.blocks import Tree, as_tree
from jsage.graph import from_edges
from jsage.infer import embed_all
from jsage.nn import GraphSAGE, PinSAGEConv
from jsage.sampling import full_block, sample_blocks

OUT, HIDDEN = 3, 4

quick = partial(
    jax.jit, compiler_options={"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
)
"""For programs that run once: compiled quickly rather than well."""


def weighted(of: str):
    """A hop with positive weights, as visit counts are."""
    block = hop(of, weighted=True)
    return block._replace(edge_data={"weight": np.abs(np.asarray(block.edge_data["weight"]))})


def pinsage(params, table, block, *, normalize: bool = True) -> np.ndarray:
    """Algorithm 1, one destination at a time."""
    params, table = reference.float64(params), np.asarray(table, np.float64)
    dst, src, mask = (np.asarray(x) for x in (block.dst, block.src, block.mask))
    weight = np.asarray(block.edge_data.get("weight", mask), np.float64)
    rows = []
    for v in range(len(dst)):
        top, pooled = 0.0, np.zeros(HIDDEN)
        for u, valid, a in zip(src[v], mask[v], weight[v], strict=True):
            if valid:
                message = table[u] @ params["project"]["kernel"] + params["project"]["bias"]
                pooled, top = pooled + a * np.maximum(message, 0), top + a
        pooled = pooled / top if top else pooled
        joined = np.concatenate([table[dst[v]], pooled])
        w = np.concatenate([params["self"]["kernel"], params["neigh"]["kernel"]])
        z = np.maximum(joined @ w + params["self"]["bias"], 0)
        length = np.linalg.norm(z)
        rows.append(z / length if normalize and length else z)
    return np.array(rows)


@cache
def layer(**options):
    conv = PinSAGEConv(OUT, hidden=HIDDEN, **options)
    shapes = jax.eval_shape(
        conv.init, jax.random.key(0), np.zeros((NUM_NODES + 1, WIDTH), np.float32), weighted("random")
    )

    def run(params, laid, cotangent):
        def loss(params, h, block):
            out = conv.apply({"params": params}, h, block)
            return (out * cotangent).sum(), out

        grad = jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)
        return {name: grad(params, h, block) for name, (h, block) in laid.items()}

    return reference.filled(shapes["params"]), quick(run)


@jax.jit
def laid_out(block, table):
    return {name: lay(name, block, table) for name in LAYOUTS}


sources = jax.jit(lambda block: as_tree(block)[0])


def to_table(layout: str, block, grad) -> np.ndarray:
    if "tree" not in layout:
        return np.asarray(grad)
    table = np.zeros((NUM_NODES + 1, WIDTH))
    np.add.at(table, np.asarray(sources(block)), np.asarray(grad))
    return table


@pytest.mark.slow
@pytest.mark.parametrize("of", AWKWARD)
def test_it_is_algorithm_1_on_every_layout(of):
    params, run = layer()
    block, table, cotangent = weighted(of), features(1, NUM_NODES + 1), features(2, NUM_NODES, OUT)
    results = run(params, laid_out(block, table), cotangent)
    expected = pinsage(params, table, block)
    _, (d_params, d_table) = results["indexed"]
    for name, ((_, out), grads) in results.items():
        np.testing.assert_allclose(out, expected, rtol=1e-5, atol=1e-5, err_msg=name)
        np.testing.assert_allclose(to_table(name, block, grads[1]), d_table, rtol=1e-4, atol=1e-5)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), grads[0], d_params)


@pytest.mark.parametrize("of", ["random", "isolated nodes"])
def test_gradients_are_those_of_finite_differences(of):
    params, run = layer()
    block, table, cotangent = weighted(of), features(1, NUM_NODES + 1), features(2, NUM_NODES, OUT)
    _, (d_params, d_table) = run(params, laid_out(block, table), cotangent)["indexed"]
    at = {"params": params, "table": table}
    grads = {"params": d_params, "table": np.asarray(d_table)}
    reference.check_gradients(lambda x: pinsage(x["params"], x["table"], block), cotangent, at, grads)


def test_poison_in_the_padding_changes_nothing():
    params, run = layer()
    block, table, cotangent = (
        weighted("isolated nodes"),
        features(1, NUM_NODES + 1),
        features(2, NUM_NODES, OUT),
    )
    assert not block.mask.all()
    block = block._replace(src=np.where(block.mask, block.src, NUM_NODES))
    laid = laid_out(block, table)
    clean = run(params, laid, cotangent)

    def poison(name, h, b):
        h, b = np.array(h), b._replace(edge_data=dict(b.edge_data))
        invalid = ~np.asarray(block.mask).ravel()
        if "tree" in name:
            h[NUM_NODES:][invalid] = np.nan
        else:
            h[NUM_NODES] = np.nan
        weight = np.array(b.edge_data["weight"])
        weight.reshape(-1)[invalid] = np.nan
        return h, b._replace(edge_data={"weight": weight})

    dirty = run(params, {name: poison(name, h, b) for name, (h, b) in laid.items()}, cotangent)
    jax.tree.map(np.testing.assert_array_equal, dirty, clean)


def test_the_scale_of_a_row_of_weights_does_not_matter():
    params, run = layer()
    block, table, cotangent = weighted("random"), features(1, NUM_NODES + 1), features(2, NUM_NODES, OUT)
    scale = 2.0 ** np.arange(-4, NUM_NODES - 4)[:, None].astype(np.float32)
    scaled = block._replace(edge_data={"weight": block.edge_data["weight"] * scale})
    plain, other = (run(params, laid_out(b, table), cotangent) for b in (block, scaled))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), other, plain)


def test_rows_have_length_1_unless_asked_not_to():
    block, table = weighted("random"), features(1, NUM_NODES + 1)
    cotangent = features(2, NUM_NODES, OUT)
    params, run = layer()
    out = np.asarray(run(params, laid_out(block, table), cotangent)["indexed"][0][1])
    length = np.linalg.norm(out, axis=1)
    assert np.isclose(length, 1, atol=1e-5)[length > 0].all()
    params, run = layer(normalize=False)
    out = run(params, laid_out(block, table), cotangent)["indexed"][0][1]
    np.testing.assert_allclose(out, pinsage(params, table, block, normalize=False), rtol=1e-5, atol=1e-5)


def test_without_weights_it_is_the_plain_mean():
    conv, block, table = PinSAGEConv(OUT, hidden=HIDDEN), hop("isolated nodes"), features(1)
    params, _ = layer()
    out = quick(conv.apply)({"params": params}, table, block)
    np.testing.assert_allclose(out, pinsage(params, table, block), rtol=1e-5, atol=1e-5)


def test_zeros_are_finite():
    params, run = layer()
    block, table = weighted("isolated nodes"), features(1, NUM_NODES + 1)
    zeros = block._replace(edge_data={"weight": np.zeros(block.mask.shape, np.float32)})
    for values in (params, jax.tree.map(np.zeros_like, params)):
        for blk in (block, zeros):
            got = run(values, laid_out(blk, table), np.ones((NUM_NODES, OUT), np.float32))
            assert all((np.abs(x) < 1e4).all() for x in jax.tree.leaves(got))  # NaN is not less


@pytest.mark.slow
def test_graphsage_stacks_it_on_sampled_blocks_and_the_whole_graph():
    src, dst, n = AWKWARD["random"]
    weights = np.abs(features(7, len(src), 1)[:, 0])
    g, table = from_edges(src, dst, n, weight=weights), jax.device_put(features(3))
    model = GraphSAGE(hidden=6, out=OUT, conv=PinSAGEConv)
    seeds = np.arange(n, dtype=np.int32)
    blocks = quick(partial(sample_blocks, fanouts=(10, 10)))(jax.random.key(0), g, seeds)  # every edge
    params = reference.filled(jax.eval_shape(model.init, jax.random.key(1), table, blocks))
    assert all(block.mask.shape[1] >= np.diff(g.indptr).max() for block in blocks)
    apply = quick(model.apply)
    sampled = apply(params, table, blocks)
    np.testing.assert_allclose(apply(params, table, (full_block(g),) * 2), sampled, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(embed_all(model, params, g, table), sampled, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_dropout_and_the_dtype_of_the_computation():
    h, block = features(5, 6), Tree(np.ones((2, 2), bool), {"weight": np.ones((2, 2), np.float32)})
    conv = PinSAGEConv(OUT, dropout=0.5, dtype=jnp.bfloat16)
    params = quick(conv.init)(jax.random.key(0), h, block)
    assert {x.dtype for x in jax.tree.leaves(params)} == {jnp.dtype("float32")}
    still = quick(conv.apply)(params, h, block)
    assert still.dtype == jnp.bfloat16
    drop = quick(partial(conv.apply, deterministic=False))
    drawn = [drop(params, h, block, rngs={"dropout": jax.random.key(i)}) for i in (0, 1)]
    assert not np.array_equal(*drawn)
    full = quick(PinSAGEConv(OUT).apply)(params, h, block)
    np.testing.assert_allclose(np.asarray(still).astype(np.float32), full, atol=3e-2)


def test_a_tree_of_the_wrong_size_is_refused():
    with pytest.raises(ValueError, match="tree block of 2 destinations x 2 slots reads 6 rows"):
        PinSAGEConv(OUT).init(jax.random.key(0), jnp.ones((5, WIDTH)), Tree(jnp.ones((2, 2), bool)))
