"""Windows of time, one after another: train on some, evaluate on the next, and roll forward."""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from jaxtyping import Real

from jsage.typing import HostArray


def windows_by_time(time: Real[HostArray, " n"], width: float | int) -> list[slice]:
    """Windows of `width` ticks, from the first event on, as slices of events in the order of their times.

    Window `i` holds the events of `first + i·width <= time < first + (i + 1)·width`; a window without events
    is left out. Raises ValueError for times that fall, and for a width that is not above 0.

    >>> windows_by_time(np.array([10, 11, 14, 15, 31]), width=5)
    [slice(0, 3, None), slice(3, 4, None), slice(4, 5, None)]
    """
    time = _ascending(time)
    if not width > 0:
        raise ValueError(f"a window's width must be above 0, got {width}")
    if not len(time):
        return []
    number = (time.astype(np.result_type(time, np.int64)) - time[0]) // width
    return _slices(np.flatnonzero(np.diff(number)) + 1, len(time))


def windows_by_count(time: Real[HostArray, " n"], count: int) -> list[slice]:
    """Windows of about `count` events, as slices of events in the order of their times.

    Events of one time stay together: those at a border go to the later window, so that sizes differ and each
    window ends before the next begins. The last one has what is left. Raises ValueError for times that fall,
    and for a count below 1.

    >>> windows_by_count(np.array([10, 11, 11, 15, 31]), count=2)
    [slice(0, 1, None), slice(1, 4, None), slice(4, 5, None)]
    """
    time = _ascending(time)
    if count < 1:
        raise ValueError(f"a window's count must be 1 event at least, got {count}")
    cuts = np.searchsorted(time, time[count::count])
    return _slices(np.unique(cuts[cuts > 0]), len(time))


def roll_forward(windows: Sequence[slice], past: int | None = 1) -> list[tuple[slice, slice]]:
    """Each window but the first, behind the `past` windows before it (None: all): what to train on, and next.

    Training sees nothing of the window that is evaluated: windows part no time. For a model in production:
    fit on last week, serve this week, and so on. Raises ValueError for a `past` below 1.

    >>> windows = windows_by_count(np.arange(6), count=2)
    >>> roll_forward(windows)
    [(slice(0, 2, None), slice(2, 4, None)), (slice(2, 4, None), slice(4, 6, None))]
    >>> [train for train, _ in roll_forward(windows, past=None)]
    [slice(0, 2, None), slice(0, 4, None)]
    """
    if past is not None and past < 1:
        raise ValueError(f"past must be 1 window at least, or None for all, got {past}")
    ends = [window.stop for window in windows]
    starts = [windows[0 if past is None else max(i - past, 0)].start for i in range(1, len(windows))]
    return [
        (slice(start, stop), after) for start, stop, after in zip(starts, ends, windows[1:], strict=False)
    ]


def _ascending(time: HostArray) -> np.ndarray:
    time = np.asarray(time)
    if len(falls := np.flatnonzero(~(time[1:] >= time[:-1]))):
        at = int(falls[0])
        raise ValueError(
            f"times must not fall, but event {at} is of {time[at]} and the next of {time[at + 1]}: sort the "
            "events by np.argsort(time, kind='stable')"
        )
    return time


def _slices(cuts: np.ndarray, size: int) -> list[slice]:
    bounds = [0, *cuts.tolist(), size] if size else []
    return [slice(start, stop) for start, stop in pairwise(bounds)]
