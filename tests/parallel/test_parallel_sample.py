"""Adjacency drawn at their owners: those that one device draws, edge for edge."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from sharding import DEVICES, Listed, placements, places, stretched

from jsage.blocks import as_tree
from jsage.graph import Graph, Location, from_edges
from jsage.parallel import (
    ShardedFeatures,
    ShardedGraph,
    assemble,
    fetch,
    make_mesh,
    measure_capacities,
    on_mesh,
    pad_shard,
    replicate,
    sample_blocks,
    sample_neighbors,
    shard_features,
    shard_graph,
)
from jsage.parallel.graph import to_global_ids
from jsage.parallel.place import pack, unpack
from jsage.sampling import choose, node_bits, sample_blocks_by_node

NODES, SEEDS, FANOUTS, EDGES = 61, 24, (4, 3), 600
PLACEMENTS = placements(NODES)
ROWS = PartitionSpec("data")


@pytest.fixture(scope="module")
def mesh():
    return make_mesh()


@pytest.fixture(scope="module")
def crowd() -> Graph:
    """Degrees from 0 to 20; every edge has its number."""
    rng = np.random.default_rng(0)
    dst = np.repeat(np.arange(NODES), rng.integers(0, 21, NODES))
    return from_edges(rng.integers(0, NODES, len(dst)), dst, NODES, number=np.arange(len(dst)))


def shards(crowd, placement, mesh) -> ShardedGraph:
    """The sharded graph with room for as many edges under every placement."""
    graph = shard_graph(crowd, placement, mesh)
    return stretched(graph, {graph.sources[0].shape[0] // DEVICES: EDGES})


def drawn(key, graph, seeds):
    ids, blocks, counts = sample_blocks(key, graph, seeds, FANOUTS, (2, 2))
    return ids, blocks, jax.tree.map(lambda x: x[None], counts)


@pytest.fixture(scope="module")
def program(crowd, mesh):
    """Two ids an owner and a round, compiled once for all placements."""
    given = replicate(jax.random.key(0), mesh), shards(crowd, PLACEMENTS["permuted"], mesh)
    given = *given, places(PLACEMENTS["permuted"], np.zeros(SEEDS, int))
    return jax.jit(on_mesh(drawn, mesh, given, ROWS)).lower(*given).compile()


def edges(blocks, parts: int) -> np.ndarray:
    """The number of every edge that each seed's tree holds, hop by hop; -1 in the padding."""
    first, last = blocks
    near = np.where(last.mask, last.edge_data["number"], -1)
    far = np.where(first.mask, first.edge_data["number"], -1).reshape(parts, -1, FANOUTS[1])
    own, slots = np.split(far, [SEEDS // parts], 1)
    return np.concatenate([near, own.reshape(SEEDS, -1), slots.reshape(SEEDS, -1)], 1)


SEEDS_OF = {
    "random": np.random.default_rng(1).integers(0, NODES, SEEDS),
    "one seed": np.full(SEEDS, 7),
    "some alike": np.random.default_rng(2).integers(0, 8, SEEDS),
}


@pytest.mark.parametrize("seeds", SEEDS_OF)
@pytest.mark.parametrize("name", PLACEMENTS)
def test_sampled_edges_and_ids_are_those_of_one_device(crowd, mesh, program, name, seeds):
    placement, nodes, key = PLACEMENTS[name], SEEDS_OF[seeds].astype(np.int32), jax.random.key(5)
    alone = SAMPLE(key, crowd, nodes, FANOUTS)
    ids, blocks, counts = program(
        replicate(key, mesh), shards(crowd, placement, mesh), places(placement, nodes)
    )
    np.testing.assert_array_equal(edges(blocks, DEVICES), edges(alone, 1))
    found, expected = placement.nodes(*ids), np.asarray(as_tree(alone[0])[0])
    for device in range(DEVICES):
        np.testing.assert_array_equal(found.reshape(DEVICES, -1)[device], expected[own_rows(device)])
    _, hop = counts
    frontier = found.reshape(DEVICES, -1)[:, : SEEDS // DEVICES * (1 + FANOUTS[0])]
    asked = np.array([np.bincount(placement.owners[np.unique(part)], minlength=DEVICES) for part in frontier])
    np.testing.assert_array_equal(hop.distinct, asked.sum(1))
    np.testing.assert_array_equal(hop.overflow, np.maximum(asked - 2, 0).sum(1))
    np.testing.assert_array_equal(hop.rounds, np.full(DEVICES, -(-asked.max() // 2)))


def own_rows(device: int) -> np.ndarray:
    """The rows of the whole batch's tree that are a device's own tree."""
    rows, size = np.arange(SEEDS).reshape(DEVICES, -1)[device], SEEDS
    for fanout in FANOUTS:
        slots = size + rows[:, None] * fanout + np.arange(fanout)
        rows, size = np.concatenate([rows, slots.ravel()]), size * (1 + fanout)
    return rows


SAMPLE = jax.jit(sample_blocks_by_node, static_argnums=3)


def test_a_hop_is_two_exchanges_a_round_and_a_maximum(program):
    """Ids out; neighbors and the numbers of their edges back. All rounds are one loop."""
    text = program.as_text()
    assert text.count(" all-to-all(") == len(FANOUTS) * 3
    assert text.count(" all-reduce(") == len(FANOUTS)
    assert not any(name in text for name in (" all-gather(", " collective-permute(", " reduce-scatter("))


@pytest.mark.parametrize(("rows", "words"), [(9, 1), (2**28, 1), (2**28 + 1, 2)])
def test_places_come_back_from_their_words(rows: int, words: int):
    owner, local = np.array([0, 7, 3, 7]), np.array([0, rows - 1, 5, 0])
    kept = pack(owner, local, rows, DEVICES)
    assert len(kept) == words
    found = jax.jit(unpack, static_argnums=1)(kept, rows)
    np.testing.assert_array_equal(found.owner, owner)
    np.testing.assert_array_equal(found.local, local)


def test_shards_hold_their_nodes_edges_in_order(crowd, mesh):
    placement = PLACEMENTS["three shards empty"]
    graph = jax.tree.map(lambda x: np.asarray(x).reshape(DEVICES, -1), shard_graph(crowd, placement, mesh))
    (sources,), (names,), indptr = graph.sources, graph.names, np.asarray(crowd.indptr)
    for shard in range(DEVICES):
        for row, node in enumerate(placement.globals(shard)):
            into = slice(graph.indptr[shard, row], graph.indptr[shard, row + 1])
            whole = slice(int(indptr[node]), int(indptr[node + 1]))
            found = Location(sources[shard, into] // placement.rows, sources[shard, into] % placement.rows)
            np.testing.assert_array_equal(placement.nodes(*found), np.asarray(crowd.indices)[whole])
            np.testing.assert_array_equal(
                graph.edge_data["number"][shard, into], np.arange(whole.start, whole.stop)
            )
            assert names[shard, row] == node
        rest = graph.indptr[shard, len(placement.globals(shard)) :]
        np.testing.assert_array_equal(rest, np.full(len(rest), rest[0]))


def test_ids_beyond_32_bits_are_pairs_and_draw_by_their_own_names(crowd, mesh):
    """Node `v` is called `v + 5 * 2^32`."""
    placement = PLACEMENTS["permuted"]
    indptr = np.asarray(crowd.indptr)

    def part(shard):
        nodes = placement.globals(shard)
        edge = np.concatenate([np.arange(indptr[v], indptr[v + 1]) for v in nodes])
        owner, local = placement.locate(np.asarray(crowd.indices)[edge])
        ends = np.pad(np.cumsum(np.diff(indptr)[nodes]), (1, 0))
        names, data = to_global_ids(nodes + 5 * 2**32), {"number": edge.astype(np.int32)}
        shard = ShardedGraph(ends, (local, owner.astype(np.int16)), names, data)
        return pad_shard(shard, placement.rows, EDGES)

    graph, seeds = assemble(part, mesh), np.arange(48)
    key = jax.random.key(9)
    given = replicate(key, mesh), graph, places(PLACEMENTS["permuted"], seeds)

    def run(key, graph, seeds):
        return sample_neighbors(key, graph, seeds, 4, 3)[0]

    found = jax.jit(on_mesh(run, mesh, given, ROWS))(*given)
    bits = jax.jit(node_bits, static_argnums=2)(key, seeds, 4, np.full(48, 5))
    offset, mask = jax.jit(choose)(bits, np.diff(indptr)[:48])
    expected = np.where(mask, indptr[:48, None] + offset, 0)
    np.testing.assert_array_equal(found.mask, mask)
    np.testing.assert_array_equal(np.where(mask, found.edge_data["number"], 0), expected)
    sources = np.where(mask, np.asarray(crowd.indices)[expected], seeds[:, None])
    np.testing.assert_array_equal(PLACEMENTS["permuted"].nodes(*found.src), sources)


def test_memory_is_that_of_the_batch_with_more_than_32_bits_of_nodes_and_edges(mesh):
    """Tables of 8 · 2^30 nodes and edges, of which a device reads a few hundred rows: 64 KB beside them."""
    lies, rows, num_edges = NamedSharding(mesh, ROWS), 2**30, 2**30

    def table(length, dtype=jnp.int32, *width):
        return jax.ShapeDtypeStruct((DEVICES * length, *width), dtype, sharding=lies)

    words, names = (table(num_edges), table(num_edges, jnp.int16)), (table(rows, jnp.uint32),) * 2
    graph, ids = ShardedGraph(table(rows + 1), words, names), Location(table(3), table(3))
    given = replicate(jax.random.key(0), mesh), graph, ShardedFeatures(table(rows, jnp.float32, 2)), ids

    def run(key, graph, features, seeds):
        ids, _, _ = sample_blocks(key, graph, seeds, FANOUTS, (4, 8))
        return fetch(features, ids, 8)[0]

    found = jax.jit(on_mesh(run, mesh, given, ROWS)).lower(*given).compile().memory_analysis()
    assert found.argument_size_in_bytes > rows * (4 + 8 + 8 + 4 + 2)
    assert found.temp_size_in_bytes < 2**16


@pytest.mark.slow
def test_capacities_are_the_most_that_batches_need_and_a_little_more(crowd, mesh):
    placement, key, hot = PLACEMENTS["permuted"], jax.random.key(2), np.arange(50)
    graph = shards(crowd, placement, mesh)
    features = shard_features(np.eye(NODES, 4, dtype=np.float32), placement, mesh, hot=hot)
    seeds = np.random.default_rng(3).integers(0, NODES, (3, SEEDS)).astype(np.int32)
    capacities = measure_capacities(key, graph, features, places(placement, seeds, dim=1), FANOUTS, mesh)
    most = np.zeros(3, int)
    for batch, per_device_key in zip(seeds, jax.random.split(key, 3), strict=True):
        tree = np.asarray(as_tree(SAMPLE(per_device_key, crowd, batch, FANOUTS)[0])[0])
        for device in range(DEVICES):
            ids = tree[own_rows(device)]
            for hop, asked in enumerate((ids[:3], ids[:15], ids[~np.isin(ids, hot)])):
                most[hop] = max(most[hop], np.bincount(placement.owners[np.unique(asked)]).max(initial=0))
    expected = np.minimum(np.ceil(np.ceil(1.04 * most) / 8) * 8, (3, 15, 60))
    assert capacities == tuple(expected.astype(int))


@pytest.mark.slow
def test_bad_calls_are_refused(crowd, mesh):
    graph, key = shard_graph(crowd, PLACEMENTS["permuted"], mesh), jax.random.key(0)
    seeds = Location(jnp.zeros(3, jnp.int32), jnp.zeros(3, jnp.int32))
    for fanouts, capacities, message in (
        ((), (), r"one fanout a layer, got none: pass for instance fanouts=\(25, 10\)"),
        ((3, 2), (4,), r"one capacity for each fanout, got fanouts \(3, 2\) and capacities \(4,\)"),
    ):
        with pytest.raises(ValueError, match=message):
            sample_blocks(key, graph, seeds, fanouts, capacities)
    with pytest.raises(ValueError, match="positive number of neighbors, got 0: leave the hop out"):
        sample_neighbors(key, graph, seeds, 0, 4)
    with pytest.raises(ValueError, match=r"fewer than 2\^31 edges .* got 2147483648: take more shards"):
        pad_shard(jax.tree.map(lambda x: x[:9], graph), 9, 2**31)
    with pytest.raises(ValueError, match="takes as many shards, got a placement over 6"):
        shard_graph(crowd, Listed(NODES, 6, np.zeros(NODES, int), NODES), mesh)
