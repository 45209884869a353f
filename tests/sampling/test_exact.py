"""Whole neighborhoods of some nodes, whatever the degrees: the rows, the sums, the room they take."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import AWKWARD, NUM_NODES, features, graph, listed

from jsage.graph import from_edges
from jsage.infer.apply_exact import apply_exact
from jsage.nn import GraphSAGE, Pool, SAGEConv
from jsage.sampling import HopSize, exact_blocks, full_block, measure_hop_sizes
from jsage.sampling.exact import PIECE, StreamedBlock, distinct, edges_into

SEEDS = np.array([5, 0, 5, 7], np.int32)


@jax.jit
def answers(cut, table):
    block = StreamedBlock(cut, jnp.asarray(SEEDS), cut.degrees(jnp.asarray(SEEDS)))
    return block.own(table), block.sum(table), block.max(table), block.degrees()


@pytest.mark.slow
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("name", AWKWARD)
def test_pieces_reduce_every_edge(name: str, weighted: bool):
    cut, table = graph(name, weighted=weighted), features(0)
    src, dst, _ = AWKWARD[name]
    weight = features(7, len(src), 1)[:, 0] if weighted else np.ones(len(src))
    own, total, top, count = map(np.asarray, answers(cut, table))
    np.testing.assert_array_equal(own, table[SEEDS])
    for row, node in enumerate(SEEDS):
        rows = table[src[dst == node]].astype(np.float64) * weight[dst == node][:, None]
        assert count[row] == len(rows)
        np.testing.assert_allclose(total[row], rows.sum(0), atol=1e-5)
        np.testing.assert_allclose(top[row], rows.max(0) if len(rows) else 0 * table[0], atol=1e-6)


def test_a_hub_of_many_pieces_takes_no_more_memory():
    count = 20 * PIECE + 3

    def total(indices, table, degree):
        hub = from_edges([], [], 2)._replace(indices=indices, indptr=jnp.array([0, degree, degree]))
        return StreamedBlock(hub, jnp.zeros(1, jnp.int32), jnp.array([degree])).sum(table)

    indices = np.random.default_rng(0).integers(0, 100, count).astype(np.int32)
    table = np.random.default_rng(1).integers(-3, 4, (100, 4)).astype(np.float32)
    compiled = jax.jit(total)
    np.testing.assert_array_equal(np.asarray(compiled(indices, table, count))[0], table[indices].sum(0))
    np.testing.assert_array_equal(np.asarray(compiled(indices, table, 2))[0], table[indices[:2]].sum(0))
    assert compiled._cache_size() == 1
    sizes = [
        jax.jit(total).lower(jax.ShapeDtypeStruct((n,), jnp.int32), table, 1).compile().memory_analysis()
        for n in (10**4, 10**8)
    ]
    assert sizes[1].temp_size_in_bytes <= sizes[0].temp_size_in_bytes + 1024


@pytest.mark.parametrize("start", [0, 3])
def test_edges_come_in_order(start: int):
    cut = graph("random")
    edges = jax.jit(lambda cut, seeds: edges_into(cut, seeds, cut.degrees(seeds), 64, start))(cut, SEEDS)
    indptr, indices = np.asarray(cut.indptr), np.asarray(cut.indices)
    rows = [(row, src) for row, v in enumerate(SEEDS) for src in indices[indptr[v] : indptr[v + 1]]][start:]
    valid = np.asarray(edges.valid)
    assert valid.sum() == len(rows)
    assert list(zip(np.asarray(edges.row)[valid], np.asarray(edges.src)[valid], strict=True)) == rows
    assert (np.asarray(edges.row)[~valid] == len(SEEDS)).all()


@pytest.mark.parametrize("num_layers", [1, 2, 3])
@pytest.mark.parametrize("pool", [False, True])
def test_a_model_gives_what_it_gives_on_the_whole_graph(num_layers: int, pool: bool):
    cut, table, seeds = graph("random", weighted=True), jnp.asarray(features(0)), jnp.asarray(SEEDS)
    conv = partial(SAGEConv, aggregate=Pool(4)) if pool else SAGEConv
    model = GraphSAGE(hidden=4, out=3, num_layers=num_layers, conv=conv)
    full = (full_block(cut),) * num_layers
    params = jax.jit(model.init)(jax.random.key(0), table, full)
    rooms = measure_hop_sizes(cut, seeds, num_layers)
    blocks, taken = jax.jit(exact_blocks, static_argnums=2)(cut, seeds, rooms)
    for room, (edges, nodes) in zip(rooms, taken.tolist(), strict=False):
        assert edges <= room.edges
        assert nodes <= room.nodes
    expected = np.asarray(jax.jit(model.apply)(params, table, full))[SEEDS]
    for apply in (model.apply, partial(apply_exact, model)):
        np.testing.assert_allclose(jax.jit(apply)(params, table, blocks), expected, rtol=1e-5, atol=1e-5)


def test_rows_to_spare_take_neither_edges_nor_nodes():
    """They hold node 0, which is far away and has edges of its own."""
    path = from_edges([2, 3, 4, 5, 6], [1, 2, 3, 0, 0], num_nodes=7)
    _, taken = jax.jit(exact_blocks, static_argnums=2)(path, np.ones(1, np.int32), (HopSize(8, 8),) * 2)
    assert taken.tolist() == [[1, 2], [2, 3], [3, 0]]


def test_too_little_room_shows_in_what_is_taken():
    some = jax.jit(partial(exact_blocks, rooms=[HopSize(edges=2, nodes=2)]))
    _, taken = some(graph("one hub"), np.zeros(1, np.int32))
    assert np.asarray(taken)[0, 0] == NUM_NODES - 1 > 2


def test_an_order_that_counts_needs_sampled_blocks():
    seeds = jnp.asarray(SEEDS)
    block = StreamedBlock(graph("random"), seeds, graph("random").degrees(seeds))
    with pytest.raises(TypeError, match="pass fanouts no smaller than any degree"):
        listed(jnp.zeros((NUM_NODES, 2)), block, 4)


def test_distinct_ids_and_their_places():
    rng, found = np.random.default_rng(0), jax.jit(distinct, static_argnums=2)
    for _ in range(10):
        ids, valid = rng.integers(0, 12, 20).astype(np.int32), rng.random(20) < 0.7
        nodes, position, count = map(np.asarray, found(ids, valid, 20))
        expected = np.unique(ids[valid])
        assert count == len(expected)
        np.testing.assert_array_equal(nodes[: len(expected)], expected)
        np.testing.assert_array_equal(nodes[position[valid]], ids[valid])
    assert found(np.zeros(3, np.int32), np.zeros(3, bool), 2)[2] == 0
