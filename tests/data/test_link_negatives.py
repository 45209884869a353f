"""Negatives of links that could have been joined: their laws against all pairs counted, and refusals."""

import numpy as np
import pytest
from scipy import stats

from jsage.data import destination_negatives, historical_negatives, split_edges
from jsage.graph import Graph, bipartite_graph, edges, from_edges, node_sides, symmetrize

RNG = np.random.default_rng(0)
USERS, ITEMS = 5, 4
TAKEN = [(0, 0), (0, 1), (1, 0), (1, 2), (2, 0), (2, 3), (3, 0), (4, 1)]
SHOP = bipartite_graph(*np.array(TAKEN).T, num_users=USERS, num_items=ITEMS)
TYPES = np.array([0, 0, 1, 1, 2, 2, 2])
TYPED = symmetrize(from_edges([0, 0, 2, 2, 4], [2, 3, 4, 5, 5], num_nodes=7))


def joined(graph: Graph) -> set[tuple[int, int]]:
    return set(zip(*(ends.tolist() for ends in edges(graph)), strict=True))


def is_uniform(drawn: list, outcomes: list) -> bool:
    """Chi-square over all outcomes; an AssertionError for any other."""
    counts = {outcome: 0 for outcome in outcomes}
    for outcome in drawn:
        assert outcome in counts, outcome
        counts[outcome] += 1
    return len(counts) == 1 or stats.chisquare(list(counts.values())).pvalue > 1e-3


def brute_colors(graph: Graph) -> list[int] | None:
    near = {v: set() for v in range(graph.num_nodes)}
    for u, v in joined(graph):
        near[u].add(v)
        near[v].add(u)
    color: dict[int, int] = {}
    for root in near:
        stack = [(root, 0 if near[root] else 2)] if root not in color else []
        while stack:
            node, side = stack.pop()
            if color.setdefault(node, side) != side:
                return None
            stack += [(other, 1 - side) for other in near[node] if color.get(other) != 1 - side]
    return [color[v] for v in near]


def test_sides_are_those_of_a_search():
    """Random graphs of 12 nodes, half of them with edges between two halves alone, in any number of parts."""
    kinds = set()
    for trial in range(300):
        rng = np.random.default_rng(trial)
        order, num = rng.permutation(12), rng.integers(1, 16)
        src, dst = rng.integers(0, 12, (2, num))
        if trial % 2:
            src, dst = src % 6, 6 + dst % 6
        graph = symmetrize(from_edges(order[src], order[dst], num_nodes=12))
        expected = brute_colors(graph)
        kinds.add(expected is None)
        assert node_sides(graph).tolist() == (expected or [0] * 12)
    assert kinds == {True, False}


def test_sides_by_direction_and_by_type():
    events = from_edges([0, 0, 4, 3], [1, 2, 2, 6], num_nodes=7)
    assert node_sides(events).tolist() == [0, 1, 1, 0, 0, 2, 1]
    path = from_edges([0, 1], [1, 2], num_nodes=3)  # by direction it has no two sides, but two colors
    assert node_sides(path).tolist() == [0, 1, 0]
    assert node_sides(path, np.array([3, 3, 3])).tolist() == [3, 3, 3]
    assert node_sides(from_edges([], [], num_nodes=2)).tolist() == [0, 0]
    assert node_sides(from_edges([0, 1, 1], [1, 0, 1], num_nodes=2)).tolist() == [0, 0]  # a self-loop
    with pytest.raises(ValueError, match=r"node_type must have one type a node, 3, got 2"):
        node_sides(path, np.array([0, 1]))


@pytest.mark.parametrize(("graph", "types"), [(SHOP, None), (TYPED, TYPES)], ids=["bipartite", "typed"])
def test_negatives_of_a_split_have_the_sides_of_their_pairs(graph: Graph, types):
    """Uniform over the pairs of those sides that are no edges; the first negative of many splits."""
    sides = node_sides(graph, types)
    drawn: dict[tuple[int, ...], list] = {}
    for seed in range(1500):
        split = split_edges(graph, seed=seed, val=0.13, test=0.17, sides=types)
        two = [np.sort(sides[pairs], 1) for pairs in split[1:]]
        np.testing.assert_array_equal(two[1], two[3])
        np.testing.assert_array_equal(two[2], two[4])
        pair = tuple(sorted(split.test_negatives[0].tolist()))
        drawn.setdefault(tuple(two[2][0].tolist()), []).append(pair)
    n, known = graph.num_nodes, joined(graph)
    for code, pairs in drawn.items():
        free = [(u, v) for u in range(n) for v in range(u + 1, n) if (u, v) not in known]
        free = [(u, v) for u, v in free if tuple(sorted((sides[u], sides[v]))) == code]
        assert is_uniform(pairs, free), code
    assert len(drawn) == (1 if types is None else 3)


def test_too_few_pairs_that_could_be_joined_are_refused():
    full = bipartite_graph([0, 0, 1, 1], [0, 1, 0, 1], num_users=2, num_items=2)
    with pytest.raises(
        ValueError, match="val and test need 1 pairs that are no edges, but the graph has only 0"
    ):
        split_edges(full, seed=0, val=0.25, test=0.0)


@pytest.mark.parametrize("among", [None, [5, 6, 7]])
def test_another_destination_is_uniform_over_what_it_could_be(among):
    pairs = np.array([(0, USERS), (1, USERS), (4, USERS + 1), (USERS + 3, 2)])
    some = pairs[:3] if among else pairs
    known, nodes = joined(SHOP), range(USERS + ITEMS) if among is None else among
    drawn = [
        destination_negatives(SHOP, some, seed=seed, among=among and np.array(among)) for seed in range(1200)
    ]
    for i, (u, v) in enumerate(some.tolist()):
        free = [(u, w) for w in nodes if (u, w) not in known and (w < USERS) == (v < USERS)]
        assert is_uniform([tuple(rows[i].tolist()) for rows in drawn], free)
    assert drawn[0].dtype == np.int32


def test_another_destination_of_an_event_is_none_of_its_time():
    graph = from_edges([0, 0, 0, 1], [1, 2, 3, 4], num_nodes=6, time=[7, 7, 9, 7])
    pairs, time = np.array([[0, 1], [0, 3], [1, 4]]), np.array([7, 9, 7])
    drawn = [
        destination_negatives(graph, pairs, seed=seed, time=time, sides=np.zeros(6, int))
        for seed in range(900)
    ]
    for i, free in enumerate(([3, 4, 5], [1, 2, 4, 5], [0, 2, 3, 5])):
        assert is_uniform([rows[i, 1] for rows in drawn], free)


def test_a_source_that_is_joined_to_all_is_refused():
    graph = bipartite_graph([0, 0, 1], [0, 1, 0], num_users=2, num_items=2)
    with pytest.raises(ValueError, match="1 pairs have a source with an edge to each of the 2 nodes"):
        destination_negatives(graph, np.array([[0, 2], [1, 2]]), seed=0)


def test_historical_pairs_are_uniform_over_what_was_and_is_not():
    before = np.array([[0, 1], [0, 1], [0, 1], [2, 1], [1, 0], [5, 4]])
    now = np.array([[2, 1], [3, 4], [0, 4]])
    drawn = np.concatenate([historical_negatives(before, now, seed=seed) for seed in range(500)])
    assert is_uniform([tuple(pair) for pair in drawn.tolist()], [(0, 1), (1, 0), (5, 4)])
    with pytest.raises(ValueError, match="no pair was joined before and is not joined in this window"):
        historical_negatives(now, now, seed=0)
