"""What is sampled: in-neighbors only, each edge as often as any, in shapes and memory that never grow."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import (
    AGGREGATORS,
    ALL_DRAWS,
    AWKWARD,
    FANOUT,
    KEY_KINDS,
    NUM_NODES,
    REPLACES,
    features,
    for_draw,
    graph,
    listed,
    slow_but,
)
from scipy import stats

from jsage.blocks import Indexed, Tree
from jsage.blocks.aggregate import mean
from jsage.graph import AliasGraph, Graph, WeightedGraph, from_edges
from jsage.sampling import fast_key, full_block, sample_blocks, sample_neighbors

FANOUTS = (3, 2, 4)
NODES = jax.device_put(np.arange(NUM_NODES, dtype=np.int32))

on_all_graphs = pytest.mark.parametrize("name", AWKWARD)
ONCE = [name for name in ALL_DRAWS if name not in REPLACES]
with_all_draws = pytest.mark.parametrize("draw", ALL_DRAWS)

neighbors = {
    name: jax.jit(partial(sample_neighbors, draw=draw), static_argnums=3) for name, draw in ALL_DRAWS.items()
}
blocks = jax.jit(sample_blocks, static_argnums=3)
read_tree = jax.jit(lambda tree, h: (tree.own(h), tree.slot_rows(h)))


def key(seed: int) -> jax.Array:
    """A key whose bits compile fast."""
    return fast_key(seed)


@cache
def numbered(name: str) -> Graph:
    """A graph of `AWKWARD` whose edges carry their own number and their two ends.

    Rows of -1 that belong to no node bring all graphs but the edgeless one to the same shape.
    """
    plain = graph(name)
    dst = np.repeat(np.arange(NUM_NODES, dtype=np.int32), np.diff(plain.indptr))
    ends = np.stack([np.asarray(plain.indices), dst, np.arange(len(dst), dtype=np.int32)], 1)
    if len(ends):
        ends = np.pad(ends, ((0, 48 - len(ends)), (0, 0)), constant_values=-1)
    data = {"number": jax.device_put(ends[:, 2]), "ends": jax.device_put(ends[:, :2])}
    return Graph(plain.indptr, jax.device_put(ends[:, 0]), data)


@on_all_graphs
@with_all_draws
def test_valid_slots_are_edges_into_the_seed(draw: str, name: str):
    sampled, degrees = numbered(name), np.diff(graph(name).indptr)
    seeds = np.concatenate(
        [np.asarray(NODES)[::-1], NODES]
    )  # every node twice, among them those without neighbors
    block = neighbors[draw](key(0), for_draw(draw, sampled), seeds, FANOUT)
    block = jax.tree.map(np.asarray, block)
    assert block.src.shape == block.mask.shape == (2 * NUM_NODES, FANOUT)
    np.testing.assert_array_equal(block.dst, seeds)
    for row, seed in enumerate(seeds):
        valid = block.mask[row]
        whole = FANOUT * (degrees[seed] > 0) if draw in REPLACES else min(degrees[seed], FANOUT)
        assert valid.sum() == whole
        number, ends = block.edge_data["number"][row][valid], block.edge_data["ends"][row][valid]
        assert (ends[:, 1] == seed).all()
        np.testing.assert_array_equal(ends[:, 0], block.src[row][valid])
        np.testing.assert_array_equal(ends, np.asarray(sampled.edge_data["ends"])[number])
        assert (block.src[row][~valid] == seed).all()
        if draw not in REPLACES:  # parallel edges are slots of their own; no edge comes twice
            assert len(set(number)) == len(number)


@on_all_graphs
@pytest.mark.parametrize("draw", slow_but(["without_replacement", "weighted"], ONCE))
def test_a_fanout_above_every_degree_takes_every_edge_once(draw: str, name: str):
    block = neighbors[draw](key(0), for_draw(draw, numbered(name)), NODES, 16)
    taken = np.asarray(block.edge_data["number"])[np.asarray(block.mask)]
    np.testing.assert_array_equal(np.sort(taken), np.arange(graph(name).num_edges))


def test_every_edge_is_taken_equally_often():
    """Of a node's `n` edges each is in `k / n` of 20 000 samples, self-loops and parallel edges too."""
    sampled, repeats = numbered("random"), 20_000
    indptr = np.asarray(sampled.indptr)
    degrees = np.diff(indptr)
    assert (degrees > FANOUT).sum() >= 3
    block = neighbors["without_replacement"](key(0), sampled, np.tile(NODES, repeats), FANOUT)
    number = np.asarray(block.edge_data["number"])[np.asarray(block.mask)]
    taken = np.bincount(number, minlength=sampled.num_edges)
    for node in np.flatnonzero(degrees > FANOUT):
        n, p = degrees[node], FANOUT / degrees[node]
        counts = taken[indptr[node] : indptr[node + 1]]
        chi2 = ((counts - repeats * p) ** 2).sum() / (repeats * p * (1 - p)) * (n - 1) / n
        assert stats.chi2.sf(chi2, n - 1) > 1e-3


