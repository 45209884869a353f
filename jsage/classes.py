"""The whole graph in classes of nodes of like degree: exact aggregation without a scatter.

Nodes are sorted by in-degree into classes whose widths grow by a quarter, so that at most that share of the
slots is padding. A class is walked slot by slot, some hundred rows at a time, whose sums stay in the cache;
nothing of size `[num_edges, d]` exists. The gradient is the same walk over the reversed graph.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jsage.gather import take, wide
from jsage.graph import Graph, reverse
from jsage.typing import EdgeData

Rows: TypeAlias = Float[Array, "num_nodes d"]

CHUNK = 512
"""Rows of a class that are reduced at once."""
GROWTH = 1.25
"""Ratio of the widths of neighbouring classes."""


class Part(NamedTuple):
    """One class in chunks of rows; a row is a node, its slots the sources of its edges."""

    nodes: Int[Array, "chunks rows"]
    src: Int[Array, "chunks width rows"]
    degree: Int[Array, "chunks rows"]
    """Live slots of each row; 0 in rows that only fill the last chunk."""
    weight: Float[Array, "chunks width rows"] | None


class Walk(NamedTuple):
    """All destinations of a graph, class by class."""

    parts: tuple[Part, ...]
    place: Int[Array, " num_nodes"]
    """Each node's row among the rows of all parts; one past the last for a node without edges."""


class Classes(NamedTuple):
    """A block that holds every edge of a graph: all nodes read their whole neighbourhoods.

    For full-batch training and exact inference. It holds no `[num_nodes, max degree]` table, so `slots`,
    which the LSTM reads, is not to be had.

    >>> import jax.numpy as jnp
    >>> from jsage.graph import from_edges
    >>> block = degree_classes(from_edges(src=[1, 2, 0], dst=[0, 0, 1], num_nodes=3))
    >>> block.sum(jnp.eye(3))
    Array([[0., 1., 1.],
           [1., 0., 0.],
           [0., 0., 0.]], dtype=float32)
    """

    degree: Int[Array, " num_nodes"]
    forward: Walk
    backward: Walk
    """The same over the reversed graph, for the gradient."""
    edge_data: EdgeData = {}
    """Empty: weights are kept in the parts."""

    @property
    def num_dst(self) -> int:
        """The number of nodes."""
        return self.degree.shape[0]

    def own(self, h: Rows) -> Rows:
        """`h` itself."""
        return h

    def sum(self, h: Rows) -> Rows:
        """The sum over each node's neighbours, in float32 at least."""
        return _sum(h, self.forward, self.backward)

    def max(self, h: Rows) -> Rows:
        """The maximum over each node's neighbours, 0 where there are none."""
        return _max(h, self.forward, self.backward)

    def degrees(self) -> Int[Array, " num_nodes"]:
        """The number of edges into each node."""
        return self.degree

    def slots(self, h: Rows) -> tuple[Array, Array]:
        """Not to be had: raises TypeError."""
        raise TypeError(
            "slots need a [num_nodes, max degree] table, which degree classes are there to avoid: "
            "use full_block(graph, slots=True)"
        )

    def sources(self, h: Rows) -> tuple[Rows, "Classes"]:
        """`h` itself: every row is read."""
        return h, self

    def read(self, live: Bool[Array, " num_nodes"], num_src: int) -> Bool[Array, " num_src"]:
        """Every row."""
        return jnp.ones(num_src, bool)


def degree_classes(graph: Graph) -> Classes:
    """A graph as one block in degree classes, on the host, once; an `edge_data["weight"]` goes with it.

    Weights are data here: they get no gradient (`full_block` gives one).

    For a model of `L` layers pass `(degree_classes(graph),) * L`.

    >>> import jax.numpy as jnp
    >>> from jsage.graph import from_edges
    >>> graph = from_edges(src=[1, 2, 0], dst=[0, 0, 1], num_nodes=3, weight=[1.0, 0.5, 2.0])
    >>> degree_classes(graph).sum(jnp.eye(3))
    Array([[0. , 1. , 0.5],
           [2. , 0. , 0. ],
           [0. , 0. , 0. ]], dtype=float32)
    """
    degree = jnp.asarray(np.diff(np.asarray(graph.indptr)))
    return Classes(degree, _walk(graph), _walk(reverse(graph)))


def _walk(graph: Graph) -> Walk:
    indptr, indices = np.asarray(graph.indptr), np.asarray(graph.indices)
    weight = graph.edge_data.get("weight")
    degree, widths = np.diff(indptr), [1]
    while widths[-1] < degree.max(initial=0):
        widths.append(max(widths[-1] + 1, int(widths[-1] * GROWTH)))
    found, parts, place, total = np.searchsorted(widths, degree), [], np.zeros(degree.size, np.int32), 0
    for c, width in enumerate(widths):
        nodes = np.flatnonzero((found == c) & (degree > 0))
        if nodes.size:
            place[nodes] = total + np.arange(nodes.size)
            parts.append(_part(nodes, width, indptr, indices, None if weight is None else np.asarray(weight)))
            total += parts[-1].nodes.size
    place[degree == 0] = total
    return Walk(tuple(parts), jnp.asarray(place))


