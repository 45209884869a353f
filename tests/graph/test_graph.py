"""The graph against edge multisets, SciPy's sparse matrices and cases worked by hand."""

from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.sparse

from jsage.graph import (
    Graph,
    add_self_loops,
    edges,
    from_edges,
    hide_nodes,
    in_degrees,
    induced_subgraph,
    out_degrees,
    reverse,
    symmetrize,
    validate,
)

HUB = 50
AWKWARD = {
    "no_nodes": ([], [], 0),
    "no_edges": ([], [], 4),
    "isolated": ([0, 5], [5, 0], 7),
    "self_loops": ([0, 1, 1, 2], [0, 1, 2, 2], 3),
    "parallel": ([0, 0, 0, 1, 1], [1, 1, 1, 0, 0], 2),
    "hub": ([*range(1, HUB), 0], [0] * (HUB - 1) + [3], HUB),
    "random": (
        np.random.default_rng(0).integers(0, 30, 200, dtype=np.int32),
        np.random.default_rng(1).integers(0, 30, 200, dtype=np.int32),
        30,
    ),
}


@pytest.fixture(params=AWKWARD)
def awkward(request):
    """An awkward graph whose `mark` tells its edges apart."""
    src, dst, n = AWKWARD[request.param]
    return from_edges(
        src, dst, n, mark=np.arange(len(src), dtype=np.int32), weight=np.ones(len(src), np.float32)
    )


def multiset(graph):
    src, dst = edges(graph)
    return Counter(zip(src.tolist(), dst.tolist(), strict=True))


def marked(graph):
    src, dst = edges(graph)
    return set(zip(src.tolist(), dst.tolist(), graph.edge_data["mark"].tolist(), strict=True))


def dense(graph):
    src, dst = (np.asarray(ends) for ends in edges(graph))
    n = graph.num_nodes
    return scipy.sparse.coo_matrix((np.ones(len(src)), (dst, src)), (n, n)).toarray()


def test_from_edges_by_hand():
    graph = from_edges([3, 0, 2, 0, 3], [1, 1, 0, 3, 1], 4, time=[10, 11, 12, 13, 14])
    assert graph.indptr.tolist() == [0, 1, 4, 4, 5]
    assert graph.indices.tolist() == [2, 3, 0, 3, 0]
    assert graph.edge_data["time"].tolist() == [12, 10, 11, 14, 13]
    assert (graph.num_nodes, graph.num_edges) == (4, 5)
    assert all(isinstance(leaf, jax.Array) and leaf.dtype == jnp.int32 for leaf in jax.tree.leaves(graph))


@pytest.mark.parametrize("name", AWKWARD)
def test_from_edges_keeps_every_edge_in_order(name):
    src, dst, n = AWKWARD[name]
    graph = from_edges(src, dst, n)
    validate(graph)
    pairs = list(zip(np.asarray(src).tolist(), np.asarray(dst).tolist(), strict=True))
    for v in range(n):
        row = graph.indices[graph.indptr[v] : graph.indptr[v + 1]].tolist()
        assert row == [int(s) for s, d in pairs if d == v]


def test_from_edges_agrees_with_scipy():
    src, dst, n = AWKWARD["random"]
    expected = scipy.sparse.coo_matrix((np.ones(len(src)), (dst, src)), (n, n)).toarray()
    np.testing.assert_array_equal(dense(from_edges(src, dst, n)), expected)


@pytest.mark.parametrize("kind", [np.int8, np.uint16, np.int64, np.uint64])
def test_from_edges_takes_every_integer_type_and_jax_arrays(kind):
    graph = from_edges(np.array([0, 2], kind), jnp.array([1, 1]), 3, feature=np.ones((2, 4), np.float32))
    assert graph.indices.tolist() == [0, 2]
    assert graph.indices.dtype == jnp.int32
    assert graph.edge_data["feature"].shape == (2, 4)


