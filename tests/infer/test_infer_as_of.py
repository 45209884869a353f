"""Exact inference and new nodes as of a time: those of the graph that is cut there, ages included."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jsage import embed_all, embed_new
from jsage.graph import NewNodes, before, from_edges, sort_by_time, up_to, within
from jsage.nn import GraphSAGE, SAGEConv
from jsage.sampling import exact_blocks, full_block, measure_hop_sizes

NODES, RNG = 12, np.random.default_rng(4)
PAIRS, TIME = RNG.integers(0, NODES, (150, 2)), RNG.integers(0, 60, 150)
X = RNG.normal(size=(NODES, 3)).astype(np.float32)
FANCY = RNG.normal(size=(150, 1)).astype(np.float32)
VIEWS = {"before": before, "up_to": up_to, "within": within(20), "within, up_to": within(20, up_to)}
MODEL = GraphSAGE(5, 2, conv=partial(SAGEConv, edge="age"))


def seen(view: str, time: np.ndarray, now: int) -> np.ndarray:
    late = time <= now if "up_to" in view else time < now
    return late & (time > now - 20 if "up_to" in view else time >= now - 20) if "within" in view else late


def cut(view: str, now: int, pairs=PAIRS, time=TIME, nodes: int = NODES):
    """The graph of what is visible, its ages given."""
    keep = seen(view, time, now)
    return from_edges(*pairs[keep].T, nodes, time=time[keep], age=(now - time[keep]).astype(np.float32))


EVENTS = sort_by_time(from_edges(*PAIRS.T, NODES, time=TIME.astype(np.float32)))
PARAMS = jax.jit(MODEL.init)(jax.random.key(0), X, (full_block(cut("before", 99)),) * 2)


@pytest.mark.parametrize("view", VIEWS)
def test_rows_are_those_of_the_graph_that_is_cut_there(view: str):
    for now in (0, 30, 61):
        graph = VIEWS[view](EVENTS, jnp.float32(now))
        expected = np.asarray(embed_all(MODEL, PARAMS, cut(view, now), X))
        np.testing.assert_allclose(embed_all(MODEL, PARAMS, graph, X), expected, atol=1e-5)
        some = embed_all(MODEL, PARAMS, graph, X, nodes=np.array([3, 7]))
        np.testing.assert_allclose(some, expected[[3, 7]], atol=1e-5)


def test_blocks_of_whole_neighborhoods_are_those_of_the_graph_that_is_cut_there():
    graph, seeds = before(EVENTS, jnp.float32(30)), jnp.array([3, 7])
    rooms = measure_hop_sizes(graph, seeds, 2)
    (first, last), taken = exact_blocks(graph, seeds, rooms)
    assert rooms == measure_hop_sizes(cut("before", 30), seeds, 2)
    assert (np.asarray(last.edge_data["time"])[: int(taken[0, 0])] < 30).all()
    count = int(taken[0, 1])
    rows = np.asarray(first.dst)[:count]
    np.testing.assert_array_equal(first.degrees()[:count], np.diff(cut("before", 30).indptr)[rows])


@pytest.mark.parametrize("view", ["before", "within, up_to"])
def test_new_nodes_read_what_is_visible_of_the_graph_and_of_their_own_events(view: str):
    now, rng = 30, np.random.default_rng(9)
    src, dst = rng.integers(-2, NODES, 40), rng.integers(-2, NODES, 40)
    time, x = rng.integers(0, 60, 40), rng.normal(size=(2, 3)).astype(np.float32)
    new = NewNodes(x, src=src, dst=dst, edge_data={"time": time})
    graph = VIEWS[view](EVENTS, jnp.float32(now))
    ends = [np.where(ids < 0, NODES - 1 - ids, ids) for ids in (src, dst)]
    pairs = np.concatenate([PAIRS, np.stack(ends, 1)])
    whole = cut(view, now, pairs, np.concatenate([TIME, time]), NODES + 2)
    expected = embed_all(MODEL, PARAMS, whole, np.concatenate([X, x]))[NODES:]
    np.testing.assert_allclose(embed_new(MODEL, PARAMS, graph, X, new), expected, atol=1e-5)
    sampled = embed_new(MODEL, PARAMS, graph, X, new, fanouts=(200, 200))
    np.testing.assert_allclose(sampled, expected, atol=1e-5)


def test_a_time_for_each_node_is_refused():
    graph = before(EVENTS, jnp.zeros(NODES))
    with pytest.raises(ValueError, match="exact inference has one row a node, whatever led there"):
        embed_all(MODEL, PARAMS, graph, X)
    with pytest.raises(ValueError, match="a whole neighborhood has one row a node"):
        exact_blocks(graph, jnp.arange(NODES), ())
    new = NewNodes(X[:1], src=[1], dst=[-1], edge_data={"time": [3]})
    with pytest.raises(ValueError, match="a graph with new nodes has one row a node"):
        embed_new(MODEL, PARAMS, graph, X, new)
