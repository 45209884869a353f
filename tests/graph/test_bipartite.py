"""User-item graphs against their edge lists, and the items' co-occurrences against SciPy's `A^T A`."""

import tracemalloc

import jax.numpy as jnp
import numpy as np
import pytest
from scipy import sparse

from jsage.graph import (
    bipartite,
    bipartite_graph,
    edges,
    from_edges,
    has_sorted_rows,
    item_item,
    item_nodes,
    node_items,
    validate,
)

USERS, ITEMS = 40, 25


def interactions(num: int = 200, seed: int = 0):
    """Some users with many items, some with none, and pairs that come twice."""
    rng = np.random.default_rng(seed)
    users = np.minimum(rng.geometric(0.1, num) - 1, USERS - 2)
    items = np.minimum(rng.geometric(0.15, num) - 1, ITEMS - 2)
    return np.concatenate([users, users[:20]]), np.concatenate([items, items[:20]])


def co_occurrence(users, items) -> np.ndarray:
    a = sparse.csr_array((np.ones(len(users)), (users, items)), shape=(USERS, ITEMS))
    a.data[:] = 1  # duplicates were added up
    common = (a.T @ a).toarray()
    np.fill_diagonal(common, 0)
    return common


def dense(graph) -> np.ndarray:
    """`out[i, j]`: the weight of the edge into `i` from `j`."""
    src, dst = (np.asarray(x) for x in edges(graph))
    out = np.zeros((graph.num_nodes,) * 2)
    np.add.at(out, (dst, src), np.asarray(graph.edge_data["weight"]))
    return out


def test_every_interaction_is_an_edge_both_ways_with_its_data():
    users, items = interactions()
    rating = np.arange(len(users), dtype=np.float32)
    graph = bipartite_graph(users, items, USERS, ITEMS, edge_data={"rating": rating})
    validate(graph)
    assert graph.num_nodes == USERS + ITEMS
    src, dst = (np.asarray(x) for x in edges(graph))
    got = sorted(zip(src, dst, np.asarray(graph.edge_data["rating"]), strict=True))
    there = list(zip(users, items + USERS, rating, strict=True))
    assert got == sorted(there + [(item, user, r) for user, item, r in there])


def test_ids_go_there_and_back():
    items = np.arange(5)
    np.testing.assert_array_equal(item_nodes(items, 7), [7, 8, 9, 10, 11])
    np.testing.assert_array_equal(node_items(item_nodes(jnp.asarray(items), 7), 7), items)


@pytest.mark.parametrize("pairs", [1, 3, 40, 2**24])
@pytest.mark.parametrize("least", [1, 3])
def test_item_item_is_a_transposed_times_a(pairs: int, least: int):
    users, items = interactions()
    graph = item_item(bipartite_graph(users, items, USERS, ITEMS), USERS, least=least, pairs=pairs)
    validate(graph)
    expected = co_occurrence(users, items)
    expected[expected < least] = 0
    assert graph.num_edges == (expected > 0).sum() > 0
    assert has_sorted_rows(graph)
    np.testing.assert_array_equal(dense(graph), expected)


@pytest.mark.parametrize("pairs", [1, 2**24])
@pytest.mark.parametrize("top", [1, 4, ITEMS])
def test_top_keeps_the_most_common_and_the_lower_item_of_ties(top: int, pairs: int):
    users, items = interactions()
    graph = item_item(bipartite_graph(users, items, USERS, ITEMS), USERS, top=top, pairs=pairs)
    common = co_occurrence(users, items)
    best = np.argsort(-common, axis=1, kind="stable")[:, :top]
    expected = np.zeros_like(common)
    np.put_along_axis(expected, best, np.take_along_axis(common, best, 1), 1)
    assert has_sorted_rows(graph)
    np.testing.assert_array_equal(dense(graph), expected)


def test_the_memory_is_bounded_by_pairs():
    """Ten users who all read the same 300 items: 900 000 pairs of interactions."""
    users, items = np.divmod(np.arange(10 * 300), 300)
    rows = bipartite._incidence(bipartite_graph(users, items, 10, 300), 10)

    def peak(pairs: int) -> int:
        tracemalloc.start()
        seen = sum(len(part[0]) for part in bipartite._common(*rows, pairs))
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert seen == 300 * 299
        return most

    assert peak(2**8) < peak(2**13) < 1e6 < 10e6 < peak(2**20)


@pytest.mark.parametrize(("num_users", "num_items"), [(0, 0), (3, 0), (0, 3), (3, 4)])
def test_no_interactions(num_users: int, num_items: int):
    graph = bipartite_graph([], [], num_users, num_items)
    assert (graph.num_nodes, graph.num_edges) == (num_users + num_items, 0)
    common = item_item(graph, num_users, top=2)
    assert (common.num_nodes, common.num_edges) == (num_items, 0)
    validate(common)


@pytest.mark.parametrize(
    ("users", "items", "data", "message"),
    [
        ([0, 3], [0, 0], {}, r"users must be users in 0 \.\. 2, got 3"),
        ([0, -1], [0, 0], {}, r"users must be users in 0 \.\. 2, got -1"),
        ([0, 1], [0, 4], {}, r"items must be items in 0 \.\. 3, got 4"),
        ([0, 1], [0], {}, "one entry an interaction each, got 2 and 1"),
        ([0.5], [0], {}, "users must hold integers, got float64"),
        ([0], [[0]], {}, r"items must have one axis, got shape \(1, 1\)"),
        (
            [0],
            [0],
            {"time": [1, 2]},
            r"edge_data 'time' must have 1 rows, one an interaction, got shape \(2,\)",
        ),
    ],
)
def test_bad_interactions_are_refused(users, items, data, message):
    with pytest.raises(ValueError, match=message):
        bipartite_graph(np.array(users), np.array(items), 3, 4, edge_data=data)


def test_bad_graphs_and_options_are_refused():
    graph = bipartite_graph([0, 1], [0, 0], 2, 1)
    with pytest.raises(ValueError, match="every edge must join a user"):
        item_item(graph, 1)
    with pytest.raises(ValueError, match="every edge must join a user"):
        item_item(from_edges([0], [1], 3), 2)
    with pytest.raises(ValueError, match=r"num_users must be in 0 \.\. 3, the number of nodes, got 4"):
        item_item(graph, 4)
    for name in ("least", "top", "pairs"):
        with pytest.raises(ValueError, match=f"{name} must be at least 1, got 0"):
            item_item(graph, 2, **{name: 0})
