"""Reductions over a table of slots, or over a list of edges, with gradients that keep no message.

The gradient walks over the slots again, computes each message again and pulls the cotangent through it: by
the final state, then by the message's own derivative. Padded slots reach neither a value nor a gradient.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax import core
from jaxtyping import Array, Bool, Int, PyTree

from jsage._internal.arrays import IN_BOUNDS, accumulator_dtype, aligned, start_of, take
from jsage._internal.checks import is_floating
from jsage.blocks.reductions import (
    Mask,
    Reduction,
    apart,
    checked,
    column,
    filled,
    finished,
    scattered,
    some_rows,
    where,
)
from jsage.typing import EdgeData, MessageFn

Consts: TypeAlias = list[Array]
Rows: TypeAlias = tuple[PyTree, PyTree, PyTree]
"""What a message reads: the destinations' rows, the sources' and the edges'."""


class Slots(NamedTuple):
    """Slots in order: slot `i` of all destinations, then slot `i + 1`."""

    mask: Bool[Array, "fanout num_dst"]
    edge_data: EdgeData
    """`[fanout, num_dst, ...]`."""
    src: Int[Array, "fanout num_dst"] | None
    """Positions of the sources in a table; None: rows are given slot by slot, as `edge_data` is."""


def slot_major(mask: Array, edge_data: EdgeData, src: Array | None) -> Slots:
    """Slots in order, from arrays with a row a destination.

    >>> slot_major(jnp.array([[True, False]]), {"x": jnp.ones((1, 2, 3))}, None).edge_data["x"].shape
    (2, 1, 3)
    """
    turn = partial(jax.tree.map, lambda x: jnp.swapaxes(x, 0, 1))
    return Slots(mask.T, turn(dict(edge_data)), turn(src))


def hoist(function: Callable[..., Any], *like: Any) -> tuple[Callable[..., Any], Consts]:
    """`run(consts, *given)` for inputs of these shapes, which closes over no array, and the arrays it takes.

    >>> scale = jnp.float32(2)
    >>> run, consts = hoist(lambda x: scale * x, jnp.ones(3))
    >>> run(consts, jnp.ones(3))
    Array([2., 2., 2.], dtype=float32)
    """
    closed, shapes = jax.make_jaxpr(function, return_shape=True)(*like)
    structure = jax.tree.structure(shapes)

    def run(consts: Consts, *given: Any) -> Any:
        return structure.unflatten(core.eval_jaxpr(closed.jaxpr, consts, *jax.tree.leaves(given)))

    return run, [jnp.asarray(x) for x in closed.consts]


def reduce_slots(
    message: MessageFn, reduction: Reduction, slots: Slots, dst: PyTree, src: PyTree, own: PyTree = None
) -> PyTree:
    """Each destination's messages reduced, a slot at a time; `own` is one message more a destination.

    >>> from jsage.blocks.reductions import SUM
    >>> slots = slot_major(jnp.array([[True, True], [True, False]]), {}, jnp.array([[0, 1], [2, 2]]))
    >>> add = lambda dst, src, edge: dst + src
    >>> reduce_slots(add, SUM, slots, jnp.array([1.0, 2.0]), jnp.array([10.0, 20.0, 30.0]))
    Array([32., 32.], dtype=float32)
    """
    num_dst = slots.mask.shape[1]
    like = (
        some_rows(dst, num_dst),
        some_rows(src, num_dst, axis=0 if slots.src is not None else 1),
        some_rows(slots.edge_data, num_dst, axis=1),
    )
    run, consts = hoist(message, *like)
    return _reduced(run, reduction, *aligned(slots, (consts, dst, src, own)))


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _reduced(message, reduction, slots, given):
    return _forward(message, reduction, slots, given)[0]


def _forward(message, reduction, slots, given):
    consts, dst, src, own = given

    def step(state, slot):
        sent = steady(reduction, message, slot[0].mask.any())(consts, *_read(slot, dst, src))
        return reduction.step(state, sent, slot[0].mask), None

    first = jax.eval_shape(lambda: message(consts, *_read(_slot(slots, src, 0), dst, src)))
    checked(first, slots.mask.shape[1])
    start = reduction.start(first, slots.mask.shape[1])
    state, _ = jax.lax.scan(step, start_of(start, slots, given), _slots(slots, src))
    out = finished(reduction, state, slots.mask.sum(0, dtype=jnp.int32), first, own)
    state = state if own is None else reduction.step(state, own, None)
    return out, (slots, given, state)


