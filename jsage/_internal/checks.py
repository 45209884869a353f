"""Checks of what callers pass, on the host: one rule a kind of array, the same wherever one comes in.

Values are kept exactly, or refused by a ValueError that names the array and says what to do; docs/data.md has
the rules. What is measured (features, weights, real labels) may be rounded to float32, and no further.
"""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from jsage._internal.arrays import dense
from jsage.typing import HostArray

INT32 = 2**31
"""Ids and offsets are int32: all are below it."""
_ROUNDING = 2.0**-20
"""The share of a column's range that float32 may cost."""
_CHUNK = 2**20
"""Numbers that are looked at together."""
_ADVICE = {
    "M": 'pass ((t - t.min()) / np.timedelta64(1, "s")).astype(np.int32)',
    "m": 'pass (t / np.timedelta64(1, "s")).astype(np.int32)',
    "c": "pass its real part, or both parts as two columns",
}
_NAMES = "number names by np.unique(values, return_inverse=True)[1]; numbers kept as text: astype(np.float64)"


def host_array(values: Any, name: str) -> np.ndarray:
    """`values` as a NumPy array, SciPy's made dense; ValueError for masked entries and ragged lists.

    >>> host_array([[1], [2, 3]], "x")
    Traceback (most recent call last):
    ValueError: x must be an array: ...
    """
    values = dense(values)
    if np.ma.is_masked(values):
        raise ValueError(f"{name} must have no masked entries: drop them, or fill them by .filled(value)")
    try:
        return np.asarray(values)
    except ValueError as error:
        raise ValueError(f"{name} must be an array: {error}") from error


def is_floating(dtype: Any) -> bool:
    """Whether numbers of a dtype have fractions; jax's own dtypes included.

    >>> is_floating(jnp.bfloat16), is_floating(np.int8)
    (True, False)
    """
    return bool(jnp.issubdtype(dtype, jnp.floating))


def check_numeric(dtype: np.dtype, name: str) -> None:
    """Real numbers or booleans: neither text, nor dates, nor objects.

    >>> check_numeric(np.dtype("U5"), "features")
    Traceback (most recent call last):
    ValueError: features must hold numbers, got <U5: number names by np.unique(values, ...
    """
    kinds = (jnp.bool_, jnp.integer, jnp.floating)
    if dtype.kind == "m" or not any(jnp.issubdtype(dtype, kind) for kind in kinds):
        raise ValueError(f"{name} must hold numbers, got {dtype}: {_ADVICE.get(dtype.kind, _NAMES)}")


def no_integers(dtype: Any, name: str) -> str | None:
    """What to say of an array that should hold integers, as ids are, and does not; None where it does.

    >>> no_integers(np.dtype(bool), "train")
    'train must hold integers, got bool: the ids of a mask are np.flatnonzero(mask)'
    """
    if jnp.issubdtype(dtype, jnp.integer) and dtype.kind != "m":
        return None
    mask, floats = "the ids of a mask are np.flatnonzero(mask)", "convert it with astype(np.int64)"
    advice = {"b": mask, **_ADVICE}.get(dtype.kind, floats if is_floating(dtype) else _NAMES)
    return f"{name} must hold integers, got {dtype}: {advice}"


def check_integer(dtype: np.dtype, name: str) -> None:
    """ValueError unless they are integers.

    >>> check_integer(np.dtype(float), "train")
    Traceback (most recent call last):
    ValueError: train must hold integers, got float64: convert it with astype(np.int64)
    """
    if said := no_integers(dtype, name):
        raise ValueError(said)


def as_ids(values: Any, name: str) -> Array:
    """Ids as int32, whatever kind of integers they are; TypeError for anything else. Also inside jit.

    >>> as_ids(np.array([127], np.int8), "seeds")
    Array([127], dtype=int32)
    """
    if isinstance(values, list | tuple):
        values = np.asarray(values)
    if not hasattr(values, "dtype"):
        raise TypeError(f"{name} must be an array of integers, got {type(values).__name__}")
    if said := no_integers(values.dtype, name):
        raise TypeError(said)
    return jnp.asarray(values, jnp.int32)


