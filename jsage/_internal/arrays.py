"""Arrays: reading rows, dtypes of sums."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, UInt32

from jsage._internal.versions import make_varying, varying_axes
from jsage.typing import HostArray

IN_BOUNDS: dict[str, Any] = {"mode": "promise_in_bounds", "wrap_negative_indices": False}
"""How `array.at[ids]` reads and writes where ids are known to be legal: nothing checks or changes them."""


def take(table: HostArray, ids: Int[HostArray, "..."]) -> Array:
    """Rows of a table at positions that are known to be legal.

    >>> take(np.array([10, 20, 30]), jnp.array([2, 0]))
    Array([30, 10], dtype=int32)
    """
    return jnp.asarray(table).at[ids].get(**IN_BOUNDS)


def run_positions(start: np.ndarray, length: np.ndarray) -> Int[np.ndarray, " positions"]:
    """`start[i], start[i] + 1, ..`, `length[i]` of them, for each `i` in turn; on the host.

    >>> run_positions(np.array([5, 0]), np.array([2, 3]))
    array([5, 6, 0, 1, 2])
    """
    length = length.astype(np.int64)
    return np.arange(length.sum()) + np.repeat(start - np.cumsum(length) + length, length)


def dense(table: Any) -> Any:
    """A SciPy matrix as an array; anything else as it is.

    >>> from scipy.sparse import eye_array
    >>> dense(eye_array(2)).tolist()
    [[1.0, 0.0], [0.0, 1.0]]
    """
    return table.toarray() if hasattr(table, "toarray") else table


def accumulator_dtype(rows: HostArray | jax.ShapeDtypeStruct) -> np.dtype:
    """The dtype that sums of rows accumulate in: float32 at least, and int32 at least for integers.

    >>> accumulator_dtype(jnp.zeros(3, jnp.bfloat16)), accumulator_dtype(jnp.zeros(3, jnp.int8))
    (dtype('float32'), dtype('int32'))
    """
    least = np.float32 if jnp.issubdtype(rows.dtype, jnp.inexact) else np.int32
    return np.promote_types(rows.dtype, least)


def aligned(*trees: Any) -> Any:
    """The arrays, all varying over each mesh axis that one of them varies over: for loops in a `shard_map`.

    Elsewhere, and where all vary alike, they are what they were. The gradient of one that was the same on all
    devices is summed over them.

    >>> aligned(jnp.ones(1), None)
    (Array([1.], dtype=float32), None)
    """
    axes = frozenset().union(*(_axes(x) for x in jax.tree.leaves(trees)))
    if not axes:
        return trees

    def cast(x: Any) -> Any:
        missing = tuple(sorted(axes - _axes(x)))
        if isinstance(x, jax.ShapeDtypeStruct) or not missing:
            return x
        return make_varying(x, missing)

    return jax.tree.map(cast, trees)


def start_of(start: Any, *read: Any) -> Any:
    """What a loop starts from, varying over the mesh axes that what it reads varies over.

    >>> start_of(jnp.zeros(1), jnp.ones(1))
    Array([0.], dtype=float32)
    """
    return aligned(start, *read)[0]


def _axes(x: Any) -> frozenset[Any]:
    kind: Any = x if isinstance(x, jax.ShapeDtypeStruct) else jax.typeof(x)
    return varying_axes(kind)


def lowest(dtype: Any) -> Any:
    """The number that no other of a dtype is below.

    >>> lowest(jnp.float32), lowest(jnp.int8)
    (-inf, -128)
    """
    return -jnp.inf if jnp.issubdtype(dtype, jnp.inexact) else int(jnp.iinfo(dtype).min)


def below(bits: UInt32[Array, "..."], bound: Int[Array, "..."]) -> Int[Array, "..."]:
    """`floor(bits * bound / 2**32)`, in whole numbers: right for bounds beyond 2^24, where floats are not.

    By halves of words: as fast as `jax.lax.mulhi`, which does not compile for arrays split over devices.

    >>> below(jnp.array([2**31, 2**32 - 1], jnp.uint32), jnp.array([10, 10]))
    Array([5, 9], dtype=int32)
    """
    bound = bound.astype(jnp.uint32)
    high, low, top, bottom = bits >> 16, bits & 0xFFFF, bound >> 16, bound & 0xFFFF
    middle = high * bottom + (low * bottom >> 16)
    return (high * top + (middle >> 16) + (low * top + (middle & 0xFFFF) >> 16)).astype(jnp.int32)


def round_up(count: int) -> int:
    """The least power of two that is no smaller, 1 at least.

    >>> round_up(0), round_up(5), round_up(8)
    (1, 8, 8)
    """
    return 1 << max(count - 1, 0).bit_length()


def pad_rows(array: Any, size: int) -> Any:
    """A host array with rows of 0 after it; the array itself where none are missing.

    >>> pad_rows(np.array([1, 2]), 4)
    array([1, 2, 0, 0])
    """
    if len(array) == size:
        return np.ascontiguousarray(array)
    out = np.zeros((size, *array.shape[1:]), array.dtype)
    out[: len(array)] = array
    return out
