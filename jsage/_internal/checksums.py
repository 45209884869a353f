"""Checksums of numbers, the same however an array is split over devices and processes."""

from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jaxtyping import PyTree

_AT_ONCE = 2**15


def checksums(tree: PyTree) -> dict[str, str]:
    """Of each array of a tree, by its path: dtype, shape, and a 64-bit sum over its numbers and their places.

    `sum_i mix(x_i + mix(i))`, modulo 2^64, where `x_i` are the bits of number `i` and `mix` is the bijection
    of splitmix64 (Steele, Lea and Flood, 2014): one other number always changes it. Against damage and mix-ups,
    not against those who mean to fool it. Several processes call this together.

    >>> checksums({"a": np.arange(3, dtype=np.int32)})
    {'a': 'int32[3] 60b4a7ac4de6ff3a'}
    """
    flat = jax.tree_util.tree_flatten_with_path(tree)[0]
    arrays = {jax.tree_util.keystr(path, simple=True, separator="/"): _raw(leaf) for path, leaf in flat}
    sums = np.array([_sum(array) for array in arrays.values()], np.uint64)
    if jax.process_count() > 1:
        parts = multihost_utils.process_allgather(sums.view(np.uint32))
        sums = np.asarray(parts).view(np.uint64).sum(0, dtype=np.uint64)
    kinds = [f"{x.dtype}[{','.join(map(str, x.shape))}]" for x in arrays.values()]
    return {name: f"{kind} {found:016x}" for name, kind, found in zip(arrays, kinds, sums.tolist(), strict=True)}


def _raw(leaf: Any) -> jax.Array | np.ndarray:
    if isinstance(leaf, jax.Array):
        return jax.random.key_data(leaf) if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf
    return np.asarray(leaf)


def _sum(array: jax.Array | np.ndarray) -> int:
    """What this process has of it, copies left out: of what all processes have, the first one's."""
    if isinstance(array, jax.Array) and not array.is_fully_addressable:
        parts = [(shard.data, shard.index) for shard in array.addressable_shards if shard.replica_id == 0]
        starts = [[span.start or 0 for span in index] for _, index in parts]
    else:
        parts = [(array, ())][: jax.process_index() == 0]
        starts = [[0] * array.ndim for _ in parts]
    found = (_part(np.asarray(part), start, array.shape) for (part, _), start in zip(parts, starts, strict=True))
    return sum(found) % 2**64


def _part(part: np.ndarray, start: list[int], shape: tuple[int, ...]) -> int:
    """Of a part of an array of this shape that begins there."""
    size = min(part.dtype.itemsize, 8)
    words = np.ascontiguousarray(part).reshape(-1).view(f"u{size}").reshape(part.size, -1)
    total, inner = 0, np.arange(words.shape[1], dtype=np.uint64)
    for first in range(0, part.size, _AT_ONCE):
        at: Any = np.arange(first, min(first + _AT_ONCE, part.size))
        piece = words[first : first + len(at)].astype(np.uint64)
        if part.shape != shape:
            place = [i + s for i, s in zip(np.unravel_index(at, part.shape), start, strict=True)]
            at = np.ravel_multi_index(place, shape)
        at = at.astype(np.uint64)[:, None] * np.uint64(words.shape[1]) + inner
        total += int(_mix(piece + _mix(at)).sum(dtype=np.uint64))
    return total


def _mix(x: np.ndarray) -> np.ndarray:
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        x = (x ^ (x >> np.uint64(shift))) * np.uint64(factor)
    return x ^ (x >> np.uint64(31))