def check_range(
    values: np.ndarray, limit: int, name: str, *, what: str = "node ids", num_new: int = 0
) -> None:
    """ValueError unless ids are in `0 .. limit - 1`, or are `-1 - i` of new node `i` of `num_new`.

    >>> check_range(np.array([2, 3]), 3, "seeds")
    Traceback (most recent call last):
    ValueError: seeds must be node ids in 0 .. 2, got 3
    """
    for extreme in (int(values.min()), int(values.max())) if values.size else ():
        if not -num_new <= extreme < limit:
            more = f", or -1 .. -{num_new} (-1 - i is new node i)" if num_new else ""
            raise ValueError(f"{name} must be {what} in 0 .. {limit - 1}{more}, got {extreme}")


def check_ids(
    values: HostArray | Sequence[int] | Sequence[float],
    limit: int,
    name: str,
    *,
    what: str = "node ids",
    num_new: int = 0,
) -> np.ndarray:
    """`values` as an int32 vector of ids in `0 .. limit - 1`, and of `-1 - i` for new node `i` of `num_new`.

    >>> check_ids([2, -1], 3, "src", num_new=1)
    array([ 2, -1], dtype=int32)
    >>> check_ids([2, 3], 3, "seeds")
    Traceback (most recent call last):
    ValueError: seeds must be node ids in 0 .. 2, got 3
    """
    array = host_array(values, name)
    if array.ndim != 1:
        raise ValueError(f"{name} must have one axis, got shape {array.shape}")
    if len(array) >= INT32:
        raise ValueError(
            f"{name} has {len(array)} entries, but a graph holds fewer than 2^31 edges (offsets are int32): "
            "split it by destination into several graphs"
        )
    if len(array) == 0:
        return np.empty(0, np.int32)
    check_integer(array.dtype, name)
    check_range(array, limit, name, what=what, num_new=num_new)
    return array.astype(np.int32, copy=False)


def check_pairs(one: np.ndarray, other: np.ndarray, names: tuple[str, str], what: str = "an edge") -> None:
    """Two arrays of one length.

    >>> check_pairs(np.zeros(2), np.zeros(1), ("src", "dst"))
    Traceback (most recent call last):
    ValueError: src and dst must have one entry an edge each, got 2 and 1
    """
    if len(one) != len(other):
        raise ValueError(
            f"{names[0]} and {names[1]} must have one entry {what} each, got {len(one)} and {len(other)}"
        )


def check_edge_rows(
    name: str, values: Any, num_edges: int, *, what: str = "an edge", like: Any = None
) -> np.ndarray:
    """Data of edges as finite numbers of 32 bits at most, one row an edge; `weight` and `time` have one axis.

    Integers become int32. float64 becomes float32 where that is exact, else int32 where that is (`time`:
    int32 first), else float32 where little is lost: of `time`, no two times become one; of a column, 2^-20
    of its range; of `weight`, 2^-20 of each. Rows that join others get the dtype and the shape of `like`.

    >>> check_edge_rows("time", [1.4e9, 1.4e9 + 1], 2)
    array([1400000000, 1400000001], dtype=int32)
    >>> check_edge_rows("time", [5, 2**40], 2)
    Traceback (most recent call last):
    ValueError: edge_data 'time' must fit int32, got 5 .. 1099511627776: subtract the least, or count ...
    """
    label = f"edge_data {name!r}"
    array = host_array(values, label)
    if array.ndim == 0 or len(array) != num_edges:
        raise ValueError(f"{label} must have {num_edges} rows, one {what}, got shape {array.shape}")
    if name in ("weight", "time") and array.ndim > 1:
        raise ValueError(f"{label} must be [{num_edges}], one number {what}, got {array.shape}: pass [:, 0]")
    check_numeric(array.dtype, label)
    if is_floating(array.dtype):
        check_finite(array, label)
    if like is not None:
        return _joined(array, name, label, like)
    if array.dtype.kind in "iu":
        return _int32(array, label)
    return _float32(array, label, name) if array.dtype.itemsize > 4 else array


def check_edge_names(names: Sequence[str]) -> None:
    """Names of columns or arrays, each its own, that are none of an edge list's.

    >>> check_edge_names(["weight", "src"])
    Traceback (most recent call last):
    ValueError: data of edges must have names of their own, got 'weight', 'src': rename them
    """
    if {"", "src", "dst", "num_nodes"} & set(names) or len(set(names)) < len(names):
        raise ValueError(
            f"data of edges must have names of their own, got {', '.join(map(repr, names))}: rename them"
        )


