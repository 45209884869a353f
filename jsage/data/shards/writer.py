"""Writing a sharded graph directory: one shard after another, and `meta.json` when all are there."""

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int, Shaped

from jsage._internal.checks import (
    check_finite,
    check_integer,
    check_labels,
    check_numeric,
    host_array,
    is_floating,
)
from jsage._internal.files import checksum, replaced
from jsage._internal.row_reader import RowReader
from jsage.data.formats.arrays import ArrayWriter
from jsage.data.shards.layout import FORMAT, META, SHARD, VERSION, describe_placement, shard_name
from jsage.graph import Location, Placement
from jsage.typing import HostArray

_LIMIT = 2**31
_RESIDENT = 2**28
"""Bytes of a mapped table of features that are kept mapped while it is read."""
SPLITS = ("train", "val", "test")


class Tables(NamedTuple):
    """What belongs to nodes, by id: rows of features and labels, and the ids of three splits.

    >>> Tables(train=np.array([0, 1])).features is None
    True
    """

    features: Shaped[HostArray, "num_nodes width"] | None = None
    labels: Shaped[HostArray, " num_nodes *targets"] | None = None
    train: Int[HostArray, " num_train"] | None = None
    val: Int[HostArray, " num_val"] | None = None
    test: Int[HostArray, " num_test"] | None = None


class ShardWriter:
    """One shard's folder, begun from nothing; what was left of it is removed.

    >>> import tempfile
    >>> with ShardWriter(Path(tempfile.mkdtemp()), 0) as writer:
    ...     writer.array("labels", (2,), np.int32).append(np.arange(2))
    ...     writer.finish({"rows": 2})["labels.npy"]["shape"]
    [2]
    """

    def __init__(self, folder: Path, shard: int) -> None:
        self.folder, self.shard = folder / shard_name(shard), shard
        self._arrays: dict[str, ArrayWriter] = {}
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir()

    def array(self, name: str, shape: tuple[int, ...], dtype: Any) -> ArrayWriter:
        """The file of an array, without rows so far."""
        file = f"{name}.npy"
        self._arrays[file] = ArrayWriter(self.folder / file, shape, dtype)
        return self._arrays[file]

    def __enter__(self) -> "ShardWriter":
        return self

    def __exit__(self, *error: object) -> None:
        for array in self._arrays.values():
            array.close()

    def finish(self, described: dict) -> dict[str, dict]:
        """Write `shard.json`, with what `described` says of the run; the entries of the files."""
        files = {name: array.finish() for name, array in sorted(self._arrays.items())}
        with replaced(self.folder / SHARD) as file:
            told = {"shard": self.shard, **described, "files": files}
            file.write(json.dumps(told, indent=1, sort_keys=True).encode())
        return files


def checked_tables(tables: Tables, num_nodes: int) -> Tables:
    """The tables as NumPy arrays; ValueError for one that has not one row a node, for features that are no
    numbers, for labels that are neither classes nor 0/1 rows nor real values, and for splits that are no ids.

    >>> checked_tables(Tables(labels=np.arange(3)), 4)
    Traceback (most recent call last):
    ValueError: labels must have one row a node, 4, got shape (3,)
    """
    arrays = {name: table for name, table in tables._asdict().items() if table is not None}
    for name, table in arrays.items():
        arrays[name] = table if isinstance(table, np.memmap) else host_array(table, name)
    host = Tables(**arrays)
    if host.features is not None:
        if host.features.ndim != 2 or not host.features.shape[1]:
            raise ValueError(f"features must be [num_nodes, width], got shape {host.features.shape}")
        check_numeric(host.features.dtype, "features")  # values: as they are written
    for name in ("features", "labels"):
        if (table := getattr(host, name)) is not None and table.shape[:1] != (num_nodes,):
            raise ValueError(f"{name} must have one row a node, {num_nodes}, got shape {table.shape}")
    for name in SPLITS:
        if (nodes := getattr(host, name)) is not None and nodes.ndim != 1:
            raise ValueError(f"{name} must be one axis of node ids, got shape {nodes.shape}")
        if nodes is not None and nodes.size:
            check_integer(nodes.dtype, name)
    return host if host.labels is None else host._replace(labels=check_labels(host.labels, num_nodes))


def locate_splits(tables: Tables, placement: Placement) -> dict[str, Location]:
    """Where the nodes of each split are; ValueError that names a split with ids out of range.

    >>> from jsage.graph import contiguous
    >>> locate_splits(Tables(train=np.array([4])), contiguous(5, 2))["train"].local
    array([1], dtype=int32)
    """
    found = {}
    for name in SPLITS:
        nodes = getattr(tables, name)
        try:
            found[name] = placement.locate(np.asarray(() if nodes is None else nodes, np.int64))
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error
    return found


