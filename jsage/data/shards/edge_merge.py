"""Sorted runs of edges merged into the rows of one shard."""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
from jaxtyping import Int

from jsage.data.shards.edge_sort import Run, gather_rows, position, read
from jsage.data.shards.writer import ShardWriter, indices_writer
from jsage.graph import Placement, Ranges

_BLOCK = 2**20


def merge_rows(writer: ShardWriter, runs: Sequence[Run], placement: Placement, limit: int) -> Iterator[int]:
    """Write the edges of a shard, in ranges of at most `limit` rows and `limit` edges.

    A row with more edges than that is a range of its own, and is copied run by run. Where the writer goes on
    with files, so does this. Yields, after each range, the edges so far, those before the shard included;
    raises ValueError for a shard of 2^31 edges or more.

    >>> import tempfile
    >>> from pathlib import Path
    >>> from jsage.data.shards.edge_sort import open_run, write_run
    >>> from jsage.graph import contiguous
    >>> folder = Path(tempfile.mkdtemp())
    >>> src, dst = np.array([0, 3, 2]), np.array([2, 3, 2])
    >>> run = open_run(folder / "run.npy", *write_run(folder / "run.npy", src, dst, 4))
    >>> with ShardWriter(folder, 1, {}) as writer:
    ...     list(merge_rows(writer, [run], contiguous(4, 2), limit=2))
    ...     _ = writer.state()
    [2, 3]
    >>> np.load(folder / "shard-00001" / "indices.npy").tolist()
    [0, 2, 3]
    """
    base, count = first_key(placement, writer.shard), placement.count(writer.shard)
    before = sum(_positions(runs, base))
    append = indices_writer(writer, sum(_positions(runs, base + count)) - before, placement)
    indptr = writer.array("indptr", (count + 1,), np.int32)
    if indptr.rows == 0:
        indptr.append(np.zeros(1, np.int32))
    row = indptr.rows - 1
    here = _positions(runs, base + row)
    while row < count:
        rows = _fitting(limit, runs, base + row, count - row)
        there = _positions(runs, base + row + rows)
        degree = _append(append, runs, list(zip(here, there, strict=True)), (base + row, rows), limit)
        indptr.append(sum(here) - before + np.cumsum(degree))
        row, here = row + rows, there
        yield sum(here)


def sort_keys(placement: Placement, ids: Int[np.ndarray, " n"]) -> tuple[Int[np.ndarray, " n"], int]:
    """What destinations are sorted by, ascending shard by shard and row by row; and what keys are below.

    Ids where shards are ranges of them, else placed ids.

    >>> from jsage.graph import contiguous
    >>> sort_keys(contiguous(10, 3), np.array([4, 0]))
    (array([4, 0]), 10)
    """
    if isinstance(placement, Ranges):
        return ids, placement.num_nodes
    return np.asarray(placement.placed(ids)), placement.size


def first_key(placement: Placement, shard: int) -> int:
    """The first of the `sort_keys` of a shard.

    >>> from jsage.graph import contiguous, hashed
    >>> first_key(contiguous(10, 3), 1), first_key(hashed(10, 3), 1)
    (4, 4)
    """
    return placement.bounds[shard] if isinstance(placement, Ranges) else shard * placement.rows


def _append(
    append: Callable[[np.ndarray], None],
    runs: Sequence[Run],
    spans: list[tuple[int, int]],
    keys: tuple[int, int],
    limit: int,
) -> np.ndarray:
    """Append the sources of the edges into `(first, how many)` keys; gives the number of each key's."""
    number = sum(last - first for first, last in spans)
    if number > limit:  # one key
        for run, (first, last) in zip(runs, spans, strict=True):
            for start in range(first, last, _BLOCK):
                append(read(run, 1, start, min(start + _BLOCK, last)))
        return np.array([number])
    degree, sources = gather_rows(runs, spans, *keys)
    for start in range(0, number, _BLOCK):
        append(sources[start : start + _BLOCK])
    return degree


def _fitting(limit: int, runs: Sequence[Run], key: int, most: int) -> int:
    """How many keys from `key` on, at most `most`, have at most `limit` edges; 1 if the first has more."""
    here, low, high = sum(_positions(runs, key)), 1, min(most, limit)
    middle = high
    while low < high:
        fits = sum(_positions(runs, key + middle)) - here <= limit
        low, high = (middle, high) if fits else (low, middle - 1)
        middle = (low + high + 1) // 2
    return low


def _positions(runs: Sequence[Run], key: int) -> list[int]:
    return [position(run, key) for run in runs]
