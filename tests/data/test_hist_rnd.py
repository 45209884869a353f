"""Negatives as TGB draws them, against its rules event by event, and against all subsets counted."""

from itertools import combinations

import numpy as np
import pytest
from scipy import stats

from jsage.data import hist_rnd_negatives, inductive_negatives

RNG = np.random.default_rng(0)
TRAIN = np.stack([RNG.integers(0, 8, 120), RNG.integers(8, 30, 120)], 1)
PAIRS = np.stack([RNG.integers(0, 10, 60), RNG.integers(8, 30, 60)], 1)  # two sources are new
TIME = RNG.integers(100, 106, 60)


def rules(event: int, num_negatives: tuple[int, int], nodes: set[int]) -> tuple[set[int], set[int], int]:
    """TGB's for one event: historical candidates, random ones, and how many are historical."""
    source, when = PAIRS[event, 0], TIME[event]
    true = {int(v) for (u, v), t in zip(PAIRS, TIME, strict=True) if (u, t) == (source, when)}
    seen = {int(v) for u, v in TRAIN if u == source} & nodes if num_negatives[0] else set()
    old = seen - true
    return old, nodes - true - seen, min(num_negatives[0], len(old))


@pytest.mark.parametrize("num_negatives", [(3, 4), (0, 7), (7, 1), (1, 0)])
@pytest.mark.parametrize("among", [None, np.arange(8, 33), np.arange(9, 28)])
def test_each_event_has_what_the_rules_give(num_negatives, among):
    nodes = {*TRAIN[:, 1].tolist(), *PAIRS[:, 1].tolist()} if among is None else set(among.tolist())
    if num_negatives == (1, 0):  # new sources have no history: one more random
        assert not set(PAIRS[:, 0]) <= set(TRAIN[:, 0])
    found = hist_rnd_negatives(TRAIN, PAIRS, TIME, seed=1, num_negatives=num_negatives, among=among)
    assert found.shape == (60, sum(num_negatives))
    assert found.dtype == np.int32
    some_old = 0
    for event, row in enumerate(found.tolist()):
        old, other, count = rules(event, num_negatives, nodes)
        assert len(set(row)) == len(row)
        assert set(row[:count]) <= old
        assert set(row[count:]) <= other
        some_old += count
    assert some_old > 30 or num_negatives[0] == 0


def test_every_subset_is_equally_likely():
    """Of the historical and of the random ones, over all events that ask for the same."""
    pairs, time = np.tile([[0, 3]], (4000, 1)), np.arange(4000)
    train = np.array([[0, 3], [0, 5], [0, 5], [0, 7], [0, 8], [1, 4], [2, 9]])
    found = hist_rnd_negatives(train, pairs, time, seed=2, num_negatives=(2, 2), among=np.arange(12))
    for part, pool in ((found[:, :2], (5, 7, 8)), (found[:, 2:], (0, 1, 2, 4, 6, 9, 10, 11))):
        drawn = [tuple(row) for row in np.sort(part, 1).tolist()]
        counts = [drawn.count(subset) for subset in combinations(pool, 2)]
        assert sum(counts) == len(drawn)
        assert stats.chisquare(counts).pvalue > 1e-3


def test_the_seed_decides_and_no_event_is_no_row():
    one, same, other = (
        hist_rnd_negatives(TRAIN, PAIRS, TIME, seed=s, num_negatives=(3, 3)) for s in (0, 0, 1)
    )
    np.testing.assert_array_equal(one, same)
    assert (one != other).any()
    assert hist_rnd_negatives(TRAIN, PAIRS[:0], TIME[:0], seed=0).shape == (0, 100)
    assert hist_rnd_negatives(TRAIN[:0], PAIRS, TIME, seed=0, num_negatives=(2, 2)).shape == (60, 4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"num_negatives": (10, 10)},
            r"\d+ events have fewer than 20 other destinations .*, event \d+ among .* are \d+",
        ),
        ({"num_negatives": (0, 0)}, r"two counts, 1 together at least, got \(0, 0\)"),
        ({"num_negatives": (-1, 5)}, r"two counts, 1 together at least, got \(-1, 5\)"),
        (
            {"train": TRAIN.T},
            r"train must be events \[n, 2\], sources and destinations, got shape \(2, 120\)",
        ),
        ({"pairs": PAIRS + 0.5}, "pairs must hold integers, got float64"),
        ({"time": TIME[1:]}, "'time' must have 60 rows, one an event"),
        ({"among": np.empty(0, int)}, "60 events have fewer than 4 other .* the least are 0"),
    ],
)
def test_what_cannot_be_drawn_is_refused(change: dict, message: str):
    given = {"train": TRAIN, "pairs": PAIRS, "time": TIME, "seed": 0, "num_negatives": (2, 2)} | change
    with pytest.raises(ValueError, match=message):
        hist_rnd_negatives(given.pop("train"), given.pop("pairs"), given.pop("time"), **given)


def test_inductive_pairs_are_uniform_over_what_training_has_not():
    train, others = (
        np.array([[0, 1], [2, 1], [1, 0]]),
        np.array([[0, 1], [0, 3], [0, 3], [4, 3], [3, 0], [1, 2]]),
    )
    now = np.array([[1, 2], [0, 1]])
    drawn = np.concatenate([inductive_negatives(train, others, now, seed=seed) for seed in range(600)])
    counts = [(drawn == pair).all(1).sum() for pair in ([0, 3], [4, 3], [3, 0])]
    assert sum(counts) == len(drawn) == 1200
    assert stats.chisquare(counts).pvalue > 1e-3
    with pytest.raises(
        ValueError, match="no pair is joined outside training and is not joined in this window"
    ):
        inductive_negatives(train, now, now, seed=0)
