"""Edges as sliced ELLPACK: rows sorted by degree, in chunks as wide as their widest row; and folds over them.

Hardly a slot is padding (Kreutzer et al., 2014, "SELL-C-sigma"). A chunk is reduced slot by slot, several
slots a pass where all its rows have them, and its results stay in the cache: no scatter, and nothing of size
`[num_edges, d]`. A node of very many neighbors is cut into pieces, whose results are reduced that way too.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, Optional, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PyTree

from jsage._internal.arrays import start_of, take
from jsage.blocks.reductions import Reduction, where

ROWS = 512
"""Rows of a chunk: at 128 floats each, their sums fit the cache of a core."""
LIMIT = 256
"""Slots of a row: a node of more neighbors is cut into pieces."""
JOIN_ROWS = 64
"""Rows of a chunk of nodes in pieces, which are few and of very unlike degrees."""
UNROLL = (8, 4, 2, 1)
"""Slots that one pass over a chunk's sums adds, while so many are left."""
ONE = (1,)
"""For messages that would be slow to compile several times over."""


class Line(NamedTuple):
    """One slot of a chunk's rows."""

    src: Int[Array, " rows"]
    weight: Float[Array, "rows 1"] | None
    edge: Int[Array, " rows"] | None
    mask: Bool[Array, " rows"] | None
    """Which rows have the slot; None: all."""


Message: TypeAlias = Callable[[Line], PyTree]
"""What one slot brings, `[rows, ...]`."""
Carried: TypeAlias = Callable[[Line, PyTree], tuple[PyTree, PyTree]]
"""`(line, carry) -> (message, carry)`."""


class RowChunks(NamedTuple):
    """Rows of at most `limit` slots in chunks, in ascending order of their widths; on the host.

    Row `r` reads entries `start[r] .. start[r] + degree[r] - 1` of `indices`, for node `node[r]`. Rows that
    only fill the last chunk have degree 0 and the last row's node.
    """

    node: np.ndarray
    start: np.ndarray
    degree: np.ndarray
    """All `[chunks, rows]`."""
    place: np.ndarray
    """The row of each node, counted through the chunks; of a node in pieces, its first piece's."""
    cut: tuple[np.ndarray, np.ndarray, np.ndarray]
    """Nodes in pieces, and the rows of their pieces as `indptr, indices`."""

    @property
    def width(self) -> np.ndarray:
        """Slots of each chunk: those of its widest row."""
        return self.degree.max(1)


class Sliced(NamedTuple):
    """All edges of a graph in chunks of rows of like degree."""

    src: Int[Array, "slots rows"]
    """Line `first[c] + i` holds slot `i` of all rows of chunk `c`; a padded slot holds the row's own node."""
    weight: Float[Array, "slots rows"] | None
    node: Int[Array, "chunks rows"]
    degree: Int[Array, "chunks rows"]
    """Valid slots of each row."""
    first: Int[Array, " chunks+1"]
    place: Int[Array, " num_nodes"]
    """The row of each node, counted through the chunks."""
    cut: Int[Array, " num_cut"] | None
    """Nodes in pieces."""
    join: Optional["Sliced"]
    """For each of them, the rows of its pieces."""
    edge: Int[Array, "slots rows"] | None = None
    """The number of each slot's edge, where it was asked for."""


