"""Every aggregator on every layout: values and gradients against float64 NumPy, and what changes neither."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import (
    AGGREGATORS,
    AWKWARD,
    FANOUT,
    LAYOUTS,
    NUM_NODES,
    WIDTH,
    features,
    graph,
    hop,
    lay,
    pooled,
)

from jsage.blocks import Indexed
from jsage.blocks.aggregate import max as max_aggregate
from jsage.sampling import fast_key, sample_neighbors

TABLE = features(0, NUM_NODES + 1)  # the last row is nobody's
COTANGENT = features(3)

on_all_layouts = pytest.mark.parametrize("layout", LAYOUTS)
with_all_aggregators = pytest.mark.parametrize("aggregator", AGGREGATORS)
on_all_graphs = pytest.mark.parametrize("name", AWKWARD)


@pytest.fixture(params=[False, True], ids=["plain", "weighted"])
def weighted(request) -> bool:
    return request.param


def run(layout: str, block: Indexed, table: jax.Array) -> dict:
    """Each aggregator's value, and its gradients with respect to the table and the weights."""

    def value(aggregate, table, edge_data):
        h, view = lay(layout, block._replace(edge_data=edge_data), table)
        return aggregate(h, view)

    def with_gradients(aggregate):
        out, pull = jax.vjp(lambda *at: value(aggregate, *at), table, block.edge_data)
        return out, *pull(jnp.asarray(COTANGENT).astype(out.dtype))

    return {name: with_gradients(aggregate) for name, aggregate in AGGREGATORS.items()}


compiled = jax.jit(run, static_argnums=0)


@cache
def result(layout: str, name: str, weighted: bool) -> dict:
    return jax.tree.map(np.asarray, compiled(layout, hop(name, weighted=weighted), TABLE))


