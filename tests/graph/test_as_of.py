"""Views as of a time: what is visible of each row, by a loop over its edges in Python's own integers."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jsage.graph import GraphBefore, GraphUpTo, before, from_edges, sort_by_time, up_to, within
from jsage.graph.adjacency import Adjacency
from jsage.graph.overlay import KnownNodes

LEAST, MOST = -(2**31), 2**31 - 1
RNG = np.random.default_rng(3)
TIMES = np.concatenate([RNG.integers(0, 40, 180), [LEAST, LEAST, LEAST + 1, -1, 0, MOST - 1, MOST, MOST]])
PAIRS = RNG.integers(0, 6, (len(TIMES), 2))
ASKED = np.array([LEAST, LEAST + 1, LEAST + 7, -1, 0, 5, 17, 39, 40, MOST - 1, MOST])
VIEWS = {"before": before, "up_to": up_to, "within": within, "within, up_to": partial(within, visible=up_to)}

EVENTS = sort_by_time(from_edges(*PAIRS.T, num_nodes=7, time=TIMES, number=np.arange(len(TIMES))))


def visible(name: str, time: int, width: int | None, asked: int) -> bool:
    """Whether an edge of a time is seen at the time asked."""
    late = time <= asked if "up_to" in name else time < asked
    if width is None:
        return late
    return late and (time > asked - width if "up_to" in name else time >= asked - width)


def expected(name: str, width: int | None, node: int, asked: int) -> list[int]:
    """The numbers of the edges into a node, the earliest first."""
    order = np.argsort(TIMES, kind="stable")
    return [i for i in order.tolist() if PAIRS[i, 1] == node and visible(name, int(TIMES[i]), width, asked)]


@jax.jit
def read(view, nodes):
    degree = view.degrees(nodes)
    offset = jnp.broadcast_to(jnp.arange(len(TIMES)), (len(nodes), len(TIMES)))
    valid = offset < degree[:, None]
    return degree, valid, view.edges_at(nodes, offset, valid)[1]


@pytest.mark.parametrize("width", [None, 1, 9, 2**30, MOST])
@pytest.mark.parametrize("view", [before, up_to])
def test_rows_are_those_of_a_loop_at_the_ends_of_int32_too(view, width):
    nodes, asked = (part.ravel().astype(np.int32) for part in np.meshgrid(np.arange(7), ASKED))
    graph = view(EVENTS, asked) if width is None else within(width, view)(EVENTS, asked)
    degree, valid, data = jax.tree.map(np.asarray, read(graph, nodes))
    for row, (node, at) in enumerate(zip(nodes, asked.tolist(), strict=True)):
        numbers = expected(view.__name__, width, node, at)
        assert degree[row] == len(numbers)
        np.testing.assert_array_equal(data["number"][row][valid[row]], numbers)
        ages = [min(at - int(TIMES[i]), MOST) for i in numbers]
        np.testing.assert_array_equal(data["age"][row][valid[row]], ages)
        assert not data["age"][row][~valid[row]].any()


def test_windows_that_follow_one_another_share_no_edge_and_leave_none_out():
    nodes, ends = np.arange(7), range(0, 60, 10)
    for view in (before, up_to):
        parts = [read(within(10, view)(EVENTS, jnp.int32(end)), nodes)[0] for end in ends]
        past = [read(view(EVENTS, jnp.int32(end)), nodes)[0] for end in (-10, 50)]
        np.testing.assert_array_equal(sum(map(np.asarray, parts)), np.asarray(past[1]) - np.asarray(past[0]))


def test_a_view_is_an_adjacency_of_known_nodes():
    view = GraphUpTo(EVENTS, jnp.int32(3))
    assert isinstance(view, Adjacency)
    assert isinstance(view, KnownNodes)
    assert (view.num_nodes, view.id_limit, set(view.edge_data)) == (7, 7, {"time", "number"})
    assert type(jax.tree.map(lambda x: x, view)) is GraphUpTo


def test_times_of_floats_and_of_narrow_integers():
    for dtype, asked in ((np.float32, np.float32(2.5)), (np.int8, np.int32(2**30)), (np.int8, np.int8(100))):
        times = np.array([-100, 1, 2], dtype)
        graph = sort_by_time(from_edges([1, 1, 1], [0, 0, 0], 2, time=times))
        degree, valid, data = read(GraphBefore(graph, asked, 3), np.array([0]))
        late = (times < asked) & (times >= float(asked) - 3)
        assert int(degree[0]) == late.sum()
        ages = np.asarray(data["age"])[np.asarray(valid)]
        np.testing.assert_array_equal(ages, float(asked) - times[late].astype(float))


def test_times_of_another_kind_are_refused():
    rows = jnp.array([0])
    with pytest.raises(TypeError, match=r"int32, got float32 and int32: convert all alike"):
        GraphBefore(EVENTS, jnp.float32(3)).degrees(rows)
    with pytest.raises(TypeError, match="of the edges' times, int32, got uint32"):
        GraphBefore(EVENTS, jnp.uint32(3)).degrees(rows)
    with pytest.raises(TypeError, match="of the edges' times, int32, got int32 and float32"):
        GraphBefore(EVENTS, jnp.int32(3), 0.5).degrees(rows)
    with pytest.raises(ValueError, match=r"each of the rows \(1,\), got \(3,\) times"):
        GraphBefore(EVENTS, jnp.arange(3)).degrees(rows)
    with pytest.raises(ValueError, match="a window is a positive number of ticks, got 0"):
        within(0)
    with pytest.raises(TypeError, match="rows sorted by time, and a GraphBefore need not have them"):
        before(before(EVENTS, jnp.int32(3)), jnp.int32(3)).degrees(rows)


def test_data_called_age_are_refused():
    graph = sort_by_time(from_edges([1], [0], 2, time=[1], age=[3]))
    with pytest.raises(ValueError, match="edge_data has an 'age'"):
        read(before(graph, jnp.int32(2)), np.array([0]))
