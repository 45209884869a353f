"""TGB's negatives of events, many for each: half of them destinations that the source had in training."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from jsage._internal.checks import check_edge_rows, check_integer, host_array
from jsage.data.link_negatives import nth_free
from jsage.data.split_check import distinct, is_among
from jsage.typing import HostArray


def hist_rnd_negatives(
    train: HostArray,
    pairs: HostArray,
    time: HostArray,
    *,
    seed: int,
    num_negatives: tuple[int, int] = (50, 50),
    among: HostArray | None = None,
) -> Int[np.ndarray, "n k"]:
    """For each event other destinations of its source, historical ones first, then random ones: `hist_rnd`.

    `pairs [n, 2]` with their `time [n]` are the events of `val` or `test`, `train [m, 2]` those of training.

    * Historical: the first number of `num_negatives`, or as many as there are, drawn evenly among the
      distinct destinations that the source has in `train`.
    * Random: as many more as make `k`, the sum of both, drawn evenly among `among` but for all that the
      source has in `train`. `num_negatives=(0, k)` gives random ones alone: they may be in `train`.
    * A destination that the source has at that very time in `pairs` is no negative (the filtered setting),
      and none comes twice for one event.

    `among` are ids, by default the destinations of `train` and `pairs`; historical ones are among them too.
    TGB takes `np.arange(first, last + 1)`.
    The score is the filtered MRR, ties by their mean rank: `mrr(ranks(scores, of_negatives))` of
    `jsage.metrics.ranking`.

    int32; the same seed gives the same under one version of NumPy. Raises ValueError where an event has fewer
    than `k`, for which TGB gives fewer. Huang et al. (2023), "Temporal Graph Benchmark", section 4.1.

    >>> train, test = np.array([[0, 5], [0, 6], [1, 7], [1, 8]]), np.array([[0, 6], [1, 5]])
    >>> hist_rnd_negatives(train, test, np.array([9, 9]), seed=0, num_negatives=(1, 1)).tolist()
    [[5, 8], [8, 6]]
    """
    historical, k = num_negatives[0], sum(num_negatives)
    if min(num_negatives) < 0 or k < 1:
        raise ValueError(f"num_negatives must be two counts, 1 together at least, got {num_negatives}")
    train, pairs, time = _checked(train, pairs, time)
    ends = np.concatenate([train[:, 1], pairs[:, 1]]) if among is None else host_array(among, "among")
    nodes = distinct(ends.astype(np.int64))
    if historical == 0:
        train = train[:0]
    tables = _tabulate(train, pairs, time, nodes)
    num_old = np.minimum(historical, tables.old_left)
    short = np.flatnonzero(tables.other_left < k - num_old)
    if len(short):
        least = int((tables.other_left + num_old)[short].min())
        raise ValueError(
            f"{len(short)} events have fewer than {k} other destinations for their source, event {short[0]} "
            f"among them; the least are {least}: lower num_negatives, or give more ids in among"
        )
    rng = np.random.default_rng(seed)
    old = _old(tables, _distinct_ranks(rng, tables.old_left, num_old, historical), len(nodes))
    other = _other(tables, _distinct_ranks(rng, tables.other_left, k - num_old, k), len(nodes))
    slot = np.arange(k)
    at = np.where(slot < num_old[:, None], slot, historical + slot - num_old[:, None])
    return nodes[np.take_along_axis(np.concatenate([old, other], 1), at, 1)].astype(np.int32)


class _Tables(NamedTuple):
    """What is excluded, in numbers: destinations by their position among the nodes to draw from."""

    source: np.ndarray
    """Of each event: the number of its source."""
    group: np.ndarray
    """Of each event: the number of its source and time."""
    old: np.ndarray
    """`source * size + position` of destinations in training, distinct, ascending."""
    start: np.ndarray
    """Of each event: where its source's begin in `old`."""
    now_old: np.ndarray
    """`group * size + rank` of destinations of a source and time that are old, by their rank in its row."""
    now_other: np.ndarray
    """Such of the others, by their rank among those that are not old."""
    old_left: np.ndarray
    other_left: np.ndarray


def _tabulate(train: np.ndarray, pairs: np.ndarray, time: np.ndarray, nodes: np.ndarray) -> _Tables:
    size = len(nodes)
    sources, source = np.unique(pairs[:, 0], return_inverse=True)
    moment = np.unique(time, return_inverse=True)[1]
    group = np.unique(source * (len(pairs) + 1) + moment, return_inverse=True)[1]
    asked = train[is_among(train[:, 0], sources) & is_among(train[:, 1], nodes)]
    old = distinct(np.searchsorted(sources, asked[:, 0]) * size + np.searchsorted(nodes, asked[:, 1]))
    start, stop = (np.searchsorted(old, (source + more) * size) for more in (0, 1))
    listed = is_among(pairs[:, 1], nodes)
    now, first = np.unique(group[listed] * size + np.searchsorted(nodes, pairs[listed, 1]), return_index=True)
    event = np.flatnonzero(listed)[first]
    code = source[event] * size + now % max(size, 1)
    rank = np.searchsorted(old, code) - start[event]  # how many of its source's are before it
    is_old = is_among(code, old)
    base = now - now % max(size, 1)
    now_old, now_other = (base + rank)[is_old], (now - rank)[~is_old]
    counts = [np.bincount(part // max(size, 1), minlength=len(pairs))[group] for part in (now_old, now_other)]
    have = stop - start
    return _Tables(source, group, old, start, now_old, now_other, have - counts[0], size - have - counts[1])


def _old(tables: _Tables, rank: np.ndarray, size: int) -> np.ndarray:
    """Positions of destinations in training, by their rank among those of the source that are left."""
    if not len(tables.old):
        return np.zeros_like(rank)
    number = nth_free(tables.now_old, tables.group[:, None], rank, size)
    return tables.old[np.minimum(tables.start[:, None] + number, len(tables.old) - 1)] % size


def _other(tables: _Tables, rank: np.ndarray, size: int) -> np.ndarray:
    """Positions of the others, by their rank among those that are left."""
    number = nth_free(tables.now_other, tables.group[:, None], rank, size)
    return np.minimum(nth_free(tables.old, tables.source[:, None], number, size), size - 1)


def _distinct_ranks(rng: np.random.Generator, left: np.ndarray, count: np.ndarray, most: int) -> np.ndarray:
    """`count` distinct numbers below `left` for each row, every subset equally likely; 0 in further columns.

    Floyd's algorithm (Bentley and Floyd, 1987), all rows at once.
    """
    found = np.zeros((len(left), most), np.int64)
    for step in range(most):
        top = np.maximum(left - count + step, 0)
        drawn = rng.integers(0, top + 1)
        again = (found[:, :step] == drawn[:, None]).any(1)
        found[:, step] = np.where(step < count, np.where(again, top, drawn), 0)
    return found


def _checked(
    train: HostArray, pairs: HostArray, time: HostArray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    arrays = host_array(train, "train"), host_array(pairs, "pairs")
    for name, array in zip(("train", "pairs"), arrays, strict=True):
        if array.ndim != 2 or array.shape[1] != 2:
            raise ValueError(
                f"{name} must be events [n, 2], sources and destinations, got shape {array.shape}"
            )
        check_integer(array.dtype, name)
    train, pairs = (array.astype(np.int64) for array in arrays)
    return train, pairs, check_edge_rows("time", time, len(pairs), what="an event")
