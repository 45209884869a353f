"""Splits of edges: their laws, and every leak that the check knows as an input that it refuses."""

from functools import cache

import jax.numpy as jnp
import numpy as np
import pytest
from helpers import AWKWARD, graph
from scipy import stats

from jsage.data import EdgeSplit, TimeSplit, split_edges, split_edges_by_time, verify_split
from jsage.data.split_check import pair_ends, pair_numbers
from jsage.graph import Graph, edges, from_edges, has_sorted_rows, symmetrize, validate

NODES = 60


@cache
def whole(seed: int = 0) -> Graph:
    """An undirected multigraph: edges both ways, some twice, self-loops, rows not sorted, edges numbered."""
    rng = np.random.default_rng(seed)
    src, dst = rng.integers(0, NODES, (2, 300))
    src, dst = np.r_[src, src[:40]], np.r_[dst, dst[:40]]  # parallel edges
    loop = src == dst
    src, dst = np.r_[src, dst[~loop]], np.r_[dst, src[~loop]]
    order = rng.permutation(len(src))
    return from_edges(src[order], dst[order], NODES, number=np.arange(len(src)))


def ends(sampled: Graph) -> tuple[np.ndarray, np.ndarray]:
    src, dst = edges(sampled)
    return np.asarray(src), np.asarray(dst)


def pair_set(src, dst) -> set[frozenset[int]]:
    """Unordered pairs, self-pairs left out."""
    both = zip(np.asarray(src).tolist(), np.asarray(dst).tolist(), strict=True)
    return {frozenset(pair) for pair in both if pair[0] != pair[1]}


@pytest.fixture(scope="module")
def parts() -> EdgeSplit:
    return split_edges(whole(), seed=1, val=0.1, test=0.2)


def test_every_pair_is_in_one_part(parts):
    known = pair_set(*ends(whole()))
    sets = [pair_set(*pairs.T) for pairs in (parts.train, parts.val, parts.test)]
    assert set.union(*sets) == known
    assert [len(found) for found in sets] == [len(pairs) for pairs in parts[1:4]]  # each once
    assert sum(map(len, sets)) == len(known)
    assert len(parts.val) == round(0.1 * len(known))
    assert len(parts.test) == round(0.2 * len(known))
    assert all(pairs.dtype == np.int32 for pairs in parts[1:])


def test_the_training_graph_is_the_graph_without_the_held_out_pairs(parts):
    """Both directions, all parallel edges and their data, and every self-loop."""
    src, dst = ends(whole())
    train = pair_set(*parts.train.T)
    stays = np.array(
        [u == v or frozenset((u, v)) in train for u, v in zip(src.tolist(), dst.tolist(), strict=True)]
    )
    kept_src, kept_dst = ends(parts.graph)
    number = np.asarray(parts.graph.edge_data["number"])
    order = np.argsort(np.asarray(whole().edge_data["number"]))
    np.testing.assert_array_equal(np.sort(number), np.sort(np.asarray(whole().edge_data["number"])[stays]))
    np.testing.assert_array_equal(kept_src, src[order][number])
    np.testing.assert_array_equal(kept_dst, dst[order][number])
    assert (kept_src == kept_dst).sum() == (src == dst).sum() > 0
    assert has_sorted_rows(parts.graph)
    validate(parts.graph)
    assert parts.graph.num_nodes == NODES


def test_negatives_are_distinct_pairs_that_the_whole_graph_does_not_join(parts):
    known = pair_set(*ends(whole()))
    val, test = pair_set(*parts.val_negatives.T), pair_set(*parts.test_negatives.T)
    assert len(val) == len(parts.val_negatives) == len(parts.val)
    assert len(test) == len(parts.test_negatives) == len(parts.test)
    assert not (val | test) & known
    assert not val & test