def row_chunks(indptr: np.ndarray, rows: int = ROWS, limit: int = LIMIT) -> RowChunks:
    """The nodes of a graph as rows of at most `limit` slots, sorted by degree, in chunks of `rows`.

    >>> found = row_chunks(np.array([0, 5, 5, 7, 8]), rows=2, limit=4)
    >>> found.node.tolist(), found.degree.tolist(), found.width.tolist()
    ([[1, 0], [3, 2], [0, 0]], [[0, 1], [1, 2], [4, 0]], [1, 2, 4])
    >>> found.place.tolist(), [part.tolist() for part in found.cut]
    ([4, 0, 3, 2], [[0], [0, 2], [4, 1]])
    """
    indptr = np.asarray(indptr, np.int64)
    degree = np.diff(indptr)
    count = np.maximum(-(-degree // limit), 1)
    end = np.cumsum(count)
    node = np.repeat(np.arange(degree.size), count)
    skip = (np.arange(node.size) - (end - count)[node]) * limit
    size = np.minimum(degree[node] - skip, limit)
    order = np.argsort(size.astype(np.uint16 if limit < 2**16 else size.dtype), kind="stable")
    row = np.empty(node.size, np.int32)
    row[order] = np.arange(node.size, dtype=np.int32)
    shape = -(-node.size // rows), rows
    filler = order[-1:].repeat(shape[0] * rows - node.size)
    order = np.concatenate([order, filler])
    size = np.where(np.arange(order.size) < node.size, size[order], 0)
    cut = np.flatnonzero(count > 1).astype(np.int32)
    return RowChunks(
        node[order].astype(np.int32).reshape(shape),
        (indptr[node] + skip)[order].reshape(shape),
        size.astype(np.int32).reshape(shape),
        row[end - count],
        (cut, np.concatenate([[0], np.cumsum(count[cut])]), row[(count > 1)[node]]),
    )


def sliced(
    indptr: np.ndarray,
    indices: np.ndarray,
    weight: np.ndarray | None = None,
    edge: np.ndarray | None = None,
    *,
    rows: int = ROWS,
    limit: int = LIMIT,
) -> Sliced:
    """Edges as chunks of rows, where node `v` reads `indices[indptr[v]:indptr[v + 1]]`; on the host, once.

    `weight` and `edge`, a number for each edge, are laid out in the same way.

    >>> edges = sliced(np.array([0, 2, 2, 3]), np.array([1, 2, 0]))
    >>> edges.node.tolist(), edges.src.tolist()
    ([[1, 2, 0]], [[1, 0, 1], [1, 2, 2]])
    """
    found = row_chunks(indptr, max(1, min(rows, len(indptr) - 1)), limit)
    first = np.concatenate([[0], np.cumsum(found.width)]).astype(np.int32)
    shape = max(first[-1], 1), found.node.shape[1]  # never without a line: loops over none are traced too
    src = np.zeros(shape, np.int32)
    scale = None if weight is None else np.zeros(shape, weight.dtype)
    number = None if edge is None else np.zeros(shape, np.int32)
    for c, width in enumerate(found.width):
        slot, lines = np.arange(width)[:, None], slice(first[c], first[c + 1])
        valid = slot < found.degree[c]
        at = np.where(valid, found.start[c] + slot, 0)
        src[lines] = np.where(valid, indices[at], found.node[c])
        for values, out in ((weight, scale), (edge, number)):
            if values is not None and out is not None:
                out[lines] = np.where(valid, values[at], 0)
    cut, starts, parts = found.cut
    return Sliced(
        jnp.asarray(src),
        None if scale is None else jnp.asarray(scale),
        jnp.asarray(found.node),
        jnp.asarray(found.degree),
        jnp.asarray(first),
        jnp.asarray(found.place),
        jnp.asarray(cut) if cut.size else None,
        sliced(starts, parts, rows=min(rows, JOIN_ROWS), limit=limit) if cut.size else None,
        None if number is None else jnp.asarray(number),
    )


def fold(edges: Sliced, read: Callable[[Array], Message], reduction: Reduction) -> PyTree:
    """Each node's final state; `read(nodes)` is the function from one slot of these nodes to messages.

    >>> from jsage.blocks.reductions import SUM
    >>> table = jnp.array([[1.0], [10.0], [100.0]])
    >>> edges = sliced(np.array([0, 2, 2, 3]), np.array([1, 2, 0]))
    >>> fold(edges, lambda nodes: lambda line: take(table, line.src), SUM).ravel()
    Array([110.,   0.,   1.], dtype=float32)
    """

    def carried(nodes: Array) -> Carried:
        message = read(nodes)
        return lambda line, carry: (message(line), carry)

    return fold_with(edges, carried, reduction, (), UNROLL)[0]


def fold_with(
    edges: Sliced,
    read: Callable[[Array], Carried],
    reduction: Reduction,
    carry: PyTree,
    turns: tuple[int, ...] = ONE,
) -> tuple[PyTree, PyTree]:
    """`fold` with something that goes from slot to slot through all chunks; `turns` are those of `unrolled`.

    >>> from jsage.blocks.reductions import SUM
    >>> edges = sliced(np.array([0, 2, 2, 3]), np.array([1, 2, 0]))
    >>> count = lambda nodes: lambda line, slots: (jnp.ones((3, 1)), slots + 1)
    >>> state, slots = fold_with(edges, count, SUM, jnp.array(0))
    >>> state.ravel(), int(slots)
    (Array([2., 0., 1.], dtype=float32), 2)
    """
    first = Line(edges.src[0], _line(edges.weight, 0), None if edges.edge is None else edges.edge[0], None)
    like, _ = jax.eval_shape(lambda carry: read(edges.node[0])(first, carry), carry)

    def chunk(carry: PyTree, part: tuple[Array, Array, Array, Array]) -> tuple[PyTree, PyTree]:
        nodes, degree, first, last = part
        message = read(nodes)

        def slot(i: Array, both: tuple[PyTree, PyTree], mask: Array | None = None) -> tuple[PyTree, PyTree]:
            total, carry = both
            edge = None if edges.edge is None else edges.edge[i]
            sent, carry = message(Line(edges.src[i], _line(edges.weight, i), edge, mask), carry)
            return reduction.step(total, sent, mask), carry

        full = first + degree.min()
        start = start_of((reduction.start(like, nodes.shape[0]), carry), like, nodes)
        both = unrolled(first, full, slot, start, turns)
        total, carry = jax.lax.fori_loop(full, last, lambda i, both: slot(i, both, i - first < degree), both)
        return carry, total

    carry = start_of(carry, like, edges)
    carry, done = jax.lax.scan(chunk, carry, (edges.node, edges.degree, edges.first[:-1], edges.first[1:]))
    done = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), done)
    return _joined(edges, done, like, reduction), carry


def _joined(edges: Sliced, done: PyTree, like: PyTree, reduction: Reduction) -> PyTree:
    """The states of nodes from those of their pieces."""
    out = jax.tree.map(lambda x: take(x, edges.place), done)
    join: Any = reduction.join
    if edges.cut is None or edges.join is None:
        return out
    joined = reduction._replace(
        start=lambda state, num_dst: reduction.start(like, num_dst),
        step=lambda state, other, mask: where(mask, join(state, other), state),
    )
    whole = fold(
        edges.join, lambda nodes: lambda line: jax.tree.map(lambda x: take(x, line.src), done), joined
    )
    return jax.tree.map(
        lambda x, y: x.at[edges.cut].set(y, unique_indices=True, indices_are_sorted=True), out, whole
    )


def unrolled(
    first: Array,
    last: Array,
    step: Callable[[Array, Any], Any],
    state: Any,
    turns: tuple[int, ...] = UNROLL,
) -> Any:
    """`fori_loop`, several steps a turn while they last, which XLA fuses into one pass over the state.

    >>> int(unrolled(jnp.array(3), jnp.array(20), lambda i, total: total + i, jnp.array(0)))
    187
    """
    for size in turns:

        def turn(j: Array, state: Any, size: int = size, first: Array = first) -> Any:
            return jax.lax.fori_loop(
                0, size, lambda i, state: step(first + j * size + i, state), state, unroll=True
            )

        count = (last - first) // size
        state = jax.lax.fori_loop(0, count, turn, state)
        first = first + count * size
    return state


def _line(weight: Array | None, i: Array | int) -> Array | None:
    return None if weight is None else weight[i][:, None]
