"""Compacted frontiers of nodes as of times of their own: a row is a node at one time."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jsage.graph import before, from_edges, sort_by_time, up_to, within
from jsage.sampling import (
    TimedNodes,
    deduplicated_loss,
    distinct_hashed,
    latest,
    measure_capacities,
    sample_compact_blocks,
    sample_temporal_blocks,
)
from jsage.train import init_state, make_update

NODES, EVENTS, LAST = 40, 600, 50
FANOUTS = (4, 3, 2)
KEY = jax.random.key(0)
VIEWS = {"before": before, "up_to": up_to, "within": within(20)}


def events():
    """Many events of one time, few nodes, many times a node."""
    rng = np.random.default_rng(0)
    src, dst = rng.integers(0, NODES, (2, EVENTS), np.int32)
    time = rng.integers(0, LAST, EVENTS).astype(np.int32)
    return jax.device_put(sort_by_time(from_edges(src, dst, NODES, time=time)))


def seeds(count: int = 24) -> TimedNodes:
    """Nodes and times that come again, together and apart."""
    rng = np.random.default_rng(1)
    return TimedNodes(
        rng.integers(0, 6, count).astype(np.int32), rng.integers(20, 24, count).astype(np.int32) * 2
    )


def rows(blocks, table):
    """Sums of whole numbers down to the seeds: exact in float32, whatever the layout."""
    h = table
    for block in blocks:
        h = block.own(h) + 2 * block.sum(h) + block.edge_data["age"].sum(1, where=block.mask)[:, None]
    return h


@partial(jax.jit, static_argnums=(2, 3))
def both(graph, seeds, name, capacities):
    view = graph if name == "before" else VIEWS[name](graph, jnp.int32(0))
    table = jnp.arange(2.0 * NODES).reshape(NODES, 2)
    blocks, fits = sample_compact_blocks(KEY, view, seeds, FANOUTS, capacities, draw=latest)
    trees = sample_temporal_blocks(KEY, graph, seeds, FANOUTS, draw=latest, visible=VIEWS[name])
    return rows(blocks, table), rows(trees, table), fits, blocks, trees


@pytest.mark.parametrize("capacities", [(96, 200), (None, 200), (96, None)])
@pytest.mark.parametrize("name", VIEWS)
def test_rows_are_those_of_trees(name, capacities):
    """The latest events are the same ones for all copies of a node at a time."""
    compact, expected, fits, _, _ = both(events(), seeds(), name, capacities)
    assert bool(fits)
    np.testing.assert_array_equal(compact, expected)
    assert len(np.unique(expected, axis=0)) > 10


def test_a_row_is_a_node_at_one_time():
    _, _, fits, (_, middle, last), trees = both(events(), seeds(), "before", (96, 200))
    timed = seeds()
    time = np.repeat(timed.time, FANOUTS[0])
    near = np.asarray(trees[0].dst)[: len(timed.nodes) * (1 + FANOUTS[0])]  # the seeds, then their slots
    pairs = np.stack([near, np.append(timed.time, time)], 1)
    distinct = len(np.unique(pairs, axis=0))
    assert distinct > len(np.unique(near))  # some node at two times
    found = np.append(np.asarray(last.dst), np.asarray(last.src).ravel())
    assert len(np.unique(found)) == distinct
    for row in np.unique(found):
        assert len(np.unique(pairs[found == row], axis=0)) == 1
    assert bool(fits)
    assert middle.num_dst == 96


def test_distinct_pairs_in_the_order_they_came():
    ids, time = np.array([7, 3, 7, 7, 3], np.int32), np.array([1, 1, 2, 1, 1], np.int32)
    distinct = jax.jit(distinct_hashed, static_argnums=1)
    found = distinct(ids, 4, time)
    assert found.ids[:3].tolist() == [7, 3, 7]
    assert found.time[:3].tolist() == [1, 1, 2]
    assert (found.position.tolist(), int(found.size)) == ([0, 1, 2, 0, 1], 3)
    halves = distinct(ids, 4, (time / 2).astype(np.float32))
    assert (halves.position.tolist(), halves.time[:3].tolist()) == ([0, 1, 2, 0, 1], [0.5, 0.5, 1.0])


@pytest.mark.slow
def test_a_loss_takes_trees_where_a_batch_does_not_fit():
    """One program, both ways, with the same value and gradient."""
    graph, optimizer = events(), optax.sgd(0.1)
    table = np.random.default_rng(2).integers(0, 9, (NODES, 2)).astype(np.float32)

    def loss(params, stats, blocks, batch, key):
        out = rows(blocks, params * table).sum() / 1e4
        return out, ({"loss": out, "rows": jnp.float32(blocks[0].num_dst)}, stats)

    def step(graph, state, batch, capacities):
        loss_fn = deduplicated_loss(loss, up_to(graph, jnp.int32(0)), FANOUTS, capacities, draw=latest)
        return make_update(loss_fn, optimizer)(state, batch)

    run = jax.jit(step, static_argnums=3)
    state, batch = init_state(KEY, jnp.ones(()), optimizer), (seeds(),)
    few, more = (run(graph, state, batch, capacities) for capacities in ((96, 200), (8, 200)))
    assert float(few[1]["rows"]) == 200
    assert float(more[1]["rows"]) == 24 * 5 * 4
    np.testing.assert_allclose(few[1]["loss"], more[1]["loss"], rtol=1e-6)
    np.testing.assert_allclose(few[0].params, more[0].params, rtol=1e-6)


@pytest.mark.slow
def test_measured_capacities_are_smaller_than_trees():
    graph, timed = events(), TimedNodes(*(np.tile(part, 10) for part in seeds()))
    found = measure_capacities(KEY, graph, timed, 200, (8, 4), draw=latest)
    assert found[0] is not None
    assert found[0] < 200 * 9
    sample = jax.jit(partial(sample_compact_blocks, fanouts=(8, 4), capacities=found, draw=latest))
    assert bool(sample(KEY, graph, TimedNodes(*(part[:200] for part in timed)))[1])
