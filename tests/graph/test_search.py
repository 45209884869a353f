"""Sorted rows and the search for edges, against plain comparisons of the edge list."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import AWKWARD, NUM_NODES

from jsage.graph import SortedGraph, edges, from_edges, has_edge, has_sorted_rows, sort_rows, symmetrize
from jsage.graph.search import edge_range

ALL_SRC, ALL_DST = (ids.ravel().astype(np.int32) for ids in np.indices((NUM_NODES, NUM_NODES)))
found = jax.jit(edge_range)
known = jax.jit(has_edge)


def sorted_graph(name: str) -> SortedGraph:
    src, dst, num_nodes = AWKWARD[name]
    return sort_rows(from_edges(src, dst, num_nodes, number=np.arange(len(src), dtype=np.int32)))


def count(name: str) -> np.ndarray:
    """How many edges go from each source to each destination, from the edge list."""
    src, dst, num_nodes = AWKWARD[name]
    table = np.zeros((num_nodes, num_nodes), int)
    np.add.at(table, (src, dst), 1)
    return table


@pytest.mark.parametrize("name", AWKWARD)
def test_sorting_moves_edges_within_their_rows_only(name: str):
    src, dst, _ = AWKWARD[name]
    graph = sorted_graph(name)
    got_src, got_dst = map(np.asarray, edges(graph))
    number = np.asarray(graph.edge_data["number"])
    np.testing.assert_array_equal(np.stack([src, dst])[:, number], [got_src, got_dst])  # its data follow
    np.testing.assert_array_equal(number, np.lexsort([np.arange(len(src)), src, dst]))  # and ties keep order


def test_sorted_rows_are_known_and_kept():
    graph = from_edges([2, 1, 0], [0, 0, 1], num_nodes=3)
    assert not has_sorted_rows(graph)
    assert has_sorted_rows(sort_rows(graph))
    assert sort_rows(sort_rows(graph)).indices.tolist() == [1, 2, 0]
    assert has_sorted_rows(symmetrize(graph))
    assert has_sorted_rows(from_edges([1, 0], [0, 1], num_nodes=2))  # falls only from row to row


@pytest.mark.parametrize("name", AWKWARD)
def test_every_pair_of_nodes_is_found_or_not(name: str):
    graph = sorted_graph(name)
    start, stop = map(np.asarray, found(graph, ALL_SRC, ALL_DST))
    np.testing.assert_array_equal(stop - start, count(name)[ALL_SRC, ALL_DST])
    indptr, indices = np.asarray(graph.indptr), np.asarray(graph.indices)
    assert (indptr[ALL_DST] <= start).all()
    assert (stop <= indptr[ALL_DST + 1]).all()
    for a, b, src in zip(start, stop, ALL_SRC, strict=True):
        assert (indices[a:b] == src).all()
    np.testing.assert_array_equal(known(graph, ALL_SRC, ALL_DST), count(name)[ALL_SRC, ALL_DST] > 0)


def test_any_shape_and_any_source_may_be_asked_for():
    graph = sorted_graph("random")
    square = known(graph, ALL_SRC.reshape(4, 2, NUM_NODES), ALL_DST.reshape(4, 2, NUM_NODES))
    np.testing.assert_array_equal(np.asarray(square).ravel(), known(graph, ALL_SRC, ALL_DST))
    nobody = jnp.array([-1, -(2**31), NUM_NODES, 2**31 - 1], jnp.int32)
    assert not has_edge(graph, nobody, jnp.zeros(4, jnp.int32)).any()
    start, stop = edge_range(graph, nobody, jnp.zeros(4, jnp.int32))
    np.testing.assert_array_equal(start, stop)
    assert has_edge(graph, jnp.zeros(0, jnp.int32), jnp.zeros(0, jnp.int32)).shape == (0,)


def test_a_hub_beyond_what_floats_can_count():
    degree = 2**24 + 5
    graph = SortedGraph(jnp.array([0, 0, degree], jnp.int32), 2 * jnp.arange(degree, dtype=jnp.int32))
    offset = np.array([0, 1, 2**24 - 1, 2**24, 2**24 + 1, 2**24 + 3, degree - 1], np.int32)
    hub = jnp.ones(len(offset), jnp.int32)
    start, stop = edge_range(graph, jnp.asarray(2 * offset), hub)
    np.testing.assert_array_equal(start, offset)
    np.testing.assert_array_equal(stop, offset + 1)
    assert has_edge(graph, jnp.asarray(2 * offset), hub).all()
    assert not has_edge(graph, jnp.asarray(2 * offset + 1), hub).any()
    assert not has_edge(graph, jnp.asarray(2 * offset), 0 * hub).any()


def test_one_trace_and_vmap_equals_a_loop():
    traces = []

    @jax.jit
    def query(graph, src, dst):
        traces.append(1)
        return jax.vmap(lambda s, d: (edge_range(graph, s, d), has_edge(graph, s, d)))(src, dst)

    graphs = [sort_rows(from_edges(*np.random.default_rng(i).integers(0, 8, (2, 20)), 8)) for i in range(3)]
    pairs = ALL_SRC.reshape(8, 8), ALL_DST.reshape(8, 8)
    for graph in graphs:
        (start, stop), there = query(graph, *pairs)
        for a, b in zip((start, stop, there), (*found(graph, *pairs), known(graph, *pairs)), strict=True):
            np.testing.assert_array_equal(a, b)
    assert len(traces) == 1


def test_no_implicit_promotion(strict_dtypes):
    graph = sorted_graph("random")
    start, stop = jax.eval_shape(edge_range, graph, ALL_SRC, ALL_DST)
    assert start.dtype == stop.dtype == jnp.int32
    assert jax.eval_shape(has_edge, graph, ALL_SRC, ALL_DST).dtype == jnp.bool_
