"""How the messages that a destination reads are reduced: one object a reduction, the same on every layout.

A message is a tree of arrays `[rows, ...]`. A reduction is a running state, one a destination, that reads
them one by one or many at once: its memory does not grow with the degree. Sums are kept in float32 at least.
The gradient needs the final state alone, so no layout keeps a message for it.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int, PyTree

from jsage._internal.arrays import accumulator_dtype, lowest
from jsage._internal.checks import is_floating
from jsage.typing import EdgeData, HostArray, MessageFn

Message: TypeAlias = PyTree
State: TypeAlias = PyTree
Mask: TypeAlias = Bool[Array, "*rows"]
Degree: TypeAlias = Int[Array, " num_dst"]


class Gradient(NamedTuple):
    """The cotangent of a message from the final state; messages are computed again for it.

    With a `tally` they are so bit by bit, so that `tally` and `pull` may compare them with the state.
    """

    settle: Callable[[State, Any, PyTree], PyTree]
    """`(state, tally, cotangent)`: what `pull` reads, one row a destination."""
    pull: Callable[[PyTree, Message], Message]
    """`(settled, message)`: the message's cotangent, row by row."""
    tally: Callable[[State, Message], Any] | None = None
    """`(state, message)`: rows whose sum over all messages `settle` needs beforehand."""
    largest: bool = False
    """Whether the state is the largest message, and `pull` goes to those that are: a table of slots is then
    read again for which those are, whatever they are rounded to."""


class Reduction(NamedTuple):
    """A reduction of messages; `SUM`, `MAX` and `SOFTMAX_SUM` are there, a new one is one more such object.

    >>> count = Reduction(
    ...     start=lambda message, num_dst: jnp.zeros(num_dst),
    ...     step=lambda state, message, mask: state + (1 if mask is None else mask),
    ...     finish=lambda state, degree, message: state,
    ... )
    >>> count.step(count.start(None, 2), None, jnp.array([True, False]))
    Array([1., 0.], dtype=float32)
    """

    start: Callable[[Message, int], State]
    """`(message, num_dst)`: states that have read nothing; only shapes and dtypes of `message` count."""
    step: Callable[[State, Message, Mask | None], State]
    """`(state, message, mask)`: each destination reads one message where the mask is set (None: all)."""
    finish: Callable[[State, Degree, Message], PyTree]
    """`(state, degree, message)`: the rows, in the message's dtype; those of degree 0 are 0."""
    join: Callable[[State, State], State] | None = None
    """The state that has read what both have read. None: the order of messages counts."""
    scatter: Callable[[State, Message, Int[Array, " rows"]], State] | None = None
    """`(state, message, dst)`: each message is read by its destination; one of `num_dst` by none. None: by
    `join`."""
    gradient: Gradient | None = None
    """None: JAX's own, which keeps messages; not on a `SlicedBlock`, which keeps none."""
    columnwise: bool = False
    """Whether each column is reduced by itself: zeros beside a row do no harm."""


def some_rows(tree: PyTree, rows: Any, axis: int = 0) -> PyTree:
    """The shapes of so many rows of each array, which has its rows along `axis`.

    >>> some_rows(jnp.ones((5, 4, 3)), 7, axis=1).shape
    (7, 3)
    """
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct((rows, *x.shape[axis + 1 :]), x.dtype), tree)


class Asked(NamedTuple):
    """One reduction that a layer asks for."""

    message: MessageFn
    reduction: Reduction
    dst: PyTree
    """The destinations' rows."""
    src: PyTree
    """What these nodes send, were they sources."""

    @property
    def plain(self) -> bool:
        """Whether each column is reduced by itself, so that zeros beside a row do no harm."""
        rank = getattr(self.src, "ndim", None)
        return self.message is weighted_source and self.reduction.columnwise and rank == 2

    def like(self, src: PyTree, edge_data: Mapping[str, Any], rows: int) -> PyTree:
        """The shapes of so many messages, of sources whose rows are like these."""
        parts = (some_rows(x, rows) for x in (self.dst, src, dict(edge_data)))
        return checked(jax.eval_shape(self.message, *parts), rows)


