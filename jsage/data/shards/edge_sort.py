"""Edges sorted on disk, by DuckDB: appended in any order, read back in ascending order of their keys."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int

_READ = 2**18
"""Edges that are read, or inserted, at a time."""
_THREAD = 2**27
"""Bytes that each thread of a sort should have."""


class SortedEdges:
    """A DuckDB file of pairs `(key, src)`; edges of one key stay in the order in which they were appended.

    Edges are numbered from 0 in the order of their keys.
    """

    def __init__(self, connection: Any) -> None:
        self._run = connection.execute
        self._waiting: list[tuple[np.ndarray, np.ndarray]] = []

    def create(self, dtype: np.dtype) -> None:
        """Begin with no edges; keys and sources are `dtype`, int32 or int64."""
        name = {4: "INTEGER", 8: "BIGINT"}[dtype.itemsize]
        self._run(f"CREATE TABLE unsorted (key {name}, src {name})")

    def append(self, keys: Int[np.ndarray, " n"], src: Int[np.ndarray, " n"]) -> None:
        """Add edges, before they are sorted."""
        self._waiting.append((keys, src))
        if sum(len(keys) for keys, _ in self._waiting) >= _READ:
            self._insert()

    def sort(self) -> None:
        """Sort all edges, stably; from here on they can be read."""
        self._insert()
        self._run("CREATE TABLE edges AS SELECT key, src FROM unsorted ORDER BY key, rowid")
        self._run("DROP TABLE unsorted")

    def count(self, below: int = 2**62) -> int:
        """How many edges have a key less than `below`."""
        return self._run("SELECT count(*) FROM edges WHERE key < ?", [below]).fetchone()[0]

    def read(
        self, first: int, last: int
    ) -> Iterator[tuple[Int[np.ndarray, " n"], Int[np.ndarray, " k"], Int[np.ndarray, " k"]]]:
        """The edges number `first .. last - 1`, some at a time: sources, distinct keys, edges of each."""
        for start in range(first, last, _READ):
            some = [start, min(start + _READ, last)]
            found = self._run("SELECT key, src FROM edges WHERE rowid >= ? AND rowid < ?", some).fetchnumpy()
            keys = found["key"]
            starts = np.flatnonzero(np.diff(keys, prepend=-1))
            yield found["src"], keys[starts], np.diff(starts, append=len(keys))

    def _insert(self) -> None:
        """What waits; small pieces together, for a statement takes some milliseconds."""
        if self._waiting:
            keys, src = (np.concatenate(columns) for columns in zip(*self._waiting, strict=True))
            piece = {"key": keys, "src": src}  # noqa: F841  (the statement reads it)
            self._run("INSERT INTO unsorted SELECT key, src FROM piece")
            self._waiting = []


@contextmanager
def open_edges(file: Path, memory_bytes: int, *, read_only: bool) -> Iterator[SortedEdges]:
    """The edges in a file, which is made unless it is `read_only`; DuckDB takes at most `memory_bytes`.

    What does not fit goes into a folder `spilled` beside the file. Raises ImportError where DuckDB is
    missing, ValueError for too little memory and for a file to read that is damaged or missing, OSError for
    one that cannot be written.

    >>> import tempfile
    >>> with open_edges(Path(tempfile.mkdtemp(), "edges.duckdb"), 2**27, read_only=False) as edges:
    ...     edges.create(np.dtype(np.int32))
    ...     edges.append(np.array([3, 1, 3]), np.array([5, 6, 4]))
    ...     edges.sort()
    ...     [[array.tolist() for array in part] for part in edges.read(0, 3)], edges.count(below=3)
    ([[[6, 5, 4], [1, 3], [1, 2]]], 1)
    """
    duckdb = import_duckdb()
    config = {
        "memory_limit": f"{memory_bytes}B",
        "threads": min(os.cpu_count() or 1, max(memory_bytes // _THREAD, 1)),
        "temp_directory": str(file.parent / "spilled"),
    }
    try:
        with duckdb.connect(str(file), read_only=read_only, config=config) as connection:
            connection.execute("SET enable_progress_bar = false")  # it would go to standard output
            yield SortedEdges(connection)
    except duckdb.OutOfMemoryException as error:
        raise ValueError(f"memory_bytes is too little to sort these edges in: give more: {error}") from error
    except duckdb.Error as error:
        if not read_only:
            raise OSError(f"{file} cannot be written: {error}") from error
        raise ValueError(
            f"{file} is damaged: {error}: delete the folder {file.parent} to start again"
        ) from error


def both_directions(edges: Int[np.ndarray, "n 2"]) -> Int[np.ndarray, "m 2"]:
    """Each edge `u -> v`, and `v -> u` after it; a self-loop stays one edge.

    >>> both_directions(np.array([[0, 1], [2, 2]])).tolist()
    [[0, 1], [1, 0], [2, 2]]
    """
    both = np.stack([edges, edges[:, ::-1]], 1).reshape(-1, 2)
    keep = np.ones(len(both), bool)
    keep[1::2] = edges[:, 0] != edges[:, 1]
    return both[keep]


def import_duckdb() -> Any:
    """The module; ImportError that says what to install.

    >>> import_duckdb().__name__
    'duckdb'
    """
    try:
        import duckdb
    except ImportError as error:
        raise ImportError("sorting edges into shards needs DuckDB: pip install 'jsage[shards]'") from error
    return duckdb