def test_edge_data_of_an_edgeless_graph_is_empty_slots():
    sampled = from_edges([], [], 3, weight=np.zeros(0, np.float32), vector=np.zeros((0, 2), np.float32))
    block = neighbors["without_replacement"](key(0), sampled, np.array([2, 0]), 2)
    np.testing.assert_array_equal(block.src, [[2, 2], [0, 0]])
    assert not block.mask.any()
    np.testing.assert_array_equal(block.edge_data["weight"], np.zeros((2, 2)))
    assert block.edge_data["vector"].shape == (2, 2, 2)


@pytest.mark.parametrize("num_hops", [1, 2, 3])
def test_shapes_follow_from_seeds_and_fanouts(num_hops: int):
    fanouts, num_seeds = FANOUTS[:num_hops], 5
    hops = jax.eval_shape(partial(sample_blocks, fanouts=fanouts), key(0), graph("random"), NODES[:5])
    assert len(hops) == num_hops
    assert isinstance(hops[0], Indexed)
    assert all(isinstance(block, Tree) for block in hops[1:])
    rows = num_seeds
    for fanout, block in zip(fanouts, reversed(hops), strict=True):  # the first fanout is next to the seeds
        assert block.mask.shape == (rows, fanout)
        rows *= 1 + fanout


@on_all_graphs
def test_rows_go_from_block_to_block(name: str):
    """Ids carried through the layers as `h`: a tree's sources are the destinations of the block before."""
    sampled, seeds = numbered(name), np.array([3, 0, 3, 7, 1], np.int32)
    first, *trees = blocks(key(2), sampled, seeds, FANOUTS)
    h = np.asarray(first.dst)[:, None].astype(np.float32)
    for tree in trees:
        own, slots = jax.tree.map(np.asarray, read_tree(tree, h))
        mask, below = np.asarray(tree.mask), h[tree.num_dst :]
        ends = np.asarray(tree.edge_data["ends"])
        np.testing.assert_array_equal(slots[mask][:, 0], ends[mask][:, 0])
        np.testing.assert_array_equal(np.broadcast_to(own, mask.shape)[mask], ends[mask][:, 1])
        assert (below.reshape(mask.shape) == own)[~mask].all()  # a padded slot is its own destination
        h = own
    np.testing.assert_array_equal(h[:, 0], seeds)


@pytest.mark.parametrize("draw", [name for name in ALL_DRAWS if name != "latest"])
@pytest.mark.parametrize("impl", KEY_KINDS)
def test_hops_are_drawn_apart(draw: str, impl: str):
    """The same node in the frontier of two hops draws its neighbors again: one in 1000 agrees by chance."""
    hubs, degree, fanout = 64, 1000, 5
    src = np.tile(np.arange(hubs, hubs + degree), hubs)
    star = from_edges(src, np.repeat(np.arange(hubs), degree), hubs + degree)
    sample = jax.jit(partial(sample_blocks, fanouts=(fanout, fanout), draw=ALL_DRAWS[draw]))
    star = for_draw(draw, star)
    first, last = sample(jax.random.key(0, impl=impl), star, np.arange(hubs, dtype=np.int32))
    near = np.asarray(first.dst)[hubs:].reshape(hubs, fanout)
    assert last.mask.all()
    assert (near[:, 0] == np.asarray(first.src)[:hubs, 0]).mean() < 0.05


def test_the_key_decides():
    first, again, other = (blocks(key(seed), graph("random"), NODES, (2, 2)) for seed in (4, 4, 5))
    jax.tree.map(np.testing.assert_array_equal, again, first)
    assert not np.array_equal(other[0].src, first[0].src)


@pytest.mark.parametrize("name", slow_but(["without_replacement", "weighted", "labor"], ALL_DRAWS))
def test_vmap_and_scan_over_keys_equal_a_loop(name: str):
    keys = jax.random.split(key(0), 3)
    cut = for_draw(name, graph("random", weighted=True))
    draw = partial(sample_blocks, fanouts=(2, 2), draw=ALL_DRAWS[name])

    @jax.jit
    def together(cut, keys):
        _, scanned = jax.lax.scan(lambda carry, key: (carry, draw(key, cut, NODES)), None, keys)
        return jax.vmap(draw, (0, None, None))(keys, cut, NODES), scanned

    mapped, scanned = together(cut, keys)
    single = jax.jit(draw)
    loop = [single(key, cut, NODES) for key in keys]
    loop = jax.tree.map(lambda *x: np.stack(x), *loop)
    jax.tree.map(np.testing.assert_array_equal, mapped, loop)
    jax.tree.map(np.testing.assert_array_equal, scanned, loop)


@with_all_draws
def test_one_trace_for_all_seeds_keys_and_graphs_of_a_shape(draw: str):
    traces = []

    @jax.jit
    def step(key, graph, seeds):
        traces.append(1)
        return sample_blocks(key, graph, seeds, (2, 2), draw=ALL_DRAWS[draw])

    turned = jax.device_put(np.asarray(graph("random").indices)[::-1].copy())
    same_shape, ids = [graph("random"), graph("random")._replace(indices=turned)], np.asarray(NODES)
    for i, (cut, seeds) in enumerate([(cut, seeds) for cut in same_shape for seeds in (ids, ids[::-1])]):
        step(key(i), for_draw(draw, cut), seeds)
    assert len(traces) == 1