def _backward(message, reduction, saved, cotangent):
    slots, (consts, dst, src, own), state = saved

    def again(slot):
        """The rows that a slot reads, those of a valid one in the padding, and its messages."""
        rows = filled(slot[0].mask, _read(slot, dst, src))
        return rows, steady(reduction, message, slot[0].mask.any())(consts, *rows)

    picks, own_picks, pull = _pull(reduction, again, saved, floats(cotangent))

    def step(carry, slot):
        d_consts, d_dst, d_src = carry
        slot, picked = slot
        rows, sent = again(slot)
        more, *d = pull_back(message, (consts, rows), pull(picked, sent), slot[0].mask)
        to_dst, to_src, to_edge = where_float(slot[0].mask, d)
        carry = add_rows(d_consts, more), add_rows(d_dst, to_dst)
        if slots.src is None:
            return (*carry, d_src), (to_src, to_edge)
        return (*carry, add_rows(d_src, to_src, slot[0].src)), (None, to_edge)

    start = blank(consts), blank(dst), None if slots.src is None else blank(src)
    start = start_of(start, slots, state, cotangent)
    read = _slots(slots, src), picks
    (d_consts, d_dst, d_table), (d_rows, d_edge) = jax.lax.scan(step, start, read)
    d_slots = jax.tree.map(lambda _: None, slots)._replace(edge_data=like(d_edge, slots.edge_data))
    d_src = like(d_rows if slots.src is None else d_table, src)
    d_own = None if own is None else like(pull(own_picks, own), own)
    return d_slots, (like(d_consts, consts), like(d_dst, dst), d_src, d_own)


_reduced.defvjp(_forward, _backward)


def _pull(reduction, again, saved, cotangent):
    """What `pull(picked, message)` takes of each slot and of `own`, and `pull`: a message's cotangent."""
    (slots, (_, _, src, own), state), gradient, tally = saved, reduction.gradient, None
    if gradient.largest:
        picks, own_picks, ties = _largest(reduction, again, slots, src, own)
        share = jax.tree.map(
            lambda ct, n: ct.astype(accumulator_dtype(ct)) / jnp.maximum(n, 1), cotangent, ties
        )
        return picks, own_picks, lambda picked, sent: where_each(picked, share)
    if gradient.tally is not None:
        some = lambda slot: where(slot[0].mask, gradient.tally(state, again(slot)[1]), 0)  # noqa: E731
        add = lambda total, slot: (jax.tree.map(jnp.add, total, some(slot)), None)  # noqa: E731
        none = jax.tree.map(jnp.zeros_like, jax.eval_shape(lambda: some(_slot(slots, src, 0))))
        none = start_of(none if own is None else gradient.tally(state, own), slots, state)
        tally, _ = jax.lax.scan(add, none, _slots(slots, src))
    settled = gradient.settle(state, tally, cotangent)
    return None, None, lambda picked, sent: gradient.pull(settled, sent)


