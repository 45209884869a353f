"""Few destinations at a time: what needs a copy of every neighbor's row never holds all of them at once."""

from collections.abc import Callable
from functools import partial
from typing import Any, Protocol, TypeAlias, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, PyTree

from jsage._internal.arrays import aligned, start_of
from jsage._internal.checks import is_floating
from jsage.blocks.own_rows import OwnRows
from jsage.blocks.reductions import (
    Reduction,
    apart,
    checked,
    filled,
    finished,
    weighted_source,
    where,
)
from jsage.blocks.slotwise import Slots, add_rows, blank, hoist, like, slot_major, some_rows
from jsage.typing import EdgeData, MessageFn

LIMIT = 2**20
"""How many numbers of neighbors' rows are held at once: 4 MB in float32."""


@runtime_checkable
class Sampled(Protocol):
    """A block with a table of slots."""

    @property
    def mask(self) -> Bool[Array, "num_dst fanout"]:
        """The slots that are not padding."""
        ...

    @property
    def edge_data(self) -> EdgeData:
        """Named arrays, one row a slot."""
        ...

    def slot_rows(self, h: PyTree) -> PyTree:
        """Every slot's rows, `[num_dst, fanout, ...]`."""
        ...

    def cut(self, h: PyTree, at: Any, size: int) -> tuple[PyTree, Any]:
        """The rows that `size` destinations from `at` on read, and the tree over them."""
        ...

    def add_cut(self, d_h: PyTree, at: Any, d_rows: PyTree) -> PyTree:
        """Add cotangents of the rows of `cut` to those of `h`."""
        ...


ChunkFn: TypeAlias = Callable[[PyTree, PyTree, Any], PyTree]
"""`(dst, h, block) -> rows`; it may close over arrays, and destinations do not see one another."""