def tables(draw: str, cut: Graph, column) -> Graph | WeightedGraph | AliasGraph:
    """The shapes of the graph that a draw reads."""
    if draw == "weighted with replacement":
        return AliasGraph(cut, column(jnp.uint32), column(jnp.int32))
    return WeightedGraph(cut, column(jnp.int32), column(jnp.int32)) if "weighted" in draw else cut


def temporaries(num_nodes: int, num_edges: int, draw: str) -> int:
    """Bytes of scratch of one compiled step: sample, pool the feature table, a dense layer, its gradient."""
    width, num_seeds = 128, 64

    def loss(weights, seed, cut, table, seeds):
        first, last = sample_blocks(key(seed), cut, seeds, (5, 3), draw=ALL_DRAWS[draw])
        hidden = jax.nn.relu(mean(table, first) @ weights + first.own(table))
        return mean(hidden, last).sum()

    floats, ints = (partial(jax.ShapeDtypeStruct, dtype=dtype) for dtype in (jnp.float32, jnp.int32))
    cut = Graph(ints((num_nodes + 1,)), ints((num_edges,)))
    cut = tables(draw, cut, partial(jax.ShapeDtypeStruct, (num_edges,)))
    arguments = floats((width, width)), ints(()), cut, floats((num_nodes, width)), ints((num_seeds,))
    compiled = jax.jit(jax.value_and_grad(loss)).lower(*arguments).compile()
    return compiled.memory_analysis().temp_size_in_bytes


@with_all_draws
def test_temporaries_do_not_grow_with_the_graph(draw: str):
    small = temporaries(10_000, 50_000, draw)
    assert temporaries(1_000_000, 80_000_000, draw) <= small + 1024
    assert small < 10_000 * 128 * 4 / 4  # nowhere near the feature table


@jax.jit
def everything(block, table):
    pooled = {name: aggregate(table, block) for name, aggregate in AGGREGATORS.items()}
    return pooled, block.own(table), block.degrees(), listed(table, block, 16)


@on_all_graphs
def test_a_full_block_is_every_neighborhood(name: str):
    cut, table = graph(name, weighted=True), features(0)
    src, dst, _ = AWKWARD[name]
    weight = features(7, len(src), 1)[:, 0]
    answers = jax.tree.map(np.asarray, everything(full_block(cut, slots=True), table))
    pooled, own, degrees, (slots, mask) = answers
    np.testing.assert_array_equal(own, table)
    for node in range(NUM_NODES):
        into = dst == node
        expected = table[src[into]] * weight[into][:, None]
        n = len(expected)
        assert degrees[node] == mask[node].sum() == n
        np.testing.assert_allclose(slots[node, :n], expected, rtol=1e-6)
        assert mask[node, :n].all()
        assert not slots[node, n:].any()
        total = expected.astype(np.float64).sum(0)
        np.testing.assert_allclose(pooled["sum"][node], total, atol=1e-5)
        np.testing.assert_allclose(pooled["mean"][node], total / max(n, 1), atol=1e-5)
        np.testing.assert_allclose(pooled["max"][node], expected.max(0) if n else 0 * total, atol=1e-6)
        np.testing.assert_allclose(pooled["gcn"][node], (table[node] + total) / (1 + n), atol=1e-5)


def test_a_full_block_makes_the_table_of_slots_only_where_asked():
    assert full_block(graph("random")).order is None
    with pytest.raises(TypeError, match="slots=True"):
        listed(jnp.asarray(features(0)), full_block(graph("random")), 16)


@with_all_draws
def test_no_implicit_promotion(draw: str, strict_dtypes):
    for name in ("random", "no edges"):
        cut = for_draw(draw, graph(name, weighted=True))
        sample = partial(sample_blocks, fanouts=(2, 2), draw=ALL_DRAWS[draw])
        first, last = jax.eval_shape(sample, key(0), cut, NODES)
        assert first.src.dtype == first.dst.dtype == jnp.int32
        assert first.mask.dtype == last.mask.dtype == jnp.bool_
        assert first.edge_data["weight"].dtype == last.edge_data["weight"].dtype == jnp.float32


@with_all_draws
@pytest.mark.parametrize("fanout", [0, -3])
def test_a_fanout_must_be_positive(fanout: int, draw: str):
    message = f"positive number of neighbors, got {fanout}: leave the hop out"
    cut = for_draw(draw, graph("random"))
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(partial(sample_neighbors, fanout=fanout, draw=ALL_DRAWS[draw]), key(0), cut, NODES)
    sample = partial(sample_blocks, fanouts=(fanout, 2), draw=ALL_DRAWS[draw])
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(sample, key(0), cut, NODES)


def test_sample_blocks_needs_a_fanout():
    with pytest.raises(
        ValueError, match=r"one fanout a layer, got none: pass for instance fanouts=\(25, 10\)"
    ):
        sample_blocks(key(0), graph("random"), NODES, ())
