"""As of a time: the latest of what was before, at every hop, and nothing that came later."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jsage.graph import Graph, GraphBefore, from_edges, sort_by_time, up_to, within
from jsage.graph.adjacency import Adjacency
from jsage.sampling import sample_blocks, sample_blocks_by_node, with_replacement, without_replacement
from jsage.sampling.draws import latest
from jsage.sampling.temporal import Causal, TimedNodes, sample_temporal_blocks

NODES, FANOUTS = 12, (3, 2)
RNG = np.random.default_rng(1)
PAIRS, TIME = RNG.integers(0, NODES, (300, 2)), np.sort(RNG.integers(0, 100, 300))
WHEN = RNG.integers(-1, 110, NODES).astype(np.int32)
KEY = jax.random.key(0)


def events() -> Graph:
    """The last node has no edge; `number` is an event's place among all."""
    return sort_by_time(from_edges(*PAIRS.T, num_nodes=NODES + 1, time=TIME, number=np.arange(len(TIME))))


sampled = {
    draw: jax.jit(partial(sample_temporal_blocks, fanouts=FANOUTS, draw=draw))
    for draw in (latest, without_replacement, with_replacement)
}


def test_neighbors_are_the_latest_of_the_past():
    first, last = sampled[latest](KEY, events(), TimedNodes(np.arange(NODES), WHEN))
    nodes = np.asarray(first.dst)
    np.testing.assert_array_equal(nodes[:NODES], np.arange(NODES))
    times = np.concatenate([WHEN, np.repeat(WHEN, 3)])
    for node, at, src, mask in zip(nodes, times, np.asarray(first.src), np.asarray(first.mask), strict=True):
        past = PAIRS[(PAIRS[:, 1] == node) & (at > TIME), 0][::-1][:2]
        np.testing.assert_array_equal(src[mask], past)
        np.testing.assert_array_equal(src[~mask], node)
    for i, at in enumerate(WHEN):
        past = PAIRS[(PAIRS[:, 1] == i) & (at > TIME), 0][::-1][:3]
        np.testing.assert_array_equal(nodes[NODES + 3 * i :][: len(past)], past)
        assert np.asarray(last.mask)[i].sum() == len(past)


@pytest.mark.parametrize("draw", sampled)
def test_no_slot_holds_what_is_not_yet(draw):
    first, last = sampled[draw](KEY, events(), TimedNodes(np.arange(NODES), WHEN))
    for block, when in ((last, WHEN), (first, np.concatenate([WHEN, np.repeat(WHEN, 3)]))):
        time, mask = np.asarray(block.edge_data["time"]), np.asarray(block.mask)
        assert (time < when[:, None])[mask].all()
        assert mask.sum() > 20


def paths(blocks) -> list[tuple[int, int, int, int, int, int]]:
    """`(seed's time, asked, event)` of both hops of each valid slot of the first block, with their ages."""
    first, last = jax.tree.map(np.asarray, blocks)
    rows, fanout = last.mask.shape
    found = []
    for row, slot in np.argwhere(first.mask[rows:]):
        seed, near = divmod(row, fanout)
        if last.mask[seed, near]:
            hops = (last, seed, near), (first, rows + row, slot)
            found.append(tuple(int(b.edge_data[n][i, j]) for b, i, j in hops for n in ("time", "age")))
    return found


@pytest.mark.parametrize("draw", sampled)
@pytest.mark.parametrize("view", [up_to, within(30), within(30, up_to)])
def test_windows_and_ages_are_as_of_the_seed_or_of_the_event_that_led_there(view, draw):
    seeds = TimedNodes(np.arange(NODES), WHEN)
    own = "up_to" if view is up_to or view(events(), WHEN)._own_time else "before"
    low, high = (0, 30 - 1) if own == "up_to" else (1, 30)
    if view is up_to:
        high = 2**31
    for visible in (view, Causal(view)):
        sample = jax.jit(partial(sample_temporal_blocks, fanouts=FANOUTS, draw=draw, visible=visible))
        found = np.array(paths(sample(KEY, events(), seeds)))
        time, age, before_it, its_age = found.T
        asked = time if isinstance(visible, Causal) else time + age
        np.testing.assert_array_equal(before_it + its_age, asked)
        ages = np.concatenate([age, its_age])
        assert low <= ages.min()
        assert ages.max() <= high
        assert (its_age > 0).any()


def test_causal_hops_find_the_latest_before_each_event():
    seeds = TimedNodes(np.arange(NODES), WHEN)
    sample = jax.jit(partial(sample_temporal_blocks, fanouts=FANOUTS, visible=Causal()))
    first, last = jax.tree.map(np.asarray, sample(KEY, events(), seeds))
    when = np.concatenate([WHEN, np.where(last.mask, last.edge_data["time"], WHEN[:, None]).ravel()])
    for node, at, src, mask in zip(first.dst, when, first.src, first.mask, strict=True):
        past = PAIRS[(PAIRS[:, 1] == node) & (at > TIME), 0][::-1][:2]
        np.testing.assert_array_equal(src[mask], past)


@pytest.mark.slow
@pytest.mark.parametrize("sample", [sample_blocks, sample_blocks_by_node])
def test_samplers_read_the_graph_of_the_edges_before(sample):
    """Under one time for all: what any sampler draws from the graph that was cut there."""
    graph, seeds = events(), jnp.arange(NODES + 1)
    for time in (0, 1, 50, 100):
        early = time > TIME
        values = {"time": TIME[early], "number": np.arange(early.sum())}
        cut = from_edges(*PAIRS[early].T, num_nodes=NODES + 1, **values)
        before = GraphBefore(graph, jnp.int32(time))
        assert isinstance(before, Adjacency)
        got, expected = (jax.jit(partial(sample, fanouts=FANOUTS))(KEY, g, seeds) for g in (before, cut))
        for block, other in zip(got, expected, strict=True):
            np.testing.assert_array_equal(block.mask, other.mask)
            numbers = (np.where(b.mask, b.edge_data["number"], -1) for b in (block, other))
            np.testing.assert_array_equal(*numbers)


def test_the_degree_is_what_a_search_says():
    graph = events()
    nodes, when = (part.ravel() for part in np.meshgrid(np.arange(NODES + 1), np.arange(-1, 102)))
    found = jax.jit(lambda graph, nodes, when: GraphBefore(graph, when).degrees(nodes))(graph, nodes, when)
    indptr, at = np.asarray(graph.indptr), np.asarray(graph.edge_data["time"])
    expected = [np.searchsorted(at[indptr[v] : indptr[v + 1]], t) for v, t in zip(nodes, when, strict=True)]
    np.testing.assert_array_equal(found, expected)


def test_a_fanout_must_be_positive():
    with pytest.raises(ValueError, match="a fanout is a positive number of neighbors, got 0"):
        sample_temporal_blocks(KEY, events(), TimedNodes(jnp.arange(2), jnp.arange(2)), (0,))
    with pytest.raises(ValueError, match="expected one fanout a layer, got none"):
        sample_temporal_blocks(KEY, events(), TimedNodes(jnp.arange(2), jnp.arange(2)), ())