def checked(message: Message, rows: Any) -> Message:
    """The message, or a ValueError where it has not one row for each of so many edges.

    >>> checked(jnp.ones(3), 2)
    Traceback (most recent call last):
    ValueError: a message must have one row an edge, [2, ...], got [3]: compute row by row, and ...
    """
    for x in jax.tree.leaves(message):
        if x.shape[:1] != (rows,):
            raise ValueError(
                f"a message must have one row an edge, [{rows}, ...], got {list(x.shape)}: compute "
                "row by row, and keep the first axis (axis=-1 sums over columns)"
            )
    return message


def weighted_source(dst: Any, src: PyTree, edge: EdgeData) -> PyTree:
    """The message of plain aggregation: the source's row times the edge's `"weight"`, where there is one.

    Layouts know it and take their fastest way.

    >>> weighted_source(None, jnp.array([[1.0, 2.0]]), {"weight": jnp.array([3.0])})
    Array([[3., 6.]], dtype=float32)
    """
    if "weight" not in edge:
        return src
    return jax.tree.map(lambda x: x * column(edge["weight"], x).astype(x.dtype), src)


def column(flags: Array, rows: HostArray) -> Array:
    """An array with axes of size 1 behind, to go with rows of more axes.

    >>> column(jnp.ones(3), jnp.ones((3, 2, 4))).shape
    (3, 1, 1)
    """
    return flags.reshape(flags.shape + (1,) * (rows.ndim - flags.ndim))


def where(mask: Mask | None, rows: PyTree, other: PyTree | float) -> PyTree:
    """Rows where the mask is set (None: everywhere), else those of `other`, or a number.

    >>> where(jnp.array([True, False]), jnp.array([[1.0], [2.0]]), 0.0).ravel()
    Array([1., 0.], dtype=float32)
    """
    if mask is None:
        return rows
    if isinstance(other, int | float):
        return jax.tree.map(lambda x: jnp.where(column(mask, x), x, jnp.asarray(other, x.dtype)), rows)
    return jax.tree.map(lambda x, y: jnp.where(column(mask, x), x, y), rows, other)


def filled(mask: Mask | None, rows: PyTree) -> PyTree:
    """Rows where the mask is set, the first such row elsewhere: for functions with no derivative at 0.

    >>> filled(jnp.array([False, True]), jnp.array([1.0, 2.0]))
    Array([2., 2.], dtype=float32)
    """
    if mask is None or not mask.shape[0]:
        return rows
    first = jnp.argmax(mask)
    return jax.tree.map(lambda x: jnp.where(column(mask, x), x, x[first]), rows)


def apart(message: Callable[..., Message], any_valid: Bool[Array, ""]) -> Callable[..., Message]:
    """The message in a program of its own, so that each call rounds alike; 0 where nothing is valid.

    Fused with what reads it, `a * b + c` is rounded once or twice, as the compiler likes.

    >>> apart(lambda x: 2 * x, jnp.array(True))(jnp.ones(1))
    Array([2.], dtype=float32)
    """

    def call(*rows: Any) -> Message:
        zeros = lambda *rows: jax.tree.map(  # noqa: E731
            lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(message, *rows)
        )
        return jax.lax.cond(any_valid, message, zeros, *rows)

    return call


def scattered(reduction: Reduction, state: State, message: Message, dst: Int[Array, " rows"]) -> State:
    """States once each message was read by its destination, one of `num_dst` by none; any order of `dst`.

    A reduction without a `scatter` of its own joins the states of one message each.

    >>> scattered(SUM._replace(scatter=None), jnp.zeros(2), jnp.array([1.0, 2.0, 4.0]), jnp.array([1, 2, 1]))
    Array([0., 5.], dtype=float32)
    """
    if reduction.scatter is not None:
        return reduction.scatter(state, message, dst)
    join: Any = reduction.join
    num_dst = jax.tree.leaves(state)[0].shape[0]
    order = jnp.argsort(dst, stable=True)
    dst, message = dst[order], jax.tree.map(lambda x: x[order], message)
    new = jnp.concatenate([jnp.ones(1, bool), dst[1:] != dst[:-1]])
    end = jnp.concatenate([new[1:], jnp.ones(1, bool)])

    def both(a: tuple[Array, State], b: tuple[Array, State]) -> tuple[Array, State]:
        return a[0] | b[0], where(b[0], b[1], join(a[1], b[1]))

    each = reduction.step(reduction.start(message, dst.shape[0]), message, None)
    _, runs = jax.lax.associative_scan(both, (new, each))
    old = jax.tree.map(lambda x: x.at[dst].get(mode="clip"), state)
    at = jnp.where(end, dst, num_dst)
    return jax.tree.map(lambda x, y: x.at[at].set(y, mode="drop"), state, join(old, runs))


