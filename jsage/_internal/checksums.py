"""Checksums of numbers, the same however an array is split over devices and processes."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jaxtyping import PyTree

_AT_ONCE = 2**14
_A, _B, _C = map(np.uint64, (0xBF58476D1CE4E5B9, 0x9E3779B97F4A7C15, 0x94D049BB133111EB))


def checksums(tree: PyTree) -> dict[str, str]:
    """Of each array of a tree, by its path: dtype, shape, and a 64-bit sum over its numbers and their places.

    `sum_i mix(a x_i + b i)`, modulo 2^64, where `x_i` are the bits, 32 at a time at most, `a` and `b` odd,
    and `mix` is a bijection: one other number always changes it. Against damage and mix-ups, not against who
    means to fool it. Several processes call this together.

    >>> checksums({"a": np.arange(3, dtype=np.int32)})
    {'a': 'int32[3] bbb2f57fa553e4d7'}
    """
    flat = jax.tree_util.tree_flatten_with_path(tree)[0]
    arrays = {jax.tree_util.keystr(path, simple=True, separator="/"): _raw(leaf) for path, leaf in flat}
    sums = np.array([_sum(array) for array in arrays.values()], np.uint64)
    if jax.process_count() > 1 and arrays:
        parts = multihost_utils.process_allgather(sums.view(np.uint32))
        sums = np.asarray(parts).view(np.uint64).sum(0, dtype=np.uint64)
    kinds = [f"{x.dtype}[{','.join(map(str, x.shape))}]" for x in arrays.values()]
    return {
        name: f"{kind} {found:016x}" for name, kind, found in zip(arrays, kinds, sums.tolist(), strict=True)
    }


def _raw(leaf: Any) -> jax.Array | np.ndarray:
    if isinstance(leaf, jax.Array):
        return jax.random.key_data(leaf) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf
    return np.asarray(leaf)


def _sum(array: jax.Array | np.ndarray) -> int:
    """What this process has of it, copies left out: of what all processes have, the first one's."""
    if isinstance(array, np.ndarray) or array.is_fully_addressable:
        return _part(np.asarray(array), [0] * array.ndim, array.shape) if jax.process_index() == 0 else 0
    own = [shard for shard in array.addressable_shards if shard.replica_id == 0]
    starts = [[span.start or 0 for span in shard.index] for shard in own]
    found = [
        _part(np.asarray(shard.data), start, array.shape) for shard, start in zip(own, starts, strict=True)
    ]
    return sum(found) % 2**64


def _part(part: np.ndarray, start: list[int], shape: tuple[int, ...]) -> int:
    """Of a part of an array of this shape that begins there."""
    size = min(part.dtype.itemsize, 4)
    words = np.ascontiguousarray(part).reshape(-1).view(f"u{size}")
    each = part.dtype.itemsize // size
    own, shape, start = (*part.shape, each), (*shape, each), [*start, 0]
    total = 0
    for first in range(0, words.size, _AT_ONCE):
        piece = words[first : first + _AT_ONCE].astype(np.uint64)
        at = np.arange(first, first + len(piece))
        if own != shape:
            at = np.ravel_multi_index(
                [i + s for i, s in zip(np.unravel_index(at, own), start, strict=True)], shape
            )
        piece *= _A
        piece += at.astype(np.uint64) * _B
        piece ^= piece >> np.uint64(32)
        piece *= _C
        piece ^= piece >> np.uint64(29)
        total += int(piece.sum(dtype=np.uint64))
    return total % 2**64
