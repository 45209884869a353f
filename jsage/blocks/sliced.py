"""Edges as sliced ELLPACK: rows sorted by degree, in chunks as wide as their widest row; and folds over them.

Hardly a slot is padding (Kreutzer et al., 2014, "SELL-C-sigma"). A chunk is reduced slot by slot, several
slots a pass where all its rows have them, and its results stay in the cache: no scatter, and nothing of size
`[num_edges, d]`. A node of very many neighbours is cut into pieces, whose results are reduced that way too.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, Optional, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jsage._internal.arrays import take

Message: TypeAlias = Callable[[Array, Array | None], Array]
"""`(src[rows], weight[rows]) -> [rows, d]`: what one slot of a chunk's rows brings."""
Reduction: TypeAlias = tuple[Callable[[Array, Array], Array], float | int]
"""How messages are joined, and what no message is: `SUM`, `MAX`."""

ROWS = 512
"""Rows of a chunk: at 128 floats each, their sums fit the cache of a core."""
LIMIT = 256
"""Slots of a row: a node of more neighbours is cut into pieces."""
JOIN_ROWS = 64
"""Rows of a chunk of nodes in pieces, which are few and of very unlike degrees."""
UNROLL = (8, 4, 2, 1)
"""Slots that one pass over a chunk's sums adds, while so many are left."""

SUM: Reduction = (jnp.add, 0)
MAX: Reduction = (jnp.maximum, -jnp.inf)


class Pieces(NamedTuple):
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
    """Live slots of each row."""
    first: Int[Array, " chunks+1"]
    place: Int[Array, " num_nodes"]
    """The row of each node, counted through the chunks."""
    cut: Int[Array, " num_cut"] | None
    """Nodes in pieces."""
    join: Optional["Sliced"]
    """For each of them, the rows of its pieces."""


def pieces(indptr: np.ndarray, rows: int = ROWS, limit: int = LIMIT) -> Pieces:
    """The nodes of a graph as rows of at most `limit` slots, sorted by degree, in chunks of `rows`.

    >>> found = pieces(np.array([0, 5, 5, 7, 8]), rows=2, limit=4)
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
    return Pieces(
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
    *,
    rows: int = ROWS,
    limit: int = LIMIT,
) -> Sliced:
    """Edges as chunks of rows, where node `v` reads `indices[indptr[v]:indptr[v + 1]]`; on the host, once.

    >>> edges = sliced(np.array([0, 2, 2, 3]), np.array([1, 2, 0]))
    >>> edges.node.tolist(), edges.src.tolist()
    ([[1, 2, 0]], [[1, 0, 1], [1, 2, 2]])
    """
    found = pieces(indptr, max(1, min(rows, len(indptr) - 1)), limit)
    first = np.concatenate([[0], np.cumsum(found.width)]).astype(np.int32)
    shape = max(first[-1], 1), found.node.shape[1]  # never without a line: loops over none are traced too
    src = np.zeros(shape, np.int32)
    scale = np.zeros(shape if weight is not None else 0, None if weight is None else weight.dtype)
    for c, width in enumerate(found.width):
        slot, lines = np.arange(width)[:, None], slice(first[c], first[c + 1])
        live = slot < found.degree[c]
        edge = np.where(live, found.start[c] + slot, 0)
        src[lines] = np.where(live, indices[edge], found.node[c])
        if weight is not None:
            scale[lines] = np.where(live, weight[edge], 0)
    cut, starts, parts = found.cut
    return Sliced(
        jnp.asarray(src),
        None if weight is None else jnp.asarray(scale),
        jnp.asarray(found.node),
        jnp.asarray(found.degree),
        jnp.asarray(first),
        jnp.asarray(found.place),
        jnp.asarray(cut) if cut.size else None,
        sliced(starts, parts, rows=min(rows, JOIN_ROWS), limit=limit) if cut.size else None,
    )


def fold(edges: Sliced, read: Callable[[Array], Message], reduction: Reduction) -> Array:
    """Each node's messages, reduced; `read(nodes)` is the function from one slot of these nodes to theirs.

    >>> table = jnp.array([[1.0], [10.0], [100.0]])
    >>> edges = sliced(np.array([0, 2, 2, 3]), np.array([1, 2, 0]))
    >>> fold(edges, lambda nodes: lambda src, weight: take(table, src), SUM).ravel()
    Array([110.,   0.,   1.], dtype=float32)
    """
    join, nothing = reduction
    like = jax.eval_shape(lambda: read(edges.node[0])(edges.src[0], _line(edges.weight, 0)))

    def chunk(part: tuple[Array, Array, Array, Array]) -> Array:
        nodes, degree, first, last = part
        message = read(nodes)

        def slot(i: Array, total: Array) -> Array:
            return join(total, message(edges.src[i], _line(edges.weight, i)))

        def padded(i: Array, total: Array) -> Array:
            return jnp.where((i - first < degree)[:, None], slot(i, total), total)

        total = jnp.full(like.shape, nothing, like.dtype)
        full = first + degree.min()
        return jax.lax.fori_loop(full, last, padded, unrolled(first, full, slot, total))

    done = jax.lax.map(chunk, (edges.node, edges.degree, edges.first[:-1], edges.first[1:]))
    done = done.reshape(-1, done.shape[-1])
    out = take(done, edges.place)
    if edges.cut is None or edges.join is None:
        return out
    whole = fold(edges.join, lambda nodes: lambda src, weight: take(done, src), reduction)
    return out.at[edges.cut].set(whole, unique_indices=True, indices_are_sorted=True)


def unrolled(first: Array, last: Array, step: Callable[[Array, Any], Any], state: Any) -> Any:
    """`fori_loop`, several steps a turn while they last, which XLA fuses into one pass over the state.

    >>> int(unrolled(jnp.array(3), jnp.array(20), lambda i, total: total + i, jnp.array(0)))
    187
    """
    for size in UNROLL:

        def turn(j: Array, state: Any, size: int = size, first: Array = first) -> Any:
            return jax.lax.fori_loop(
                0, size, lambda i, state: step(first + j * size + i, state), state, unroll=True
            )

        turns = (last - first) // size
        state = jax.lax.fori_loop(0, turns, turn, state)
        first = first + turns * size
    return state


def _line(weight: Array | None, i: Array | int) -> Array | None:
    return None if weight is None else weight[i][:, None]
