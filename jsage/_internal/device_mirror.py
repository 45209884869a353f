"""Arrays that change on the host, and their copies on a device."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Shaped

from jsage.typing import HostArray

SIZES = (64, 512, 4096)
"""Numbers of rows that are sent at once: as many programs an array, however many rows change."""


class DeviceMirror:
    """An array on the host whose changed rows are sent to its copy on the device."""

    def __init__(self, values: HostArray, capacity: int) -> None:
        self.host = pad_rows(np.asarray(values), capacity)
        self._device: Array | None = None
        self._changed: list[np.ndarray] = []

    def write(self, rows: np.ndarray, values: Any) -> None:
        """Set some rows."""
        self.host[rows] = values
        self._changed.append(rows)

    def lengthen(self, capacity: int) -> None:
        """Make room; the new rows are 0."""
        self.host, self._device = pad_rows(self.host, capacity), None

    def replace(self, values: np.ndarray) -> None:
        """Set all rows."""
        self.host, self._device = values, None

    def device(self) -> Array:
        """The copy, with all changes; it takes the place of the one given before, which is gone."""
        rows = np.unique(np.concatenate([np.empty(0, np.int64), *self._changed])).astype(np.int32)
        self._changed = []
        if self._device is None or 4 * len(rows) > len(self.host):
            self._device = jnp.array(self.host)  # never a view of host memory, which changes
        elif len(rows):
            size = next((size for size in SIZES if len(rows) <= size), SIZES[-1])
            for part in np.split(rows, range(size, len(rows), size)):
                part = np.pad(part, (0, size - len(part)), mode="edge")
                self._device = _put(self._device, part, self.host[part])
        assert self._device is not None
        return self._device


def pad_rows(values: Shaped[np.ndarray, "rows *rest"], capacity: int) -> Shaped[np.ndarray, "capacity *rest"]:
    """A copy with rows of 0 at its end.

    >>> pad_rows(np.array([1, 2]), 4)
    array([1, 2, 0, 0])
    """
    out = np.zeros((capacity, *values.shape[1:]), values.dtype)
    out[: len(values)] = values
    return out


@partial(jax.jit, donate_argnums=0)
def _put(array: Array, rows: Array, values: Array) -> Array:
    return array.at[rows].set(values)
