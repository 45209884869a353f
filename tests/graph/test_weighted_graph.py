"""Tables of weights: each row's shares, as whole numbers, whatever the weights and however rows are cut."""

from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jsage.graph import (
    Graph,
    GraphBefore,
    SortedGraph,
    TimeSortedGraph,
    alias_tables,
    cumulate,
    from_edges,
    sort_by_time,
    sort_rows,
    weighted,
)
from jsage.graph.adjacency import Adjacency

NODES = 20
WEIGHTS = {
    "spread": lambda rng, n: rng.exponential(size=n) ** 3,
    "some 0": lambda rng, n: rng.exponential(size=n) * (rng.random(n) < 0.6),
    "equal": lambda rng, n: np.ones(n),
    "all 0": lambda rng, n: np.zeros(n),
    "integers": lambda rng, n: rng.integers(0, 4, n),
    "very large": lambda rng, n: rng.exponential(size=n) * 1e37,
    "very small": lambda rng, n: rng.exponential(size=n) * 1e-38,
    "one of almost all": lambda rng, n: np.where(np.arange(n) % 7, 1e-6, 1e6),
}


def made(kind: str, num_edges: int = 160) -> Graph:
    """Rows from none to many; half of the edges go into node 0."""
    rng = np.random.default_rng(3)
    src, dst = rng.integers(0, NODES, (2, num_edges))
    dst = dst * rng.integers(0, 2, num_edges)
    weight = np.asarray(WEIGHTS[kind](rng, num_edges))
    return from_edges(src, dst, NODES, weight=weight.astype(np.float32 if weight.dtype.kind == "f" else int))


def rows(graph: Graph):
    """Each row's edges and weights, of rows that have an edge."""
    weight = np.asarray(graph.edge_data["weight"], np.float64)
    for start, stop in pairwise(np.asarray(graph.indptr)):
        if stop > start:
            yield slice(start, stop), weight[start:stop]


@pytest.fixture(params=[2**22, 7], ids=["at once", "row by row"])
def parts(request, monkeypatch):
    monkeypatch.setattr(weighted, "_PART", request.param)


