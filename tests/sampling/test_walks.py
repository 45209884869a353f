"""Walks against the exact chains: their steps by chi-square, their restarts by personalized PageRank."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import AWKWARD, NUM_NODES
from scipy import stats

from jsage.graph import Graph, GrowingGraph, SortedGraph, edges, from_edges, sort_rows, symmetrize
from jsage.sampling import node2vec_walk, positive_pairs, random_walk

ROWS, LENGTH = 40_000, 4
STARTS = jax.device_put(np.arange(ROWS, dtype=np.int32) % NUM_NODES)
STEPS = [(1.0, 1.0), (0.25, 4.0), (4.0, 0.25)]

walks = jax.jit(random_walk, static_argnames=("length", "restart"))
second = jax.jit(node2vec_walk, static_argnames=("length", "p", "q"))


def directed(name: str) -> Graph:
    return sort_rows(from_edges(*AWKWARD[name]))


def awkward() -> Graph:
    """Walked both ways but for 6 -> 0: a triangle, a square, parallel edges, self-loops, a leaf, an end."""
    pairs = [(0, 1), (1, 2), (2, 0), (2, 3), (3, 4), (4, 5), (5, 2), (1, 2), (0, 6)]
    src, dst = np.array([*pairs, *((b, a) for a, b in pairs[:-1]), (3, 3), (0, 0)]).T
    return sort_rows(from_edges(dst, src, NUM_NODES))  # a step goes from src to dst


def multiplicity(graph: Graph) -> np.ndarray:
    """`[v, x]`: how many edges lead a step from `v` to `x`."""
    src, dst = map(np.asarray, edges(graph))
    table = np.zeros((graph.num_nodes,) * 2)
    np.add.at(table, (dst, src), 1)
    return table


def agrees(counts: np.ndarray, chances: np.ndarray) -> bool:
    """Whether each row of counts comes from its row of chances: exactly none where the chance is 0."""
    assert (counts[chances == 0] == 0).all()
    expected = chances * counts.sum(-1, keepdims=True)
    cells = expected > 0
    assert (expected[cells] > 5).all()
    chi2 = ((counts - expected)[cells] ** 2 / expected[cells]).sum()
    freedom = cells.sum() - (cells.any(-1)).sum()
    return stats.chi2.sf(chi2, freedom) > 1e-3 if freedom else True


def transitions(nodes: np.ndarray, mask: np.ndarray, order: int) -> np.ndarray:
    """How often each run of `order + 1` nodes was walked."""
    counts = np.zeros((NUM_NODES,) * (order + 1))
    for t in range(nodes.shape[1] - order):
        valid = mask[:, t + order]
        np.add.at(counts, tuple(nodes[valid, t + i] for i in range(order + 1)), 1)
    return counts


def normalized(weights: np.ndarray) -> np.ndarray:
    return weights / np.maximum(weights.sum(-1, keepdims=True), 1e-300)


FIRST = ["no edges", "isolated nodes", "self-loops", "parallel edges", "random"]


@pytest.mark.parametrize("name", FIRST)
def test_first_order_steps_are_those_of_the_chain(name: str):
    graph = directed(name)
    nodes, mask = map(np.asarray, walks(jax.random.key(0), graph, STARTS, LENGTH))
    counts = transitions(nodes, mask, 1)
    assert agrees(counts, normalized(multiplicity(graph)) * (counts.sum(1, keepdims=True) > 0))


@pytest.mark.slow
@pytest.mark.parametrize(("p", "q"), STEPS)
def test_node2vec_steps_are_those_of_the_paper(p: float, q: float):
    graph = awkward()
    nodes, mask = map(np.asarray, second(jax.random.key(1), graph, STARTS, LENGTH, p=p, q=q))
    edge = multiplicity(graph)
    assert agrees(transitions(nodes[:, :2], mask[:, :2], 1), normalized(edge))  # the first step is uniform
    bias = np.where(edge > 0, 1.0, 1 / q)  # [t, x]
    bias[np.diag_indices(NUM_NODES)] = 1 / p  # x = t, a neighbor of itself or not
    chances = normalized(bias[:, None, :] * edge[None, :, :])  # [t, v, x]
    counts = transitions(nodes, mask, 2)
    assert agrees(counts, chances * (counts.sum(-1, keepdims=True) > 0))
    if (p, q) != (1, 1):  # and the test can tell it from the first-order walk
        assert not agrees(counts, normalized(np.broadcast_to(edge, counts.shape)) * (chances > 0))


def test_node2vec_on_one_way_edges_asks_where_steps_lead():
    """From 0 to 1, then to 2 or 3: a step leads from 0 to 2, and one from 3 to 0."""
    graph = sort_rows(from_edges(*np.array([(1, 0), (2, 1), (3, 1), (2, 0), (0, 3)]).T, NUM_NODES))
    nodes, _ = second(jax.random.key(2), graph, np.zeros(ROWS, np.int32), 2, p=1.0, q=4.0)
    last = np.asarray(nodes)[np.asarray(nodes)[:, 1] == 1, 2]
    assert stats.chisquare(np.bincount(last)[2:], np.array([0.8, 0.2]) * len(last)).pvalue > 1e-3


def test_node2vec_never_rejects_the_way_back():
    """A walk that hardly ever returns still leaves a leaf at once, where there is no other way."""
    star = symmetrize(from_edges([0] * 7, range(1, 8), NUM_NODES))
    nodes = np.asarray(second(jax.random.key(0), star, STARTS, LENGTH, p=1e6, q=1.0).nodes)
    from_leaves = nodes[nodes[:, 0] != 0]
    assert (from_leaves[:, 1::2] == 0).all()
    assert (from_leaves[:, 2] == from_leaves[:, 0]).mean() < 1e-3


@pytest.mark.parametrize("name", FIRST[:3])
@pytest.mark.parametrize("walk", [walks, partial(second, p=1.0, q=1.0)], ids=["first", "second"])
def test_a_walk_starts_at_its_start_and_ends_where_no_edge_leads_on(name: str, walk):
    graph = directed(name)
    nodes, mask = walk(jax.random.key(0), graph, STARTS, LENGTH)
    nodes, mask, degree = np.asarray(nodes), np.asarray(mask), np.diff(np.asarray(graph.indptr))
    np.testing.assert_array_equal(nodes[:, 0], STARTS)
    assert mask[:, 0].all()
    np.testing.assert_array_equal(mask[:, 1:], mask[:, :-1] & (degree[nodes[:, :-1]] > 0))
    assert (nodes[:, 1:] == nodes[:, :-1])[~mask[:, 1:]].all()


def chain(graph: Graph, start: int) -> np.ndarray:
    """The steps of a walk with restart, the jump left out."""
    steps = normalized(multiplicity(graph))
    steps[steps.sum(1) == 0, start] = 1
    return steps


@pytest.mark.parametrize(("name", "restart"), [("isolated nodes", 0.15), ("random", 0.5)])
def test_the_restart_chain_is_the_one_described(name: str, restart: float):
    graph, start = directed(name), 1
    starts = np.full(ROWS, start, np.int32)
    nodes, mask = map(np.asarray, walks(jax.random.key(4), graph, starts, 6, restart=restart))
    assert mask.all()
    unit = np.eye(NUM_NODES)[start]
    x = unit
    for t in range(1, 7):
        x = restart * unit + (1 - restart) * x @ chain(graph, start)
        seen = np.bincount(nodes[:, t], minlength=NUM_NODES)
        assert (seen[x == 0] == 0).all()
        assert stats.chisquare(seen[x > 0], ROWS * x[x > 0]).pvalue > 1e-3, t


def test_visits_tend_to_personalized_pagerank():
    graph, restart = directed("random"), 0.25
    starts = np.asarray(STARTS)[:4000]
    nodes = np.asarray(walks(jax.random.key(5), graph, starts, 400, restart=restart).nodes)
    for start in range(NUM_NODES):
        walk = chain(graph, start)
        unit = np.eye(NUM_NODES)[start]
        exact = np.linalg.solve(np.eye(NUM_NODES) - (1 - restart) * walk.T, restart * unit)
        share = (
            np.bincount(nodes[start::NUM_NODES].ravel(), minlength=NUM_NODES) / nodes[start::NUM_NODES].size
        )
        # 200 000 dependent visits, and the first few steps of 400
        np.testing.assert_allclose(share, exact, atol=0.01)
        np.testing.assert_allclose(exact.sum(), 1)


def test_restarts_at_the_bounds():
    always = walks(jax.random.key(6), directed("random"), STARTS, LENGTH, restart=1.0).nodes
    np.testing.assert_array_equal(always, np.broadcast_to(np.asarray(STARTS)[:, None], always.shape))
    lonely = walks(jax.random.key(6), directed("no edges"), STARTS, LENGTH, restart=0.5)
    assert not np.asarray(lonely.mask)[:, 1:].any()


def test_positive_pairs_are_the_nodes_of_the_walks():
    graph, starts, key = directed("self-loops"), np.asarray(STARTS)[:24], jax.random.key(7)
    pairs = jax.jit(partial(positive_pairs, walks=3, length=LENGTH))
    partners, mask = map(np.asarray, pairs(key, graph, starts))
    nodes, valid = map(np.asarray, walks(key, graph, np.repeat(starts, 3), LENGTH))
    assert partners.shape == mask.shape == (24, 3 * LENGTH)
    for row, start in enumerate(starts):
        own = slice(3 * row, 3 * row + 3)
        walked = nodes[own, 1:][valid[own, 1:]]
        assert partners[row][mask[row]].tolist() == walked[walked != start].tolist()
    assert mask.any()
    assert not mask.all()


def test_positive_pairs_by_default_are_those_of_the_paper():
    partners, mask = jax.eval_shape(positive_pairs, jax.random.key(0), directed("random"), STARTS[:3])
    assert partners.shape == mask.shape == (3, 50 * 5)


def test_hubs_beyond_what_floats_can_count():
    """Node 0 leads to 1 and 2 by 2^24 + 3 edges each, in two blocks; an edge leads back from each of them."""
    half = 2**24 + 3
    indices = np.concatenate([np.repeat(np.array([1, 2], np.int32), half), np.zeros(2, np.int32)])
    indptr = jax.device_put(np.array([0, 2 * half, 2 * half + 1, 2 * half + 2], np.int32))
    graph = SortedGraph(indptr, jax.device_put(indices))
    starts = np.ones(ROWS, np.int32)
    nodes = np.asarray(walks(jax.random.key(8), graph, starts, 2).nodes)
    assert stats.binomtest(int((nodes[:, 2] == 1).sum()), ROWS, 0.5).pvalue > 1e-3
    indices = indices.copy()  # a device array may share the first one's memory
    indices[1:half] = 2
    rare = SortedGraph(indptr, jax.device_put(indices))  # one edge of 2^25 leads back, likelier by 2^19
    nodes = np.asarray(second(jax.random.key(9), rare, starts, 2, p=2.0**-19, q=1.0).nodes)
    back = 2**19 / (2**19 + 2 * half - 1)
    assert stats.binomtest(int((nodes[:, 2] == 1).sum()), ROWS, back).pvalue > 1e-3


@pytest.mark.slow
def test_one_trace_for_many_calls_and_vmap_equals_a_loop():
    traces = []

    def both(key, graph):
        traces.append(1)
        return random_walk(key, graph, STARTS, LENGTH), node2vec_walk(
            key, graph, STARTS, LENGTH, p=0.25, q=4.0
        )

    mapped = jax.jit(jax.vmap(both, in_axes=(0, None)))
    graph = awkward()
    other = sort_rows(graph._replace(indices=jax.device_put((np.asarray(graph.indices) + 1) % NUM_NODES)))
    keys = jax.random.split(jax.random.key(10), 2)
    plain, biased = jax.tree.map(np.asarray, mapped(keys, graph))
    assert not np.array_equal(plain.nodes, mapped(keys, other)[0].nodes)
    assert len(traces) == 1
    for row, key in enumerate(keys):
        np.testing.assert_array_equal(plain.nodes[row], walks(key, graph, STARTS, LENGTH).nodes)
        np.testing.assert_array_equal(
            biased.nodes[row], second(key, graph, STARTS, LENGTH, p=0.25, q=4.0).nodes
        )
    assert not np.array_equal(biased.nodes[0], biased.nodes[1])


def test_edge_data_is_not_read():
    src, dst, _ = AWKWARD["random"]
    weighted = sort_rows(from_edges(src, dst, NUM_NODES))
    weighted = weighted._replace(edge_data={"weight": np.full(len(src), np.nan, np.float32)})
    got = walks(jax.random.key(11), weighted, STARTS, LENGTH)
    jax.tree.map(
        np.testing.assert_array_equal, got, walks(jax.random.key(11), directed("random"), STARTS, LENGTH)
    )


def test_no_implicit_promotion(strict_dtypes):
    graph = awkward()
    first = jax.eval_shape(lambda key: random_walk(key, graph, STARTS, 3, restart=0.5), jax.random.key(0))
    other = jax.eval_shape(lambda key: node2vec_walk(key, graph, STARTS, 3, p=0.5, q=2.0), jax.random.key(0))
    pairs = jax.eval_shape(lambda key: positive_pairs(key, graph, STARTS), jax.random.key(0))
    for nodes, mask in (first, other, pairs):
        assert nodes.dtype == jnp.int32
        assert mask.dtype == jnp.bool_


def test_bad_options_are_refused():
    key, graph, starts = jax.random.key(0), awkward(), STARTS[:2]
    with pytest.raises(ValueError, match="number of steps of a walk, at least 1, got 0"):
        random_walk(key, graph, starts, 0)
    with pytest.raises(ValueError, match="number of steps of a walk, at least 1, got 0"):
        positive_pairs(key, graph, starts, length=0)
    with pytest.raises(ValueError, match="number of walks from each start, at least 1, got 0"):
        positive_pairs(key, graph, starts, walks=0)
    with pytest.raises(ValueError, match=r"goes back to the start, got 1\.5"):
        random_walk(key, graph, starts, 1, restart=1.5)
    with pytest.raises(ValueError, match=r"p must be in 1e-6 \.\. 1e6, got 0\.0: 1 has no effect"):
        node2vec_walk(key, graph, starts, 1, p=0.0, q=1.0)
    with pytest.raises(ValueError, match=r"q must be in 1e-6 \.\. 1e6, got nan"):
        node2vec_walk(key, graph, starts, 1, p=1.0, q=float("nan"))


@pytest.mark.slow
def test_walks_read_any_graph_that_tells_its_edges_by_number():
    graph, starts = awkward(), STARTS[:100]
    tables, _ = GrowingGraph(graph, np.zeros((NUM_NODES, 1))).tables()
    for restart in (0.0, 0.4):
        walk = partial(walks, jax.random.key(1), starts=starts, length=6, restart=restart)
        got, expected = walk(graph=tables), walk(graph=graph)
        jax.tree.map(np.testing.assert_array_equal, got, expected)
