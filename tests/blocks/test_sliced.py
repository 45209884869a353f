"""Rows sorted by degree hold every edge once, with hardly any padding; folds are those of a loop."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import AWKWARD, graph

from jsage._internal.arrays import take
from jsage.blocks.reductions import MAX, SUM
from jsage.blocks.sliced import Sliced, fold, row_chunks, sliced

SIZES = [(512, 256), (3, 2), (1, 5)]


def heavy_tail(num_nodes: int = 3000, seed: int = 0) -> np.ndarray:
    """`indptr` of a graph with degrees from 0 to some thousands."""
    rng = np.random.default_rng(seed)
    return np.concatenate([[0], np.cumsum(np.minimum(rng.zipf(1.6, num_nodes) - 1, 5000))])


def unsliced(edges: Sliced) -> list[list[int]]:
    """Each node's sources, read back by a loop."""
    edges = jax.tree.map(np.asarray, edges)
    rows: list[list[int]] = []
    for c in range(len(edges.node)):
        for r in range(edges.node.shape[1]):
            start = edges.first[c]
            rows.append(edges.src[start : start + edges.degree[c, r], r].tolist())
    found = [rows[row] for row in edges.place]
    if edges.join is not None:
        for node, parts in zip(edges.cut, unsliced(edges.join), strict=True):
            found[node] = [src for part in parts for src in rows[part]]
    return found


@pytest.mark.parametrize(("rows", "limit"), SIZES)
@pytest.mark.parametrize("name", AWKWARD)
def test_every_edge_is_there_once_in_its_order(name: str, rows: int, limit: int):
    indptr, indices = np.asarray(graph(name).indptr), np.asarray(graph(name).indices)
    expected = [indices[a:b].tolist() for a, b in itertools.pairwise(indptr)]
    assert unsliced(sliced(indptr, indices, rows=rows, limit=limit)) == expected


def test_pieces_of_pieces():
    indptr, indices = np.array([0, 1000, 1000, 1003]), np.arange(1003) % 3
    edges = sliced(indptr, indices, rows=4, limit=5)
    depth, level = 0, edges
    while level is not None:
        assert level.degree.max() <= 5
        depth, level = depth + 1, level.join
    assert depth == 5  # 1000 -> 200 -> 40 -> 8 -> 2 -> 1
    assert unsliced_whole(edges) == [indices[:1000].tolist(), [], indices[1000:].tolist()]


def unsliced_whole(edges: Sliced) -> list[list[int]]:
    """`unsliced` through any depth: sources are positions of a list of lists."""

    def leaves(edges: Sliced, contents: list[list[int]]) -> list[list[int]]:
        host = jax.tree.map(np.asarray, edges._replace(join=None))
        rows = [
            [x for src in host.src[host.first[c] :][: host.degree[c, r], r] for x in contents[src]]
            for c in range(len(host.node))
            for r in range(host.node.shape[1])
        ]
        found = [rows[row] for row in host.place]
        if edges.join is not None:
            for node, whole in zip(host.cut, leaves(edges.join, rows), strict=True):
                found[node] = whole
        return found

    return leaves(edges, [[i] for i in range(edges.place.size)])


def test_a_padded_slot_points_at_its_own_node():
    edges = jax.tree.map(np.asarray, sliced(np.array([0, 3, 4, 4]), np.array([2, 2, 2, 2]), rows=2))
    for c in range(len(edges.node)):
        lines = edges.src[edges.first[c] : edges.first[c + 1]]
        padded = np.arange(len(lines))[:, None] >= edges.degree[c]
        assert np.array_equal(lines[padded], np.broadcast_to(edges.node[c], lines.shape)[padded])


def test_hardly_a_slot_is_padding():
    indptr = heavy_tail(100_000)
    found = row_chunks(indptr)
    slots = int(found.width.sum()) * found.node.shape[1]
    assert slots < 1.1 * indptr[-1]
    assert found.degree.max() <= 256


def test_rows_are_sorted_and_nodes_of_one_degree_keep_their_order():
    found = row_chunks(heavy_tail(), rows=64)
    assert np.all(np.diff(found.width) >= 0)
    degree, node = found.degree.ravel(), found.node.ravel()
    valid = np.arange(degree.size) < len(node) - np.count_nonzero(degree == 0) * (degree[-1] == 0)
    same = (np.diff(degree) == 0) & valid[1:]
    assert np.all(np.diff(node)[same] >= 0)


@pytest.mark.parametrize("reduction", [SUM, MAX], ids=["sum", "max"])
def test_a_fold_is_a_loop_over_the_neighbors(reduction):
    indptr = heavy_tail(300)
    rng = np.random.default_rng(1)
    indices = rng.integers(0, 300, indptr[-1])
    weight = rng.normal(size=indptr[-1]).astype(np.float32)
    table = rng.normal(size=(300, 3)).astype(np.float32)
    edges = sliced(indptr, indices, weight, rows=16, limit=12)
    messages = weight.astype(np.float64)[:, None] * table[indices]
    reduce, nothing = (np.add, 0) if reduction is SUM else (np.maximum, -np.inf)
    expected = [reduce.reduce(messages[a:b], initial=nothing) for a, b in itertools.pairwise(indptr)]

    @jax.jit
    def run(table, edges):
        return fold(edges, lambda nodes: lambda line: take(table, line.src) * line.weight, reduction)

    np.testing.assert_allclose(run(table, edges), expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("more", [0, 3])
def test_slots_that_all_rows_have_and_those_that_some_have(more: int):
    """Chunks of two rows with `k` and `k + more` neighbors, `k` from 0 to 40."""
    degrees = np.repeat(np.arange(41), 2) + np.tile([0, more], 41)
    indptr = np.concatenate([[0], np.cumsum(degrees)])
    rng = np.random.default_rng(0)
    indices, table = rng.integers(0, 82, indptr[-1]), rng.normal(size=(82, 2)).astype(np.float32)
    found = jax.jit(lambda table, edges: fold(edges, lambda nodes: lambda line: take(table, line.src), SUM))(
        table, sliced(indptr, indices, rows=2)
    )
    expected = [table[indices[a:b]].astype(np.float64).sum(0) for a, b in itertools.pairwise(indptr)]
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_own_rows_are_those_of_the_node_in_every_piece():
    """A fold that compares each message with something of the destination's own."""
    indptr, indices = np.array([0, 7, 7, 9, 10]), np.array([0, 1, 2, 3, 0, 1, 2, 3, 2, 0])
    table = jnp.arange(4.0)[:, None]
    edges = sliced(indptr, indices, rows=2, limit=2)

    def above(nodes):
        mine = take(table, nodes)
        return lambda line: (take(table, line.src) > mine).astype(jnp.float32)

    expected = [sum(int(s > v) for s in indices[a:b]) for v, (a, b) in enumerate(itertools.pairwise(indptr))]
    assert fold(edges, above, SUM).ravel().tolist() == expected