@pytest.mark.parametrize("kind", WEIGHTS)
def test_running_sums_are_each_rows_shares(kind: str, parts):
    graph = made(kind)
    tables = cumulate(graph)
    sums, guide = np.asarray(tables.cumulative, np.int64), np.asarray(tables.guide)
    for edges, weight in rows(graph):
        units, n = np.diff(sums[edges], prepend=0), len(weight)
        np.testing.assert_array_equal(units > 0, weight > 0)
        assert sums[edges][-1] < 2**31
        if weight.sum() > 0:
            np.testing.assert_allclose(units / units.sum(), weight / weight.sum(), atol=(n + 2) * 2.0**-30)
            points = -(-np.arange(n) * 2**30 // n)
            holders = np.searchsorted(sums[edges], points, side="right")
            np.testing.assert_array_equal(guide[edges], np.minimum(holders, n - 1))


@pytest.mark.parametrize("kind", WEIGHTS)
def test_alias_tables_hold_each_rows_shares(kind: str, parts):
    graph = made(kind)
    tables = alias_tables(graph)
    keep, alias = np.asarray(tables.keep) / 2.0**32, np.asarray(tables.alias)
    for edges, weight in rows(graph):
        if weight.sum() == 0:
            assert (alias[edges] == -1).all()
            continue
        n = len(weight)
        share = keep[edges] / n
        np.add.at(share, alias[edges], (1 - keep[edges]) / n)
        np.testing.assert_allclose(share, weight / weight.sum(), atol=(n + 2) * 2.0**-30)
        assert (keep[edges][weight == 0] == 0).all()
        assert (weight[alias[edges]] > 0).all()


@pytest.mark.parametrize("make", [cumulate, alias_tables])
def test_it_reads_as_the_graph_without_the_weight(make):
    graph = made("spread")
    graph = graph._replace(edge_data={**graph.edge_data, "number": jnp.arange(graph.num_edges)})
    tables = make(graph)
    assert isinstance(tables, Adjacency)
    assert tables.id_limit == NODES
    assert set(tables.edge_data) == {"number"}
    nodes = jnp.arange(NODES, dtype=jnp.int32)
    np.testing.assert_array_equal(tables.degrees(nodes), np.diff(graph.indptr))
    none, valid = jnp.zeros((NODES, 1), jnp.int32), tables.degrees(nodes)[:, None] > 0
    (first, data), (expected, _) = (one.edges_at(nodes, none, valid) for one in (tables, graph))
    np.testing.assert_array_equal(first, expected)
    assert set(data) == {"number"}


def test_any_column_is_drawn_by_and_the_order_of_rows_stays():
    graph = made("spread")
    weight = graph.edge_data["weight"]
    timed = from_edges(
        *np.zeros((2, 3), int), 2, time=[3, 1, 2], share=[1.0, 2.0, 3.0], weight=[5.0, 6.0, 7.0]
    )
    tables = cumulate(sort_by_time(timed), "share")
    assert isinstance(tables.graph, TimeSortedGraph)
    assert set(tables.edge_data) == {"time", "weight"}
    np.testing.assert_allclose(
        np.diff(tables.cumulative, prepend=0) / 2**30, np.array([2, 3, 1]) / 6, atol=1e-8
    )
    assert isinstance(alias_tables(sort_rows(graph)).graph, SortedGraph)
    assert weight is graph.edge_data["weight"]


def test_a_point_of_the_line_is_located_by_guide_as_by_search():
    graph = made("one of almost all", 400)
    tables, indptr = cumulate(graph), np.asarray(graph.indptr)
    sums = np.asarray(tables.cumulative)
    nodes = np.repeat(np.flatnonzero(np.diff(indptr)), 50)
    total = sums[indptr[nodes + 1] - 1]
    point = (np.random.default_rng(0).random(len(nodes)) * total).astype(np.int32)
    point[::50], point[1::50] = 0, total[1::50] - 1

    @jax.jit
    def locate(tables, nodes, point):
        weights = tables.row_weights(nodes)
        return weights.total(), weights.locate(point, jnp.ones(len(nodes), bool))

    found, (offset, low, weight) = jax.tree.map(np.asarray, locate(tables, nodes, point))
    np.testing.assert_array_equal(found, total)
    for i, v in enumerate(nodes):
        row = sums[indptr[v] : indptr[v + 1]]
        assert offset[i] == np.searchsorted(row, point[i], side="right")
        assert low[i] <= point[i] < low[i] + weight[i] == row[offset[i]]


@pytest.mark.parametrize("make", [cumulate, alias_tables])
def test_refuses_what_is_no_weight(make):
    graph = made("equal")
    with pytest.raises(ValueError, match=r"have no 'share', only \['weight'\]: from_edges\(..., share"):
        make(graph, "share")
    for bad, message in (
        (np.full(160, -1.0), "weights of at least 0, got -1.0 in 'weight'"),
        (np.full(160, np.nan), "must be finite"),
        (np.ones(3), "must have 160 rows"),
    ):
        with pytest.raises(ValueError, match=message):
            make(graph._replace(edge_data={"weight": bad}))
    with pytest.raises(ValueError, match=r"by one number each, but 'both' is \(160, 2\)"):
        make(graph._replace(edge_data={"both": np.ones((160, 2))}), "both")


def test_a_graph_before_a_time_has_weights_only_of_one_that_has():
    timed = sort_by_time(from_edges([1, 1], [0, 0], 2, time=[1, 2], weight=[1.0, 1.0]))
    assert int(GraphBefore(cumulate(timed), jnp.int32(2)).row_weights(jnp.array([0])).total()[0]) == 2**29
    with pytest.raises(
        TypeError, match=r"tables that a TimeSortedGraph does not have: pass jsage.graph.cumulate"
    ):
        GraphBefore(timed, jnp.int32(2)).row_weights(jnp.array([0]))
    with pytest.raises(TypeError, match="rows sorted by time, and a Graph need not have them"):
        GraphBefore(cumulate(timed._replace(indices=timed.indices)), jnp.int32(2)).degrees(jnp.array([0]))
