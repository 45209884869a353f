"""Windows of time and EdgeBank, against loops over events; and the inductive part of a split."""

import numpy as np
import pytest

from jsage.data import (
    edge_bank,
    hold_out_nodes,
    roll_forward,
    split_edges_by_time,
    unseen_nodes,
    verify_split,
    windows_by_count,
    windows_by_time,
)
from jsage.graph import from_edges

RNG = np.random.default_rng(0)
PAIRS, TIME = RNG.integers(0, 40, (300, 2)), np.sort(RNG.integers(0, 90, 300)).astype(np.int32)
EVENTS = RNG.integers(0, 60, (120, 2))


def parts(windows: list[slice]) -> list[np.ndarray]:
    return [TIME[window] for window in windows]


@pytest.mark.parametrize("dtype", ["int32", "float32"])
@pytest.mark.parametrize("width", [1, 7, 12.5, 1000])
def test_a_window_holds_the_events_of_its_time(dtype: str, width):
    found = windows_by_time(TIME.astype(dtype), width)
    by_number: dict[int, list[int]] = {}
    for event, time in enumerate(TIME.tolist()):
        by_number.setdefault(int((time - int(TIME[0])) // width), []).append(event)
    assert [list(range(300)[window]) for window in found] == list(by_number.values())


@pytest.mark.parametrize("count", [1, 2, 30, 299, 300, 500])
def test_windows_of_a_count_part_no_time(count: int):
    found = windows_by_count(TIME, count)
    np.testing.assert_array_equal(np.concatenate(parts(found)), TIME)
    longest = np.bincount(TIME).max()
    for i, (one, after) in enumerate(zip(parts(found), parts(found)[1:], strict=False)):
        assert one[-1] < after[0]
        assert abs(found[i].stop - count * round(found[i].stop / count)) < longest
    sizes = [len(part) for part in parts(found)]
    assert max(sizes) < count + longest


def test_rolling_forward_trains_on_what_is_before():
    windows = windows_by_count(TIME, 50)
    assert len(windows) == 6
    for past in (1, 2, 99, None):
        rolled = roll_forward(windows, past)
        assert [after for _, after in rolled] == windows[1:]
        for i, (train, after) in enumerate(rolled):
            first = 0 if past is None else max(i + 1 - past, 0)
            assert (train.start, train.stop) == (windows[first].start, after.start)
            assert TIME[train].max() < TIME[after].min()
    assert roll_forward(windows[:1]) == roll_forward([]) == []


def test_windows_refuse():
    assert windows_by_count(TIME[:0], 3) == windows_by_time(TIME[:0], 3) == []
    with pytest.raises(ValueError, match="times must not fall, but event 1 is of 5 and the next of 4: sort"):
        windows_by_time(np.array([3, 5, 4]), 1)
    with pytest.raises(ValueError, match="width must be above 0, got 0"):
        windows_by_time(TIME, 0)
    with pytest.raises(ValueError, match="count must be 1 event at least, got 0"):
        windows_by_count(TIME, 0)
    with pytest.raises(ValueError, match="past must be 1 window at least, or None for all, got 0"):
        roll_forward([], 0)


@pytest.mark.parametrize("window", [None, 1, 7.5, 40])
@pytest.mark.parametrize("dtype", ["int32", "float32"])
def test_edge_bank_is_a_loop_over_what_was_before(window, dtype: str):
    events, time = PAIRS % 6, TIME.astype(dtype)
    order = RNG.permutation(300)
    asked = np.concatenate([events[:, None], RNG.integers(0, 7, (300, 3, 2))], 1)
    found = edge_bank(events[order], time[order], asked, time[:, None], window=window)
    assert found.shape == (300, 4)
    for row, now in zip(range(300), TIME, strict=True):
        since = -np.inf if window is None else now - window
        memory = {tuple(pair) for pair in events[(time < now) & (time >= since)].tolist()}
        assert found[row].tolist() == [tuple(pair) in memory for pair in asked[row].tolist()]
    assert 0 < found.mean() < 0.95


def test_edge_bank_of_nothing_and_its_refusals():
    assert not edge_bank(PAIRS[:0], TIME[:0], PAIRS, TIME).any()
    late = np.array([2**31 - 1, -(2**31)], np.int32)
    assert edge_bank(PAIRS[:1], late[1:], PAIRS[[0, 0]], late, window=2**32 - 1).tolist() == [True, False]
    with pytest.raises(ValueError, match="window must be above 0 ticks, or None for all the past, got 0"):
        edge_bank(PAIRS, TIME, PAIRS, TIME, window=0)
    with pytest.raises(ValueError, match="time must have one entry an event, 300, got 299"):
        edge_bank(PAIRS, TIME[1:], PAIRS, TIME)


def split():
    return split_edges_by_time(*EVENTS.T, TIME[:120], 65)


def test_the_inductive_part_is_what_touches_a_node_that_training_has_not():
    unseen, known = unseen_nodes(split()), {*split().train.ravel().tolist()}
    assert unseen.nodes.tolist() == [v not in known for v in range(65)]
    for found, part in ((unseen.val, split().val), (unseen.test, split().test)):
        assert found.tolist() == [u not in known or v not in known for u, v in part.tolist()]
    assert 0 < unseen.test.sum() < len(split().test)


@pytest.mark.parametrize("seed", [0, 1])
def test_training_has_no_event_of_a_node_held_out(seed: int):
    whole, held = split(), hold_out_nodes(split(), seed=seed, share=0.2)
    late = np.unique(np.concatenate([whole.val, whole.test]))
    count = int(0.2 * len(np.unique(EVENTS)))
    chosen = np.random.default_rng(seed).choice(late, count, replace=False)
    touched = np.isin(whole.train, chosen).any(1)
    assert unseen_nodes(held).nodes[chosen].all()
    assert 0 < touched.sum() < len(touched)
    np.testing.assert_array_equal(held.train, whole.train[~touched])
    np.testing.assert_array_equal(held.train_time, whole.train_time[~touched])
    np.testing.assert_array_equal(held.val, whole.val)
    np.testing.assert_array_equal(held.test_time, whole.test_time)
    kept = [np.concatenate(columns) for columns in (held[1:4], held[4:])]
    verify_split(held, from_edges(*kept[0].T, 65, time=kept[1]))


def test_held_out_nodes_are_drawn_evenly_among_the_late():
    whole = split()
    late = np.unique(np.concatenate([whole.val, whole.test]))
    seen = np.setdiff1d(late, np.flatnonzero(unseen_nodes(whole).nodes))
    counts = np.zeros(65)
    for one in range(200):
        counts[unseen_nodes(hold_out_nodes(whole, seed=one, share=0.03)).nodes] += 1
    assert (counts[seen] > 0).all()
    assert hold_out_nodes(whole, seed=0, share=0.0).train.shape == whole.train.shape
    with pytest.raises(ValueError, match=r"share=1.0 of \d+ nodes are \d+, but val and test have \d+"):
        hold_out_nodes(whole, seed=0, share=1.0)
    few = split_edges_by_time(np.array([0, 1, 0]), np.array([1, 0, 1]), np.arange(3), 2, val=0.0, test=0.3)
    with pytest.raises(ValueError, match=r"share=0.5 leaves no event to train on, of 2: use a smaller one"):
        hold_out_nodes(few, seed=0, share=0.5)
