"""The whole graph as one block, its nodes sorted by degree: exact aggregation without a scatter.

Values are folds over `jsage.blocks.sliced`; gradients are the same folds over the reversed graph.
"""

from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jsage._internal.arrays import take, wide
from jsage.blocks.sliced import LIMIT, MAX, ROWS, SUM, Message, Sliced, fold, sliced
from jsage.graph import Graph, reverse
from jsage.typing import EdgeData

Rows: TypeAlias = Float[Array, "num_nodes d"]


class Classes(NamedTuple):
    """A block that holds every edge of a graph: all nodes read their whole neighbourhoods.

    For full-batch training and exact inference. It holds no `[num_nodes, max degree]` table, so `slots`,
    which the LSTM reads, is not to be had. Make one with `degree_classes`.

    >>> import jax.numpy as jnp
    >>> from jsage.graph import from_edges
    >>> block = degree_classes(from_edges(src=[1, 2, 0], dst=[0, 0, 1], num_nodes=3))
    >>> block.sum(jnp.eye(3))
    Array([[0., 1., 1.],
           [1., 0., 0.],
           [0., 0., 0.]], dtype=float32)
    """

    degree: Int[Array, " num_nodes"]
    forward: Sliced
    backward: Sliced
    """The same over the reversed graph, for the gradient."""
    edge_data: EdgeData = {}
    """Empty: weights are kept with the edges."""

    @property
    def num_dst(self) -> int:
        """The number of nodes."""
        return self.degree.shape[0]

    def own(self, h: Rows) -> Rows:
        """`h` itself."""
        return h

    def sum(self, h: Rows) -> Rows:
        """The sum over each node's neighbours, in float32 at least."""
        self._check(h)
        return _sum(h, self.forward, self.backward)

    def max(self, h: Rows) -> Rows:
        """The maximum over each node's neighbours, 0 where there are none."""
        self._check(h)
        return _max(h, self)

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
        """`h` itself: every row is read, if only by its own node."""
        self._check(h)
        return h, self

    def read(self, live: Bool[Array, " num_dst"], num_src: int) -> Bool[Array, " num_src"]:
        """Live nodes and the sources of their edges."""
        flags = live[:, None].astype(jnp.float32)
        return live | (fold(self.backward, lambda nodes: lambda src, weight: take(flags, src), MAX)[:, 0] > 0)

    def _check(self, h: Rows) -> None:
        if h.shape[0] != self.num_dst:
            raise ValueError(
                f"degree classes of {self.num_dst} nodes read one row a node, got {h.shape[0]} rows: "
                "pass all nodes' rows, in order"
            )


def degree_classes(graph: Graph, *, rows: int = ROWS, limit: int = LIMIT) -> Classes:
    """A graph as one block in degree classes, on the host, once; an `edge_data["weight"]` goes with it.

    Chunks have `rows` rows of at most `limit` slots. Weights are data here: they get no gradient
    (`full_block` gives one). For a model of `L` layers pass `(degree_classes(graph),) * L`.

    >>> import jax.numpy as jnp
    >>> from jsage.graph import from_edges
    >>> graph = from_edges(src=[1, 2, 0], dst=[0, 0, 1], num_nodes=3, weight=[1.0, 0.5, 2.0])
    >>> degree_classes(graph).sum(jnp.eye(3))
    Array([[0. , 1. , 0.5],
           [2. , 0. , 0. ],
           [0. , 0. , 0. ]], dtype=float32)
    """
    if rows < 1 or limit < 2:
        raise ValueError(f"chunks need rows of 1 or more and a limit of 2 or more, got {rows} and {limit}")
    if graph.num_nodes == 0:
        raise ValueError("degree classes need a graph with nodes, got one without any")
    weight = graph.edge_data.get("weight")
    graph = graph._replace(edge_data={} if weight is None else {"weight": weight})
    ways = [_host(graph), _host(reverse(graph))]
    forward = sliced(*ways[0], rows=rows, limit=limit)
    symmetric = all(np.array_equal(a, b) for a, b in zip(*ways, strict=True))
    backward = forward if symmetric else sliced(*ways[1], rows=rows, limit=limit)
    return Classes(jnp.asarray(np.diff(ways[0][0])), forward, backward)


def _host(graph: Graph) -> tuple[np.ndarray, ...]:
    return tuple(np.asarray(x) for x in (graph.indptr, graph.indices, *graph.edge_data.values()))


def _scaled(rows: Array, weight: Array | None) -> Array:
    return rows if weight is None else rows * weight.astype(rows.dtype)


@jax.custom_vjp
def _sum(h: Rows, forward: Sliced, backward: Sliced) -> Rows:
    def read(nodes: Array) -> Message:
        return lambda src, weight: _scaled(take(h, src), weight).astype(wide(h))

    return fold(forward, read, SUM).astype(h.dtype)


def _sum_forward(h: Rows, forward: Sliced, backward: Sliced):
    return _sum(h, forward, backward), (forward, backward)


def _sum_backward(saved: tuple[Sliced, Sliced], cotangent: Rows):
    forward, backward = saved
    return _sum(cotangent, backward, forward), None, None


_sum.defvjp(_sum_forward, _sum_backward)


@jax.custom_vjp
def _max(h: Rows, block: Classes) -> Rows:
    top = fold(block.forward, lambda nodes: lambda src, weight: _scaled(take(h, src), weight), MAX)
    return jnp.where(block.degree[:, None] > 0, top, 0)


def _max_forward(h: Rows, block: Classes):
    top = _max(h, block)
    return top, (h, top, block)


def _max_backward(saved: tuple[Rows, Rows, Classes], cotangent: Rows):
    h, top, block = saved

    def won(nodes: Array) -> Message:
        mine = take(top, nodes)
        return lambda src, weight: (_scaled(take(h, src), weight) == mine).astype(wide(h))

    ties = fold(block.forward, won, SUM)
    share = cotangent.astype(ties.dtype) / jnp.maximum(ties, 1)

    def pull(nodes: Array) -> Message:
        mine = take(h, nodes)

        def message(dst: Array, weight: Array | None) -> Array:
            return jnp.where(_scaled(mine, weight) == take(top, dst), _scaled(take(share, dst), weight), 0)

        return message

    return fold(block.backward, pull, SUM).astype(h.dtype), None


_max.defvjp(_max_forward, _max_backward)