def write_tables(
    writer: ShardWriter,
    tables: Tables,
    splits: Mapping[str, Location],
    placement: Placement,
    memory_bytes: int = 2**28,
) -> Iterator[int]:
    """Write a shard's rows of the tables, in parts of `memory_bytes`; yields how many are written.

    >>> import tempfile
    >>> from jsage.graph import contiguous
    >>> placement, tables = contiguous(5, 2), Tables(labels=np.arange(5), train=np.array([0, 4]))
    >>> with ShardWriter(Path(tempfile.mkdtemp()), 1) as writer:
    ...     list(write_tables(writer, tables, locate_splits(tables, placement), placement))
    [2]
    """
    shard, count, before = writer.shard, placement.count(writer.shard), 0
    for name in ("features", "labels"):
        if (table := getattr(tables, name)) is not None:
            array, read = writer.array(name, (count, *table.shape[1:]), table.dtype), _reader(table)
            size = max(memory_bytes // (4 * array.row_bytes + 64), 1)
            for first in range(0, count, size):
                local = np.arange(first, min(first + size, count))
                rows = read(np.asarray(placement.nodes(shard, local)))
                if name == "features" and is_floating(rows.dtype):
                    check_finite(rows, f"features of shard {shard}, from its row {first} on,")
                array.append(rows)
                yield before + first + len(local)
            before += count
    for name, (owner, local) in splits.items():
        rows = np.asarray(local)[np.asarray(owner) == shard]
        writer.array(name, rows.shape, np.int32).append(rows)


def indices_writer(
    writer: ShardWriter, num_edges: int, placement: Placement
) -> Callable[[Int[np.ndarray, " edges"]], None]:
    """A function that appends sources, by id, to a shard's `indices`, and to `owners` if there must be any.

    Raises ValueError for 2^31 edges or more.

    >>> import tempfile
    >>> from jsage.graph import contiguous
    >>> with ShardWriter(Path(tempfile.mkdtemp()), 0) as writer:
    ...     indices_writer(writer, 2, contiguous(5, 2))(np.array([4, 0]))
    """
    if num_edges >= _LIMIT:
        raise ValueError(
            f"shard {writer.shard} would have {num_edges} edges, but offsets are int32, so fewer than 2^31: "
            "take more shards, or place nodes by balanced in-degrees"
        )
    indices = writer.array("indices", (num_edges,), np.int32)
    if placement.size <= _LIMIT:
        return lambda src: indices.append(placement.placed(src))
    owners = writer.array("owners", (num_edges,), np.int32)

    def append(src: np.ndarray) -> None:
        owner, local = placement.locate(src)
        indices.append(local)
        owners.append(owner)

    return append


def write_meta(folder: Path, placement: Placement) -> None:
    """Write `meta.json` from the `shard.json` of every shard: the last file of a directory.

    >>> import tempfile
    >>> from jsage.graph import contiguous
    >>> write_meta(Path(tempfile.mkdtemp()), contiguous(5, 2))
    Traceback (most recent call last):
    FileNotFoundError: ...
    """
    files: dict[str, dict] = {}
    nodes, edges = [], []
    for shard in range(placement.shards):
        name = shard_name(shard)
        text = (folder / name / SHARD).read_bytes()
        entries = json.loads(text)["files"]
        files[f"{name}/{SHARD}"] = {"bytes": len(text), "sha256": hashlib.sha256(text).hexdigest()}
        files |= {f"{name}/{file}": entry for file, entry in entries.items()}
        nodes.append(entries["indptr.npy"]["shape"][0] - 1)
        edges.append(entries["indices.npy"]["shape"][0])
    meta = {
        "format": FORMAT,
        "version": VERSION,
        **describe_placement(placement),
        "num_edges": sum(edges),
        "nodes": nodes,
        "edges": edges,
        "features": _one_row(files.get(f"{shard_name(0)}/features.npy")),
        "labels": _one_row(files.get(f"{shard_name(0)}/labels.npy")),
        "files": files,
    }
    with replaced(folder / META) as file:
        file.write(json.dumps({"sha256": checksum(meta), **meta}, indent=1).encode())


def _one_row(entry: dict | None) -> dict | None:
    return entry and {"dtype": entry["dtype"], "shape": entry["shape"][1:]}


def _reader(table: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """Rows by id; of a mapped file, letting go of its pages."""
    if table.ndim == 2 and isinstance(table, np.memmap) and table.mode == "r":
        rows = RowReader(table, _RESIDENT)
        return lambda ids: rows.read(ids, len(ids))
    return lambda ids: table[ids]
