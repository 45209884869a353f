"""Edge lists larger than memory, sorted into shards; a run that was killed keeps its finished shards."""

import hashlib
import shutil
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int

from jsage._internal.checks import check_range
from jsage._internal.files import Record, checksum, flush_directory, locked, refuse_existing
from jsage.data.formats.arrays import bytes_of
from jsage.data.shards.edge_sort import SortedEdges, both_directions, import_duckdb, open_edges
from jsage.data.shards.edge_sources import EdgeSource, edge_arrays
from jsage.data.shards.layout import describe_placement, read_placement
from jsage.data.shards.writer import (
    ShardWriter,
    Tables,
    checked_tables,
    indices_writer,
    locate_splits,
    write_meta,
    write_tables,
)
from jsage.graph import Placement, Ranges, balanced, contiguous

_LEAST = 2**27


class Progress(NamedTuple):
    """What a `progress` callback gets: edges that are read, sorted and written, rows of the tables.

    >>> Progress("read", 5, None).stage
    'read'
    """

    stage: str
    """`"read"`, `"sort"` (at its begin and its end), `"write"` or `"tables"`."""
    done: int
    total: int | None
    """None where it is not known before the end."""


class Sorting(NamedTuple):
    """How much memory DuckDB and the arrays in work may take, beside the interpreter; who hears of progress.

    Labels and splits that are arrays in memory, and 4 bytes a row of the largest shard, come on top.

    >>> Sorting().memory_bytes
    1000000000
    """

    memory_bytes: int = 10**9
    progress: Callable[[Progress], None] | None = None


class Balanced(NamedTuple):
    """To be placed by `jsage.graph.balanced`, of in-degrees that are counted when the edges are sorted.

    >>> Balanced(num_nodes=10, shards=2).node_cost
    1
    """

    num_nodes: int
    shards: int
    node_cost: int = 1


def shard_edges(
    path: str | Path,
    edges: EdgeSource | Iterable,
    placement: Placement | Balanced,
    tables: Tables = Tables(),  # noqa: B008
    *,
    symmetrize: bool = False,
    sorting: Sorting = Sorting(),  # noqa: B008
) -> None:
    """Write the sharded graph of an edge list that need not fit memory; `jsage.data.shards` is the format.

    The edges (`edge_files`, or an iterable of arrays `[n, 2]`) are sorted by destination in a DuckDB file
    (extra `shards`), which is then read shard by shard. Edges into a node keep the order in which they came,
    as in `from_edges`, and the files are those of `shard_dataset`, byte for byte, whatever the memory and
    however the edges are cut into files. `symmetrize` adds each edge's reverse right after it (a self-loop
    stays one edge; parallel edges are kept, unlike by `jsage.graph.symmetrize`).

    The work is done in `.NAME.part` beside `path`, which takes up to 40 bytes an edge while it sorts, and the
    directory itself, which then gets its name. A call that was killed is gone on with by the same call, with
    more memory if need be: edges that were sorted stay so, and finished shards are not written again.

    Raises FileExistsError if `path` exists; BlockingIOError while another process writes it; ImportError
    where DuckDB is missing; ValueError for ids that are no integers or out of range, tables of another number
    of rows, a shard of 2^31 edges or more, too little memory to sort or to count in-degrees in, and a folder
    left by a call with other arguments or edges, or damaged; OSError for a full disk.

    >>> import tempfile
    >>> from jsage.data import open_shard
    >>> from jsage.graph import contiguous
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     shard_edges(f"{folder}/graph", [np.array([[0, 3], [1, 3], [2, 0]])], contiguous(4, 2))
    ...     shard = open_shard(f"{folder}/graph", 1)
    >>> shard.indptr.tolist(), shard.indices.tolist()
    ([0, 0, 2], [0, 1])
    """
    import_duckdb()
    path, source = Path(path), edges if isinstance(edges, EdgeSource) else edge_arrays(edges)
    tables = checked_tables(tables, placement.num_nodes)
    _check_call(placement, tables, sorting)
    run = _describe_call(source, placement, tables, symmetrize)
    path.parent.mkdir(parents=True, exist_ok=True)
    with locked(path):
        work = path.with_name(f".{path.name}.part")
        if not (work / "progress.json").exists():
            shutil.rmtree(work, ignore_errors=True)
            refuse_existing(path)
        record = Record(work, run)
        if record.state.get("whole") and not (work / "out").exists() and not path.exists():
            shutil.rmtree(work)  # it got its name, and was removed since
            record = Record(work, run)
        _finish(_Job(work, record, source, placement, symmetrize, sorting), path, tables)