@pytest.mark.slow
def test_parts_and_negatives_are_uniform():
    """Over 1 000 seeds every pair is as often in test as any, every other one as often a negative."""
    small = symmetrize(from_edges([0, 1, 2, 3, 4, 0], [1, 2, 3, 4, 5, 3], 7))
    known, rounds = 6, 1000
    test, negative, first = np.zeros(28), np.zeros(28), 0
    for seed in range(rounds):
        split = split_edges(small, seed=seed, val=1 / 6, test=2 / 6, sides=np.zeros(7, int))
        np.add.at(test, pair_numbers(*split.test.T), 1)
        np.add.at(negative, pair_numbers(*split.val_negatives.T), 1)
        np.add.at(negative, pair_numbers(*split.test_negatives.T), 1)
        first += (split.test[:, 0] < split.test[:, 1]).sum()
    is_known = np.zeros(28, bool)
    is_known[pair_numbers(*np.array([(0, 1), (1, 2), (2, 3), (3, 4), (4, 5), (0, 3)]).T)] = True
    loops = np.isin(np.arange(28), pair_numbers(np.arange(7), np.arange(7)))
    for counts, cells, k in ((test, is_known, 2), (negative, ~is_known & ~loops, 3)):
        assert counts[~cells].sum() == 0
        n, p = cells.sum(), k / cells.sum()
        chi2 = ((counts[cells] - rounds * p) ** 2).sum() / (rounds * p * (1 - p)) * (n - 1) / n
        assert stats.chi2.sf(chi2, n - 1) > 1e-3
    assert known == is_known.sum()
    assert stats.binomtest(int(first), 2 * rounds).pvalue > 1e-3  # ends in random order


def test_the_seed_decides(parts):
    again, other = (split_edges(whole(), seed=seed, val=0.1, test=0.2) for seed in (1, 2))
    for a, b in zip(parts[1:], again[1:], strict=True):
        np.testing.assert_array_equal(a, b)
    assert pair_set(*other.test.T) != pair_set(*parts.test.T)


def test_a_complete_graph_but_for_a_few_pairs_has_those_as_negatives():
    u, v = np.triu_indices(12, 1)
    lacks = (u == 0) & (v < 4)
    split = split_edges(symmetrize(from_edges(u[~lacks], v[~lacks], 12)), seed=0, val=0.0, test=3 / 63)
    assert pair_set(*split.test_negatives.T) == {frozenset((0, other)) for other in (1, 2, 3)}
    assert split.val.shape == split.val_negatives.shape == (0, 2)
    with pytest.raises(
        ValueError, match="need 4 pairs that are no edges, but the graph has only 3: lower them"
    ):
        split_edges(symmetrize(from_edges(u[~lacks], v[~lacks], 12)), seed=0, val=0.0, test=4 / 63)


@pytest.mark.parametrize("name", AWKWARD)
def test_awkward_graphs_split_or_say_why(name: str):
    both_ways = symmetrize(graph(name))
    if len(pair_set(*ends(both_ways))) == 0:
        with pytest.raises(ValueError, match="take 0 of 0 edges: nothing is left to train on"):
            split_edges(both_ways, seed=0)
    else:
        one = np.zeros(both_ways.num_nodes, int)  # a star has no pair of its two sides left
        split = split_edges(both_ways, seed=0, val=0.2, test=0.2, sides=one)
        verify_split(split, both_ways)


