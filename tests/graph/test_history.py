"""Counts and ages as of a time against plain comparisons of the list of events."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import AWKWARD

from jsage.graph import (
    Graph,
    GrowingGraph,
    PairSortedGraph,
    from_edges,
    node_past,
    pair_past,
    reverse,
    sort_by_time,
    sort_pairs_by_time,
    validate,
)

RANKS = (1, 3, 2)
nodes_past = jax.jit(node_past, static_argnums=3)
pairs_past = jax.jit(pair_past, static_argnums=3)


def events(name: str, kind: type = np.int32) -> tuple[np.ndarray, np.ndarray, np.ndarray, int]:
    """The edges of a graph with times, many of which are equal."""
    src, dst, num_nodes = AWKWARD[name]
    time = np.random.default_rng(1).integers(0, 12, len(src)) * (2**27 if kind is np.int32 else 0.25)
    return src, dst, time.astype(kind), num_nodes


def past(times: np.ndarray, now: Any) -> tuple[int, list[float]]:
    """The definition."""
    earlier = np.sort(times[times < now])[::-1]
    return len(earlier), [now - earlier[rank - 1] if rank <= len(earlier) else -1 for rank in RANKS]


@pytest.mark.parametrize("kind", [np.int32, np.float32])
@pytest.mark.parametrize("name", AWKWARD)
def test_the_past_of_nodes_and_pairs_is_that_of_the_list(name: str, kind: type):
    src, dst, time, n = events(name, kind)
    graph = from_edges(src, dst, n, time=time)
    into, out_of, pairs = sort_by_time(graph), sort_by_time(reverse(graph)), sort_pairs_by_time(graph)
    for table in (into, out_of, pairs):
        validate(table)
    one, other, now = (x.ravel() for x in np.meshgrid(np.arange(n), np.arange(n), np.arange(5)))
    now = (now * 3 * (2**27 if kind is np.int32 else 0.25)).astype(kind)
    asked = jax.device_put((one.astype(np.int32), other.astype(np.int32), now))
    found = {
        "into": nodes_past(into, asked[1], asked[2], RANKS),
        "out of": nodes_past(out_of, asked[0], asked[2], RANKS),
        "pair": pairs_past(pairs, asked[:2], asked[2], RANKS),
    }
    match = {
        "into": dst[:, None] == other,
        "out of": src[:, None] == one,
        "pair": (src[:, None] == one) & (dst[:, None] == other),
    }
    for what, (count, ages) in found.items():
        expected = [past(time[row], at) for row, at in zip(match[what].T, now, strict=True)]
        np.testing.assert_array_equal(count, [number for number, _ in expected], err_msg=what)
        np.testing.assert_array_equal(ages, [values for _, values in expected], err_msg=what)
        assert ages.dtype == kind


def test_what_happens_from_a_time_on_changes_nothing():
    src, dst, time, n = events("random")
    asked = jax.device_put((src, dst, np.full(len(src), 6 * 2**27, np.int32)))
    later = time >= 6 * 2**27
    rng = np.random.default_rng(2)
    other = np.where(later, rng.integers(6, 12, len(time)) * 2**27, time).astype(np.int32)
    ends = [np.where(later, rng.permutation(end), end) for end in (src, dst)]
    found = []
    for graph in (from_edges(src, dst, n, time=time), from_edges(ends[0], ends[1], n, time=other)):
        pair = pairs_past(sort_pairs_by_time(graph), asked[:2], asked[2], RANKS)
        found.append((pair, nodes_past(sort_by_time(graph), asked[1], asked[2], RANKS)))
    jax.tree.map(np.testing.assert_array_equal, *found)
    assert 0 < later.mean() < 1


def test_a_growing_graph_has_the_past_of_the_rebuilt_one():
    src, dst, time, n = events("random")
    order = np.argsort(time, kind="stable")
    src, dst, time = src[order], dst[order], time[order]
    growing = GrowingGraph(
        sort_by_time(from_edges(src[:25], dst[:25], n, time=time[:25])), np.zeros((n, 1), np.float32)
    )
    growing.append_edges(src[25:], dst[25:], {"time": time[25:]})
    nodes, now = jax.device_put((np.arange(n, dtype=np.int32), np.full(n, 9 * 2**27, np.int32)))
    found = nodes_past(growing.tables()[0], nodes, now, RANKS)
    expected = nodes_past(sort_by_time(from_edges(src, dst, n, time=time)), nodes, now, RANKS)
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_shapes_follow_from_what_is_asked():
    src, dst, time, n = events("random")
    graph = sort_by_time(from_edges(src, dst, n, time=time))
    asked = jax.eval_shape(
        lambda nodes: node_past(graph, nodes, jnp.int32(9), ()), np.zeros((2, 3), np.int32)
    )
    assert (asked.counts.shape, asked.ages.shape) == ((2, 3), (2, 3, 0))


def test_rows_are_sorted_once_and_known():
    src, dst, time, n = events("random")
    graph = sort_pairs_by_time(from_edges(src, dst, n, time=time, number=np.arange(len(src))))
    order = np.lexsort([np.arange(len(src)), time, src, dst])
    np.testing.assert_array_equal(graph.edge_data["number"], order)
    np.testing.assert_array_equal(graph.indices, src[order])
    assert sort_pairs_by_time(graph) is graph
    more = {**graph.edge_data, "sign": graph.indices}
    assert isinstance(graph._replace(edge_data=more), PairSortedGraph)
    for other in (graph._replace(indices=graph.indices), graph._replace(edge_data={"time": graph.indices})):
        assert type(other) is Graph


def test_other_graphs_and_ranks_are_refused():
    graph = from_edges([0], [1], 2, time=[5])
    node, time = np.zeros(1, np.int32), np.ones(1, np.int32)
    with pytest.raises(TypeError, match="sort_by_time"):
        jax.eval_shape(lambda at, now: node_past(graph, at, now), node, time)
    with pytest.raises(TypeError, match="sort_pairs_by_time"):
        jax.eval_shape(lambda at, now: pair_past(graph, (at, at), now), node, time)
    with pytest.raises(ValueError, match="from the latest event, 1"):
        jax.eval_shape(lambda at, now: node_past(sort_by_time(graph), at, now, (0,)), node, time)
    with pytest.raises(ValueError, match="have no 'time'"):
        sort_pairs_by_time(from_edges([0], [1], 2))
