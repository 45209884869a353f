"""What may go into the programs of an artefact: checks on the host that say what is wrong."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def check_nodes(
    nodes: Sequence[int] | np.ndarray | jax.Array,
    num_nodes: int,
    name: str = "nodes",
    num_new: int = 0,
    *,
    what: str = "node ids",
) -> np.ndarray:
    """Node ids, and `-1 - i` for new node `i`, as an int32 vector; ValueError for what are none.

    >>> check_nodes([2, 3], num_nodes=3)
    Traceback (most recent call last):
    ValueError: nodes must be node ids in 0 .. 2, got 3
    """
    array = np.asarray(nodes)
    if array.ndim != 1:
        raise ValueError(f"{name} must have one axis, got shape {array.shape}")
    if len(array) == 0:
        return np.zeros(0, np.int32)
    if array.dtype.kind not in "iu":
        raise ValueError(f"{name} must hold integers, got {array.dtype}")
    for extreme in (int(array.min()), int(array.max())):
        if not -num_new <= extreme < num_nodes:
            more = f", or -1 .. -{num_new} (-1 - i is new node i)" if num_new else ""
            raise ValueError(f"{name} must be {what} in 0 .. {num_nodes - 1}{more}, got {extreme}")
    return array.astype(np.int32, copy=False)


def check_times(times: Any, count: int, dtype: str) -> np.ndarray:
    """One time for each of `count` nodes, in the dtype of the edges' times; ValueError for what that changes.

    >>> check_times([2**31], 1, "int32")
    Traceback (most recent call last):
    ValueError: times must be int32, got 2147483648: in ticks of the unit and origin of the graph's
    """
    array, kind = np.asarray(times), dtype_of(dtype)
    if array.shape != (count,) or array.dtype.kind not in ("iu" if kind.kind in "iu" else "iuf"):
        raise ValueError(
            f"times must be {count} of {dtype}, one a node, got {array.dtype} {list(array.shape)}"
        )
    with np.errstate(invalid="ignore", over="ignore"):
        kept = array.astype(kind)
    if len(bad := np.flatnonzero(kept != array)):
        raise ValueError(
            f"times must be {dtype}, got {array[bad[0]]}: in ticks of the unit and origin of the graph's"
        )
    return kept


def check_new(
    meta: dict, num_nodes: int, new: Mapping[str, Any], edge_data: Mapping[str, Any] | None = None
) -> dict[str, np.ndarray]:
    """Features and edges of new nodes as arrays, in which new node `i` is `num_nodes + i`; or ValueError.

    >>> meta = {"features": {"width": 2, "words": 0}, "tables": {"features": {"dtype": "float32"}}}
    >>> check_new(meta, 10, {"features": [[1.0, 2.0]], "src": [3], "dst": [-1]})["dst"]
    array([10], dtype=int32)
    """
    spec = meta["tables"]["features_values" if meta["features"]["words"] else "features"]
    rows = _numbers("features", new["features"], spec, (None, meta["features"]["width"]))
    ids = {name: check_nodes(new[name], num_nodes, name, len(rows)) for name in ("src", "dst")}
    src, dst = ids.values()
    if len(src) != len(dst):
        raise ValueError(f"src and dst must have one entry an edge each, got {len(src)} and {len(dst)}")
    if len(strange := np.flatnonzero((src >= 0) & (dst >= 0))):
        first = strange[0]
        raise ValueError(f"edges must start or end at a new node, got {src[first]} -> {dst[first]}")
    ids = {name: np.where(ends < 0, num_nodes - 1 - ends, ends) for name, ends in ids.items()}
    given = {f"edge_{name}": values for name, values in (edge_data or {}).items()}
    wanted = {name: spec for name, spec in meta["tables"].items() if name.startswith("edge_")}
    if given.keys() != wanted.keys():
        raise ValueError(f"edge_data must be {sorted(wanted) or 'absent'}, got {sorted(given) or 'none'}")
    for name, spec in wanted.items():
        ids[name] = _numbers(name, given[name], spec, (len(src), *map(int, spec["shape"].split(",")[1:])))
    return {"features": rows, **ids}


def check_tables(meta: dict, tables: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The graph and the features as the programs read them, or ValueError that says what is wrong.

    >>> check_tables({"tables": {"indptr": {}}}, {})
    Traceback (most recent call last):
    ValueError: tables must hold indptr, got nothing
    """
    wanted = meta["tables"]
    if tables.keys() != wanted.keys():
        got = ", ".join(sorted(tables)) or "nothing"
        raise ValueError(f"tables must hold {', '.join(sorted(wanted))}, got {got}")
    arrays = {name: np.asarray(tables[name]) for name in sorted(wanted)}
    sizes = {"num_nodes": arrays["indptr"].size - 1, "num_edges": arrays["indices"].size}
    sizes["num_words"] = arrays["features_values"].size if "features_values" in arrays else 0
    for name, array in arrays.items():
        spec = wanted[name]
        shape = [_size(part, sizes) for part in spec["shape"].split(",")]
        if array.dtype != dtype_of(spec["dtype"]) or list(array.shape) != shape:
            raise ValueError(
                f"{name} must be {spec['dtype']} [{spec['shape']}] = {shape}, "
                f"got {array.dtype} {list(array.shape)}"
            )
        if jnp.issubdtype(array.dtype, jnp.floating) and not np.isfinite(array).all():
            raise ValueError(f"{name} must be finite, got NaN or an infinity")
    indptr, indices = arrays["indptr"], arrays["indices"]
    if sizes["num_nodes"] < 1 or indptr[0] != 0 or indptr[-1] != len(indices) or (np.diff(indptr) < 0).any():
        raise ValueError(f"indptr must rise from 0 to the number of edges, {len(indices)}, without falling")
    check_nodes(indices, sizes["num_nodes"], "indices")
    if "features_values" in arrays:
        _check_words(arrays, meta["features"]["width"])
    if any(entry["function"] == "embed_at" for entry in meta["programs"]):
        _check_order(arrays["indptr"], arrays["edge_time"])
    return arrays