def test_numbers_of_pairs_beyond_what_floats_can_count():
    top = 2**31 - 1
    high = np.array([1, 2, top // 2, top - 1, top, top, top], np.int64)
    low = np.array([0, 2, top // 2 - 1, top - 1, 0, top - 1, top], np.int64)
    numbers = pair_numbers(low, high)
    for a, b in zip(pair_ends(numbers), (low, high), strict=True):
        np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(pair_numbers(high, low), numbers)
    exact = [h * (h + 1) // 2 + l for l, h in zip(low.tolist(), high.tolist(), strict=True)]  # noqa: E741
    assert numbers.tolist() == exact
    every = np.arange(5000)
    np.testing.assert_array_equal(pair_numbers(*pair_ends(every)), every)


def swap(pairs: np.ndarray, row: int, pair) -> np.ndarray:
    """The pairs with one of them changed, turned round."""
    changed = pairs.copy()
    changed[row] = tuple(pair)[::-1]
    return changed


def with_edges(sampled: Graph, pairs: np.ndarray, **data) -> Graph:
    """The graph with more edges, rows sorted."""
    src, dst = (np.concatenate(both) for both in zip(ends(sampled), pairs.T, strict=True))
    order = np.argsort(src, kind="stable")
    data = {name: np.concatenate([sampled.edge_data[name], more])[order] for name, more in data.items()}
    return from_edges(src[order], dst[order], sampled.num_nodes, **data)


def bare(sampled: Graph) -> Graph:
    return sampled._replace(edge_data={})


LEAKS = {
    "test pair in the training graph": (
        lambda s: s._replace(graph=with_edges(s.graph, s.test[4:5])),
        r"a test pair is in the training graph: \(\d+, \d+\), row 4",
    ),
    "reverse of a val pair in the training graph": (
        lambda s: s._replace(graph=with_edges(s.graph, s.val[3:4, ::-1])),
        "a val pair is in the training graph: .*, row 3, the first of 1",
    ),
    "train and test overlap": (
        lambda s: s._replace(train=swap(s.train, 7, s.test[0])),
        "the same pair is in train and in test: .*, row 7",
    ),
    "train and val overlap": (
        lambda s: s._replace(train=swap(s.train, 7, s.val[0])),
        "the same pair is in train and in val",
    ),
    "val and test overlap": (
        lambda s: s._replace(val=swap(s.val, 2, s.test[0])),
        "the same pair is in val and in test: .*, row 2",
    ),
    "a pair twice": (
        lambda s: s._replace(test=swap(s.test, 2, s.test[1])),
        "test must hold each pair once: .*, row 1, comes again",
    ),
    "a pair of one node": (lambda s: s._replace(val=swap(s.val, 2, (3, 3))), r"val .*got \(3, 3\) in row 2"),
    "an id out of range": (
        lambda s: s._replace(train=swap(s.train, 2, (3, NODES))),
        rf"train must be node ids in 0 .. 59, got {NODES}",
    ),
    "a negative that is an edge": (
        lambda s: s._replace(test_negatives=swap(s.test_negatives, 5, s.train[0])),
        "one of test_negatives is an edge of the graph: .*, row 5",
    ),
    "a negative that is held out": (
        lambda s: s._replace(val_negatives=swap(s.val_negatives, 5, s.test[0])),
        "one of val_negatives is an edge of the graph: .*, row 5",
    ),
    "a negative twice": (
        lambda s: s._replace(val_negatives=swap(s.val_negatives, 5, s.val_negatives[0])),
        "val_negatives must hold each pair once",
    ),
    "a negative of both parts": (
        lambda s: s._replace(val_negatives=swap(s.val_negatives, 5, s.test_negatives[0])),
        "the same pair is in val_negatives and in test_negatives",
    ),
    "a pair lost": (
        lambda s: s._replace(train=s.train[1:]),
        r"train, val and test: 1 edges missing, the first \(\d+, \d+\)",
    ),
    "a pair invented": (
        lambda s: s._replace(train=np.concatenate([s.train, s.test_negatives[:1]])),
        "train, val and test: 1 edges too many",
    ),
    "a training edge lost": (
        lambda s: s._replace(graph=Graph(s.graph.indptr.at[-1].add(-1), s.graph.indices[:-1])),
        "the training graph: 1 edges missing",
    ),
    "an edge of the training graph invented": (
        lambda s: s._replace(graph=with_edges(s.graph, s.test_negatives[:1])),
        "the training graph: 1 edges too many",
    ),
    "an edge of the training graph doubled": (
        lambda s: s._replace(graph=with_edges(s.graph, s.train[:1])),
        r"the training graph: 1 edges too many, the first \(\d+, \d+\)",
    ),
    "unsorted rows": (
        lambda s: s._replace(graph=from_edges(*(x[::-1] for x in ends(s.graph)), NODES)),
        "row 0 of the training graph is not sorted: use sort_rows",
    ),
    "nodes lost": (
        lambda s: s._replace(graph=from_edges([0], [1], NODES - 1)),
        "the training graph must have all 60 nodes, got 59",
    ),
}


@pytest.mark.parametrize("leak", LEAKS)
def test_the_check_refuses(parts, leak: str):
    change, message = LEAKS[leak]
    split = parts._replace(graph=bare(parts.graph))
    verify_split(split, whole())
    with pytest.raises(ValueError, match=message):
        verify_split(change(split), whole())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"val": 0.5, "test": 0.5},
            "val and test must be shares from 0 that leave some to train, got 0.5 and 0.5",
        ),
        ({"val": -0.1}, "got -0.1 and 0.1"),
        ({"test": float("nan")}, "got 0.05 and nan"),
    ],
)
def test_shares_must_leave_something(change, message: str):
    with pytest.raises(ValueError, match=message):
        split_edges(whole(), seed=0, **change)


def test_an_edge_in_one_direction_is_refused():
    directed = from_edges([0, 1, 2], [1, 0, 1], 3)
    with pytest.raises(ValueError, match=r"1 have no reverse, the first \(2, 1\): pass symmetrize\(graph\)"):
        split_edges(directed, seed=0)
    with pytest.raises(ValueError, match="take 1 of 1 edges: nothing is left"):
        split_edges(symmetrize(from_edges([0], [1], 4)), seed=0, val=0.6, test=0.3)


# Events in time.


@cache
def events(dtype: str = "int32") -> tuple[np.ndarray, ...]:
    """400 events of a directed multigraph at 90 times, so that every border is inside a tie."""
    rng = np.random.default_rng(3)
    src, dst = rng.integers(0, 20, (2, 400))
    return src, dst, rng.integers(0, 90, 400).astype(dtype)


def rows(pairs: np.ndarray, time: np.ndarray) -> list[tuple]:
    return sorted(zip(*pairs.T.tolist(), time.tolist(), strict=True))


@pytest.fixture(scope="module")
def timed() -> TimeSplit:
    return split_edges_by_time(*events(), 20)


@pytest.mark.parametrize("dtype", ["int32", "float32", "float64", "int64", "uint8"])
def test_events_are_split_in_order_of_time(dtype: str):
    src, dst, time = events(dtype)
    split = split_edges_by_time(src, dst, jnp.asarray(time) if dtype == "int32" else time, 20)
    parts = list(zip(split[1:4], split[4:], strict=True))
    for pairs, times in parts:
        assert len(pairs) == len(times) > 0
        assert (np.diff(times) >= 0).all()
    assert split.train_time[-1] < split.val_time[0]
    assert split.val_time[-1] < split.test_time[0]
    together = [event for part in parts for event in rows(*part)]
    assert sorted(together) == rows(np.stack([src, dst], 1), time)
    # a border moves by less than one tie from where the shares put it
    longest = np.bincount(time.astype(int)).max()
    assert 60 <= len(split.test) < 60 + longest
    assert 120 <= len(split.test) + len(split.val) < 120 + longest


def test_the_training_graph_holds_the_training_events_alone(timed):
    src, dst = ends(timed.graph)
    found = rows(np.stack([src, dst], 1), np.asarray(timed.graph.edge_data["time"]))
    assert found == rows(timed.train, timed.train_time)
    assert has_sorted_rows(timed.graph)
    validate(timed.graph)


def test_a_share_of_nothing_is_an_empty_part():
    src, dst, time = events()
    split = split_edges_by_time(src, dst, time, 20, val=0.0, test=0.2)
    assert split.val.shape == (0, 2)
    assert len(split.train) + len(split.test) == 400
    split = split_edges_by_time(src, dst, time, 20, val=0.0, test=0.0)
    assert len(split.train) == 400


def later(split: TimeSplit) -> TimeSplit:
    """The last training event and the first of val change places."""
    pairs, times = np.concatenate(split[1:4]), np.concatenate(split[4:])
    order, cut = np.arange(len(pairs)), len(split.train)
    order[[cut - 1, cut]] = cut, cut - 1
    cuts = [cut, cut + len(split.val)]
    parts, times = np.split(pairs[order], cuts), np.split(times[order], cuts)
    return TimeSplit(with_times(parts[0], times[0]), *parts, *times)


def with_times(pairs: np.ndarray, time: np.ndarray) -> Graph:
    order = np.argsort(pairs[:, 0], kind="stable")
    return from_edges(*pairs[order].T, 20, time=time[order])


TIMED_LEAKS = {
    "a training event after a validation one": (
        later,
        r"train must end before val begins, but its event \d+ is of time 59 and event 0 of val of 58",
    ),
    "a tie across a border": (
        lambda s: s._replace(val_time=np.r_[s.train_time[-1:], s.val_time[1:]]),
        "train must end before val begins",
    ),
    "val after test": (
        lambda s: s._replace(val=s.test, val_time=s.test_time, test=s.val, test_time=s.val_time),
        "val must end before test begins",
    ),
    "an event lost": (
        lambda s: s._replace(test=s.test[1:], test_time=s.test_time[1:]),
        r"train, val and test: 1 edges missing, the first \(\d+, \d+, \d+\)",
    ),
    "an event invented": (
        lambda s: s._replace(test=np.r_[s.test, s.test[-1:]], test_time=np.r_[s.test_time, s.test_time[-1:]]),
        "train, val and test: 1 edges too many",
    ),
    "a later event in the training graph": (
        lambda s: s._replace(graph=with_edges(s.graph, s.val[:1], time=s.val_time[:1])),
        "the training graph: 1 edges too many",
    ),
    "a training event at another time": (
        lambda s: s._replace(
            graph=s.graph._replace(edge_data={"time": s.graph.edge_data["time"].at[3].add(1)})
        ),
        "the training graph: 1 edges missing",
    ),
    "no times": (
        lambda s: s._replace(graph=bare(s.graph)),
        r"both graphs must have the times of their events as edge_data\['time'\]",
    ),
    "times of other length": (
        lambda s: s._replace(val_time=s.val_time[1:]),
        "val_time must have one entry an event",
    ),
}


@pytest.mark.parametrize("leak", TIMED_LEAKS)
def test_the_check_of_times_refuses(timed, leak: str):
    change, message = TIMED_LEAKS[leak]
    src, dst, time = events()
    all_events = from_edges(src, dst, 20, time=time)
    verify_split(timed, all_events)
    with pytest.raises(ValueError, match=message):
        verify_split(change(timed), all_events)


@pytest.mark.parametrize(
    ("time", "message"),
    [
        (np.array([1, 2**31, 3]), "'time' must fit int32, got 1 .. 2147483648"),
        (np.array([0.5, 2.0**24 + 0.5, 2.0**24 + 0.75]), "'time' lose in float32 what tells them apart"),
        (np.array([1.0, np.nan, 3.0]), "must be finite in float32, .* in row 1"),
        (np.array([1e300, 2.0, 3.0]), "must be finite in float32, .* in row 0"),
        (np.array([[1], [2], [3]]), r"one number an edge, got \(3, 1\): pass \[:, 0\]"),
        (np.array(["a", "b", "c"]), "'time' must hold numbers, got <U1"),
        (np.array([1, 2]), "edge_data 'time' must have 3 rows"),
    ],
)
def test_times_must_be_kept_exactly(time, message: str):
    with pytest.raises(ValueError, match=message):
        split_edges_by_time(np.array([0, 1, 2]), np.array([1, 2, 0]), time, 3)


def test_events_of_one_time_cannot_be_split():
    with pytest.raises(
        ValueError, match=r"train has no event, for shares val=0.15, test=0.15 of 20 events with 1 "
    ):
        split_edges_by_time(np.arange(20), np.arange(20), np.full(20, 7), 20)
    time = np.r_[np.zeros(14), np.ones(6)]
    with pytest.raises(
        ValueError, match=r"val has no event.*2 distinct times: use other shares or finer times"
    ):
        split_edges_by_time(np.arange(20), np.arange(20), time, 20)