def check_names(values: Any, num_nodes: int | None = None) -> np.ndarray:
    """Names of nodes as text: one a node, no two alike, kept to the letter; integers by their digits.

    >>> check_names([12, 7]).tolist()
    ['12', '7']
    """
    array = host_array(values, "names")
    text = array.astype(str) if array.dtype.kind in "iuUOT" else array
    if text.dtype.kind != "U" or (array.dtype.kind in "OT" and text.tolist() != array.tolist()):
        raise ValueError(f"names must be text or integers, got {array.dtype}: pass np.array(names, str)")
    if text.ndim != 1 or num_nodes not in (None, len(text)):
        raise ValueError(f"names must be one a node, [{num_nodes or 'num_nodes'}], got {list(text.shape)}")
    found, times = np.unique(text, return_counts=True)
    if len(found) != len(text):
        raise ValueError(f"names must differ, got {str(found[times.argmax()])!r} {times.max()} times")
    if any("\ud800" <= letter <= "\udfff" for letter in {*"".join(text.tolist())}):
        raise ValueError("names must be text that UTF-8 can hold, got lone surrogates: read it as UTF-8")
    return text


def check_features(values: Any, num_nodes: int | None = None, name: str = "features") -> np.ndarray:
    """`[num_nodes, d]` numbers, `d` at least 1, finite in float32; they come back as they are.

    >>> check_features(np.ones(3), 3)
    Traceback (most recent call last):
    ValueError: features must be [num_nodes, d], d at least 1, got shape (3,)
    """
    array = host_array(values, name)
    if num_nodes is not None and array.shape[:1] != (num_nodes,):
        raise ValueError(f"{name} must have one row a node, {num_nodes}, got shape {array.shape}")
    if array.ndim != 2 or not array.shape[1]:
        raise ValueError(f"{name} must be [num_nodes, d], d at least 1, got shape {array.shape}")
    check_numeric(array.dtype, name)
    if is_floating(array.dtype):
        check_finite(array, name)
    return array


