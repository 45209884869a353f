"""Edges sorted by destination on disk: runs that fit memory, and any range of rows read from all of them.

A run is a `.npy` file `[2, n]`: keys of the destinations, ascending, and sources. Equal keys stand in the
order in which the edges came, and so do the runs: a row is read in that order, whatever the size of a run.
"""

import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from jsage._internal.files import replaced
from jsage.data.formats.arrays import bytes_of
from jsage.data.shards.edge_sources import EdgeSource, Piece

MOST_EDGES = 2**24
"""Edges of a run, at most: `key << 24 | position` sorts them stably."""
MOST_KEYS = 2**39
_STEP = 2**12
_READ = 2**20


class Run(NamedTuple):
    """One file, and every 4096th of its keys.

    >>> Run._fields
    ('path', 'dtype', 'edges', 'begin', 'sample')
    """

    path: Path
    dtype: np.dtype
    edges: int
    begin: int
    sample: np.ndarray


def chunks(source: EdgeSource, start: int, size: int, num_nodes: int) -> Iterator[Int[np.ndarray, "n 2"]]:
    """The source's edges from number `start` on, `size` at a time; each chunk is overwritten by the next.

    Raises ValueError that names the piece for ids out of range.

    >>> from jsage.data import edge_arrays
    >>> source = edge_arrays([np.array([[0, 1], [2, 1], [1, 1]])])
    >>> [chunk.tolist() for chunk in chunks(source, 0, 2, 3)]
    [[[0, 1], [2, 1]], [[1, 1]]]
    """
    chunk, filled = np.empty((size, 2), _integers(num_nodes)), 0
    for name, edges in source.pieces(start):
        _check_range(Piece(name, edges), num_nodes)
        done = 0
        while done < len(edges):
            part = edges[done : done + size - filled]
            chunk[filled : filled + len(part)] = part
            done, filled = done + len(part), filled + len(part)
            if filled == size:
                yield chunk
                filled = 0
    if filled:
        yield chunk[:filled]


def both_directions(edges: Int[np.ndarray, "n 2"]) -> Int[np.ndarray, "m 2"]:
    """Each edge `u -> v`, and `v -> u` after it; a self-loop stays one edge.

    >>> both_directions(np.array([[0, 1], [2, 2]])).tolist()
    [[0, 1], [1, 0], [2, 2]]
    """
    both = np.stack([edges, edges[:, ::-1]], 1).reshape(-1, 2)
    keep = np.ones(len(both), bool)
    keep[1::2] = edges[:, 0] != edges[:, 1]
    return both[keep]


def write_run(path: Path, src: Int[np.ndarray, " n"], keys: Int[np.ndarray, " n"], most: int) -> list[int]:
    """Sort edges by key, stably, into a file; gives how many, and their checksum. Keys are below `most`.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp(), "run.npy")
    >>> write_run(path, np.array([5, 6, 7]), np.array([1, 0, 1]), 8)[0], np.load(path).tolist()
    (3, [[0, 1, 1], [6, 5, 7]])
    """
    order = keys.astype(np.int64)
    order <<= 24
    order |= np.arange(len(order))
    order.sort()
    dtype = _integers(most)
    keys = (order >> 24).astype(dtype)
    order &= MOST_EDGES - 1
    src = src[order].astype(dtype)
    del order
    header = {"descr": dtype.str, "fortran_order": False, "shape": (2, len(src))}
    with replaced(path) as file:
        np.lib.format.write_array_header_1_0(file, header)
        file.write(bytes_of(keys))
        file.write(bytes_of(src))
    return [len(src), zlib.crc32(bytes_of(src), zlib.crc32(bytes_of(keys)))]


def open_run(path: Path, edges: int, checksum: int) -> Run:
    """A run that `write_run` wrote; ValueError if it is damaged. It is read whole once, and never mapped.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp(), "run.npy")
    >>> run = open_run(path, *write_run(path, np.array([5, 6]), np.array([1, 0]), 8))
    >>> run.edges, run.sample.tolist()
    (2, [0])
    """
    damaged = f"{path} is damaged: delete the folder {path.parent.parent} to start anew"
    try:
        with path.open("rb") as file:
            np.lib.format.read_magic(file)
            shape, _, dtype = np.lib.format.read_array_header_1_0(file)
            run = Run(path, dtype, edges, file.tell(), np.empty(0, dtype))
    except (FileNotFoundError, ValueError) as error:
        raise ValueError(damaged) from error
    samples, found = [], 0
    for row in range(2):
        for first in range(0, edges, _READ):
            part = read(run, row, first, min(first + _READ, edges))
            found = zlib.crc32(bytes_of(part), found)
            samples += [part[::_STEP]] if row == 0 else []
    if shape != (2, edges) or found != checksum:
        raise ValueError(damaged)
    return run._replace(sample=np.concatenate([run.sample, *samples]))


