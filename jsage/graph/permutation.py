"""A permutation of `0 .. size - 1` that looks random, computed number by number: no table, integers alone."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, UInt

_BLOCK = 2**16
"""Numbers that the host mixes at once: what caches hold."""

Mix = Callable[[Any, int, np.uint32, tuple[np.uint32, ...]], Any]


def permute(
    numbers: Int[np.ndarray, "*shape"] | UInt[Array, "*shape"], size: int, seed: int = 0
) -> Int[np.ndarray, "*shape"] | UInt[Array, "*shape"]:
    """`p(x)` of each number `x` in `0 .. size - 1`, where `p` is a bijection that `seed` chooses.

    A Feistel network of four rounds on the pairs `(x >> h, x & (2^h - 1))`, about as many of each half; the
    high halves, of which there are `ceil(size / 2^h)`, are added modulo that number. The round function is
    MurmurHash3's 32-bit finaliser. Fewer than `2^h` of the pairs are `size` or more: from these `p` is
    followed on until it comes back. It hides nothing from an adversary, and need not.

    NumPy numbers are int64, `size` at most 2^62; jax numbers are uint32, `size` at most 2^31, also in `jit`.

    Source: Black and Rogaway (2002), Ciphers with arbitrary finite domains.

    >>> sorted(permute(np.arange(6), 6).tolist())
    [0, 1, 2, 3, 4, 5]
    """
    return _map(numbers, size, seed, _mix)


def restore(
    numbers: Int[np.ndarray, "*shape"] | UInt[Array, "*shape"], size: int, seed: int = 0
) -> Int[np.ndarray, "*shape"] | UInt[Array, "*shape"]:
    """The inverse of `permute`.

    >>> restore(permute(np.arange(6), 6), 6).tolist()
    [0, 1, 2, 3, 4, 5]
    """
    return _map(numbers, size, seed, _unmix)


def _map(numbers: Any, size: int, seed: int, mix: Mix) -> Any:
    words = np.random.SeedSequence(seed).generate_state(4, np.uint32)
    keys, low_bits = tuple(np.uint32(word) for word in words), size.bit_length() // 2
    high = np.uint32(-(-size >> low_bits))

    def step(x: Any) -> Any:
        return mix(x, low_bits, high, keys)

    if isinstance(numbers, jax.Array):
        return _walk_on_device(step, numbers, size)
    flat = numbers.reshape(-1).astype(np.int64)
    for first in range(0, flat.size, _BLOCK):
        block = slice(first, first + _BLOCK)
        flat[block] = _walk_on_host(step, flat[block], size)
    return flat.reshape(numbers.shape)


def _walk_on_device(step: Callable[[Any], Any], numbers: Array, size: int) -> Array:
    """Follow every cycle until it comes back to a number below `size`."""
    end = np.uint32(size)
    return jax.lax.while_loop(
        lambda x: (x >= end).any(), lambda x: jnp.where(x >= end, step(x), x), step(numbers)
    )


def _walk_on_host(step: Callable[[Any], Any], numbers: np.ndarray, size: int) -> np.ndarray:
    numbers = step(numbers)
    while len(out := np.flatnonzero(numbers >= size)):
        numbers[out] = step(numbers[out])
    return numbers


def _mix(x: Any, low_bits: int, high: np.uint32, keys: tuple[np.uint32, ...]) -> Any:
    above, below, mask = _halves(x, low_bits)
    for first, second in (keys[:2], keys[2:]):
        above = (above + _murmur(below ^ first) % high) % high
        below = below ^ (_murmur(above ^ second) & mask)
    return (above.astype(x.dtype) << low_bits) | below.astype(x.dtype)


def _unmix(x: Any, low_bits: int, high: np.uint32, keys: tuple[np.uint32, ...]) -> Any:
    above, below, mask = _halves(x, low_bits)
    for first, second in (keys[2:], keys[:2]):
        below = below ^ (_murmur(above ^ second) & mask)
        above = (above + (high - _murmur(below ^ first) % high)) % high
    return (above.astype(x.dtype) << low_bits) | below.astype(x.dtype)


def _halves(x: Any, low_bits: int) -> tuple[Any, Any, np.uint32]:
    mask = np.uint32(2**low_bits - 1)
    return (x >> low_bits).astype(np.uint32), x.astype(np.uint32) & mask, mask


def _murmur(x: Any) -> Any:
    """MurmurHash3's finaliser, a bijection of 32-bit words."""
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        x = (x ^ (x >> np.uint32(shift))) * np.uint32(factor)
    return x ^ (x >> np.uint32(16))
