"""A growing graph of events: rows stay in order of time, and it reads as the rebuilt one as of any time."""

from functools import partial
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jsage.graph import (
    GraphBefore,
    GrowingGraph,
    Grown,
    TimeSortedGraph,
    TimeSortedGrown,
    from_edges,
    sort_by_time,
)
from jsage.sampling import draws, sample_temporal_blocks
from jsage.sampling.temporal import TimedNodes

NODES, WIDTH = 40, 3


def empty(num_nodes: int = NODES, capacity: tuple[int, int] | None = None, dtype=np.int32) -> GrowingGraph:
    graph = from_edges([], [], num_nodes, time=np.empty(0, dtype), number=np.empty(0, np.int32))
    return GrowingGraph(sort_by_time(graph), np.ones((num_nodes, WIDTH)), capacity)


def stream(seed: int, count: int, dtype=np.int32) -> tuple[np.ndarray, ...]:
    """Events in order of time, many at each, and half of them into three nodes."""
    rng = np.random.default_rng(seed)
    dst = np.where(rng.random(count) < 0.5, rng.integers(0, 3, count), rng.integers(0, NODES, count))
    return rng.integers(0, NODES, count), dst, np.sort(rng.integers(-50, 300, count)).astype(dtype)


def rebuilt(events: tuple[np.ndarray, ...], count: int, num_nodes: int = NODES) -> TimeSortedGraph:
    src, dst, time = (part[:count] for part in events)
    return sort_by_time(from_edges(src, dst, num_nodes, time=time, number=np.arange(count)))


def append(growing: GrowingGraph, events: tuple[np.ndarray, ...], start: int, stop: int) -> None:
    src, dst, time = (part[start:stop] for part in events)
    growing.append_edges(src, dst, {"time": time, "number": np.arange(start, stop)})


before = jax.jit(lambda graph, nodes, time: GraphBefore(graph, time).degrees(nodes))


@pytest.mark.parametrize("dtype", ["int32", "float32"])
def test_rows_are_those_of_the_rebuilt_graph_as_of_any_time(dtype: str):
    events, growing, rng = stream(0, 600, dtype), empty(NODES, (NODES, 200), dtype), np.random.default_rng(1)
    cuts = [0, *np.sort(rng.choice(np.arange(1, 600), 25, replace=False)).tolist(), 600]
    for start, stop in pairwise(cuts):
        append(growing, events, start, stop)
        graph, _ = growing.tables()
        assert isinstance(graph, TimeSortedGrown)
        nodes, when = rng.integers(0, NODES, 64).astype(np.int32), rng.integers(-60, 310, 64).astype(dtype)
        dst, time = (part[:stop] for part in events[1:])
        expected = [((dst == v) & (time < t)).sum() for v, t in zip(nodes, when, strict=True)]
        np.testing.assert_array_equal(before(graph, nodes, when), expected)
        whole = growing.graph()
        assert isinstance(whole, TimeSortedGraph)
        jax.tree.map(np.testing.assert_array_equal, whole, rebuilt(events, stop))


@pytest.mark.parametrize("draw", [draws.latest, draws.without_replacement])
def test_neighborhoods_are_those_of_the_rebuilt_graph(draw):
    events, growing, rng = stream(2, 500), empty(), np.random.default_rng(3)
    sample = jax.jit(partial(sample_temporal_blocks, fanouts=(3, 2), draw=draw))
    for start in range(0, 500, 125):
        append(growing, events, start, start + 125)
        nodes, when = (rng.integers(*ends, 20).astype(np.int32) for ends in ((0, NODES), (-60, 310)))
        seeds, key = TimedNodes(nodes, when), jax.random.key(start)
        got = sample(key, growing.tables()[0], seeds)
        expected = sample(key, rebuilt(events, start + 125), seeds)
        for block, other in zip(got, expected, strict=True):
            np.testing.assert_array_equal(block.mask, other.mask)
            for name in ("time", "number"):  # a number is an edge
                values = (np.where(b.mask, b.edge_data[name], 0) for b in (block, other))
                np.testing.assert_array_equal(*values)