@dataclass(frozen=True)
class _Job:
    """One call: where it works, how far it is, and what it was given."""

    folder: Path
    record: Record
    source: EdgeSource
    asked: Placement | Balanced
    symmetrize: bool
    sorting: Sorting

    @property
    def state(self) -> dict[str, Any]:
        return self.record.state

    @property
    def out(self) -> Path:
        return self.folder / "out"

    def note(self, **news: Any) -> None:
        self.record.write({**self.state, **news})

    def report(self, stage: str, done: int, total: int | None) -> None:
        if self.sorting.progress is not None:
            self.sorting.progress(Progress(stage, done, total))

    def opened(self, *, read_only: bool) -> AbstractContextManager[SortedEdges]:
        limit = self.sorting.memory_bytes * 3 // 4
        return open_edges(self.folder / "edges.duckdb", limit, read_only=read_only)


def _finish(job: _Job, path: Path, tables: Tables) -> None:
    """Do what is missing; give the directory its name; remove what it was made from."""
    try:
        if not job.state.get("whole"):
            refuse_existing(path)
            _sort(job)
            _write(job, tables)
    except BaseException:
        if not job.state:
            shutil.rmtree(job.folder, ignore_errors=True)
        raise
    (job.folder / "edges.duckdb").unlink(missing_ok=True)
    if job.out.exists():
        refuse_existing(path)
        job.out.rename(path)
        flush_directory(path.parent)
    shutil.rmtree(job.folder)


def _sort(job: _Job) -> None:
    """Sort the edges, unless they are; those that only reading tells apart are read again and compared."""
    if before := job.state.get("edges"):
        if job.source.describe() is None:
            told = max((told for _, told in _read(job)), default=[0, 0])
            if told != before:
                raise ValueError(
                    f"{job.folder} was left by another run: its {before[0]} edges are others than these "
                    f"{told[0]}; delete it to start again, or write to another path"
                )
        return
    placement, told = job.asked, [0, 0]
    if isinstance(placement, Balanced):  # ranges, whose bounds do not matter yet
        placement = contiguous(placement.num_nodes, placement.shards)
    dtype = np.dtype(np.int32 if max(placement.num_nodes, placement.size) <= 2**31 else np.int64)
    with job.opened(read_only=False) as edges:
        edges.create(dtype)
        for piece, told in _read(job):
            src, dst = (both_directions(piece) if job.symmetrize else piece).T
            keys = np.asarray(dst if isinstance(placement, Ranges) else placement.placed(dst))
            edges.append(keys.astype(dtype), src.astype(dtype))
            job.report("read", told[0], job.source.count())
        job.report("sort", 0, told[0])
        edges.sort()
        job.report("sort", told[0], told[0])
    job.note(edges=told)


def _read(job: _Job) -> Iterator[tuple[Int[np.ndarray, "n 2"], list[int]]]:
    """The edges, and how many there were so far, with their checksum; ValueError that names a bad piece."""
    number, seen = 0, 0
    for piece in job.source.pieces():
        check_range(piece.edges, job.asked.num_nodes, piece.name)
        edges = np.ascontiguousarray(piece.edges, np.int64)
        number, seen = number + len(edges), zlib.crc32(bytes_of(edges), seen)
        yield edges, [number, seen]