def check_finite(array: np.ndarray, name: str) -> None:
    """Floats that are finite in float32, looked at a part at a time.

    >>> check_finite(np.array([0.0, 1e39]), "features")
    Traceback (most recent call last):
    ValueError: features must be finite in float32, got NaN, infinity or a larger number in row 1: fill, ...
    """
    step = max(_CHUNK // max(int(np.prod(array.shape[1:])), 1), 1)
    for first in range(0, len(array), step):
        with np.errstate(over="ignore"):
            bad = ~np.isfinite(array[first : first + step].astype(np.float32))
        if bad.any():
            raise ValueError(
                f"{name} must be finite in float32, got NaN, infinity or a larger number in row "
                f"{first + np.argwhere(bad)[0, 0]}: fill, rescale or drop it"
            )


def check_labels(values: Any, num_nodes: int | None = None) -> np.ndarray:
    """Labels as int32 `[N]` classes, bool `[N, C]` of 0/1 rows, or float32 `[N]` or `[N, T]` real values.

    A class is -1, and a real value NaN, where there is none. One column `[N, 1]` is neither.

    >>> check_labels(np.array([[0], [1]]))
    Traceback (most recent call last):
    ValueError: labels are one column, [2, 1]: pass labels[:, 0] (integers are classes, floats real values)
    """
    array = host_array(values, "labels")
    if num_nodes is not None and array.shape[:1] != (num_nodes,):
        raise ValueError(f"labels must have one row a node, {num_nodes}, got shape {array.shape}")
    if array.ndim == 2 and array.shape[1] == 1:
        shape = list(array.shape)
        raise ValueError(
            f"labels are one column, {shape}: pass labels[:, 0] (integers are classes, floats real values)"
        )
    real, whole = is_floating(array.dtype), array.dtype.kind in "iu"
    kinds = (0, real or whole, real or whole or array.dtype == bool)  # by the number of axes
    if not (array.ndim in (1, 2) and kinds[array.ndim]) or 0 in array.shape[1:]:
        advice = "convert it with astype(np.int32)" if array.dtype == bool else _NAMES
        raise ValueError(
            "labels must be int32 [num_nodes], bool [num_nodes, num_classes], or float32 with one or two "
            f"axes, got {array.dtype} of shape {array.shape}: {advice}"
        )
    if real:
        return _real_labels(array)
    least, most = (int(array.min()), int(array.max())) if array.size else (0, 0)
    if array.ndim == 2:
        if least < 0 or most > 1:
            bad = least if least < 0 else most
            raise ValueError(f"labels: multi-label rows must hold 0 and 1, got {bad}")
        return array.astype(bool, copy=False)
    if least < -1 or most >= INT32:
        bad = least if least < -1 else most
        raise ValueError(
            f"labels must be classes 0, 1, ..., or -1 for none, got {bad}: number them by "
            "np.unique(labels, return_inverse=True)[1]"
        )
    return array.astype(np.int32, copy=False)


def check_fanouts(fanouts: Sequence[Any]) -> None:
    """One fanout a layer, one layer at least.

    >>> check_fanouts(())
    Traceback (most recent call last):
    ValueError: expected one fanout a layer, got none: pass for instance fanouts=(25, 10)
    """
    if not fanouts:
        raise ValueError("expected one fanout a layer, got none: pass for instance fanouts=(25, 10)")


def check_fanout(fanout: int) -> None:
    """A number of neighbors, 1 at least.

    >>> check_fanout(0)
    Traceback (most recent call last):
    ValueError: a fanout is a positive number of neighbors, got 0: leave the hop out instead
    """
    if fanout < 1:
        raise ValueError(
            f"a fanout is a positive number of neighbors, got {fanout}: leave the hop out instead"
        )


def _int32(array: np.ndarray, label: str) -> np.ndarray:
    """Integers that int32 holds too; the narrower ones stay as they are."""
    if np.can_cast(array.dtype, np.int32):
        return array
    if array.size and not -INT32 <= int(array.min()) <= int(array.max()) < INT32:
        raise ValueError(
            f"{label} must fit int32, got {array.min()} .. {array.max()}: subtract the least, or count in a "
            "coarser unit"
        )
    return array.astype(np.int32)


def _float32(array: np.ndarray, label: str, name: str) -> np.ndarray:
    """Finite numbers of 64 bits in 32, as `check_edge_rows` says."""
    with np.errstate(invalid="ignore", under="ignore"):
        small, whole = array.astype(np.float32), array.astype(np.int32)
    exact = bool((small == array).all())
    if (name == "time" or not exact) and (whole == array).all():
        return whole
    if name == "time" and not exact:
        exact = len(np.unique(small)) == len(np.unique(array))
    elif not exact:
        exact = _close(array, small, relative=name == "weight")
    if not exact:
        raise _lost(label, array)
    return small


def _close(array: np.ndarray, small: np.ndarray, *, relative: bool) -> bool:
    """Whether rounding costs little of a column's range, or of each number (`relative`, or all are one)."""
    spread = np.fmax.reduce(array, axis=0) - np.fmin.reduce(array, axis=0)
    share = np.where((spread == 0) | relative, np.fmax(spread, np.abs(array)), spread) * _ROUNDING
    return not (np.abs(small - array) > share).any()


def _lost(label: str, array: np.ndarray) -> ValueError:
    return ValueError(
        f"{label} lose in float32 what tells them apart, {np.nanmin(array)} .. {np.nanmax(array)}: subtract "
        "the least, pass whole ticks as integers, or round them yourself by astype(np.float32)"
    )


def _joined(array: np.ndarray, name: str, label: str, like: Any) -> np.ndarray:
    """Rows for a table that is there: exact, but for fractions in a table of floats that are no times."""
    if array.shape[1:] != like.shape[1:]:
        shape = [len(array), *like.shape[1:]]
        raise ValueError(f"{label} must be {shape}, one row an edge, got shape {array.shape}")
    array = _int32(array, label) if array.dtype.kind in "iu" else array
    with np.errstate(invalid="ignore", over="ignore", under="ignore"):
        rows = array.astype(like.dtype)
    rounds = is_floating(array.dtype) and is_floating(like.dtype) and name != "time"
    kept = np.isfinite(rows.astype(np.float32)) if rounds else rows == array
    if rounds and array.dtype.itemsize > 4:
        _float32(array, label, name)
    if not kept.all():
        bad = array[np.argwhere(~kept)[0, 0]]
        raise ValueError(f"{label} is {like.dtype} in this graph, which cannot hold {bad}: convert it first")
    return rows


def _real_labels(array: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore", under="ignore"):
        small = array.astype(np.float32)
    if np.isinf(small).any():
        row = np.argwhere(np.isinf(small))[0, 0]
        raise ValueError(f"labels must be finite in float32, or NaN for none, got infinity in row {row}")
    if array.size and not _close(array, small, relative=False):
        raise _lost("labels", array)
    return small
