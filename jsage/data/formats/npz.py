"""One graph in one `.npz` file: the format of docs/data.md."""

import json
import math
import zipfile
import zlib
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpy.lib import format as npy

from jsage._internal.checks import (
    INT32,
    check_edge_names,
    check_features,
    check_ids,
    check_integer,
    check_labels,
    check_names,
    check_numeric,
)
from jsage.data.dataset import Dataset, has_label, validate_dataset
from jsage.graph import from_edges, node_sides, validate
from jsage.graph.sparse import SPARSE, check_sparse, sparse_rows

_SPLITS = ("train", "val", "test")
_SPARSE = ("x_data", "x_indices", "x_indptr", "x_shape")
_NAMES = "node_name"
_USED = {"x", "y", "meta", "node_type", _NAMES, *_SPARSE, *(f"{split}_mask" for split in _SPLITS)}


def load_npz(path: str | Path, *, labels: str = "y", sparse: bool | None = False) -> Dataset:
    """Read a graph with its features, labels and splits from an `.npz` of the format in docs/data.md.

    `labels` names the array to predict: integers `[num_nodes]` are classes (-1: none), 0/1 rows `[num_nodes,
    num_classes]` any number of classes, floats real values. CSR features become dense, unless `sparse`: with
    True all features become `jsage.graph.SparseRows`, with None those that the file holds as CSR and of which
    a tenth is not 0 at most. A mask becomes the ids of its labeled nodes; `edge_time` becomes
    `graph.edge_data["time"]`, and so on. A file without `y` gives `labels=None`; one without masks gives
    empty splits; `node_type` are the types of nodes. `node_name`, which `read_names` gives, is
    checked; no other array of the file is read.

    Raises FileNotFoundError, and ValueError that names the file if it is truncated, is no `.npz`, holds
    pickles, lacks an array, has values that would not be kept, or fails `validate_dataset`.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     np.savez(f"{folder}/pair.npz", edge_index=[[0, 1], [1, 0]], y=[0, 1], x=np.eye(2), meta="{}")
    ...     dataset = load_npz(f"{folder}/pair.npz")
    >>> dataset.graph.indices.tolist(), dataset.labels.tolist(), dataset.features.shape
    ([1, 0], [0, 1], (2, 2))
    """
    arrays = _read(Path(path), labels)
    try:
        return _dataset(arrays, labels, sparse)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def npz_names(path: Path) -> np.ndarray | None:
    """The names of the nodes of an `.npz`, checked; None where it has none.

    >>> npz_names(Path("nowhere.npz"))
    Traceback (most recent call last):
    FileNotFoundError: nowhere.npz: no such file
    """
    names = _members(path, {_NAMES})[0].get(_NAMES)
    return None if names is None else check_names(names)


def _read(path: Path, labels: str) -> dict[str, np.ndarray]:
    """The arrays that are used; those that are not may be of any size."""
    arrays, has = _members(path, {*_USED, labels}, "edge_")
    if "edge_index" not in arrays:
        raise ValueError(f"{path}: no array 'edge_index': the file has {has} (see docs/data.md)")
    if labels not in arrays and labels != "y":
        raise ValueError(f"{path}: no array {labels!r} to use as labels: the file has {has}")
    return arrays


