"""Blocks of whole neighborhoods for some nodes of a graph, in shapes that do not depend on the degrees.

The nodes met within a hop get rows of fixed number, distinct ones one row each. The last hop, whose rows are
the feature table's, is read in pieces as long as there are edges left: a hub of any degree takes no memory,
and nothing recompiles. For inference: the pieces have no gradient.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int, Num, PyTree

from jsage._internal.arrays import round_up, take
from jsage.blocks import Segments
from jsage.blocks.layout import Block, EdgeNames, Size, check_reduce, few_rows
from jsage.blocks.reductions import (
    MAX,
    SUM,
    Asked,
    Reduction,
    State,
    checked,
    finished,
    scattered,
    weighted_source,
)
from jsage.graph.adjacency import Adjacency
from jsage.graph.as_of import check_one_time
from jsage.graph.sparse import is_sparse, joined_rows, rows_at
from jsage.typing import EdgeData, HostArray, MessageFn

PIECE = 512
"""Edges that are read at once."""
Rows: TypeAlias = Num[HostArray, "num_src *d"]
Pooled: TypeAlias = Num[Array, "num_dst *d"]


class HopSize(NamedTuple):
    """The fixed sizes of one hop."""

    edges: int
    """Edges into the nodes so far."""
    nodes: int
    """Distinct nodes after it, the ones so far included."""


class Edges(NamedTuple):
    """A run of the edges into some nodes, those of the first node first."""

    row: Int[Array, " size"]
    """Which node each edge goes into; the number of nodes where it is padding."""
    src: Int[Array, " size"]
    valid: Bool[Array, " size"]
    edge_data: EdgeData


class StreamedBlock(NamedTuple):
    """Every edge into `dst`, read from the graph piece by piece; `h` is the table of all nodes' rows.

    >>> import jax.numpy as jnp
    >>> from jsage.graph import from_edges
    >>> graph, dst = from_edges(src=[1, 2, 0], dst=[0, 0, 1], num_nodes=3), jnp.array([0, 2])
    >>> block = StreamedBlock(graph, dst, graph.degrees(dst))
    >>> block.sum(jnp.eye(3)), block.own(jnp.eye(3))
    (Array([[0., 1., 1.],
            [0., 0., 0.]], dtype=float32), Array([[1., 0., 0.],
            [0., 0., 1.]], dtype=float32))
    """

    graph: Adjacency
    dst: Int[Array, " num_dst"]
    degree: Int[Array, " num_dst"]

    @property
    def edge_data(self) -> EdgeNames:
        """The names of the edges' data, whose rows are read with the edges, by messages."""
        like = jax.eval_shape(lambda: edges_into(self.graph, self.dst, self.degree, 1).edge_data)
        return EdgeNames(like)

    @property
    def num_dst(self) -> int:
        """The number of destinations."""
        return self.dst.shape[0]

    def own(self, h: Any) -> Any:
        """The destinations' own rows."""
        return rows_at(h, self.dst)

    def sum(self, h: Rows) -> Pooled:
        """The sum over all neighbors, in float32 at least."""
        return self.reduce(weighted_source, SUM, None, h)

    def max(self, h: Rows) -> Pooled:
        """The maximum over all neighbors, 0 where there are none."""
        return self.reduce(weighted_source, MAX, None, h)

    def reduce(
        self, message: MessageFn, reduction: Reduction, dst: PyTree, src: PyTree, own: PyTree = None
    ) -> PyTree:
        """Messages reduced, a piece of the edges at a time; they have no gradient."""
        check_reduce(self, reduction, dst, own, src)
        asked = Asked(message, reduction, dst, src)
        (state,), (like,) = self.states([asked], lambda ids: [jax.tree.map(lambda x: take(x, ids), src)])
        return finished(reduction, state, self.degree, like, own)

    def states(
        self, asked: list[Asked], sent: Callable[[Array], list[PyTree]]
    ) -> tuple[list[State], list[PyTree]]:
        """The states of all destinations, and messages' shapes; `sent(ids)` are the rows of these sources."""
        if any((one.reduction.scatter or one.reduction.join) is None for one in asked):
            raise TypeError(
                "a reduction whose order counts needs a [num_dst, max degree] table, which whole "
                "neighborhoods in pieces are there to avoid: pass fanouts no smaller than any degree, which "
                "read every neighbor too"
            )

        def bring(i: Any) -> tuple[list[PyTree], Array]:
            edges = edges_into(self.graph, self.dst, self.degree, PIECE, i * PIECE)
            at = jnp.minimum(edges.row, self.num_dst - 1)
            rows = [jax.tree.map(lambda x: take(x, at), one.dst) for one in asked]
            given = zip(asked, rows, sent(edges.src), strict=True)
            data = dict(edges.edge_data)
            found = [one.message(mine, theirs, data) for one, mine, theirs in given]
            return [checked(x, PIECE) for x in found], edges.row

        def step(i: Array, states: list[State]) -> list[State]:
            messages, row = bring(i)
            given = zip(asked, states, messages, strict=True)
            return [scattered(one.reduction, state, sent, row) for one, state, sent in given]

        like, _ = jax.eval_shape(bring, 0)
        start = [one.reduction.start(x, self.num_dst) for one, x in zip(asked, like, strict=True)]
        return jax.lax.fori_loop(0, (self.degree.sum() + PIECE - 1) // PIECE, step, start), like

    def by_slot(self, num_src: Size) -> bool:
        """Never: rows are read where they are."""
        return False

    def reads_again(self, num_src: Size) -> bool:
        """Where the table is small beside the destinations."""
        return few_rows(num_src, self.num_dst)

    def degrees(self) -> Int[Array, " num_dst"]:
        """The number of edges into each destination."""
        return self.degree

    def sources(self, h: PyTree) -> tuple[PyTree, "StreamedBlock"]:
        """`h` itself."""
        return h, self

    def read(self, valid: Bool[Array, " num_dst"], num_src: int) -> Bool[Array, " num_src"]:
        """Every row."""
        return jnp.ones(num_src, bool)


def table_rows(h: Any, more: Any, ids: Int[Array, " num_ids"]) -> Any:
    """Rows of a table, and of a second one that goes on where it ends, without joining the two.

    >>> import jax.numpy as jnp
    >>> table_rows(jnp.array([[1.0], [2.0]]), jnp.array([[3.0]]), jnp.array([2, 0])).ravel()
    Array([3., 1.], dtype=float32)
    """
    if more is None:
        return rows_at(h, ids)
    if is_sparse(h):
        return joined_rows(h, more).rows(ids)
    beyond = ids >= h.shape[0]
    known, new = take(h, jnp.where(beyond, 0, ids)), take(more, jnp.where(beyond, ids - h.shape[0], 0))
    return jnp.where(beyond[:, None], new.astype(h.dtype), known)


def edges_into(
    graph: Adjacency,
    nodes: Int[Array, " num_nodes"],
    degree: Int[Array, " num_nodes"],
    size: int,
    start: int | Int[Array, ""] = 0,
) -> Edges:
    """Edges `start .. start + size - 1` of all that go into `nodes`, `degree` of them into each.

    >>> import jax.numpy as jnp
    >>> from jsage.graph import from_edges
    >>> graph, nodes = from_edges(src=[1, 2, 0], dst=[0, 0, 1], num_nodes=3), jnp.array([1, 2, 0])
    >>> edges_into(graph, nodes, graph.degrees(nodes), 4).src
    Array([0, 1, 2, 1], dtype=int32)
    """
    ends = jnp.cumsum(degree, dtype=jnp.int32)
    number = start + jnp.arange(size, dtype=jnp.int32)
    valid = number < ends[-1]
    row = jnp.where(valid, jnp.searchsorted(ends, number, side="right", method="scan_unrolled"), 0)
    row = row.astype(jnp.int32)
    offset = number - take(ends - degree, row)
    src, edge_data = graph.edges_at(take(nodes, row), jnp.where(valid, offset, 0), valid)
    return Edges(jnp.where(valid, row, nodes.shape[0]), src, valid, edge_data)


def exact_blocks(
    graph: Adjacency,
    seeds: Int[Array, " num_seeds"],
    rooms: Sequence[HopSize],
) -> tuple[tuple[Block, ...], Int[Array, "hops 2"]]:
    """The blocks of `len(rooms) + 1` hops of whole neighborhoods, and the room that each hop takes.

    `rooms[i]` is that of hop `i + 1`; the last hop, next to the features, needs none. The blocks are right
    where every hop has its room: the second result holds `(edges, nodes)` of each hop, the last one's nodes
    0. Of a graph as of a time there is one for all seeds, else ValueError.

    >>> import jax.numpy as jnp
    >>> from jsage.graph import from_edges
    >>> graph = from_edges(src=[1, 2, 0], dst=[0, 0, 1], num_nodes=3)
    >>> (first, last), taken = exact_blocks(graph, jnp.array([1]), [HopSize(edges=4, nodes=3)])
    >>> first.dst, taken.tolist()  # node 1 reads 0, and 0 reads 1 and 2
    (Array([0, 1, 0], dtype=int32), [[1, 2], [3, 0]])
    """
    check_one_time(graph, "a whole neighborhood")
    blocks, taken, nodes, count = [], [], seeds, jnp.int32(seeds.shape[0])
    for room in rooms:
        degree = jnp.where(jnp.arange(nodes.shape[0]) < count, graph.degrees(nodes), 0)
        edges = edges_into(graph, nodes, degree, room.edges)
        valid = jnp.concatenate([jnp.arange(nodes.shape[0]) < count, edges.valid])
        found, position, count = distinct(jnp.concatenate([nodes, edges.src]), valid, room.nodes)
        own, src = jnp.split(position, [nodes.shape[0]])
        blocks.insert(0, Segments(src, edges.row, degree, edges.edge_data, own))
        taken.append(jnp.stack([degree.sum(), count]))
        nodes = found
    degree = jnp.where(jnp.arange(nodes.shape[0]) < count, graph.degrees(nodes), 0)
    taken.append(jnp.stack([degree.sum(), jnp.zeros_like(count)]))
    return (StreamedBlock(graph, nodes, degree), *blocks), jnp.stack(taken)


def measure_hop_sizes(
    graph: Adjacency, seeds: Int[Array, " num_seeds"], hops: int, rooms: Sequence[HopSize] = ()
) -> tuple[HopSize, ...]:
    """Rooms for the whole neighborhoods of these seeds; on the host.

    Edges are counted hop by hop and rounded up to a power of two, so that few sizes are ever compiled.
    `rooms` are those of the first hops, where they are known.

    >>> import jax.numpy as jnp
    >>> from jsage.graph import from_edges
    >>> measure_hop_sizes(from_edges(src=[1, 2, 0], dst=[0, 0, 1], num_nodes=3), jnp.array([1]), 2)
    (HopSize(edges=1, nodes=2),)
    """
    while len(rooms) < hops - 1:
        edges = round_up(int(_taken(graph, seeds, tuple(rooms))[-1, 0]))
        before = rooms[-1].nodes if rooms else seeds.shape[0]
        rooms = (*rooms, HopSize(edges, min(before + edges, graph.id_limit)))
    return tuple(rooms)


@partial(jax.jit, static_argnums=2)
def _taken(graph: Adjacency, seeds: Array, rooms: tuple[HopSize, ...]) -> Array:
    return exact_blocks(graph, seeds, rooms)[1]


def distinct(
    ids: Int[Array, " num_ids"], valid: Bool[Array, " num_ids"], size: int
) -> tuple[Int[Array, " size"], Int[Array, " num_ids"], Int[Array, ""]]:
    """The distinct valid ids, ascending, where each of `ids` is among them, and how many there are.

    >>> import jax.numpy as jnp
    >>> distinct(jnp.array([7, 3, 9, 7]), jnp.array([True, True, False, True]), 3)
    (Array([3, 7, 0], dtype=int32), Array([1, 0, 0, 1], dtype=int32), Array(2, dtype=int32))
    """
    key = jnp.where(valid, ids, jnp.iinfo(ids.dtype).max)
    order = jnp.argsort(key)
    ordered = take(key, order)
    first = jnp.concatenate([jnp.ones(1, bool), ordered[1:] != ordered[:-1]]) & take(valid, order)
    rank = jnp.cumsum(first, dtype=jnp.int32) - 1
    nodes = jnp.zeros(size, ids.dtype).at[jnp.where(first, rank, size)].set(ordered, mode="drop")
    position = jnp.zeros_like(ids).at[order].set(jnp.clip(rank, 0, size - 1))
    return nodes, jnp.where(valid, position, 0), rank[-1] + 1
