"""Which `k` of a row's `n` entries are drawn: functions `(key, n, k) -> (offset, mask)`.

A draw knows nothing of graphs: it picks offsets into a list of `n[i]` entries. Slots that a row cannot
fill have offset 0 and mask False. Valid slots always come first.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int, UInt32

from jsage._internal.arrays import below, start_of
from jsage._internal.checks import check_fanout
from jsage.typing import PRNGKey


def without_replacement(
    key: PRNGKey, n: Int[Array, " rows"], k: int
) -> tuple[Int[Array, "rows k"], Bool[Array, "rows k"]]:
    """Draw `min(n, k)` distinct offsets from `0..n-1` of each row, every subset equally likely.

    Floyd's algorithm (Bentley & Floyd, 1987, "A sample of brilliance"): slot `i` draws `t` from
    `0..n-k+i` and takes `n-k+i` itself where `t` was taken before. No sort, no rejection. A row with
    `n <= k` gives `0..n-1` in order. A draw from `0..m-1` is the high word of a 32-bit random integer
    times `m`, which is uniform to within a relative `m / 2**32` (0.02 % for a hub of a million).

    The subset is uniform; the order of the slots is not, so shuffle where order matters.

    >>> import jax, jax.numpy as jnp
    >>> offset, mask = without_replacement(jax.random.key(0), jnp.array([0, 2, 1000]), 3)
    >>> mask.sum(1)
    Array([0, 2, 3], dtype=int32)
    >>> offset[1]
    Array([0, 1, 0], dtype=int32)
    """
    check_fanout(k)
    return choose(jax.random.bits(key, (k, n.shape[0]), jnp.uint32), n)


def choose(
    bits: UInt32[Array, "k rows"], n: Int[Array, " rows"]
) -> tuple[Int[Array, "rows k"], Bool[Array, "rows k"]]:
    """The draw of `without_replacement` that independent random words make: `bits[i]` fills slot `i`.

    >>> import jax, jax.numpy as jnp
    >>> choose(jnp.zeros((2, 2), jnp.uint32), jnp.array([1, 5]))[0]
    Array([[0, 0],
           [0, 4]], dtype=int32)
    """
    k = bits.shape[0]
    last = jnp.maximum(n - k, 0)

    def fill(i, chosen):  # slot-major: one slot of every row at a time
        pick = below(bits[i], last + i + 1)
        taken = jnp.any(chosen == pick[None], axis=0)
        return chosen.at[i].set(jnp.where(taken, last + i, pick))

    none = start_of(jnp.full((k, n.shape[0]), -1, jnp.int32), bits, n)
    chosen = jax.lax.fori_loop(0, k, fill, none)
    slot = jax.lax.broadcasted_iota(jnp.int32, chosen.shape, 0)
    mask = slot < n[None]
    return jnp.where(mask, jnp.where((n <= k)[None], slot, chosen), 0).T, mask.T


def with_replacement(
    key: PRNGKey, n: Int[Array, " rows"], k: int
) -> tuple[Int[Array, "rows k"], Bool[Array, "rows k"]]:
    """Draw `k` independent offsets from `0..n-1` of each row; a row with `n == 0` draws none.

    What the 2017 GraphSAGE code does for nodes with fewer than `k` neighbors, and cheaper for large `k`.
    Uniform to within a relative `n / 2**32`.

    >>> import jax, jax.numpy as jnp
    >>> offset, mask = with_replacement(jax.random.key(0), jnp.array([0, 1, 1000]), 3)
    >>> mask.sum(1), offset[1]
    (Array([0, 3, 3], dtype=int32), Array([0, 0, 0], dtype=int32))
    """
    check_fanout(k)
    bits = jax.random.bits(key, (k, n.shape[0]), jnp.uint32)
    # A slot at a time, as in `choose`: XLA would draw fused bits again for each array that the slots index.
    offset = jax.lax.map(lambda word: below(word, n), bits)
    return offset.T, jnp.broadcast_to(n > 0, bits.shape).T


def latest(
    key: PRNGKey, n: Int[Array, " rows"], k: int
) -> tuple[Int[Array, "rows k"], Bool[Array, "rows k"]]:
    """The last `min(n, k)` offsets of each row, the last one first: nothing is drawn, the key is not read.

    For rows in order of time.

    >>> import jax, jax.numpy as jnp
    >>> latest(jax.random.key(0), jnp.array([1, 5]), 2)[0]
    Array([[0, 0],
           [4, 3]], dtype=int32)
    """
    check_fanout(k)
    offset = n[:, None] - 1 - jnp.arange(k, dtype=jnp.int32)[None]
    return jnp.maximum(offset, 0), offset >= 0


class Recent(NamedTuple):
    """Independent draws of a row's offsets that prefer the last ones: `draw=Recent(0.9)`.

    The last offset has weight 1, the one before it `decay`, the one before that `decay ** 2`, and so on,
    whatever lies between their times; a row with `n == 0` draws none. By the inverse of the distribution
    function of a truncated geometric law, at a cost that does not grow with the row; a probability is right
    to within 2^-22 or so. For rows in order of time: DyGLib's "time_interval_aware" (Yu et al., 2023), by
    rank. Raises ValueError for a decay that is not between 0 and 1.

    >>> offset, mask = Recent(0.01)(jax.random.key(0), jnp.array([0, 1, 1000]), 3)
    >>> offset, mask.sum(1)
    (Array([[  0,   0,   0],
           [  0,   0,   0],
           [999, 999, 999]], dtype=int32), Array([0, 3, 3], dtype=int32))
    """

    decay: float

    def __call__(
        self, key: PRNGKey, n: Int[Array, " rows"], k: int
    ) -> tuple[Int[Array, "rows k"], Bool[Array, "rows k"]]:
        """`(offset, mask)`: the entries drawn, by number."""
        check_fanout(k)
        if not 0 < self.decay < 1:
            raise ValueError(f"a decay is between 0 and 1, got {self.decay}: latest takes the last ones")
        bits = jax.random.bits(key, (k, n.shape[0]), jnp.uint32)
        log = math.log(self.decay)  # in double precision: float32 may have no number between this and 1
        whole = jnp.expm1(n * log)

        def pick(word: Array) -> Array:
            share = ((word >> 8).astype(jnp.float32) + 0.5) / 2**24
            # The last `r` have the share (1 - decay^r) / (1 - decay^n).
            rank = jnp.log1p(share * whole) / log
            return jnp.maximum(n - 1 - rank.astype(jnp.int32), 0)  # where rounding goes beyond the first

        offset = jax.lax.map(pick, bits)  # a slot at a time, as in `with_replacement`
        return offset.T, jnp.broadcast_to(n > 0, bits.shape).T