def _largest(reduction, again, slots, src, own):
    """Which slots hold each destination's largest messages (`own`, the last, too), and how many those are.

    Messages are computed once for it, and what was saved of them before is not read: compiled elsewhere they
    may be rounded otherwise. A slot is among the largest if it rose above all before it and none rose above
    it after, or was as large since.
    """
    count = slots.mask.shape[0]

    def compare(carry, i, mask, sent):
        top, last = carry
        up = jax.tree.map(lambda t, x: mask_of(mask, x) & (x > t), top, sent)
        even = jax.tree.map(lambda t, x: mask_of(mask, x) & (x == t), top, sent)
        top = jax.tree.map(jnp.where, up, sent, top)
        return (top, jax.tree.map(lambda u, at: jnp.where(u, i, at), up, last)), even

    def step(carry, slot):
        (i, slot), sent = slot, again(slot[1])[1]
        return compare(carry, i, slot[0].mask, sent)

    first = jax.eval_shape(lambda: again(_slot(slots, src, 0))[1])
    start = reduction.start(first, slots.mask.shape[1])
    none = jax.tree.map(lambda x: jnp.full(x.shape, -1, jnp.int32), start)
    carry = start_of((start, none), slots, src, own)
    numbers = jnp.arange(count, dtype=jnp.int32)
    carry, even = jax.lax.scan(step, carry, (numbers, _slots(slots, src)))
    own_even = None
    if own is not None:
        carry, own_even = compare(carry, jnp.int32(count), None, own)
    last = carry[1]
    at = lambda x: numbers.reshape(-1, *(1,) * (x.ndim - 1))  # noqa: E731
    picks = jax.tree.map(lambda e, top: (at(e) == top[None]) | (e & (at(e) > top[None])), even, last)
    ties = jax.tree.map(lambda p: p.sum(0, dtype=jnp.float32), picks)
    if own is None:
        return picks, None, ties
    own_picks = jax.tree.map(lambda e, top: (top == count) | e, own_even, last)
    return picks, own_picks, jax.tree.map(jnp.add, ties, own_picks)


def mask_of(mask: Mask | None, rows: Array) -> Any:
    """A mask with axes to go with rows; True where there is none.

    >>> mask_of(jnp.array([True]), jnp.ones((1, 2))).shape
    (1, 1)
    """
    return True if mask is None else column(mask, rows)


def where_each(flags: PyTree, rows: PyTree) -> PyTree:
    """Rows where each number's flag is set, else 0.

    >>> where_each(jnp.array([True, False]), jnp.array([1.0, 2.0]))
    Array([1., 0.], dtype=float32)
    """
    return jax.tree.map(lambda flag, x: jnp.where(flag, x, 0), flags, rows)


def _slots(slots: Slots, src: PyTree) -> tuple[Slots, PyTree]:
    """What a scan goes over."""
    return slots, src if slots.src is None else None


def _slot(slots: Slots, src: PyTree, i: int) -> tuple[Slots, PyTree]:
    return jax.tree.map(lambda x: x[i], _slots(slots, src))


def _read(slot: tuple[Slots, PyTree], dst: PyTree, src: PyTree) -> Rows:
    part, given = slot
    if (ids := part.src) is not None:
        given = jax.tree.map(lambda x: take(x, ids), src)
    return dst, given, part.edge_data


def steady(reduction: Reduction, message: Callable[..., Any], some: Bool[Array, ""]) -> Callable[..., Any]:
    """The message, which each call rounds alike if the reduction's gradient compares messages.

    `some`: whether any row is valid, which no compiler must know.

    >>> from jsage.blocks.reductions import SUM
    >>> steady(SUM, abs, jnp.array(True)) is abs
    True
    """
    compares = reduction.gradient is not None and reduction.gradient.tally is not None
    return apart(message, some) if compares else message


def pull_back(
    message: Callable[..., Any], given: tuple[Consts, Rows], pulled: PyTree, mask: Mask | None
) -> Any:
    """Cotangents of constants, and of the rows that messages read, from those of the messages, where valid.

    >>> run, consts = hoist(lambda dst, src, edge: 3 * src, None, jnp.ones(1), {})
    >>> pull_back(run, (consts, (None, jnp.ones(1), {})), jnp.ones(1), None)[2]
    Array([3.], dtype=float32)
    """
    consts, rows = given
    sent, back = jax.vjp(message, consts, *rows)

    def allowed(x: Array, y: Array) -> Any:
        if not is_floating(x.dtype):
            return np.zeros(x.shape, jax.dtypes.float0)
        return where(mask, y.astype(x.dtype), 0)

    more, *to_rows = back(jax.tree.map(allowed, sent, pulled))
    if mask is not None:  # rows of slots that hold nothing may have no derivative: 0 * inf
        more = where_float(mask.any(), more)
    return more, *to_rows


def floats(cotangents: PyTree) -> PyTree:
    """Cotangents with zeros as those of integers, which have none.

    >>> floats(np.zeros(2, jax.dtypes.float0))
    Array([0., 0.], dtype=float32)
    """
    return jax.tree.map(lambda x: jnp.zeros(x.shape) if x.dtype == jax.dtypes.float0 else x, cotangents)


