"""A graph in a directory of `.npy` files, memory-mapped when opened: the format of docs/data.md."""

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from jsage._internal.checks import check_labels
from jsage._internal.files import flush_directory
from jsage.data.dataset import Dataset
from jsage.data.formats.arrays import map_array
from jsage.graph import Graph, validate
from jsage.typing import HostArray

_VERSION = 1
_META = "meta.json"
_EDGE = "edge_"


def save(path: str | Path, dataset: Dataset) -> None:
    """Write a data set as a new graph directory; it appears whole, under its name, or not at all.

    The files are written and flushed in a hidden directory beside `path`, which is then renamed.

    Raises FileExistsError if `path` exists (unless it is an empty directory), ValueError for values that
    `jsage.graph.validate` refuses, and OSError, leaving nothing behind, if the disk is full.

    >>> import tempfile
    >>> from jsage.data import digits
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save(f"{folder}/digits", digits())
    ...     Path(folder, "digits", "features.npy").stat().st_size
    460160
    """
    path = Path(path)
    validate(dataset.graph, dataset.features, dataset.labels)
    if path.exists() and not (path.is_dir() and not any(path.iterdir())):
        raise FileExistsError(f"{path} exists already: remove it first, or choose another name")
    part = path.parent / f".{path.name}.{os.getpid()}.part"
    part.mkdir(parents=True)
    try:
        described = {name: _write(part / name, np.asarray(array)) for name, array in _arrays(dataset)}
        meta = {"format": "jsage graph directory", "version": _VERSION, "files": described}
        with (part / _META).open("w") as file:
            json.dump(meta, file, indent=1)
            _flush(file)
        part.rename(path)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise
    flush_directory(path.parent)


def open(path: str | Path) -> Dataset:
    """Open a graph directory; every array is a read-only memory map, read from disk as it is used.

    `jax.device_put(dataset)`, or of one of its fields, places the arrays: `validate_dataset` before it says
    whether jax keeps their values, which `open` does not read. Each file is held against `meta.json`.

    Raises FileNotFoundError for a missing directory or file, ValueError for a file that is half-written or of
    another shape or type than `meta.json` says; both name the file.

    >>> import tempfile
    >>> from jsage.data import digits
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save(f"{folder}/digits", digits())
    ...     type(open(f"{folder}/digits").features)
    <class 'numpy.memmap'>
    """
    path = Path(path)
    described = _read_meta(path / _META)
    arrays: dict[str, Any] = {name: map_array(path / name, entry) for name, entry in described.items()}
    for name in ("indptr.npy", "indices.npy", "train.npy", "val.npy", "test.npy"):
        if name not in arrays:
            raise ValueError(f"{path / _META} does not list {name}, which every graph directory has")
    edge_data = {
        name.removeprefix(_EDGE).removesuffix(".npy"): array
        for name, array in arrays.items()
        if name.startswith(_EDGE)
    }
    rest: list[Any] = [arrays.get(f"{field}.npy") for field in Dataset._fields[1:]]
    return Dataset(Graph(arrays["indptr.npy"], arrays["indices.npy"], edge_data), *rest)


def _arrays(dataset: Dataset) -> Iterator[tuple[str, HostArray]]:
    """File names and what they hold."""
    graph = dataset.graph
    yield from (("indptr.npy", graph.indptr), ("indices.npy", graph.indices))
    yield from ((f"{_EDGE}{name}.npy", array) for name, array in graph.edge_data.items())
    for field in Dataset._fields[1:]:
        if (array := getattr(dataset, field)) is not None:
            yield f"{field}.npy", check_labels(array) if field == "labels" else array


def _write(path: Path, array: np.ndarray) -> dict:
    """Write one array and say what `meta.json` keeps of it; bfloat16, unknown to NumPy, goes as uint16."""
    stored = array.view(np.uint16) if array.dtype == jnp.bfloat16 else array
    with path.open("wb") as file:
        np.save(file, stored, allow_pickle=False)
        _flush(file)
    return {"shape": array.shape, "dtype": array.dtype.name, "bytes": path.stat().st_size}


def _read_meta(path: Path) -> dict[str, dict]:
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} is missing: {path.parent} is not a graph directory (see jsage.data.save)"
        )
    try:
        meta = json.loads(path.read_text())
        if meta["version"] != _VERSION:
            raise ValueError(f"version {meta['version']}, but this jsage reads {_VERSION}")
        return {
            name: {key: entry[key] for key in ("shape", "dtype", "bytes")}
            for name, entry in meta["files"].items()
        }
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is half-written or no graph directory's: {error!r}") from error


def _flush(file) -> None:
    file.flush()
    os.fsync(file.fileno())