@pytest.mark.parametrize(
    ("src", "dst", "n", "data", "message"),
    [
        ([0, 1], [1], 2, {}, "src and dst must have one entry an edge each, got 2 and 1"),
        (np.zeros((2, 1), int), [0, 1], 2, {}, r"src must have one axis, got shape \(2, 1\)"),
        (np.array([0.0, 1.0]), [1, 0], 2, {}, "src must hold integers, got float64"),
        ([0, 1], np.array([True, False]), 2, {}, "dst must hold integers, got bool"),
        ([0, -1], [1, 0], 2, {}, r"src must be node ids in 0 \.\. 1, got -1"),
        ([0, 1], [1, 2], 2, {}, r"dst must be node ids in 0 \.\. 1, got 2"),
        (np.array([2**31]), [0], 2, {}, "src must be node ids .* got 2147483648"),
        (np.array([2**63], np.uint64), [0], 2, {}, "src must be node ids .* got 9223372036854775808"),
        ([0], [0], 2**31, {}, "num_nodes must be in 0"),
        ([], [], -1, {}, "num_nodes must be in 0"),
        (np.broadcast_to(np.int32(0), 2**31), [0], 2, {}, r"2147483648 entries, .* fewer than 2\^31 edges"),
        ([0, 1], [1, 0], 2, {"weight": [1.0]}, "'weight' must have 2 rows, one an edge, got shape"),
        ([0, 1], [1, 0], 2, {"time": np.int64(3)}, "'time' must have 2 rows"),
        ([0], [0], 1, {"time": np.array([2**31])}, "'time' must fit int32, got 2147483648"),
        ([0], [0], 1, {"time": np.array([-(2**31) - 1])}, "'time' must fit int32"),
    ],
)
def test_from_edges_refuses(src, dst, n, data, message):
    data = {name: np.asarray(values) for name, values in data.items()}
    with pytest.raises(ValueError, match=message):
        from_edges(src, dst, n, **data)


def test_edge_data_reaches_the_ends_of_int32():
    graph = from_edges([0, 0], [0, 0], 1, time=np.array([-(2**31), 2**31 - 1]))
    assert graph.edge_data["time"].tolist() == [-(2**31), 2**31 - 1]


def test_degrees_are_row_and_column_sums(awkward):
    matrix = dense(awkward)
    np.testing.assert_array_equal(in_degrees(awkward), matrix.sum(axis=1))
    np.testing.assert_array_equal(out_degrees(awkward), matrix.sum(axis=0))
    np.testing.assert_array_equal(jax.jit(in_degrees)(awkward), in_degrees(awkward))


def test_edges_and_from_edges_undo_each_other(awkward):
    again = from_edges(*edges(awkward), awkward.num_nodes, **awkward.edge_data)
    jax.tree.map(np.testing.assert_array_equal, again, awkward)


def test_reverse_transposes_and_undoes_itself(awkward):
    turned = reverse(awkward)
    validate(turned)
    np.testing.assert_array_equal(dense(turned), dense(awkward).T)
    assert marked(turned) == {(v, u, mark) for u, v, mark in marked(awkward)}
    assert marked(reverse(turned)) == marked(awkward)


def test_symmetrize_is_the_support_of_both_directions(awkward):
    graph = symmetrize(awkward)
    validate(graph)
    np.testing.assert_array_equal(dense(graph), (dense(awkward) + dense(awkward).T) > 0)
    jax.tree.map(np.testing.assert_array_equal, symmetrize(graph), graph)
    bare = symmetrize(awkward._replace(edge_data={}))
    np.testing.assert_array_equal(bare.indices, graph.indices)


def test_symmetrize_keeps_the_first_own_edges_data():
    graph = symmetrize(from_edges([0, 1, 0, 2, 2], [1, 0, 1, 1, 2], 3, mark=[1, 2, 3, 4, 5]))
    assert marked(graph) == {(0, 1, 1), (1, 0, 2), (2, 1, 4), (1, 2, 4), (2, 2, 5)}


def test_add_self_loops_gives_each_node_one(awkward):
    graph = add_self_loops(awkward)
    validate(graph)
    before, after = multiset(awkward), multiset(graph)
    loops = {(v, v): 1 for v in range(awkward.num_nodes) if not before[(v, v)]}
    assert after == before + Counter(loops)
    assert graph.edge_data["weight"].tolist() == [1.0] * graph.num_edges
    jax.tree.map(np.testing.assert_array_equal, add_self_loops(graph), graph)


def test_add_self_loops_comes_last_with_weight_one_and_zeros():
    graph = add_self_loops(from_edges([1], [0], 2, weight=[5.0], time=[7], vector=np.ones((1, 2))))
    assert graph.indices.tolist() == [1, 0, 1]
    assert graph.edge_data["weight"].tolist() == [5.0, 1.0, 1.0]
    assert graph.edge_data["time"].tolist() == [7, 0, 0]
    assert graph.edge_data["vector"].tolist() == [[1.0, 1.0], [0.0, 0.0], [0.0, 0.0]]


