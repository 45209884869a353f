"""EdgeBank: an event is likely if its pair was there before. What every model of events is compared with."""

import numpy as np
from jaxtyping import Bool, Int, Real

from jsage.data.split_check import ordered_numbers
from jsage.typing import HostArray


def edge_bank(
    events: Int[HostArray, "m 2"],
    time: HostArray,
    pairs: Int[HostArray, "*rows 2"],
    when: Real[HostArray, "*#rows"],
    *,
    window: float | int | None = None,
) -> Bool[np.ndarray, "*rows"]:
    """Whether each pair was an event earlier than its time: of `when - window <= time < when`, or ever.

    `events` are all there are, in any order: what is not earlier than a pair's own time is not read, so the
    memory goes on event by event. To end it with validation, give the first time of the test as `when`.
    `window=None` is the unlimited memory, a width in ticks the time window: the duration of the test in the
    paper. Poursafaei et al. (2022), "Towards better evaluation for dynamic link prediction", section 5.

    >>> events, time = np.array([[0, 1], [0, 2], [0, 1]]), np.array([10, 20, 30])
    >>> edge_bank(events, time, np.array([[0, 1], [0, 2], [2, 0]]), np.array([10, 40, 40])).tolist()
    [False, True, False]
    >>> edge_bank(events, time, np.array([[0, 1], [0, 2]]), np.array([40, 40]), window=15).tolist()
    [True, False]
    """
    if window is not None and not window > 0:
        raise ValueError(f"window must be above 0 ticks, or None for all the past, got {window}")
    events, pairs, time, when = (np.asarray(part) for part in (events, pairs, time, when))
    if len(events) != len(time):
        raise ValueError(f"time must have one entry an event, {len(events)}, got {len(time)}")
    when = np.broadcast_to(when, pairs.shape[:-1])
    moments, moment = np.unique(time, return_inverse=True)
    number = ordered_numbers(events)
    known = np.unique(number)
    stride = len(moments) + 1
    log = np.sort(np.searchsorted(known, number) * stride + moment)
    place = np.searchsorted(known, ordered_numbers(pairs))
    there = np.append(known, -1)[place] == ordered_numbers(pairs)
    end = np.searchsorted(moments, when)
    begin = np.zeros_like(end)
    if window is not None:  # int64, where int32 would overflow
        begin = np.searchsorted(moments, when.astype(np.result_type(when, np.int64)) - window)
    first, last = (np.searchsorted(log, place * stride + at) for at in (begin, end))
    return there & (last > first)
