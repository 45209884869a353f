"""Edge lists larger than memory, read piece by piece: folders of `.npy` or Parquet files, or any arrays."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np

from jsage.typing import HostArray

_PIECE = 2**20
"""Edges that are read from a file at once, at most."""
_SRC, _DST = ("src", "source", "from"), ("dst", "target", "to")


class Piece(NamedTuple):
    """Some edges, and what a message calls them.

    >>> Piece("edges.npy", np.array([[0, 1]])).edges.shape
    (1, 2)
    """

    name: str
    edges: np.ndarray
    """`[n, 2]`: sources, then destinations."""


@runtime_checkable
class EdgeSource(Protocol):
    """Edges in a fixed order."""

    def describe(self) -> dict[str, Any] | None:
        """What tells other edges from these, in JSON; None: only reading them does."""
        ...

    def pieces(self, start: int) -> Iterator[Piece]:
        """The edges from number `start` on."""
        ...

    def count(self) -> int | None:
        """How many there are, where that is known before they are read."""
        ...


def edge_files(folder: str | Path) -> "EdgeSource":
    """The edges in the `.npy` or `.parquet` files of a folder, file after file in the order of their names.

    A `.npy` holds `[n, 2]` integers, sources and destinations; or a pair of files, `NAMEsrc.npy` and
    `NAMEdst.npy`, holds `[n]` each. A Parquet file has a column `src` (or `source`, `from`) and one `dst` (or
    `target`, `to`); it needs pyarrow. Nothing is mapped into memory or read whole.

    Raises FileNotFoundError for a folder without such files, ValueError for files of both kinds, of another
    shape or type or without the columns, ImportError where pyarrow is missing.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     np.save(f"{folder}/a.npy", np.array([[0, 1], [2, 1]]))
    ...     np.save(f"{folder}/b.npy", np.array([[3, 1]]))
    ...     source = edge_files(folder)
    ...     [piece.edges.tolist() for piece in source.pieces(1)], source.count()
    ([[[2, 1]], [[3, 1]]], 3)
    """
    folder = Path(folder)
    files = sorted(path for path in folder.glob("*") if path.suffix in (".npy", ".parquet"))
    kinds = {path.suffix for path in files}
    if not files:
        raise FileNotFoundError(f"{folder} has no .npy or .parquet files: give a folder of edges")
    if len(kinds) > 1:
        raise ValueError(f"{folder} has .npy and .parquet files: move one kind away")
    if kinds == {".npy"}:
        return _Files([_Npy(*pair) for pair in _pairs(files)])
    try:
        import pyarrow.parquet as parquet
    except ImportError as error:
        raise ImportError(f"{files[0]} needs pyarrow: pip install 'jsage[parquet]', or give .npy") from error
    return _Files([_Parquet(path, parquet.ParquetFile) for path in files])


def edge_arrays(arrays: Iterable[HostArray | tuple[HostArray, HostArray]]) -> "EdgeSource":
    """The edges of arrays `[n, 2]`, or of pairs `(src, dst)` of arrays `[n]`, one after another.

    An iterable that can be read only once, such as a generator, serves once.

    >>> source = edge_arrays([np.array([[0, 1], [2, 1]]), (np.array([3]), np.array([1]))])
    >>> [piece.edges.tolist() for piece in source.pieces(1)]
    [[[2, 1]], [[3, 1]]]
    """
    return _Arrays(arrays)


class _Arrays:
    def __init__(self, arrays: Iterable) -> None:
        self._arrays = arrays

    def describe(self) -> dict[str, Any] | None:
        return None

    def count(self) -> int | None:
        return None

    def pieces(self, start: int) -> Iterator[Piece]:
        for number, array in enumerate(self._arrays):
            name = f"array {number}"
            pair = isinstance(array, tuple) and len(array) == 2
            edges = _stacked(name, *map(np.asarray, array)) if pair else np.asarray(array)
            check_edges(name, edges.shape, edges.dtype)
            if start < len(edges):
                yield Piece(name, edges[start:])
            start = max(start - len(edges), 0)


class _Files:
    def __init__(self, files: Sequence["_Npy | _Parquet"]) -> None:
        self._files = files

    def describe(self) -> dict[str, Any] | None:
        """Names, sizes and times of change: a file that was written anew is another one."""
        status = [(path.name, path.stat()) for file in self._files for path in file.paths]
        return {"files": [[name, found.st_size, found.st_mtime_ns] for name, found in status]}

    def count(self) -> int | None:
        return sum(file.rows for file in self._files)

    def pieces(self, start: int) -> Iterator[Piece]:
        for file in self._files:
            if start < file.rows:
                yield from (Piece(str(file.paths[0]), edges) for edges in file.read(start))
            start = max(start - file.rows, 0)


class _Npy:
    """`[n, 2]` in rows or in columns, or two files of `[n]`."""

    def __init__(self, *paths: Path) -> None:
        self.paths = paths
        headers = [_header(path) for path in paths]
        shapes = [shape for shape, *_ in headers]
        if len(paths) == 2 and (shapes[0] != shapes[1] or len(shapes[0]) != 1):
            raise ValueError(f"{paths[0]} and {paths[1].name} must hold one axis alike, got {shapes}")
        shape = shapes[0] if len(paths) == 1 else (*shapes[0], 2)
        for path, (_, _, dtype, _) in zip(paths, headers, strict=True):
            check_edges(str(path), shape, dtype)
        self.rows = shape[0]
        self._columns = [
            (path, dtype, begin) for path, (_, _, dtype, begin) in zip(paths, headers, strict=True)
        ]
        if len(paths) == 1 and headers[0][1]:
            path, dtype, begin = self._columns[0]
            self._columns.append((path, dtype, begin + self.rows * dtype.itemsize))

    def read(self, start: int) -> Iterator[np.ndarray]:
        for first in range(start, self.rows, _PIECE):
            count = min(_PIECE, self.rows - first)
            if len(self._columns) == 2:
                parts = [_numbers(column, first, count) for column in self._columns]
                yield np.stack(parts, 1)
            else:
                yield _numbers(self._columns[0], 2 * first, 2 * count).reshape(-1, 2)


class _Parquet:
    def __init__(self, path: Path, opener: Any) -> None:
        self.paths, self._opener = (path,), opener
        with opener(path) as file:
            self.rows, names = file.metadata.num_rows, file.schema_arrow.names
        found = [[name for name in names if name.lower() in heads] for heads in (_SRC, _DST)]
        if [len(columns) for columns in found] != [1, 1]:
            raise ValueError(f"{path} must have one column of {_SRC} and one of {_DST}, got {names}")
        self._names = [columns[0] for columns in found]

    def read(self, start: int) -> Iterator[np.ndarray]:
        """Row groups before `start` are not read."""
        with self._opener(self.paths[0]) as file:
            sizes = [file.metadata.row_group(i).num_rows for i in range(file.metadata.num_row_groups)]
            groups = []
            for i, size in enumerate(sizes):
                if groups or start < size:
                    groups.append(i)
                else:
                    start -= size
            for batch in file.iter_batches(_PIECE, row_groups=groups, columns=self._names):
                edges = self._edges([batch.column(name) for name in self._names])
                if start < len(edges):
                    yield edges[start:]
                start = max(start - len(edges), 0)

    def _edges(self, columns: list) -> np.ndarray:
        for name, column in zip(self._names, columns, strict=True):
            if column.null_count:
                raise ValueError(f"{self.paths[0]}: column {name!r} has {column.null_count} nulls: drop them")
        edges = _stacked(str(self.paths[0]), *(column.to_numpy(zero_copy_only=False) for column in columns))
        check_edges(str(self.paths[0]), edges.shape, edges.dtype)
        return edges


def check_edges(name: str, shape: tuple[int, ...], dtype: np.dtype) -> None:
    """ValueError unless an array of edges is `[n, 2]` integers.

    >>> check_edges("a.npy", (5, 3), np.dtype("i4"))
    Traceback (most recent call last):
    ValueError: a.npy must be edges [n, 2], sources and destinations, got shape (5, 3)
    """
    if len(shape) != 2 or shape[1] != 2:
        raise ValueError(f"{name} must be edges [n, 2], sources and destinations, got shape {shape}")
    if not np.issubdtype(dtype, np.integer):
        raise ValueError(f"{name} must hold integers, got {dtype}: convert it with astype(np.int64)")


def _pairs(files: list[Path]) -> Iterator[tuple[Path, ...]]:
    """Files alone, and those of sources with those of destinations."""
    other = {"src": "dst", "dst": "src"}
    for path in files:
        end = path.stem[-3:]
        if end not in other:
            yield (path,)
            continue
        partner = path.with_name(f"{path.stem[:-3]}{other[end]}.npy")
        if partner not in files:
            raise ValueError(f"{path} has no partner {partner.name}: sources and destinations go in pairs")
        if end == "src":
            yield path, partner


def _header(path: Path) -> tuple[tuple[int, ...], bool, np.dtype, int]:
    """Shape, whether it is stored by columns, dtype, and where the numbers begin."""
    with path.open("rb") as file:
        try:
            version = np.lib.format.read_magic(file)
            read = (
                np.lib.format.read_array_header_1_0
                if version == (1, 0)
                else np.lib.format.read_array_header_2_0
            )
            shape, columns, dtype = read(file)
        except ValueError as error:
            raise ValueError(f"{path} is no plain .npy file: {error}") from error
        begin = file.tell()
    expected = begin + int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    if (size := path.stat().st_size) != expected:
        raise ValueError(f"{path} is half-written: expected {expected} bytes, got {size}: write it again")
    return shape, columns, dtype, begin


def _numbers(column: tuple[Path, np.dtype, int], first: int, count: int) -> np.ndarray:
    path, dtype, begin = column
    with path.open("rb") as file:
        file.seek(begin + first * dtype.itemsize)
        return np.fromfile(file, dtype, count)


def _stacked(name: str, src: np.ndarray, dst: np.ndarray) -> np.ndarray:
    if src.shape != dst.shape or src.ndim != 1:
        raise ValueError(f"{name} must have sources and destinations alike, got {src.shape} and {dst.shape}")
    for ends in (src, dst):
        check_edges(name, (len(ends), 2), ends.dtype)
    return np.stack([src, dst], 1) if src.dtype == dst.dtype else np.stack([src, dst], 1, dtype=np.int64)