def by_chunk(fn: ChunkFn, dst: PyTree, h: PyTree, block: Any) -> PyTree:
    """`fn(dst, h, block)`, a chunk of destinations at a time where the block reads more than `LIMIT`.

    `block` is a `Sampled`, or one in `OwnRows`, which is not cut; `dst` holds a row a destination. Each chunk
    is a `Tree` over the rows that it reads, copied where the block is indexed; its gradient computes it
    again, so what `fn` makes of the rows takes the same memory for any number of destinations.

    >>> from jsage.blocks import Indexed
    >>> block = Indexed(jnp.array([0]), jnp.array([[1, 2]]), jnp.array([[True, True]]))
    >>> by_chunk(lambda dst, h, block: 2 * block.sum(h), None, jnp.array([[1.0], [2.0], [4.0]]), block)
    Array([[12.]], dtype=float32)
    """
    if isinstance(block, OwnRows):  # its rows are of another table: all destinations at once
        return fn(dst, h, block)
    num_dst, fanout = block.mask.shape
    numbers = num_dst * (1 + fanout) * sum(x.size // x.shape[0] for x in jax.tree.leaves(h))
    if not isinstance(numbers, int) or numbers <= LIMIT:  # a size may be a symbol (jax.export)
        return fn(dst, h, block)
    chunks = min(-(-numbers // LIMIT), num_dst)
    size = -(-num_dst // chunks)
    rows, part = jax.eval_shape(lambda h, block: block.cut(h, 0, size), h, block)
    run, consts = hoist(fn, some_rows(dst, size), rows, part)
    return _by_chunk(run, size, *aligned(consts, dst, h, block))


def reduce_in_order(
    message: MessageFn, reduction: Reduction, rows: tuple[PyTree, PyTree, PyTree], block: Sampled
) -> PyTree:
    """A reduction whose order counts, slot after slot; `rows` are `(dst, src, own)` of `Block.reduce`.

    >>> import jax.numpy as jnp
    >>> from jsage.blocks import Tree
    >>> from jsage.blocks.reductions import weighted_source
    >>> last = Reduction(
    ...     start=lambda message, num_dst: jnp.zeros((num_dst, message.shape[1])),
    ...     step=lambda state, message, mask: where(mask, message, state),
    ...     finish=lambda state, degree, message: state,
    ... )
    >>> block = Tree(jnp.array([[True, True, False]]))
    >>> reduce_in_order(weighted_source, last, (None, jnp.arange(4.0)[:, None], None), block)
    Array([[2.]], dtype=float32)
    """

    def read(dst: PyTree, h: PyTree, block: Any) -> PyTree:
        dst, own = dst
        given, data = where(block.mask, (block.slot_rows(h), dict(block.edge_data)), 0)
        slots = slot_major(block.mask, data, None)
        given = jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1), given)

        def brings(slot: tuple[Slots, PyTree]) -> PyTree:
            rows, mask = (dst, slot[1], slot[0].edge_data), slot[0].mask
            if message is weighted_source:
                return message(*rows)
            return apart(message, mask.any())(*filled(mask, rows))

        def step(state: Any, slot: tuple[Slots, PyTree]) -> Any:
            return reduction.step(state, brings(slot), slot[0].mask), None

        first = jax.eval_shape(lambda: brings(jax.tree.map(lambda x: x[0], (slots, given))))
        start = reduction.start(checked(first, block.mask.shape[0]), block.mask.shape[0])
        state, _ = jax.lax.scan(step, start_of(start, slots, given, dst), (slots, given))
        return finished(reduction, state, block.mask.sum(1, dtype=jnp.int32), first, own)

    dst, src, own = rows
    return by_chunk(read, (dst, own), src, block)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _by_chunk(run, size, consts, dst, h, block):
    def part(at):
        return run(consts, cut_rows(dst, at, size), *block.cut(h, at, size))

    def step(i, done):
        at = _start(i, size, block)
        put = lambda x, y: jax.lax.dynamic_update_slice_in_dim(x, y, at, 0)  # noqa: E731
        return jax.tree.map(put, done, part(at))

    shapes = jax.eval_shape(part, 0)
    start = jax.tree.map(lambda x: jnp.zeros((block.mask.shape[0], *x.shape[1:]), x.dtype), shapes)
    return jax.lax.fori_loop(0, _chunks(size, block), step, start_of(start, consts, dst, h, block))


def _forward(run, size, consts, dst, h, block):
    return _by_chunk(run, size, consts, dst, h, block), (consts, dst, h, block)


def _backward(run, size, saved, cotangent):
    consts, dst, h, block = saved

    def step(i, grads):
        d_consts, d_dst, d_h, d_data = grads
        at = _start(i, size, block)
        rows, tree = block.cut(h, at, size)

        def again(consts, dst, rows, data):
            return run(consts, dst, rows, tree._replace(edge_data=data))

        new = at + jnp.arange(size) >= i * size  # the last chunk begins early and meets some once more
        d_out = where(new, cut_rows(cotangent, at, size), 0)
        d = jax.vjp(again, consts, cut_rows(dst, at, size), rows, dict(tree.edge_data))[1](d_out)
        more, to_dst, d_rows, to_data = d
        put = partial(jax.tree.map, lambda total, x: add_at(total, at, x))
        d_h = block.add_cut(d_h, at, d_rows)
        return add_rows(d_consts, more), put(d_dst, to_dst), d_h, put(d_data, to_data)

    given = consts, dst, h, dict(block.edge_data)
    start = start_of(blank(given), given, cotangent, block)
    grads = jax.lax.fori_loop(0, _chunks(size, block), step, start)
    *grads, d_data = like(grads, given)
    return *grads, jax.tree.map(lambda _: None, block)._replace(edge_data=d_data)


_by_chunk.defvjp(_forward, _backward)


def cut_rows(tree: PyTree, at: Any, size: int) -> PyTree:
    """`size` rows of each array, from row `at` on.

    >>> cut_rows(jnp.arange(5), 1, 2)
    Array([1, 2], dtype=int32)
    """
    return jax.tree.map(lambda x: jax.lax.dynamic_slice_in_dim(x, at, size), tree)


def add_at(total: Array, at: Any, rows: Any) -> Array:
    """Add rows to those from `at` on; rows without a gradient are left out.

    >>> add_at(jnp.zeros(3), 1, jnp.ones(2))
    Array([0., 1., 1.], dtype=float32)
    """
    if not is_floating(rows.dtype):
        return total
    new = cut_rows(total, at, rows.shape[0]) + rows.astype(total.dtype)
    return jax.lax.dynamic_update_slice_in_dim(total, new, at, 0)


def _chunks(size: int, block: Sampled) -> int:
    return -(-block.mask.shape[0] // size)


def _start(i: Array, size: int, block: Sampled) -> Array:
    return jnp.minimum(i * size, block.mask.shape[0] - size)
