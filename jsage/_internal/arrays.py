"""Arrays: reading rows, dtypes of sums."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from jsage.typing import HostArray

IN_BOUNDS: dict[str, Any] = {"mode": "promise_in_bounds", "wrap_negative_indices": False}
"""How `array.at[ids]` reads and writes where ids are known to be legal: nothing checks or changes them."""


def take(table: HostArray, ids: Int[HostArray, "..."]) -> Array:
    """Rows of a table at positions that are known to be legal.

    >>> take(np.array([10, 20, 30]), jnp.array([2, 0]))
    Array([30, 10], dtype=int32)
    """
    return jnp.asarray(table).at[ids].get(**IN_BOUNDS)


def accumulator_dtype(rows: HostArray | jax.ShapeDtypeStruct) -> np.dtype:
    """The dtype that sums of rows accumulate in: float32 at least, and int32 at least for integers.

    >>> accumulator_dtype(jnp.zeros(3, jnp.bfloat16)), accumulator_dtype(jnp.zeros(3, jnp.int8))
    (dtype('float32'), dtype('int32'))
    """
    least = np.float32 if jnp.issubdtype(rows.dtype, jnp.inexact) else np.int32
    return np.promote_types(rows.dtype, least)


def lowest(dtype: Any) -> Any:
    """The number that no other of a dtype is below.

    >>> lowest(jnp.float32), lowest(jnp.int8)
    (-inf, -128)
    """
    return -jnp.inf if jnp.issubdtype(dtype, jnp.inexact) else int(jnp.iinfo(dtype).min)


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