def read(run: Run, row: int, first: int, last: int) -> Int[np.ndarray, " n"]:
    """Keys (row 0) or sources (row 1) number `first .. last - 1`.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp(), "run.npy")
    >>> run = open_run(path, *write_run(path, np.array([5, 6, 7]), np.array([2, 1, 0]), 8))
    >>> read(run, 0, 1, 3).tolist(), read(run, 1, 1, 3).tolist()
    ([1, 2], [6, 5])
    """
    with run.path.open("rb") as file:
        file.seek(run.begin + (row * run.edges + first) * run.dtype.itemsize)
        return np.fromfile(file, run.dtype, last - first)


def position(run: Run, key: int) -> int:
    """How many keys are below `key`.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp(), "run.npy")
    >>> run = open_run(path, *write_run(path, np.array([5, 6, 7]), np.array([2, 2, 0]), 8))
    >>> [position(run, key) for key in range(4)]
    [0, 1, 1, 3]
    """
    block = int(np.searchsorted(run.sample, key)) - 1
    if block < 0:
        return 0
    first = block * _STEP
    return first + int(np.searchsorted(read(run, 0, first, min(first + _STEP, run.edges)), key))


def in_degrees(runs: Sequence[Run], num_nodes: int) -> Int[np.ndarray, " num_nodes"]:
    """How often each of `num_nodes` keys occurs.

    >>> in_degrees([], 2).tolist()
    [0, 0]
    """
    degrees = np.zeros(num_nodes, np.int64)
    for run in runs:
        for first in range(0, run.edges, _READ):
            keys, _, counts = _equal(read(run, 0, first, min(first + _READ, run.edges)))
            degrees[keys] += counts
    return degrees


def gather_rows(
    runs: Sequence[Run], spans: Sequence[tuple[int, int]], first: int, rows: int
) -> tuple[Int[np.ndarray, " rows"], Int[np.ndarray, " n"]]:
    """The edges with keys `first .. first + rows - 1`: each row's number of them, and the sources row by row.

    `spans` says where they are in each run.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp(), "run.npy")
    >>> run = open_run(path, *write_run(path, np.array([5, 6]), np.array([3, 2]), 8))
    >>> degree, sources = gather_rows([run], [(0, 2)], first=2, rows=3)
    >>> degree.tolist(), sources.tolist()
    ([1, 1, 0], [6, 5])
    """
    degree, parts = np.zeros(rows, np.int64), []
    for run, span in zip(runs, spans, strict=True):
        keys, starts, counts = _equal(read(run, 0, *span))
        keys = keys - first
        degree[keys] += counts
        parts.append((keys, starts, counts))
    ends = np.cumsum(degree)
    at, sources = ends - degree, np.empty(int(ends[-1]), runs[0].dtype if runs else np.int32)
    for (keys, starts, counts), run, span in zip(parts, runs, spans, strict=True):
        place = np.repeat(at[keys] - starts, counts)
        place += np.arange(len(place))
        sources[place] = read(run, 1, *span)
        at[keys] += counts
    return degree, sources


def _equal(keys: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of ascending keys, each one once, where it begins, and how often it is there."""
    starts = np.flatnonzero(np.diff(keys, prepend=-1))
    return keys[starts], starts, np.diff(starts, append=len(keys))


def _integers(most: int) -> np.dtype:
    return np.dtype(np.int32 if most <= 2**31 else np.int64)


def _check_range(piece: Piece, num_nodes: int) -> None:
    for extreme in (int(piece.edges.min()), int(piece.edges.max())) if len(piece.edges) else ():
        if not 0 <= extreme < num_nodes:
            raise ValueError(f"{piece.name} must hold node ids in 0 .. {num_nodes - 1}, got {extreme}")
