"""A long computation that writes its rows to a file part by part, and goes on after a kill where it was.

Next to `name.npy` stands a folder `.name.npy.part` with one `.npy` file a stage and `progress.json`: what the
run is, and for each stage how many rows are written and their checksum. It is replaced atomically after the
rows are; the result gets its name once it is complete and on disk.
"""

import hashlib
import math
import os
import shutil
import time
import zlib
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jsage._internal.files import Record, flush_directory, locked

_VERSION = 2


class Stage(NamedTuple):
    """One array `[rows, ...]`, computed part by part."""

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype
    parts: list[tuple[int, int]]
    """`(first, last + 1)` rows of each part, in order."""
    compute: Callable[[int, int], np.ndarray]
    """A part's rows; the same bits whenever it is called."""


class Progress(NamedTuple):
    """What a `progress` callback gets after each part."""

    stage: str
    done: int
    """Rows of this stage that are written."""
    total: int


Stages = Generator[Stage, np.ndarray, None]
"""Yields stages and is sent each one's finished array, as a read-only memory map; the last is the result."""


def write_stages(
    path: str | os.PathLike[str],
    run: dict[str, Any],
    stages: Stages,
    *,
    seconds: float = 2.0,
    progress: Callable[[Progress], None] | None = None,
) -> None:
    """Run stages, the last of them into `path`; go on with what an earlier, killed call of this run left.

    `run` says what the run is: a folder left by another one is refused with ValueError, and so is a file
    whose checksum is not the recorded one. Raises BlockingIOError while another process writes `path`.
    Progress is recorded every `seconds`.

    >>> import tempfile
    >>> def stages():
    ...     f4, ones = np.dtype("f4"), np.ones((4, 1), "f4")
    ...     half = yield Stage("half", (4, 1), f4, [(0, 4)], lambda a, b: ones[a:b])
    ...     yield Stage("all", (4, 1), f4, [(0, 2), (2, 4)], lambda a, b: half[a:b] + half[a:b])
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_stages(f"{folder}/out.npy", {"what": "an example"}, stages())
    ...     np.load(f"{folder}/out.npy").ravel()
    array([2., 2., 2., 2.], dtype=float32)
    """
    path = Path(path)
    folder = path.with_name(f".{path.name}.part")
    path.parent.mkdir(parents=True, exist_ok=True)
    with locked(path):
        about = {"version": _VERSION, **run}
        record = Record(folder, about)
        if (name := record.state.get("whole")) and not (folder / name).exists():  # it got its name
            shutil.rmtree(folder)
            if path.exists():
                return
            record = Record(folder, about)  # and was removed since
        last = _compute(folder, record, stages, seconds, progress)
        record.write({**record.state, "whole": last.name})
        last.replace(path)
        flush_directory(path.parent)
        shutil.rmtree(folder)


def _compute(
    folder: Path,
    record: Record,
    stages: Stages,
    seconds: float,
    progress: Callable[[Progress], None] | None,
) -> Path:
    """Compute what is missing; the file of the last stage, on disk."""
    array, last = None, None
    while (stage := _next(stages, array)) is not None:
        last = folder / f"{stage.name}.npy"
        _run(stage, last, record, seconds, progress)
        array = np.load(last, mmap_mode="r", allow_pickle=False)
    if last is None:
        raise ValueError("expected at least one stage, got none")
    with last.open("rb") as file:
        os.fsync(file.fileno())
    return last


def fingerprint(arrays: Iterator[tuple[str, Any]]) -> str:
    """A hash of named arrays: names, types, shapes and values.

    >>> fingerprint(iter([("a", np.zeros(2))])) == fingerprint(iter([("a", np.zeros(3))]))
    False
    """
    digest = hashlib.sha256()
    for name, array in arrays:
        array = np.ascontiguousarray(array)
        digest.update(f"{name} {array.dtype} {array.shape}".encode())
        digest.update(_bytes(array))
    return digest.hexdigest()


def _next(stages: Stages, array: np.ndarray | None) -> Stage | None:
    try:
        return next(stages) if array is None else stages.send(array)
    except StopIteration:
        return None


def _run(
    stage: Stage, file: Path, record: Record, seconds: float, progress: Callable[[Progress], None] | None
) -> None:
    """Compute what is missing of a stage; a part is written while the next one is computed."""
    done, checksum = record.state.get(stage.name, (0, 1))
    with file.open("r+b" if done else "w+b") as out, ThreadPoolExecutor(1) as writer:
        _open(out, stage, done, checksum)
        recorded, written = time.monotonic(), None
        for first, last in stage.parts:
            if first < done:
                continue
            rows = np.ascontiguousarray(stage.compute(first, last), stage.dtype)
            checksum = checksum if written is None else written.result()
            if first > done and time.monotonic() - recorded >= seconds:
                record.write({**record.state, stage.name: (first, checksum)})
                recorded = time.monotonic()
            if progress is not None and first > done:
                progress(Progress(stage.name, first, stage.shape[0]))
            written = writer.submit(_append, out, rows, checksum)
        if written is not None:
            record.write({**record.state, stage.name: (stage.shape[0], written.result())})
            if progress is not None:
                progress(Progress(stage.name, stage.shape[0], stage.shape[0]))


def _append(out: Any, rows: np.ndarray, checksum: int) -> int:
    """Write rows, and return the checksum of all so far."""
    data = _bytes(rows)
    out.write(data)
    out.flush()
    return zlib.adler32(data, checksum)


def _open(out: Any, stage: Stage, done: int, checksum: int) -> None:
    """Go to where the next rows belong; a file that is there is held against its checksum, and cut."""
    header = {"descr": stage.dtype.str, "fortran_order": False, "shape": stage.shape}
    if not done:
        np.lib.format.write_array_header_1_0(out, header)
        return
    left, actual = done * math.prod(stage.shape[1:]) * stage.dtype.itemsize, 1
    try:
        np.lib.format.read_magic(out)
        shape, _, dtype = np.lib.format.read_array_header_1_0(out)
        whole = (shape, dtype) == (stage.shape, stage.dtype)
    except ValueError:
        whole = False
    end = out.tell() + left
    while left and (data := out.read(min(left, 2**24))):
        actual, left = zlib.adler32(data, actual), left - len(data)
    if left or actual != checksum or not whole:
        raise ValueError(
            f"{out.name} is damaged: {done} rows do not have the recorded checksum; "
            f"delete the folder {os.path.dirname(out.name)} to start again"
        )
    out.truncate(end)
    out.seek(end)


def _bytes(array: np.ndarray) -> memoryview:
    flat: Any = array.reshape(-1).view(np.uint8)
    return memoryview(flat)


def parts_of(rows: int, size: int) -> list[tuple[int, int]]:
    """Parts of at most `size` rows.

    >>> parts_of(5, 2)
    [(0, 2), (2, 4), (4, 5)]
    """
    return [(first, min(first + size, rows)) for first in range(0, rows, size)]


def parts_by_edges(degree: np.ndarray, rows: int, edges: int) -> list[tuple[int, int]]:
    """Parts of at most `rows` rows and `edges` edges; a row with more edges is a part of its own.

    >>> parts_by_edges(np.array([2, 2, 9, 1]), rows=8, edges=4)
    [(0, 2), (2, 3), (3, 4)]
    """
    total = np.concatenate([[0], np.cumsum(degree, dtype=np.int64)])
    parts, first, size = [], 0, math.prod(degree.shape)
    while first < size:
        last = int(np.searchsorted(total, total[first] + edges, side="right")) - 1
        last = min(max(last, first + 1), first + rows, size)
        parts.append((first, last))
        first = last
    return parts