def read_many(reduction: Reduction, state: State, message: Message, mask: Mask) -> State:
    """The state of one destination once it has read many messages, in their order.

    >>> read_many(SUM, jnp.zeros((1, 1)), jnp.array([[1.0], [2.0]]), jnp.array([True, False]))
    Array([[1.]], dtype=float32)
    """
    if reduction.scatter is not None:
        return reduction.scatter(state, message, jnp.where(mask, 0, 1))

    def one(i: Array, state: State) -> State:
        cut = lambda x: jax.lax.dynamic_slice_in_dim(x, i, 1)  # noqa: E731
        return reduction.step(state, jax.tree.map(cut, message), cut(mask))

    last = jnp.where(mask, jnp.arange(1, mask.shape[0] + 1), 0).max()
    return jax.lax.fori_loop(0, last, one, state)


def finished(reduction: Reduction, state: State, degree: Degree, message: Message, own: Message) -> PyTree:
    """The rows, once each destination has read `own`, one message more (None: none), as the last.

    >>> finished(SUM, jnp.ones((1, 1)), jnp.array([1]), jnp.ones((1, 1)), jnp.ones((1, 1)))
    Array([[2.]], dtype=float32)
    """
    if own is not None:
        state, degree = reduction.step(state, own, None), degree + 1
    return reduction.finish(state, degree, message)


def _sum_start(message: Message, num_dst: int) -> State:
    return jax.tree.map(lambda x: jnp.zeros((num_dst, *x.shape[1:]), accumulator_dtype(x)), message)


def _sum_step(state: State, message: Message, mask: Mask | None) -> State:
    return jax.tree.map(lambda total, x: total + x.astype(total.dtype), state, where(mask, message, 0))


def _sum_scatter(state: State, message: Message, dst: Array) -> State:
    def add(total: Array, x: Array) -> Array:
        if total.shape[0] == 1:
            return total + where(dst == 0, x, 0).sum(0, dtype=total.dtype, keepdims=True)
        return total.at[dst].add(x.astype(total.dtype), mode="drop")

    return jax.tree.map(add, state, message)


def _sum_finish(state: State, degree: Any, message: Message) -> Message:
    return jax.tree.map(lambda a, x: a.astype(x.dtype), state, message)


def _sum_settle(state: State, tally: Any, cotangent: Any) -> Any:
    return cotangent


def _sum_pull(cotangent: Any, message: Message) -> Any:
    return cotangent


SUM = Reduction(
    _sum_start,
    _sum_step,
    _sum_finish,
    join=partial(jax.tree.map, jax.lax.add),
    scatter=_sum_scatter,
    gradient=Gradient(_sum_settle, _sum_pull),
    columnwise=True,
)
"""`sum_u m_u`."""


def _max_start(message: Message, num_dst: int) -> State:
    return jax.tree.map(lambda x: jnp.full((num_dst, *x.shape[1:]), lowest(x.dtype), x.dtype), message)


def _max_step(state: State, message: Message, mask: Mask | None) -> State:
    return jax.tree.map(lambda top, x: jnp.maximum(top, where(mask, x, lowest(x.dtype))), state, message)


def _max_scatter(state: State, message: Message, dst: Array) -> State:
    def rise(top: Array, x: Array) -> Array:
        if top.shape[0] == 1:
            least = lowest(x.dtype)
            return jnp.maximum(top, where(dst == 0, x, least).max(0, keepdims=True, initial=least))
        return top.at[dst].max(x, mode="drop")

    return jax.tree.map(rise, state, message)


def _share(top: State, ties: Any, cotangent: PyTree) -> PyTree:
    return top, jax.tree.map(lambda ct, n: ct.astype(n.dtype) / jnp.maximum(n, 1), cotangent, ties)


def _max_finish(state: State, degree: Any, message: Message) -> Message:
    return where(degree > 0, state, 0)