def test_edges_of_one_call_come_in_any_order_and_new_nodes_with_theirs():
    """Undirected events, in both directions one after the other; ties in the order they were given."""
    growing = empty(2)
    growing.append_edges([0, 1, 1], [1, 0, 0], {"time": [5, 7, 5], "number": [0, 1, 2]})
    growing.append_nodes(np.ones((1, WIDTH)), [2, 0, 1], [0, 2, 0], {"time": [7, 3, 8], "number": [3, 4, 5]})
    graph = growing.graph()
    assert graph.edge_data["number"].tolist() == [2, 1, 3, 5, 0, 4]
    assert graph.edge_data["time"].tolist() == [5, 7, 7, 8, 5, 3]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda g: g.append_edges([1, 2, 2], [3, 1, 0], {"time": [9, 9, 6], "number": [0, 1, 2]}),
            "edge 2 -> 0 of time 6 comes after one of 7 into that node: append edges in the order",
        ),
        (
            lambda g: g.append_nodes(np.ones((1, WIDTH)), [3, 4], [4, 0], {"time": [0, 6], "number": [0, 1]}),
            "edge 4 -> 0 of time 6 comes after one of 7",
        ),
        (
            lambda g: g.append_edges([1], [0], {"time": [2**31], "number": [0]}),
            "'time'",
        ),
        (lambda g: g.append_edges([1], [0], {"number": [0]}), r"edge_data must have \['number', 'time'\]"),
    ],
)
def test_an_event_that_comes_late_is_refused_and_nothing_changes(call, message: str):
    growing = empty(4)
    growing.append_edges([1, 2], [0, 0], {"time": [5, 7], "number": [0, 1]})
    kept = growing.graph()
    with pytest.raises(ValueError, match=message):
        call(growing)
    jax.tree.map(np.testing.assert_array_equal, growing.graph(), kept)
    assert growing.num_nodes == 4
    growing.append_edges([3], [0], {"time": [7], "number": [2]})  # the same time is not late


def test_what_is_left_after_a_removal_stays_in_order():
    growing, events = empty(), stream(4, 200)
    append(growing, events, 0, 200)
    growing.remove_edges(events[0][:20], events[1][:20])
    growing.remove_nodes([1])
    row = np.repeat(np.arange(NODES), np.diff(growing.graph().indptr))
    time = np.asarray(growing.graph().edge_data["time"])
    assert (np.diff(time)[row[1:] == row[:-1]] >= 0).all()
    assert 20 < growing.num_edges < 180


def test_other_rows_are_plain():
    graph, _ = empty().tables()
    assert type(graph._replace(edge_data={})) is Grown
    plain = GrowingGraph(from_edges([0], [1], 2, time=[3]), np.ones((2, 1)))
    with pytest.raises(TypeError, match="in rows sorted by time, and a Grown need not have them"):
        GraphBefore(plain.tables()[0], jnp.int32(5)).degrees(jnp.arange(2))
    plain.append_edges([1], [1], {"time": [2]})  # in no order, and not refused


@pytest.mark.parametrize("spread", ["one node", "all nodes", "some of each"])
def test_nothing_recompiles_within_the_capacity(spread: str):
    """Whatever rows the edges go to; and one edge and node more may."""
    count, traces, rng = 900, [], np.random.default_rng(0)
    growing = empty(60, (70, count))

    @jax.jit
    def step(graph, features, seeds):
        traces.append(1)
        return sample_temporal_blocks(jax.random.key(0), graph, seeds, (2,)), features[seeds.nodes]

    seeds, shape = TimedNodes(np.arange(4, dtype=np.int32), np.full(4, 50, np.int32)), None
    for start in range(0, count, 30):
        n, size = growing.num_nodes, 30
        dst = {"one node": np.zeros(size, int), "all nodes": np.arange(start, start + size) % n}.get(
            spread, np.minimum(rng.geometric(0.1, size), n - 1)
        )
        values = {"time": np.full(size, start), "number": np.arange(size)}
        new = np.ones((1 if n < 70 else 0, WIDTH))
        growing.append_nodes(new, rng.integers(0, n, size), dst, values)
        tables = growing.tables()
        step(*tables, seeds)
        shape = shape or jax.tree.map(np.shape, tables)
        assert jax.tree.map(np.shape, tables) == shape
    assert (growing.num_nodes, growing.num_edges, len(traces)) == (70, count, 1)
