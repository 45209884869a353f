"""A graph in a directory of `.npy` files, memory-mapped when opened: the format of docs/data.md."""

import json
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from jsage._internal.arrays import dense
from jsage._internal.checks import check_labels, check_names
from jsage._internal.files import checksum, new_directory, replaced
from jsage.data.dataset import Dataset
from jsage.data.formats.arrays import ArrayWriter, check_file, map_array
from jsage.graph import Graph, node_sides, validate
from jsage.graph.sparse import SparseRows, as_rows, is_sparse
from jsage.typing import HostArray

_VERSION = 2
"""1 had no checksums."""
_META = "meta.json"
_EDGE = "edge_"
_NAMES = "node_name.npy"
_WORDS = tuple(f"features_{field}.npy" for field in SparseRows._fields[:5])
"""The files of sparse features."""


def save(path: str | Path, dataset: Dataset, names: HostArray | Sequence[str] | None = None) -> None:
    """Write a data set as a new graph directory; it appears whole, under its name, or not at all.

    The files are written and flushed in a hidden directory beside `path`, which is then renamed. What a
    killed call left of it, the next call removes. `names` are the nodes' own, text or integers, as
    `read_edge_list` gives them; `read_names` gives them back.

    Raises FileExistsError if `path` exists (unless it is an empty directory), BlockingIOError while another
    process writes it, ValueError for values that `jsage.graph.validate` refuses or names that are not one a
    node and distinct, and OSError, leaving nothing
    behind, if the disk is full.

    >>> import tempfile
    >>> from jsage.data import digits
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save(f"{folder}/digits", digits())
    ...     Path(folder, "digits", "features.npy").stat().st_size
    460160
    """
    dataset = dataset._replace(features=as_rows(dataset.features))
    validate(dataset.graph, dataset.features, dataset.labels)
    arrays = dict(_arrays(dataset))
    if names is not None:
        arrays[_NAMES] = check_names(names, dataset.graph.num_nodes)
    with new_directory(Path(path)) as part:
        described = {name: _write(part / name, np.asarray(array)) for name, array in arrays.items()}
        meta = {"format": "jsage graph directory", "version": _VERSION, "files": described}
        with replaced(part / _META) as file:
            file.write(json.dumps({"sha256": checksum(meta), **meta}, indent=1).encode())


def open(path: str | Path, *, verify: bool = True) -> Dataset:
    """Open a graph directory; every array is a read-only memory map, read from disk as it is used.

    `jax.device_put(dataset)`, or of one of its fields, places the arrays: `validate_dataset` before it says
    whether jax keeps their values. Each file is held against `meta.json`: its size, shape and type, and by
    `verify` its SHA-256, for which it is read once.

    Raises FileNotFoundError for a missing directory or file, ValueError for a file that is half-written,
    damaged, or of another shape or type than `meta.json` says; both name the file.

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
    for name, entry in described.items():
        check_file(path / name, entry, verify=verify and "sha256" in entry)
    for name in ("indptr.npy", "indices.npy", "train.npy", "val.npy", "test.npy"):
        if name not in arrays:
            raise ValueError(f"{path / _META} does not list {name}, which every graph directory has")
    edge_data = {
        name.removeprefix(_EDGE).removesuffix(".npy"): array
        for name, array in arrays.items()
        if name.startswith(_EDGE)
    }
    rest: list[Any] = [arrays.get(f"{field}.npy") for field in Dataset._fields[1:]]
    if all(name in arrays for name in _WORDS):
        rest[0] = SparseRows(*(arrays[name] for name in _WORDS))
    return Dataset(Graph(arrays["indptr.npy"], arrays["indices.npy"], edge_data), *rest)


def directory_names(path: Path) -> np.ndarray | None:
    """The names of the nodes of a graph directory, checked; None where it has none.

    >>> directory_names(Path("nowhere"))
    Traceback (most recent call last):
    FileNotFoundError: nowhere/meta.json is missing: nowhere is not a graph directory (see jsage.data.save)
    """
    described = _read_meta(path / _META)
    if _NAMES not in described:
        return None
    check_file(path / _NAMES, described[_NAMES], verify="sha256" in described[_NAMES])
    num_nodes = described.get("indptr.npy", {"shape": [0]})["shape"][0] - 1
    return check_names(map_array(path / _NAMES, described[_NAMES]), num_nodes)


def _arrays(dataset: Dataset) -> Iterator[tuple[str, Any]]:
    """File names and what they hold."""
    graph = dataset.graph
    checked = {"labels": check_labels, "node_type": partial(node_sides, graph)}
    yield from (("indptr.npy", graph.indptr), ("indices.npy", graph.indices))
    yield from ((f"{_EDGE}{name}.npy", array) for name, array in graph.edge_data.items())
    for field in Dataset._fields[1:]:
        if is_sparse(array := getattr(dataset, field)):
            yield from zip(_WORDS, array, strict=False)
        elif array is not None:
            yield f"{field}.npy", checked[field](array) if field in checked else dense(array)


def _write(path: Path, array: np.ndarray) -> dict:
    writer = ArrayWriter(path, array.shape, array.dtype)
    try:
        writer.append(array)
        return writer.finish()
    finally:
        writer.close()


def _read_meta(path: Path) -> dict[str, dict]:
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} is missing: {path.parent} is not a graph directory (see jsage.data.save)"
        )
    try:
        meta = json.loads(path.read_text())
        expected, version = meta.pop("sha256", None), meta["version"]
        if version not in (1, _VERSION):
            raise ValueError(f"version {version}, but this jsage reads {_VERSION}")
        keys = ("shape", "dtype", "bytes", "sha256")[: 3 if version == 1 else 4]
        if (expected is not None or version > 1) and checksum(meta) != expected:
            raise ValueError("its SHA-256 is not the one that it names: copy or write the directory again")
        return {name: {key: entry[key] for key in keys} for name, entry in meta["files"].items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is half-written, damaged or no graph directory's: {error!r}") from error