def _check_words(arrays: dict[str, np.ndarray], width: int) -> None:
    """ValueError for words of sparse features that are not there, or in no column."""
    check_nodes(arrays["features_indices"], width, "features_indices", what="columns")
    start, length = (arrays[f"features_{name}"].astype(np.int64) for name in ("start", "length"))
    words = len(arrays["features_values"])
    if min(start.min(), length.min()) < 0 or (start + length).max() > words or not words:
        raise ValueError(
            f"features_start and features_length must name some of the {words} words, at least one, got "
            f"{start.min()} .. {(start + length).max()}: save sparse_rows(matrix)"
        )


def words_of(rows: np.ndarray, size: int, words: int) -> dict[str, np.ndarray]:
    """Rows as sparse features of `size` rows, `words` a row; ValueError where more are not 0.

    >>> words_of(np.array([[0.0, 2.0]], np.float32), 1, 2)["features_values"]
    array([2., 0.], dtype=float32)
    """
    row, column = np.nonzero(rows)
    if len(row) > size * words:
        raise ValueError(f"at most {size * words} features that are not 0 a call, got {len(row)}")
    length = np.bincount(row, minlength=size).astype(np.int32)
    more = (0, size * words - len(row))
    return {
        "features_start": np.cumsum(length, dtype=np.int32) - length,
        "features_length": length,
        "features_indices": np.pad(column.astype(np.int32), more),
        "features_values": np.pad(rows[row, column], more),
    }


def _check_order(indptr: np.ndarray, time: np.ndarray) -> None:
    """Times ascend in each row, or edges of later ones would come in."""
    falls = np.flatnonzero(time[1:] < time[:-1]) + 1
    bad = falls[~np.isin(falls, indptr)]
    if len(bad):
        row = np.searchsorted(indptr, bad[0], side="right") - 1
        raise ValueError(
            f"edge_time must ascend in each row, but does not in row {row}: jsage.graph.sort_by_time(graph)"
        )


def dtype_of(name: str) -> np.dtype:
    """A dtype by name, bfloat16 among them.

    >>> dtype_of("bfloat16").itemsize
    2
    """
    return jnp.dtype(name)


def _size(text: str, sizes: Mapping[str, int]) -> int:
    name, _, more = (part.strip() for part in text.partition("+"))
    return (sizes[name] if name in sizes else int(name)) + int(more or 0)


def _numbers(name: str, values: Any, spec: dict, shape: tuple[int | None, ...]) -> np.ndarray:
    """Finite numbers of a shape, None for any length, in the dtype of `spec`."""
    wanted = " x ".join("any" if width is None else str(width) for width in shape)
    try:
        array = np.asarray(values)
    except ValueError:
        raise ValueError(f"{name} must be {wanted} numbers, got rows of unequal lengths") from None
    fits = array.ndim == len(shape) and all(w in (None, n) for n, w in zip(array.shape, shape, strict=True))
    if not fits or array.dtype.kind not in "fiu":
        raise ValueError(f"{name} must be {wanted} numbers, got {array.dtype} of shape {list(array.shape)}")
    with np.errstate(over="ignore"):
        array = array.astype(dtype_of(spec["dtype"]))
    if not np.isfinite(array).all():
        raise ValueError(f"{name} must be finite in {spec['dtype']}, got NaN, an infinity or a larger number")
    return array
