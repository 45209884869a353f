"""Edge lists larger than memory, sorted into shards in bounded memory; a run that was killed goes on."""

import shutil
import time
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jsage._internal.files import Record, flush_directory
from jsage.data.formats.arrays import bytes_of
from jsage.data.shards.edge_merge import merge_rows, sort_keys
from jsage.data.shards.edge_sort import (
    MOST_EDGES,
    Run,
    both_directions,
    chunks,
    in_degrees,
    open_run,
    write_run,
)
from jsage.data.shards.edge_sources import EdgeSource, edge_arrays
from jsage.data.shards.external_call import Balanced, Progress, Sorting, check_call, describe_call
from jsage.data.shards.layout import describe_placement, read_placement
from jsage.data.shards.writer import (
    ShardWriter,
    Tables,
    checked_tables,
    locate_splits,
    refuse_existing,
    write_meta,
    write_tables,
)
from jsage.graph import Placement, balanced, contiguous

_EDGE_BYTES = 128
"""What an edge in work takes, at most, with all that is made of it."""


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

    The edges (`edge_files`, or an iterable of arrays `[n, 2]`) are sorted by destination in runs, which are
    then merged shard by shard: an external merge sort. Edges into a node keep the order in which they came,
    as in `from_edges`, and the files are those of `shard_dataset`, byte for byte, whatever the memory and
    however the edges are cut into files. `symmetrize` adds each edge's reverse right after it (a self-loop
    stays one edge; parallel edges are kept, unlike by `jsage.graph.symmetrize`).

    The work is done in `.NAME.part` beside `path`: 8 bytes an edge, or 16 for more than 2^31 nodes, and the
    directory itself, which then gets its name. A call that was killed is gone on with by the same call: after
    the last chunk of edges or range of rows that was complete.

    Raises FileExistsError if `path` exists; ValueError for ids that are no integers or out of range, tables
    of another number of rows, a shard of 2^31 edges or more, too little memory to count in-degrees in, and a
    folder left by a call with other arguments or edges, or damaged.

    >>> import tempfile
    >>> from jsage.data import open_shard
    >>> from jsage.graph import contiguous
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     shard_edges(f"{folder}/graph", [np.array([[0, 3], [1, 3], [2, 0]])], contiguous(4, 2))
    ...     shard = open_shard(f"{folder}/graph", 1)
    >>> shard.indptr.tolist(), shard.indices.tolist()
    ([0, 0, 2], [0, 1])
    """
    path, source = Path(path), edges if isinstance(edges, EdgeSource) else edge_arrays(edges)
    tables = checked_tables(tables, placement.num_nodes)
    check_call(placement, tables, sorting)
    work, run = (
        path.parent / f".{path.name}.part",
        describe_call(source, placement, tables, symmetrize, sorting),
    )
    if not (work / "progress.json").exists():
        refuse_existing(path)
    record = Record(work, run)
    if record.state.get("whole") and not (work / "out").exists() and not path.exists():
        shutil.rmtree(work)  # it got its name, and was removed since
        record = Record(work, run)
    _finish(_Job(work, record, source, placement, symmetrize, sorting, [0.0]), path, tables)


@dataclass(frozen=True)
class _Job:
    """One call: where it works, how far it is, and what it was given."""

    folder: Path
    record: Record
    source: EdgeSource
    asked: Placement | Balanced
    symmetrize: bool
    sorting: Sorting
    noted: list[float]
    """When something was noted last."""

    @property
    def state(self) -> dict[str, Any]:
        return self.record.state

    @property
    def runs(self) -> Path:
        return self.folder / "runs"

    @property
    def out(self) -> Path:
        return self.folder / "out"

    @property
    def limit(self) -> int:
        """Edges, and rows, in work at a time."""
        return min(MOST_EDGES, self.sorting.memory_bytes // _EDGE_BYTES)

    def note(self, **news: Any) -> None:
        self.record.write({**self.state, **news})
        self.noted[0] = time.monotonic()

    def keep(self, writer: ShardWriter) -> None:
        """Note how far a shard is, if it is time."""
        if time.monotonic() - self.noted[0] >= self.sorting.seconds:
            self.note(shard=writer.shard, files=writer.state())

    def tell(self, stage: str, done: int, total: int | None) -> None:
        if self.sorting.progress is not None:
            self.sorting.progress(Progress(stage, done, total))


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
    if job.out.exists():
        refuse_existing(path)
        job.out.rename(path)
        flush_directory(path.parent)
    shutil.rmtree(job.runs, ignore_errors=True)
    shutil.rmtree(job.folder)


def _sort(job: _Job) -> None:
    """Write the runs that are missing; edges that only reading tells apart are read again and compared."""
    job.runs.mkdir(exist_ok=True)
    known, size = job.source.describe() is not None, job.limit // (1 + job.symmetrize)
    if known and "read" in job.state:
        return
    runs = list(job.state.get("runs", []))
    first, total, done = len(runs) if known else 0, job.source.count(), 0
    for number, chunk in enumerate(chunks(job.source, first * size, size, job.asked.num_nodes), first):
        seen = zlib.crc32(bytes_of(chunk))
        done = number * size + len(chunk)
        if number == len(runs) and "read" not in job.state:
            runs.append([*_write_run(job, number, chunk), seen])
            job.note(runs=runs)
            job.tell("read", done, total)
        elif number >= len(runs) or seen != runs[number][2]:
            raise ValueError(
                f"{job.folder} was left by another run: its edges {number * size} .. {done - 1} are others; "
                "delete it to start anew, or write to another path"
            )
    if not known and done != job.state.get("read", done):
        raise ValueError(
            f"{job.folder} was left by another run: it read {job.state['read']} edges, expected {done}; "
            "delete it to start anew, or write to another path"
        )
    job.note(runs=runs, read=done)


def _write_run(job: _Job, number: int, chunk: np.ndarray) -> list[int]:
    chunk = both_directions(chunk) if job.symmetrize else chunk
    placement = job.asked
    if isinstance(placement, Balanced):  # ranges, whose bounds do not matter yet
        placement = contiguous(placement.num_nodes, placement.shards)
    keys, most = sort_keys(placement, chunk[:, 1])
    return write_run(job.runs / f"{number:06d}.npy", chunk[:, 0], keys, most)


def _write(job: _Job, tables: Tables) -> None:
    """Write every shard that is missing from the runs, and `meta.json`."""
    runs = [open_run(job.runs / f"{i:06d}.npy", *run[:2]) for i, run in enumerate(job.state["runs"])]
    placement, total = _placement(job, runs), sum(run.edges for run in runs)
    described, splits = describe_placement(placement), locate_splits(tables, placement)
    every = placement.num_nodes * sum(table is not None for table in tables[:2])
    first, columns = job.state.get("shard", 0), every // placement.num_nodes
    written = columns * sum(map(placement.count, range(first)))
    job.out.mkdir(exist_ok=True)
    for shard in range(first, placement.shards):
        with ShardWriter(job.out, shard, job.state.get("files", {})) as writer:
            for edges in merge_rows(writer, runs, placement, job.limit):
                job.keep(writer)
                job.tell("write", edges, total)
            for rows in write_tables(writer, tables, splits, placement, job.sorting.memory_bytes // 4):
                job.keep(writer)
                job.tell("tables", written + rows, every)
            writer.finish(described)
        written += columns * placement.count(shard)
        job.note(shard=shard + 1, files={})
    write_meta(job.out, placement)
    job.note(whole=True)


def _placement(job: _Job, runs: list[Run]) -> Placement:
    if isinstance(job.asked, Placement):
        return job.asked
    if "placement" not in job.state:
        degrees = in_degrees(runs, job.asked.num_nodes)
        job.note(
            placement=describe_placement(balanced(degrees, job.asked.shards, node_cost=job.asked.node_cost))
        )
    return read_placement(job.state["placement"])