def _members(path: Path, names: set[str], begin: str | None = None) -> tuple[dict[str, np.ndarray], str]:
    """The arrays of these names, and of names that begin so; and what the file has."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    if not zipfile.is_zipfile(path):
        raise ValueError(
            f"{path}: not a complete .npz file (a pickle, another format, or truncated): fetch it again"
        )
    try:
        with np.load(path, allow_pickle=False) as archive:
            used = [name for name in archive.files if name in names or (begin and name.startswith(begin))]
            for name in used:
                _check_size(archive.zip, name)
            return {name: archive[name] for name in used}, ", ".join(sorted(archive.files)) or "none"
    except (ValueError, OSError, EOFError, MemoryError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"{path}: cannot be read as an .npz of plain arrays: {error}") from error


def _check_size(archive: zipfile.ZipFile, name: str) -> None:
    """ValueError where a member is no array, or says that it is larger than it is."""
    if f"{name}.npy" not in archive.namelist():
        raise ValueError(f"{name} is no .npy array: write it by np.savez")
    with archive.open(f"{name}.npy") as file:
        read = {1: npy.read_array_header_1_0, 2: npy.read_array_header_2_0}.get(npy.read_magic(file)[0])
        if read is None:
            raise ValueError(f"{name} has a header of another version: write it by np.savez")
        shape, _, dtype = read(file)
        if dtype.hasobject:
            raise ValueError(
                f"{name} has Python objects, which are pickles: store numbers, or text by astype(str)"
            )
        held = archive.getinfo(f"{name}.npy").file_size - file.tell()
    if (said := math.prod(shape) * dtype.itemsize) != held:
        raise ValueError(f"{name} should have {said} bytes, for {dtype} {list(shape)}, but has {held}")


def _dataset(arrays: dict[str, np.ndarray], name: str, sparse: bool | None) -> Dataset:
    edge_index = arrays["edge_index"]
    if edge_index.ndim != 2 or len(edge_index) != 2:
        raise ValueError(f"edge_index must have shape [2, num_edges], got {edge_index.shape}")
    labels = check_labels(arrays[name]) if name in arrays else None
    num_nodes = _num_nodes(arrays, labels)
    graph = from_edges(edge_index[0], edge_index[1], num_nodes, **_edge_data(arrays))
    splits = [_split(arrays, split, num_nodes, labels) for split in _SPLITS]
    if _NAMES in arrays:
        check_names(arrays[_NAMES], num_nodes)
    placed = None if labels is None else jnp.asarray(labels)
    types = None
    if "node_type" in arrays:
        kinds = check_ids(arrays["node_type"], INT32, "node_type", what="types")
        types = jnp.asarray(node_sides(graph, kinds))
    dataset = Dataset(graph, _features(arrays, num_nodes, sparse), placed, *splits, node_type=types)
    if any(f"{split}_mask" in arrays for split in _SPLITS):
        validate_dataset(dataset)
    else:
        validate(graph, dataset.features, dataset.labels)
    return dataset


def _num_nodes(arrays: dict[str, np.ndarray], labels: np.ndarray | None) -> int:
    """From the labels, the features, a mask or `meta`; without all of them, one more than the largest id."""
    meta = json.loads(str(arrays.get("meta", "{}")))
    if labels is not None:
        return len(labels)
    rows = ("x", "node_type", _NAMES, *(f"{split}_mask" for split in _SPLITS))
    for name, extra in (("x_indptr", 1), *((name, 0) for name in rows)):
        if name in arrays:
            return arrays[name].size - extra if arrays[name].ndim < 2 else len(arrays[name])
    if isinstance(meta, dict) and "nodes" in meta:
        return int(check_ids([meta["nodes"]], INT32, "the nodes of meta", what="a number of nodes")[0])
    return int(check_ids(arrays["edge_index"].ravel(), INT32 - 1, "edge_index").max(initial=-1)) + 1


def _features(arrays: dict[str, np.ndarray], num_nodes: int, sparse: bool | None) -> Any:
    """Float32 features, or None."""
    if "x" not in arrays and "x_data" not in arrays:
        return None
    values: Any = arrays["x"] if "x" in arrays else _matrix(arrays, num_nodes)
    found = hasattr(values, "toarray")
    if sparse or (sparse is None and found and values.nnz <= SPARSE * math.prod(values.shape)):
        return jax.device_put(check_sparse(sparse_rows(values), num_nodes))
    values = values.toarray() if found else values
    return jnp.asarray(check_features(values, num_nodes).astype(np.float32))


def _matrix(arrays: dict[str, np.ndarray], num_nodes: int) -> Any:
    """CSR features in float32; what that does not hold is an infinity."""
    from scipy.sparse import csr_array  # jax brings it

    if missing := [name for name in _SPARSE if name not in arrays]:
        raise ValueError(f"no array {missing[0]!r}: CSR features are {', '.join(_SPARSE)} (see docs/data.md)")
    values, indices, indptr, shape = (arrays[name] for name in _SPARSE)
    check_numeric(values.dtype, "x_data")
    for name in _SPARSE[1:]:
        check_integer(arrays[name].dtype, name)
    if shape.shape != (2,) or shape[0] != num_nodes:
        raise ValueError(f"x_shape must be [{num_nodes}, F], features must have one row a node, got {shape}")
    try:
        with np.errstate(over="ignore"):
            matrix = csr_array((values.astype(np.float32), indices, indptr), shape=tuple(shape))
        matrix.check_format()
        return matrix
    except (ValueError, MemoryError) as error:
        raise ValueError(f"{', '.join(_SPARSE)} are no CSR matrix: {error}") from error


def _split(arrays: dict[str, np.ndarray], split: str, num_nodes: int, labels: np.ndarray | None):
    """The labeled nodes of a mask, as int32 ids."""
    mask = arrays.get(f"{split}_mask", np.zeros(num_nodes, bool))
    if mask.dtype != bool or mask.shape != (num_nodes,):
        raise ValueError(f"{split}_mask must be bool [{num_nodes}], got {mask.dtype} of shape {mask.shape}")
    labeled = mask if labels is None else mask & has_label(labels)
    return jnp.asarray(np.flatnonzero(labeled).astype(np.int32))


def _edge_data(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Each `edge_NAME` as `NAME`."""
    names = [name for name in arrays if name.startswith("edge_") and name != "edge_index"]
    check_edge_names([name.removeprefix("edge_") for name in names])
    return {name.removeprefix("edge_"): arrays[name] for name in names}