def _part(nodes: np.ndarray, width: int, indptr: np.ndarray, indices: np.ndarray, weight: Any) -> Part:
    rows = min(CHUNK, nodes.size)
    chunks = -(-nodes.size // rows)
    padding = chunks * rows - nodes.size
    degree = np.pad(np.diff(indptr)[nodes], (0, padding)).astype(np.int32)
    nodes = np.pad(nodes, (0, padding), mode="edge").astype(np.int32)
    slot = np.arange(width, dtype=np.int32)
    edge = np.where(slot < degree[:, None], indptr[nodes][:, None] + slot, indptr[nodes][:, None])

    def cut(values: np.ndarray) -> Array:  # slot-major within a chunk
        return jnp.asarray(values[edge].reshape(chunks, rows, width).swapaxes(1, 2))

    shape = chunks, rows
    return Part(
        jnp.asarray(nodes.reshape(shape)),
        cut(indices),
        jnp.asarray(degree.reshape(shape)),
        None if weight is None else cut(weight),
    )


def _fold(walk: Walk, start: Callable[[Array], Any], step: Callable[..., Any]) -> Any:
    """Every destination's fold over its slots, in the order of the nodes; `start` of no rows' nodes is 0."""

    def chunk(part: Part) -> Any:
        def slot(i: Array, state: Any) -> Any:
            live = (i < part.degree)[:, None]
            return step(state, part.src[i], live, None if part.weight is None else part.weight[i][:, None])

        return jax.lax.fori_loop(0, part.src.shape[0], slot, start(part.nodes))

    done = [jax.lax.map(chunk, part) for part in walk.parts]
    empty = jax.tree.map(
        lambda x: jnp.zeros((1, *x.shape[1:]), x.dtype), jax.eval_shape(start, walk.place[:1])
    )
    flat = [jax.tree.map(lambda x: x.reshape(-1, x.shape[-1]), state) for state in done]
    return jax.tree.map(lambda *x: take(jnp.concatenate(x), walk.place), *flat, empty)


def _scaled(rows: Array, weight: Array | None) -> Array:
    return rows if weight is None else rows * weight.astype(rows.dtype)


@jax.custom_vjp
def _sum(h: Rows, forward: Walk, backward: Walk) -> Rows:
    def add(total: Array, src: Array, live: Array, weight: Array | None) -> Array:
        return total + jnp.where(live, _scaled(take(h, src), weight), 0).astype(total.dtype)

    return _fold(forward, lambda nodes: jnp.zeros((nodes.size, h.shape[1]), wide(h)), add).astype(h.dtype)


def _sum_forward(h: Rows, forward: Walk, backward: Walk):
    return _sum(h, forward, backward), (h, forward, backward)


def _sum_backward(saved: tuple[Rows, Walk, Walk], cotangent: Rows):
    _, forward, backward = saved
    return _sum(cotangent, backward, forward), None, None


_sum.defvjp(_sum_forward, _sum_backward)


@jax.custom_vjp
def _max(h: Rows, forward: Walk, backward: Walk) -> Rows:
    def rise(top: Array, src: Array, live: Array, weight: Array | None) -> Array:
        return jnp.maximum(top, jnp.where(live, _scaled(take(h, src), weight), -jnp.inf))

    top = _fold(forward, lambda nodes: jnp.full((nodes.size, h.shape[1]), -jnp.inf, h.dtype), rise)
    return jnp.where(jnp.isneginf(top), 0, top)  # rows that only fill a chunk


def _max_forward(h: Rows, forward: Walk, backward: Walk):
    top = _max(h, forward, backward)
    return top, (h, top, forward, backward)


def _max_backward(saved: tuple[Rows, Rows, Walk, Walk], cotangent: Rows):
    h, top, forward, backward = saved

    def count(state: tuple[Array, Array], src: Array, live: Array, weight: Array | None):
        mine, ties = state
        return mine, ties + (live & (_scaled(take(h, src), weight) == mine))

    _, ties = _fold(
        forward, lambda nodes: (take(top, nodes), jnp.zeros((nodes.size, h.shape[1]), jnp.int32)), count
    )
    share = cotangent / jnp.maximum(ties, 1).astype(cotangent.dtype)

    def pull(state: tuple[Array, Array], dst: Array, live: Array, weight: Array | None):
        mine, total = state
        won = live & (_scaled(mine, weight) == take(top, dst))
        return mine, total + jnp.where(won, _scaled(take(share, dst), weight), 0).astype(total.dtype)

    start = lambda nodes: (take(h, nodes), jnp.zeros((nodes.size, h.shape[1]), wide(h)))  # noqa: E731
    return _fold(backward, start, pull)[1].astype(h.dtype), None, None


_max.defvjp(_max_forward, _max_backward)