def reduce_list(
    reduction: Reduction, message: PyTree, dst: Int[Array, " rows"], degree: Array, own: PyTree = None
) -> PyTree:
    """Messages that are all there, reduced; `dst[e]` reads message `e`, and `num_dst` is padding.

    >>> from jsage.blocks.reductions import SUM
    >>> reduce_list(SUM, jnp.array([1.0, 2.0, 4.0]), jnp.array([1, 0, 1]), jnp.array([1, 2]))
    Array([2., 5.], dtype=float32)
    """
    if reduction.gradient is None:
        state = scattered(reduction, reduction.start(message, degree.shape[0]), message, dst)
        return finished(reduction, state, degree, message, own)
    return _listed(reduction, *aligned(message, dst, degree, own))


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _listed(reduction, message, dst, degree, own):
    return _list_forward(reduction, message, dst, degree, own)[0]


def _list_forward(reduction, message, dst, degree, own):
    state = scattered(reduction, reduction.start(message, degree.shape[0]), message, dst)
    out = finished(reduction, state, degree, message, own)
    state = state if own is None else reduction.step(state, own, None)
    return out, (message, dst, degree, own, state)


def _list_backward(reduction, saved, cotangent):
    message, dst, degree, own, state = saved
    gradient, num_dst, cotangent = reduction.gradient, degree.shape[0], floats(cotangent)
    mask = dst < num_dst
    at = partial(jax.tree.map, lambda x: x.at[dst].get(mode="clip"))
    tally = None
    if gradient.tally is not None:
        tally = jax.tree.map(
            lambda x: jax.ops.segment_sum(x, dst, num_dst), gradient.tally(at(state), message)
        )
        tally = tally if own is None else jax.tree.map(jnp.add, tally, gradient.tally(state, own))
    settled = gradient.settle(state, tally, cotangent)
    pulled = like(where(mask, gradient.pull(at(settled), message), 0), message)
    return pulled, None, None, None if own is None else like(gradient.pull(settled, own), own)


_listed.defvjp(_list_forward, _list_backward)


def blank(tree: PyTree) -> PyTree:
    """Zeros to sum gradients in, in float32 at least; one number for an array that has none.

    >>> blank({"x": jnp.ones(2, jnp.bfloat16), "id": jnp.arange(3)})["x"].dtype
    dtype('float32')
    """
    return jax.tree.map(
        lambda x: jnp.zeros(x.shape, accumulator_dtype(x)) if is_floating(x.dtype) else jnp.zeros(()), tree
    )


def add_rows(total: PyTree, rows: PyTree, at: Int[Array, " rows"] | None = None) -> PyTree:
    """Add cotangents to `blank` arrays, at these positions where they are given.

    >>> add_rows(jnp.zeros(2), jnp.ones(2), jnp.array([1, 1]))
    Array([0., 2.], dtype=float32)
    """

    def add(total: Array, x: Any) -> Array:
        if not is_floating(x.dtype):
            return total
        x = x.astype(total.dtype)
        return total + x if at is None else total.at[at].add(x, **IN_BOUNDS)

    return jax.tree.map(add, total, rows)


def where_float(mask: Array, cotangents: PyTree) -> PyTree:
    """Cotangents where the mask is set and 0 elsewhere; a number in place of those of integers.

    >>> where_float(jnp.array([True, False]), jnp.array([2.0, jnp.nan]))
    Array([2., 0.], dtype=float32)
    """
    return jax.tree.map(
        lambda x: jnp.where(column(mask, x), x, 0) if is_floating(x.dtype) else jnp.zeros((), jnp.int32),
        cotangents,
    )


def like(totals: PyTree, tree: PyTree) -> PyTree:
    """Summed cotangents in the dtypes of what they belong to; None for integers.

    >>> like({"id": jnp.zeros(()), "x": jnp.ones(1)}, {"id": jnp.arange(1), "x": jnp.ones(1)})
    {'id': None, 'x': Array([1.], dtype=float32)}
    """
    return jax.tree.map(
        lambda x, total: total.astype(x.dtype) if is_floating(x.dtype) else None, tree, totals
    )
