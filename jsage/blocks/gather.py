"""Sum and maximum of gathered rows without ever holding the `[rows, k, d]` array of them.

Both walk over the `k` slots and keep one `[rows, d]` accumulator, forwards and backwards; padded slots are
never read into a value or a gradient. Sums accumulate in float32 at least. `segment_max` is the maximum
for edge lists, with the same gradient.
"""

from typing import TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Num

from jsage._internal.arrays import IN_BOUNDS, accumulator_dtype, lowest, start_of, take
from jsage.typing import HostArray

Table: TypeAlias = Num[HostArray, "num_src d"]
Slots: TypeAlias = Int[Array, "rows k"]
Mask: TypeAlias = Bool[Array, "rows k"]
Weight: TypeAlias = Float[Array, "rows k"] | None
Pooled: TypeAlias = Num[Array, "rows d"]

CHUNK = 512
"""Rows that `scatter_add_rows` adds at once."""
UNROLL = 4
"""Slots that are read before the accumulator is written: on a CPU a fifth faster than one after another."""


def messages(
    rows: Num[Array, "*slots d"], mask: Bool[Array, "*slots"], weight: Float[Array, "*slots"] | None = None
) -> Num[Array, "*slots d"]:
    """Valid rows times their weight, 0 in the padding.

    >>> import jax.numpy as jnp
    >>> messages(jnp.array([[1.0], [2.0]]), jnp.array([True, False]), jnp.array([0.5, 0.5])).ravel()
    Array([0.5, 0. ], dtype=float32)
    """
    rows = jnp.where(mask[..., None], rows, 0)
    if weight is None:
        return rows
    return rows * jnp.where(mask, weight, 0)[..., None].astype(rows.dtype)


@jax.custom_vjp
def gather_sum(table: Table, src: Slots, mask: Mask, weight: Weight = None) -> Pooled:
    """`sum_i weight[r, i] * table[src[r, i]]` over the valid slots of each row.

    >>> import jax.numpy as jnp
    >>> table = jnp.array([[1.0], [10.0], [100.0]])
    >>> gather_sum(table, jnp.array([[0, 2], [1, 1]]), jnp.array([[True, True], [True, False]]))
    Array([[101.], [ 10.]], dtype=float32)
    """

    def add(i, total):
        return total + jnp.where(mask[:, i, None], _message(table, src, weight, i), 0).astype(total.dtype)

    total = jnp.zeros((src.shape[0], table.shape[1]), accumulator_dtype(table))
    total = start_of(total, table, src, mask, weight)
    return jax.lax.fori_loop(0, src.shape[1], add, total, unroll=UNROLL).astype(table.dtype)


def _sum_forward(table, src, mask, weight=None):
    return gather_sum(table, src, mask, weight), (table, src, mask, weight)


def _sum_backward(saved, cotangent):
    table, src, mask, weight = saved

    def slots(cotangent):
        return _pull(table, src, weight, lambda i: jnp.where(mask[:, i, None], cotangent, 0))

    if weight is not None or table.shape[0] > 2 * src.size:
        return slots(cotangent)
    first = lambda cotangent: scatter_add_rows(cotangent, src, mask, table.shape[0]).astype(table.dtype)  # noqa: E731
    # A CPU adds row after row, so copies are cheaper there; others add many rows at once.
    d_table = jax.lax.platform_dependent(cotangent, cpu=first, default=lambda c: slots(c)[0])
    return d_table, None, None, None


gather_sum.defvjp(_sum_forward, _sum_backward)


