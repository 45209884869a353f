"""Events drawn at their owners as of each seed's time: those that one device draws, edge for edge."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec
from sharding import DEVICES, placements, places

from jsage.blocks import as_tree
from jsage.graph import before, contiguous, from_edges, sort_by_time, up_to, within
from jsage.parallel import (
    OwnersDraw,
    ShardedGraph,
    ShardedTimeSortedGraph,
    TimedLocations,
    make_mesh,
    on_mesh,
    replicate,
    sample_temporal_blocks,
    shard_graph,
    split,
)
from jsage.sampling import ByNode, Causal, TimedNodes, latest, threefry_key, without_replacement
from jsage.sampling import sample_temporal_blocks as sample_alone

NODES, SEEDS, FANOUTS = 61, 24, (4, 3)
RNG = np.random.default_rng(2)
EVENTS = sort_by_time(
    from_edges(*RNG.integers(0, NODES, (2, 700)), NODES, time=RNG.integers(0, 50, 700), number=np.arange(700))
)
PLACEMENT = placements(NODES)["permuted"]
WAYS = {
    "latest before": OwnersDraw(),
    "uniform in causal windows": OwnersDraw(ByNode(), Causal(within(20, up_to))),
}


def sampled(mesh, how, *given):
    """Ids and blocks of all devices, one after the other."""

    def draw(key, graph, seeds):
        return sample_temporal_blocks(key, graph, seeds, FANOUTS, (2, 2), how)[:2]

    return jax.jit(on_mesh(draw, mesh, given, PartitionSpec("data")))(*given)


@pytest.mark.parametrize("way", WAYS)
def test_sampled_events_and_ids_are_those_of_one_device(way: str):
    """Few nodes at few times, so that most are asked for twice, and some at two times."""
    mesh, how, key = make_mesh(), WAYS[way], jax.random.key(3)
    graph = shard_graph(EVENTS, PLACEMENT, mesh)
    assert type(graph) is ShardedTimeSortedGraph
    nodes = RNG.integers(0, 8, SEEDS).astype(np.int32)
    when = RNG.choice([20, 21, 49, 60], SEEDS).astype(np.int32)
    seeds = TimedLocations(places(PLACEMENT, nodes), split(jnp.asarray(when), mesh))
    ids, blocks = sampled(mesh, how, replicate(key, mesh), graph, seeds)
    found = PLACEMENT.nodes(*map(np.asarray, ids)).reshape(DEVICES, -1)
    alone = jax.jit(partial(sample_alone, fanouts=FANOUTS, draw=how.draw, visible=how.visible))
    per, size = SEEDS // DEVICES, [block.mask.shape[0] // DEVICES for block in blocks]
    for device in range(DEVICES):
        own = slice(device * per, (device + 1) * per)
        expected = alone(threefry_key(key), EVENTS, TimedNodes(nodes[own], when[own]))
        np.testing.assert_array_equal(found[device], as_tree(expected[0])[0])
        for block, other, rows in zip(blocks, expected, size, strict=True):
            part = slice(device * rows, (device + 1) * rows)
            np.testing.assert_array_equal(np.asarray(block.mask)[part], other.mask)
            for name in ("number", "age", "time"):
                ours, theirs = np.asarray(block.edge_data[name])[part], np.asarray(other.edge_data[name])
                np.testing.assert_array_equal(ours[other.mask], theirs[other.mask])


def test_graphs_without_order_and_other_draws_are_refused():
    mesh = make_mesh(jax.devices()[:1])
    graph = shard_graph(EVENTS, placement := placements(NODES)["contiguous"], make_mesh())
    assert type(graph._replace(edge_data={})) is ShardedGraph
    plain = from_edges([1], [0], 2, time=[3])
    assert type(shard_graph(plain, contiguous(2, 1), mesh)) is ShardedGraph
    seeds = TimedLocations(places(placement, np.zeros(8, int)), split(jnp.zeros(8, jnp.int32), make_mesh()))
    for given, how, said in (
        (graph, OwnersDraw(without_replacement), "owners draw what depends on nodes and times alone"),
        (
            ShardedGraph(*graph),
            OwnersDraw(latest, before),
            "by time, and a ShardedGraph need not",
        ),
    ):
        with pytest.raises(TypeError, match=said):
            sampled(make_mesh(), how, replicate(jax.random.key(0), make_mesh()), given, seeds)