def _write(job: _Job, tables: Tables) -> None:
    """Write every shard that is missing from the sorted edges, and `meta.json`."""
    with job.opened(read_only=True) as edges:
        placement, num_edges = _placement(job, edges), edges.count()
        described, splits = describe_placement(placement), locate_splits(tables, placement)
        columns, first = sum(table is not None for table in tables[:2]), job.state.get("shard", 0)
        written = columns * sum(map(placement.count, range(first)))
        job.out.mkdir(exist_ok=True)
        for shard in range(first, placement.shards):
            with ShardWriter(job.out, shard) as writer:
                for done in _write_edges(writer, edges, placement):
                    job.report("write", done, num_edges)
                for rows in write_tables(writer, tables, splits, placement, job.sorting.memory_bytes // 4):
                    job.report("tables", written + rows, columns * placement.num_nodes)
                writer.finish(described)
            written += columns * placement.count(shard)
            job.note(shard=shard + 1)
    write_meta(job.out, placement)
    job.note(whole=True)


def _write_edges(writer: ShardWriter, edges: SortedEdges, placement: Placement) -> Iterator[int]:
    """Write the rows of a shard; yields how many edges are written, those of the shards before included."""
    count = placement.count(writer.shard)
    key = placement.bounds[writer.shard] if isinstance(placement, Ranges) else writer.shard * placement.rows
    first, last = edges.count(below=key), edges.count(below=key + count)
    append = indices_writer(writer, last - first, placement)
    indptr = np.zeros(count + 1, np.int32)
    for src, keys, degrees in edges.read(first, last):
        append(src)
        indptr[keys - key + 1] += degrees.astype(np.int32)
        first += len(src)
        yield first
    np.cumsum(indptr, out=indptr)
    writer.array("indptr", indptr.shape, np.int32).append(indptr)


def _placement(job: _Job, edges: SortedEdges) -> Placement:
    if isinstance(job.asked, Placement):
        return job.asked
    if "placement" not in job.state:
        in_degrees = np.zeros(job.asked.num_nodes, np.int64)
        for _, nodes, degrees in edges.read(0, edges.count()):
            in_degrees[nodes] += degrees
        placed = balanced(in_degrees, job.asked.shards, node_cost=job.asked.node_cost)
        job.note(placement=describe_placement(placed))
    return read_placement(job.state["placement"])


def _check_call(placement: Placement | Balanced, tables: Tables, sorting: Sorting) -> None:
    """ValueError, before any work, for what could not be finished."""
    if sorting.memory_bytes < _LEAST:
        raise ValueError(f"memory_bytes must be at least {_LEAST}, got {sorting.memory_bytes}")
    if isinstance(placement, Balanced):
        if (needed := 24 * placement.num_nodes) > sorting.memory_bytes:
            raise ValueError(
                f"to balance {placement.num_nodes} nodes takes {needed} bytes, but memory_bytes is "
                f"{sorting.memory_bytes}: give more, or place nodes by contiguous or hashed"
            )
        if placement.node_cost < 0:
            raise ValueError(f"node_cost must be at least 0, got {placement.node_cost}")
        placement = contiguous(placement.num_nodes, placement.shards)
    locate_splits(tables, placement)


def _describe_call(
    source: EdgeSource, placement: Placement | Balanced, tables: Tables, symmetrize: bool
) -> dict[str, Any]:
    """What another call must share with this one to go on with its work."""
    balance = isinstance(placement, Balanced)
    placed: dict[str, Any] = placement._asdict() if balance else describe_placement(placement)
    known = source.describe()
    return {
        "version": 2,
        "edges": known and checksum(known),
        "placement": placed if len(str(placed)) < 200 else checksum(placed),
        "tables": {name: _described(table) for name, table in tables._asdict().items() if table is not None},
        "symmetrize": symmetrize,
    }


def _described(table: np.ndarray) -> str:
    """What tells a table from another: a mapped file's name, size and time of change, else its values."""
    about = f"{table.dtype.name} {list(table.shape)}"
    if isinstance(table, np.memmap) and (file := table.filename) is not None:
        status = Path(file).stat()
        return f"{about} {Path(file).name} {status.st_size} {status.st_mtime_ns}"
    return f"{about} {hashlib.sha256(bytes_of(table)).hexdigest()}"