def scatter_add_rows(
    rows: Float[Array, "rows d"], src: Slots, mask: Mask, num_src: int
) -> Float[Array, "num_src d"]:
    """`out[s] = sum of rows[r] over the valid slots with src[r, i] == s`, in float32 at least.

    The first slot of each source is found through a table of positions, and its row is copied there; only
    the rows of the others are added, so a table whose rows are mostly read once is written once.

    >>> import jax.numpy as jnp
    >>> rows, src = jnp.array([[1.0], [10.0]]), jnp.array([[2, 0], [2, 2]])
    >>> scatter_add_rows(rows, src, jnp.array([[True, True], [True, False]]), 3).ravel()
    Array([ 1.,  0., 11.], dtype=float32)
    """
    fanout, size = src.shape[1], src.size
    ids, valid, slot = src.ravel(), mask.ravel(), jnp.arange(size, dtype=jnp.int32)
    first = jnp.full(num_src, size, jnp.int32)
    first = first.at[ids].min(jnp.where(valid, slot, size), **IN_BOUNDS)
    wide_rows = rows.astype(accumulator_dtype(rows))
    out = jnp.where((first < size)[:, None], take(wide_rows, jnp.minimum(first, size - 1) // fanout), 0)
    again = valid & (take(first, ids) != slot)
    rank = jnp.cumsum(again, dtype=jnp.int32)
    listed = (
        jnp.zeros(size + CHUNK, jnp.int32).at[jnp.where(again, rank - 1, size + CHUNK)].set(slot, mode="drop")
    )

    def add(i, out):
        here = jax.lax.dynamic_slice(listed, (i * CHUNK,), (CHUNK,))
        more = (i * CHUNK + jnp.arange(CHUNK, dtype=jnp.int32) < rank[-1])[:, None]
        read = jnp.where(more, take(wide_rows, here // fanout), 0)
        return out.at[take(ids, here)].add(read, **IN_BOUNDS)

    return jax.lax.fori_loop(0, (rank[-1] + CHUNK - 1) // CHUNK, add, start_of(out, rows, src, mask))


@jax.custom_vjp
def gather_max(table: Table, src: Slots, mask: Mask, weight: Weight = None) -> Pooled:
    """The maximum of `weight[r, i] * table[src[r, i]]` over the valid slots; 0 for a row without any.

    The gradient is shared equally between ties, as that of `jnp.max` is.

    >>> import jax.numpy as jnp
    >>> table = jnp.array([[1.0], [10.0], [100.0]])
    >>> gather_max(table, jnp.array([[0, 2], [1, 1]]), jnp.array([[True, True], [False, False]]))
    Array([[100.], [  0.]], dtype=float32)
    """

    least = lowest(table.dtype)

    def rise(i, top):
        return jnp.maximum(top, jnp.where(mask[:, i, None], _message(table, src, weight, i), least))

    start = start_of(jnp.full((src.shape[0], table.shape[1]), least, table.dtype), table, src, mask, weight)
    top = jax.lax.fori_loop(0, src.shape[1], rise, start, unroll=UNROLL)
    # Times 1: a matmul in bfloat16 behind a mere maximum would have XLA convert the whole table beforehand.
    valid = mask.any(1)[:, None]
    return jnp.where(valid, top, 0) * valid.astype(top.dtype)


def _max_forward(table, src, mask, weight=None):
    top = gather_max(table, src, mask, weight)
    return top, (table, src, mask, weight, top)


def _max_backward(saved, cotangent):
    table, src, mask, weight, top = saved

    def won(i):
        return mask[:, i, None] & (_message(table, src, weight, i) == top)

    ties = jax.lax.fori_loop(
        0,
        src.shape[1],
        lambda i, n: n + won(i).astype(jnp.int32),
        start_of(jnp.zeros(top.shape, jnp.int32), top, src, mask),
    )
    share = cotangent / jnp.maximum(ties, 1).astype(cotangent.dtype)
    return _pull(table, src, weight, lambda i: jnp.where(won(i), share, 0))


gather_max.defvjp(_max_forward, _max_backward)


@jax.custom_vjp
def slot_max(
    rows: Num[Array, "num_dst fanout d"], mask: Bool[Array, "num_dst fanout"]
) -> Num[Array, "num_dst d"]:
    """The maximum over valid slots, 0 where there are none; the gradient is shared equally between ties.

    `jnp.max` has the same gradient, but keeps masked copies of the rows for it; this keeps which slots won.

    >>> import jax.numpy as jnp
    >>> rows = jnp.array([[[1.0], [3.0]], [[2.0], [4.0]]])
    >>> slot_max(rows, jnp.array([[True, True], [True, False]])).ravel()
    Array([3., 2.], dtype=float32)
    """
    top = jnp.where(mask[..., None], rows, lowest(rows.dtype)).max(1)
    return jnp.where(mask.any(1)[:, None], top, 0)


def _slot_max_forward(rows, mask):
    top = slot_max(rows, mask)
    # Unless it is kept as it is here, a TPU makes it again for the gradient, with `top` as large as the rows.
    won = jax.lax.optimization_barrier(mask[..., None] & (rows == top[:, None]))
    return top, (won, won.sum(1, dtype=jnp.int32))


def _slot_max_backward(saved, cotangent):
    won, ties = saved
    share = cotangent / jnp.maximum(ties, 1).astype(cotangent.dtype)
    return jnp.where(won, share[:, None], 0), None


slot_max.defvjp(_slot_max_forward, _slot_max_backward)


@jax.custom_vjp
def segment_max(
    rows: Num[Array, "num_edges d"], dst: Int[Array, " num_edges"], degree: Int[Array, " num_dst"]
) -> Num[Array, "num_dst d"]:
    """`jax.ops.segment_max`, but 0 where `degree` is 0 and the gradient shared equally between ties.

    >>> import jax.numpy as jnp
    >>> segment_max(jnp.array([[1.0], [3.0], [2.0]]), jnp.array([0, 0, 2]), jnp.array([2, 0, 1])).ravel()
    Array([3., 0., 2.], dtype=float32)
    """
    top = jax.ops.segment_max(rows, dst, degree.shape[0])
    return jnp.where(degree[:, None] > 0, top, 0)


def _segment_max_forward(rows, dst, degree):
    top = segment_max(rows, dst, degree)
    return top, (rows, dst, degree, top)


def _segment_max_backward(saved, cotangent):
    rows, dst, degree, top = saved
    won = (dst < degree.shape[0])[:, None] & (rows == top.at[dst].get(mode="clip"))
    ties = jax.ops.segment_sum(won.astype(cotangent.dtype), dst, degree.shape[0])
    share = cotangent / jnp.maximum(ties, 1)
    return jnp.where(won, share.at[dst].get(mode="clip"), 0), None, None


segment_max.defvjp(_segment_max_forward, _segment_max_backward)


def _message(table: Table, src: Slots, weight: Weight, i: Array) -> Pooled:
    row = take(table, src[:, i])
    return row if weight is None else row * weight[:, i, None].astype(row.dtype)


def _pull(table: Table, src: Slots, weight: Weight, cotangent_of):
    """Cotangents of `(table, src, mask, weight)` from those of the messages, slot by slot."""

    def step(i, grads):
        d_table, d_weight = grads
        d_row = cotangent_of(i).astype(d_table.dtype)
        if weight is not None:
            row, scale = take(table, src[:, i]).astype(d_row.dtype), weight[:, i, None].astype(d_row.dtype)
            unread = d_row == 0
            d_weight = d_weight.at[:, i].set(jnp.where(unread, 0, d_row * row).sum(1).astype(weight.dtype))
            d_row = jnp.where(unread, 0, d_row * scale)
        return d_table.at[src[:, i]].add(d_row, **IN_BOUNDS), d_weight

    start = (
        jnp.zeros(table.shape, accumulator_dtype(table)),
        None if weight is None else jnp.zeros_like(weight),
    )
    start = start_of(start, table, src, weight, jax.eval_shape(cotangent_of, jnp.zeros((), jnp.int32)))
    d_table, d_weight = jax.lax.fori_loop(0, src.shape[1], step, start)
    return d_table.astype(table.dtype), None, None, d_weight