@cache
def slopes(aggregator: str, name: str, weighted: bool) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Central differences of `sum(COTANGENT * pooled)` by every number of the table and of the weights."""
    block = jax.tree.map(np.asarray, hop(name, weighted=weighted))
    wide = {key: value.astype(np.float64) for key, value in block.edge_data.items()}

    def slope(variable: np.ndarray, loss) -> np.ndarray:
        slopes, eps = np.zeros(variable.shape), 1e-5
        for at in np.ndindex(variable.shape):
            shift = np.zeros(variable.shape)
            shift[at] = eps
            slopes[at] = (loss(variable + shift) - loss(variable - shift)) / (2 * eps)
        return slopes

    def loss(table, edge_data):
        return (COTANGENT * pooled(aggregator, block._replace(edge_data=edge_data), table)).sum()

    by_table = slope(TABLE.astype(np.float64), lambda table: loss(table, wide))
    return by_table, {key: slope(value, lambda v: loss(TABLE, {"weight": v})) for key, value in wide.items()}


def same(got, expected, atol=2e-6):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=atol), got, expected)


@on_all_layouts
@on_all_graphs
@with_all_aggregators
def test_values_and_gradients(aggregator: str, name: str, layout: str, weighted: bool):
    value, d_table, d_edge_data = result(layout, name, weighted)[aggregator]
    block = hop(name, weighted=weighted)
    np.testing.assert_allclose(value, pooled(aggregator, block, TABLE), atol=1e-5)
    by_table, by_edge_data = slopes(aggregator, name, weighted)
    np.testing.assert_allclose(d_table, by_table, atol=1e-4)
    same(d_edge_data, by_edge_data, atol=1e-4)


@on_all_layouts
@on_all_graphs
def test_layouts_agree_with_each_other(name: str, layout: str, weighted: bool):
    same(result(layout, name, weighted), result("indexed", name, weighted))


@on_all_layouts
@on_all_graphs
def test_padding_is_never_read(name: str, layout: str, weighted: bool):
    """NaN in the row that padded slots point at, and in their weights, changes no value and no gradient."""
    block, table = hop(name, weighted=weighted), TABLE.copy()
    table[-1] = np.nan
    weights = {key: jnp.where(block.mask, value, jnp.nan) for key, value in block.edge_data.items()}
    poisoned = block._replace(src=jnp.where(block.mask, block.src, NUM_NODES), edge_data=weights)
    same(compiled(layout, poisoned, table), result(layout, name, weighted))


@on_all_layouts
@pytest.mark.parametrize("name", ["isolated nodes", "parallel edges", "random"])
def test_the_order_of_slots_does_not_matter(name: str, layout: str, weighted: bool):
    block = hop(name, weighted=weighted)
    order = jnp.asarray(np.random.default_rng(0).permuted(np.tile(np.arange(FANOUT), (NUM_NODES, 1)), axis=1))
    shuffled = jax.tree.map(lambda slot: jnp.take_along_axis(slot, order, 1), block._replace(dst=order))
    got = compiled(layout, shuffled._replace(dst=block.dst), TABLE)
    for aggregator, (value, d_table, d_edge_data) in result(layout, name, weighted).items():
        same(got[aggregator][:2], (value, d_table))
        moved = jax.tree.map(lambda slot: np.take_along_axis(slot, np.asarray(order), 1), d_edge_data)
        same(got[aggregator][2], moved)


@on_all_layouts
@with_all_aggregators
def test_without_neighbors_the_result_is_zero_and_gradients_are_finite(aggregator: str, layout: str):
    value, d_table, d_edge_data = result(layout, "no edges", True)[aggregator]
    own = TABLE[np.asarray(hop("no edges").dst)]
    np.testing.assert_array_equal(value, own if aggregator == "gcn" else 0 * own)
    assert np.isfinite(d_table).all()
    assert not d_edge_data["weight"].any()


@on_all_layouts
def test_ties_of_the_maximum_share_the_gradient(layout: str):
    """Three valid neighbors: all equal, two equal, none equal, all zero (as after a ReLU)."""
    src = jnp.array([[1, 2, 3, 0]])
    block = Indexed(jnp.array([0]), src, jnp.array([[True, True, True, False]]))
    table = jnp.array([[9.0, 9, 9, 9], [1, 2, 0, 0], [1, 2, 1, 0], [1, 1, -1, 0]])

    def top(table):
        h, view = lay(layout, block, table)
        return max_aggregate(h, view).sum()

    shares = [[0, 0, 0, 0], [1 / 3, 1 / 2, 0, 1 / 3], [1 / 3, 1 / 2, 1, 1 / 3], [1 / 3, 0, 0, 1 / 3]]
    np.testing.assert_allclose(jax.grad(top)(table), shares, rtol=1e-6)


@on_all_layouts
def test_bfloat16_keeps_its_dtype_and_its_sums(layout: str):
    """4096 neighbors that are all ones: one at a time, bfloat16 would stop counting at 256."""
    n = 4096
    block = Indexed(jnp.array([0]), jnp.ones((1, n), jnp.int32), jnp.ones((1, n), bool))
    h, view = lay(layout, block, jnp.ones((2, WIDTH), jnp.bfloat16))
    expected = {"sum": n, "mean": 1, "max": 1, "gcn": 1, "min": 1, "std": 0}
    for aggregator, aggregate in AGGREGATORS.items():
        got = aggregate(h, view)
        assert got.dtype == jnp.bfloat16
        np.testing.assert_array_equal(got.astype(jnp.float32), np.full((1, WIDTH), expected[aggregator]))


@on_all_layouts
def test_no_implicit_promotion(layout: str, weighted: bool, strict_dtypes):
    block = hop("random", weighted=weighted)
    for dtype in (jnp.float32, jnp.bfloat16):
        table = jnp.asarray(TABLE).astype(dtype)
        for value, d_table, d_edge_data in jax.eval_shape(partial(run, layout), block, table).values():
            assert value.dtype == d_table.dtype == dtype
            assert all(d.dtype == block.edge_data[key].dtype for key, d in d_edge_data.items())


@on_all_layouts
def test_vmap_over_keys_equals_a_loop(layout: str):
    seeds, cut = jnp.arange(NUM_NODES), graph("random", weighted=True)

    def sample_and_pool(key):
        block = sample_neighbors(key, cut, seeds, FANOUT)
        h, view = lay(layout, block, jnp.asarray(TABLE))
        return block, {name: aggregate(h, view) for name, aggregate in AGGREGATORS.items()}

    keys = jax.random.split(fast_key(0), 3)
    blocks, mapped = jax.jit(jax.vmap(sample_and_pool))(keys)
    for i in range(len(keys)):
        loop = compiled(layout, jax.tree.map(lambda x: x[i], blocks), TABLE)  # noqa: B023
        same({name: value[i] for name, value in mapped.items()}, {name: out[0] for name, out in loop.items()})