def _max_pull(settled: Any, message: Message) -> Any:
    return jax.tree.map(lambda top, share, x: jnp.where(x == top, share, 0), *settled, message)


def _max_tally(state: State, message: Message) -> Any:
    return jax.tree.map(lambda top, x: (x == top).astype(accumulator_dtype(x)), state, message)


MAX = Reduction(
    _max_start,
    _max_step,
    _max_finish,
    join=partial(jax.tree.map, jax.lax.max),
    scatter=_max_scatter,
    gradient=Gradient(_share, _max_pull, tally=_max_tally, largest=True),
    columnwise=True,
)
"""`max_u m_u`, elementwise; ties share the gradient equally."""


class Softmax(NamedTuple):
    """What a softmax keeps: the largest logit, the sum of `exp(logit - top)`, and the values times those."""

    top: Array
    scale: Array
    total: Array


def _softmax_start(message: Message, num_dst: int) -> Softmax:
    logit, value = message
    floats = is_floating(logit.dtype) and is_floating(value.dtype)
    if not floats or value.shape[: logit.ndim] != logit.shape:
        raise ValueError(
            "SOFTMAX_SUM reads messages (logit, value) of floats, logit [rows] and value [rows, d] or logit "
            f"[rows, heads] and value [rows, heads, d]; got {logit.dtype}{list(logit.shape)} and "
            f"{value.dtype}{list(value.shape)}"
        )
    dtype = accumulator_dtype(logit)
    empty = jnp.zeros((num_dst, *logit.shape[1:]), dtype)
    return Softmax(
        empty + jnp.finfo(dtype).min, empty, jnp.zeros((num_dst, *value.shape[1:]), accumulator_dtype(value))
    )


def _softmax_join(a: Softmax, b: Softmax) -> Softmax:
    top = jnp.maximum(a.top, b.top)
    one, other = jnp.exp(a.top - top), jnp.exp(b.top - top)
    total = a.total * column(one, a.total) + b.total * column(other, b.total)
    return Softmax(top, a.scale * one + b.scale * other, total)


def _softmax_step(state: Softmax, message: Message, mask: Mask | None) -> Softmax:
    logit, value = message[0].astype(state.top.dtype), message[1].astype(state.total.dtype)
    return where(mask, _softmax_join(state, Softmax(logit, jnp.ones_like(logit), value)), state)


def _softmax_scatter(state: Softmax, message: Message, dst: Array) -> Softmax:
    logit, value = message[0].astype(state.top.dtype), message[1].astype(state.total.dtype)
    mask = dst < state.top.shape[0]
    top = _max_scatter(state.top, logit, dst)
    old = jnp.exp(state.top - top)
    part = where(mask, jnp.exp(logit - top.at[dst].get(mode="clip")), 0)
    more = where(mask, value * column(part, value), 0)
    scale, total = state.scale * old, state.total * column(old, state.total)
    return Softmax(top, *_sum_scatter((scale, total), (part, more), dst))


def _softmax_finish(state: Softmax, degree: Degree, message: Message) -> Array:
    scale = column(jnp.where(state.scale > 0, state.scale, 1), state.total)
    return (state.total / scale).astype(message[1].dtype)


def _softmax_settle(state: Softmax, tally: Any, cotangent: Array) -> tuple[Array, ...]:
    scale = jnp.where(state.scale > 0, state.scale, 1)
    out = state.total / column(scale, state.total)
    return state.top, 1 / scale, out, cotangent.astype(out.dtype)


def _softmax_pull(settled: tuple[Array, ...], message: Message) -> Message:
    (top, inverse, out, cotangent), (logit, value) = settled, message
    part = jnp.exp(logit.astype(top.dtype) - top) * inverse
    gain = cotangent * (value.astype(out.dtype) - out)
    gain = gain.sum(tuple(range(logit.ndim, value.ndim)))
    return part * gain, column(part, out) * cotangent


SOFTMAX_SUM = Reduction(
    _softmax_start,
    _softmax_step,
    _softmax_finish,
    join=_softmax_join,
    scatter=_softmax_scatter,
    gradient=Gradient(_softmax_settle, _softmax_pull),
)
"""`sum_u softmax_u(logit_u) value_u` of messages `(logit [rows, ...heads], value [rows, ...heads, ...])`."""
