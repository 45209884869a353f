"""The bill in bytes: that of the arrays themselves."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sharding import DEVICES, placements

from jsage.data import power_law_communities
from jsage.parallel import (
    Workload,
    estimate_memory,
    exchange_bytes,
    make_mesh,
    most_sampled,
    safe_capacity,
    shard_features,
    shard_graph,
)
from jsage.parallel.place import pack

NODES, WIDTH = 90, 6
LOAD = Workload(NODES, 400, DEVICES, WIDTH, itemsize=4)


def nbytes(tree) -> int:
    """Bytes on one device."""
    return sum(x.addressable_shards[0].data.nbytes for x in jax.tree.leaves(tree))


@pytest.fixture(scope="module")
def dataset():
    return power_law_communities(NODES, 400, num_classes=3, num_features=WIDTH)


@pytest.mark.parametrize(
    ("hot", "lanes", "dtype"), [(0, 1, np.float32), (9, 1, np.float32), (5, 8, np.float16)]
)
def test_tables_and_cache_are_what_the_bill_says(dataset, hot, lanes, dtype):
    placement, mesh = replace(placements(NODES)["permuted"], most=-(-NODES // DEVICES)), make_mesh()
    degrees = np.diff(dataset.graph.indptr)
    most = max(int(degrees[placement.globals(shard)].sum()) for shard in range(DEVICES))
    graph = shard_graph(dataset.graph, placement, mesh)
    features = np.asarray(dataset.features).astype(dtype)
    table = shard_features(features, placement, mesh, hot=most_sampled(dataset.graph, hot), lanes=lanes)
    num_edges = dataset.graph.num_edges
    load = LOAD._replace(num_edges=num_edges, uneven=most * DEVICES / num_edges, num_cached=hot, lanes=lanes)
    items = estimate_memory(load._replace(itemsize=np.dtype(dtype).itemsize))
    assert items["graph"] == nbytes(graph)
    assert items["features"] == nbytes(table.rows)
    assert items["cache"] == nbytes(table.hot)


@pytest.mark.parametrize(
    ("num_nodes", "shards", "word"), [(2**31, 8, 4), (2**31 + 8, 8, 6), (2**32, 8, 6), (2**32, 2**16, 8)]
)
def test_places_take_as_many_bytes_as_they_need(num_nodes, shards, word):
    assert Workload(num_nodes, 8, shards, 1).word_bytes == word
    wide, narrow = (
        estimate_memory(Workload(num_nodes, edges, shards, 1))["graph"] for edges in (2 * shards, shards)
    )
    assert wide - narrow == word


def test_the_words_of_a_large_graph_are_those_of_the_bill():
    words = pack(np.array([7, 0]), np.array([2**29 - 1, 5]), rows=2**29, shards=8)
    assert sum(word.nbytes for word in words) == 2 * Workload(2**32, 2, 8, 1).word_bytes


def test_names_beyond_32_bits_take_two_words():
    near, far = (estimate_memory(Workload(num_nodes, 0, 8, 1))["graph"] for num_nodes in (2**32, 2**32 + 8))
    assert far - near == 2 * 4 + 4 * (2**29 + 1)


def test_the_model_and_the_batches_are_counted():
    items = estimate_memory(LOAD._replace(num_parameters=7, steps=3, seeds=10))
    state = {"params": jnp.ones(7), "moments": (jnp.ones(7), jnp.ones(7))}
    batches = *(jnp.zeros((3, 10), jnp.int32),) * 3, jnp.zeros((3, 10), bool)
    assert items["model"] == sum(x.nbytes for x in jax.tree.leaves(state))
    assert items["batches"] == sum(x.nbytes for x in batches)


def test_exchanges_are_of_what_is_asked_and_of_what_is_answered():
    load = LOAD._replace(seeds=4, fanouts=(3, 2), capacities=(1, 3, 5))
    ids, answers = np.array([1, 3, 5]) * 4, [1 * 3 * 4, 3 * 2 * 4, 5 * WIDTH * 4]
    assert exchange_bytes(load) == tuple(DEVICES * (ids + answers))
    assert estimate_memory(load)["exchange"] == 2 * max(exchange_bytes(load))
    assert load.frontiers == (4, 16, 48)
    safe = tuple(safe_capacity(size, DEVICES) for size in (4, 16, 48))
    assert exchange_bytes(load._replace(capacities=())) == exchange_bytes(load._replace(capacities=safe))


@pytest.mark.slow
@pytest.mark.parametrize(("num_ids", "shards"), [(1024, 256), (26_624, 64), (4000, 8)])
def test_a_safe_capacity_is_enough_for_ids_spread_at_random_and_not_far_too_much(num_ids, shards):
    """The most of `shards²` counts, in 200 steps: at most one in a hundred may be more."""
    rng, capacity = np.random.default_rng(0), safe_capacity(num_ids, shards)
    most = [rng.multinomial(num_ids, [1 / shards] * shards, size=shards).max() for _ in range(200)]
    assert (np.array(most) > capacity).mean() <= 0.01
    assert capacity < 1.6 * np.max(most) + 8


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"num_edges": 2**34}, r"got 12 rows and 2147483648 edges: take more shards"),
        ({"num_nodes": 2**34}, r"got 2147483648 rows and 50 edges"),
        ({"capacities": (1, 2)}, r"each of 2 hops and one for the features, got \(1, 2\)"),
    ],
)
def test_what_cannot_be_is_refused(changed, message):
    with pytest.raises(ValueError, match=message):
        estimate_memory(LOAD._replace(**changed))