def test_induced_subgraph_is_a_submatrix(awkward):
    nodes = np.random.default_rng(0).permutation(awkward.num_nodes)[: awkward.num_nodes // 2]
    graph = induced_subgraph(awkward, nodes)
    validate(graph)
    np.testing.assert_array_equal(dense(graph), dense(awkward)[np.ix_(nodes, nodes)])
    assert {(nodes[u], nodes[v], mark) for u, v, mark in marked(graph)} <= marked(awkward)


def test_induced_subgraph_of_every_node_is_the_graph(awkward):
    graph = induced_subgraph(awkward, np.arange(awkward.num_nodes))
    jax.tree.map(np.testing.assert_array_equal, graph, awkward)


def test_induced_subgraph_refuses_repeats_and_strangers():
    graph = from_edges([0], [1], 3)
    with pytest.raises(ValueError, match="nodes must be distinct, got 1 more than once"):
        induced_subgraph(graph, [1, 2, 1])
    with pytest.raises(ValueError, match=r"nodes must be node ids in 0 \.\. 2, got 3"):
        induced_subgraph(graph, [3])


def test_hide_nodes_keeps_ids_and_the_other_edges(awkward):
    hidden = set(range(0, awkward.num_nodes, 3))
    graph = hide_nodes(awkward, sorted(hidden))
    validate(graph)
    assert graph.num_nodes == awkward.num_nodes
    assert marked(graph) == {edge for edge in marked(awkward) if not hidden & {edge[0], edge[1]}}
    jax.tree.map(np.testing.assert_array_equal, hide_nodes(awkward, []), awkward)


GOOD = from_edges([0, 1, 2], [1, 2, 0], 3, weight=[1.0, 2.0, 3.0])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"indptr": np.array([0, 1, 2, 3])}, "indptr must be int32 of one axis, got int64"),
        ({"indices": np.array([0.0, 1, 2], np.float32)}, "indices must be int32 of one axis, got float32"),
        ({"indptr": np.array([1, 1, 2, 3], np.int32)}, r"number of edges, 3, got 1 \.\. 3"),
        ({"indptr": np.array([0, 1, 2, 2], np.int32)}, r"number of edges, 3, got 0 \.\. 2"),
        ({"indptr": np.array([], np.int32)}, "number of edges, 3, got nothing"),
        ({"indptr": np.array([0, 2, 1, 3], np.int32)}, "never fall, but does after node 1"),
        ({"indices": np.array([0, 1, 3], np.int32)}, r"indices must be node ids in 0 \.\. 2, got 3"),
        ({"indices": np.array([0, -1, 2], np.int32)}, r"indices must be node ids in 0 \.\. 2, got -1"),
        ({"edge_data": {"weight": np.ones(2)}}, "'weight' must have 3 rows"),
    ],
)
def test_validate_refuses_a_bad_graph(change, message):
    with pytest.raises(ValueError, match=message):
        validate(Graph(**{**GOOD._asdict(), **change}))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"features": np.ones((2, 4))}, r"features must have one row a node, 3, got shape \(2, 4\)"),
        ({"labels": np.ones(4)}, r"labels must have one row a node, 3, got shape \(4,\)"),
        (
            {"features": np.array([[0.0], [np.nan], [np.inf]])},
            "got NaN, infinity or a larger number in row 1",
        ),
        ({"features": jnp.full((3, 1), jnp.nan, jnp.bfloat16)}, "got NaN"),
        ({"seeds": np.array([0, 3])}, r"seeds must be node ids in 0 \.\. 2, got 3"),
        ({"seeds": np.array([-1])}, r"seeds must be node ids in 0 \.\. 2, got -1"),
        ({"seeds": np.array([1.0])}, "seeds must hold integers, got float64"),
    ],
)
def test_validate_refuses_bad_values(arguments, message):
    with pytest.raises(ValueError, match=message):
        validate(GOOD, **arguments)


def test_validate_accepts_what_fits():
    validate(GOOD, np.zeros((3, 2)), np.zeros(3, np.int32), seeds=jnp.arange(3))
    validate(from_edges([], [], 0))


def test_a_graph_is_a_pytree_whose_sizes_are_shapes():
    assert jax.jit(lambda graph: jnp.zeros((graph.num_nodes, graph.num_edges)))(GOOD).shape == (3, 3)
    assert Graph(GOOD.indptr, GOOD.indices).edge_data == {}
