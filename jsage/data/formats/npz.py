"""One graph in one `.npz` file: the format of docs/data.md."""

import json
import zipfile
import zlib
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from jsage.data.dataset import Dataset, has_label, validate_dataset
from jsage.graph import from_edges, validate

_SPLITS = ("train", "val", "test")


def load_npz(path: str | Path, *, labels: str = "y") -> Dataset:
    """Read a graph with its features, labels and splits from an `.npz` of the format in docs/data.md.

    `labels` names the array to predict: integers `[num_nodes]` are classes (-1: none), 0/1 rows `[num_nodes,
    num_classes]` any number of classes, floats real values. CSR features become dense; a mask becomes the ids
    of its labeled nodes; `edge_time` becomes `graph.edge_data["time"]`, and so on. A file without `y` gives
    `labels=None`; one without masks gives empty splits.

    Raises FileNotFoundError, and ValueError that names the file if it is truncated, is no `.npz`, holds
    pickles, lacks an array, or fails `validate_dataset`.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     np.savez(f"{folder}/pair.npz", edge_index=[[0, 1], [1, 0]], y=[0, 1], x=np.eye(2), meta="{}")
    ...     dataset = load_npz(f"{folder}/pair.npz")
    >>> dataset.graph.indices.tolist(), dataset.labels.tolist(), dataset.features.shape
    ([1, 0], [0, 1], (2, 2))
    """
    arrays = _read(Path(path))
    try:
        return _dataset(arrays, labels)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _read(path: Path) -> dict[str, np.ndarray]:
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    if not zipfile.is_zipfile(path):
        raise ValueError(
            f"{path}: not a complete .npz file (a pickle, another format, or truncated): fetch it again"
        )
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except (ValueError, OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"{path}: cannot be read as an .npz of plain arrays: {error}") from error


def _dataset(arrays: dict[str, np.ndarray], name: str) -> Dataset:
    if name != "y" and name not in arrays:
        raise ValueError(f"no array {name!r} to use as labels: the file has {', '.join(sorted(arrays))}")
    edge_index = _array(arrays, "edge_index")
    if edge_index.ndim != 2 or len(edge_index) != 2:
        raise ValueError(f"edge_index must have shape [2, num_edges], got {edge_index.shape}")
    labels = _labels(arrays[name]) if name in arrays else None
    num_nodes = _num_nodes(arrays, labels)
    graph = from_edges(edge_index[0], edge_index[1], num_nodes, **_edge_data(arrays))
    splits = [_split(arrays, split, num_nodes, labels) for split in _SPLITS]
    placed = None if labels is None else jnp.asarray(labels)
    dataset = Dataset(graph, _features(arrays), placed, *splits)
    if any(f"{split}_mask" in arrays for split in _SPLITS):
        validate_dataset(dataset)
    else:
        validate(graph, dataset.features, dataset.labels)
    return dataset


def _array(arrays: dict[str, np.ndarray], name: str) -> np.ndarray:
    if name not in arrays:
        raise ValueError(
            f"no array {name!r}: the file has {', '.join(sorted(arrays)) or 'none'} (see docs/data.md)"
        )
    return arrays[name]


def _num_nodes(arrays: dict[str, np.ndarray], labels: np.ndarray | None) -> int:
    """From the labels, the features, a mask or `meta`; without all of them, one more than the largest id."""
    meta = json.loads(str(arrays.get("meta", "{}")))
    if labels is not None:
        return len(labels)
    for name, extra in (("x", 0), ("x_indptr", 1), *((f"{split}_mask", 0) for split in _SPLITS)):
        if name in arrays:
            return len(arrays[name]) - extra
    return int(meta.get("nodes", arrays["edge_index"].max(initial=-1) + 1))


def _labels(values: np.ndarray) -> np.ndarray:
    has_label(values if values.ndim < 2 or values.dtype.kind == "f" else values.astype(np.uint8))
    if values.dtype.kind == "f":
        return values.astype(np.float32)
    return values.astype(np.int32 if values.ndim == 1 else bool)


def _features(arrays: dict[str, np.ndarray]):
    """Dense float32 features, or None."""
    if "x" in arrays:
        return jnp.asarray(arrays["x"].astype(np.float32))
    if "x_data" not in arrays:
        return None
    from scipy.sparse import csr_array  # jax brings it

    *parts, shape = (_array(arrays, f"x_{part}") for part in ("data", "indices", "indptr", "shape"))
    try:
        matrix = csr_array((parts[0].astype(np.float32), *parts[1:]), shape=tuple(shape))
        matrix.check_format()
    except ValueError as error:
        raise ValueError(f"x_data, x_indices, x_indptr, x_shape are no CSR matrix: {error}") from error
    return jnp.asarray(matrix.toarray())


def _split(arrays: dict[str, np.ndarray], split: str, num_nodes: int, labels: np.ndarray | None):
    """The labeled nodes of a mask, as int32 ids."""
    mask = arrays.get(f"{split}_mask", np.zeros(num_nodes, bool))
    if mask.dtype != bool or mask.shape != (num_nodes,):
        raise ValueError(f"{split}_mask must be bool [{num_nodes}], got {mask.dtype} of shape {mask.shape}")
    labeled = mask if labels is None else mask & has_label(labels)
    return jnp.asarray(np.flatnonzero(labeled).astype(np.int32))


def _edge_data(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Each `edge_NAME` as `NAME`; whole float64 numbers, such as times, as int32, which is exact."""
    data = {}
    for name, values in arrays.items():
        if not name.startswith("edge_") or name == "edge_index":
            continue
        if (
            values.dtype == np.float64
            and (np.abs(values) < 2**31).all()
            and (values == np.rint(values)).all()
        ):
            values = values.astype(np.int32)
        data[name.removeprefix("edge_")] = values
    return data
