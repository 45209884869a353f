"""Edge lists larger than memory, read piece by piece: folders of `.npy` or Parquet files, or any arrays."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np

from jsage._internal.checks import check_integer, host_array
from jsage.typing import HostArray

_PIECE = 2**18
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

    def pieces(self) -> Iterator[Piece]:
        """The edges, some at a time."""
        ...

    def count(self) -> int | None:
        """How many there are, where that is known before they are read."""
        ...


def edge_files(folder: str | Path) -> "EdgeSource":
    """The edges in the `.npy` or `.parquet` files of a folder, file after file in the order of their names.

    A `.npy` holds `[n, 2]` integers, sources and destinations; or a pair of files, `NAMEsrc.npy` and
    `NAMEdst.npy`, holds `[n]` each. A Parquet file has a column `src` (or `source`, `from`) and one `dst` (or
    `target`, `to`); it needs pyarrow. Nothing is read whole.

    Raises FileNotFoundError for a folder without such files, ValueError for files of both kinds, of another
    shape or type or without the columns, ImportError where pyarrow is missing.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     np.save(f"{folder}/a.npy", np.array([[0, 1], [2, 1]]))
    ...     np.save(f"{folder}/b.npy", np.array([[3, 1]]))
    ...     source = edge_files(folder)
    ...     [piece.edges.tolist() for piece in source.pieces()], source.count()
    ([[[0, 1], [2, 1]], [[3, 1]]], 3)
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
    >>> [piece.edges.tolist() for piece in source.pieces()]
    [[[0, 1], [2, 1]], [[3, 1]]]
    """
    return _Arrays(arrays)


class _Arrays:
    def __init__(self, arrays: Iterable) -> None:
        self._arrays = arrays

    def describe(self) -> dict[str, Any] | None:
        return None

    def count(self) -> int | None:
        return None

    def pieces(self) -> Iterator[Piece]:
        for number, array in enumerate(self._arrays):
            name = f"array {number}"
            pair = isinstance(array, tuple) and len(array) == 2
            columns = [host_array(column, name) for column in (array if pair else (array,))]
            edges = _stacked(name, *columns) if pair else columns[0]
            check_edges(name, edges.shape, edges.dtype)
            for first in range(0, len(edges), _PIECE):
                yield Piece(name, edges[first : first + _PIECE])


class _Files:
    def __init__(self, files: Sequence["_Npy | _Parquet"]) -> None:
        self._files = files

    def describe(self) -> dict[str, Any] | None:
        """Names, sizes and times of change: a file that was written again is another one."""
        status = [(path.name, path.stat()) for file in self._files for path in file.paths]
        return {"files": [[name, found.st_size, found.st_mtime_ns] for name, found in status]}

    def count(self) -> int | None:
        return sum(file.rows for file in self._files)

    def pieces(self) -> Iterator[Piece]:
        for file in self._files:
            yield from (Piece(str(file.paths[0]), edges) for edges in file.read())


class _Npy:
    """`[n, 2]` in rows or in columns, or two files of `[n]`."""

    def __init__(self, *paths: Path) -> None:
        self.paths, arrays = paths, [_mapped(path) for path in paths]
        shapes = [array.shape for array in arrays]
        if len(paths) == 2 and (shapes[0] != shapes[1] or len(shapes[0]) != 1):
            raise ValueError(f"{paths[0]} and {paths[1].name} must hold one axis alike, got {shapes}")
        for path, array in zip(paths, arrays, strict=True):
            check_edges(str(path), array.shape if len(paths) == 1 else (len(array), 2), array.dtype)
        self.rows = shapes[0][0]

    def read(self) -> Iterator[np.ndarray]:
        """Each piece is mapped again: pages that were read do not add up."""
        for first in range(0, self.rows, _PIECE):
            parts = [np.array(_mapped(path)[first : first + _PIECE]) for path in self.paths]
            yield parts[0] if len(parts) == 1 else _stacked(str(self.paths[0]), *parts)


class _Parquet:
    def __init__(self, path: Path, opener: Any) -> None:
        self.paths, self._opener = (path,), opener
        with opener(path) as file:
            self.rows, names = file.metadata.num_rows, file.schema_arrow.names
        found = [[name for name in names if name.lower() in heads] for heads in (_SRC, _DST)]
        if [len(columns) for columns in found] != [1, 1]:
            raise ValueError(f"{path} must have one column of {_SRC} and one of {_DST}, got {names}")
        self._names = [columns[0] for columns in found]

    def read(self) -> Iterator[np.ndarray]:
        with self._opener(self.paths[0]) as file:
            for batch in file.iter_batches(_PIECE, columns=self._names):
                yield self._edges([batch.column(name) for name in self._names])

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
    check_integer(dtype, name)


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


def _mapped(path: Path) -> np.ndarray:
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, OSError) as error:
        raise ValueError(f"{path} is no plain .npy file, or half-written: {error}: write it again") from error
    if not isinstance(array, np.memmap) or path.stat().st_size != array.offset + array.nbytes:
        raise ValueError(f"{path} is no plain .npy file, or longer than it says: write it again")
    return array


def _stacked(name: str, src: np.ndarray, dst: np.ndarray) -> np.ndarray:
    if src.shape != dst.shape or src.ndim != 1:
        raise ValueError(f"{name} must have sources and destinations alike, got {src.shape} and {dst.shape}")
    for ends in (src, dst):
        check_edges(name, (len(ends), 2), ends.dtype)
    return np.stack([src, dst], 1) if src.dtype == dst.dtype else np.stack([src, dst], 1, dtype=np.int64)
