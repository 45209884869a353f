"""Blocks of whole neighbourhoods for some nodes of a graph, in shapes that do not depend on the degrees.

The nodes met within a hop get rows of fixed number, distinct ones one row each. The last hop, whose rows are
the feature table's, is read in pieces as long as there are edges left: a hub of any degree takes no memory,
and nothing recompiles. For inference: the pieces have no gradient.
"""

from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jsage._internal.arrays import rounded, take, wide
from jsage.blocks import Block, Segments
from jsage.blocks.gather import messages
from jsage.graph import Graph
from jsage.graph.adjacency import Adjacency
from jsage.typing import EdgeData

PIECE = 512
"""Edges that are read at once."""
Rows: TypeAlias = Float[Array, "num_src d"]
Pooled: TypeAlias = Float[Array, "num_dst d"]


class Room(NamedTuple):
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
    live: Bool[Array, " size"]
    edge_data: EdgeData


class Pieces(NamedTuple):
    """Every edge into `dst`, read from the graph piece by piece; `h` is the table of all nodes' rows.

    Rows of ids beyond `h` are those of `more`: nodes in no table.

    >>> import jax.numpy as jnp
    >>> from jsage.graph import from_edges
    >>> graph, dst = from_edges(src=[1, 2, 0], dst=[0, 0, 1], num_nodes=3), jnp.array([0, 2])
    >>> block = Pieces(graph, dst, graph.degrees(dst))
    >>> block.sum(jnp.eye(3)), block.own(jnp.eye(3))
    (Array([[0., 1., 1.],
            [0., 0., 0.]], dtype=float32), Array([[1., 0., 0.],
            [0., 0., 1.]], dtype=float32))
    """

    graph: Adjacency
    dst: Int[Array, " num_dst"]
    degree: Int[Array, " num_dst"]
    more: Float[Array, "num_more d"] | None = None
    room: Int[Array, " room"] | None = None
    """Its length is the number of edges that `sources` can hold (None: it cannot be called)."""
    edge_data: EdgeData = {}
    """Empty: data are read with the edges."""

    @property
    def num_dst(self) -> int:
        """The number of destinations."""
        return self.dst.shape[0]

    def own(self, h: Rows) -> Pooled:
        """The destinations' own rows."""
        return table_rows(h, self.more, self.dst)

    def sum(self, h: Rows) -> Pooled:
        """The sum over all neighbours, in float32 at least."""
        zeros = jnp.zeros((self.num_dst, h.shape[1]), wide(h))
        return self._fold(h, zeros, lambda at, rows: at.add(rows, mode="drop")).astype(h.dtype)

    def max(self, h: Rows) -> Pooled:
        """The maximum over all neighbours, 0 where there are none."""
        low = jnp.full((self.num_dst, h.shape[1]), -jnp.inf, h.dtype)
        top = self._fold(h, low, lambda at, rows: at.max(rows, mode="drop"))
        return jnp.where((self.degree > 0)[:, None], top, 0)

    def degrees(self) -> Int[Array, " num_dst"]:
        """The number of edges into each destination."""
        return self.degree

    def slots(self, h: Rows) -> tuple[Array, Array]:
        """Not to be had: raises TypeError."""
        raise TypeError(
            "slots need a [num_dst, max degree] table, which whole neighbourhoods in pieces are there to "
            "avoid: pass fanouts no smaller than any degree, which read every neighbour too"
        )

    def sources(self, h: Rows) -> tuple[Float[Array, "rows d"], Block]:
        """All rows, where the table is small beside the destinations; else a copy of those that are read."""
        if isinstance(h.shape[0], int) and h.shape[0] <= 4 * self.num_dst:
            more = jnp.zeros((0, h.shape[1])) if self.more is None else self.more
            return jnp.concatenate([h, more.astype(h.dtype)]), self._replace(more=None)
        if self.room is None:
            raise NeedsRoom("this aggregator reads a row of every edge: give the last hop room for them")
        edges = edges_into(self.graph, self.dst, self.degree, self.room.shape[0])
        rows = jnp.concatenate([self.own(h), table_rows(h, self.more, edges.src)])
        src = self.num_dst + jnp.arange(edges.src.shape[0], dtype=jnp.int32)
        return rows, Segments(src, edges.row, self.degree, edges.edge_data)

    def read(self, live: Bool[Array, " num_dst"], num_src: int) -> Bool[Array, " num_src"]:
        """Every row."""
        return jnp.ones(num_src, bool)

    def _fold(self, h: Rows, start: Array, put: Callable[[Any, Array], Array]) -> Array:
        def step(i: Array, total: Array) -> Array:
            edges = edges_into(self.graph, self.dst, self.degree, PIECE, i * PIECE)
            rows = table_rows(h, self.more, edges.src).astype(total.dtype)
            return put(total.at[edges.row], messages(rows, edges.live, edges.edge_data.get("weight")))

        pieces = (self.degree.sum() + PIECE - 1) // PIECE
        return jax.lax.fori_loop(0, pieces, step, start)


class NeedsRoom(TypeError):
    """A layer wants the rows of all edges at once, and has not been told how many there may be."""


def table_rows(
    h: Rows, more: Float[Array, "num_more d"] | None, ids: Int[Array, " num_ids"]
) -> Float[Array, "num_ids d"]:
    """Rows of a table, and of a second one that goes on where it ends, without joining the two.

    >>> import jax.numpy as jnp
    >>> table_rows(jnp.array([[1.0], [2.0]]), jnp.array([[3.0]]), jnp.array([2, 0])).ravel()
    Array([3., 1.], dtype=float32)
    """
    if more is None:
        return take(h, ids)
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
    live = number < ends[-1]
    row = jnp.where(live, jnp.searchsorted(ends, number, side="right", method="scan_unrolled"), 0)
    row = row.astype(jnp.int32)
    offset = number - take(ends - degree, row)
    src, edge_data = graph.edges_at(take(nodes, row), jnp.where(live, offset, 0), live)
    return Edges(jnp.where(live, row, nodes.shape[0]), src, live, edge_data)


def whole_blocks(
    graph: Adjacency,
    seeds: Int[Array, " num_seeds"],
    rooms: Sequence[Room],
    *,
    more: Float[Array, "num_more d"] | None = None,
    last: int | None = None,
) -> tuple[tuple[Block, ...], Int[Array, "hops 2"]]:
    """The blocks of `len(rooms) + 1` hops of whole neighbourhoods, and the room that each hop takes.

    `rooms[i]` is that of hop `i + 1`; the last hop, next to the features, needs none, unless the first layer
    reads a row of every edge (`Pool`, `project`): then `last` is the number of them. The blocks are right
    where every hop has its room: the second result holds `(edges, nodes)` of each hop, the last one's nodes
    0. `more` holds rows of ids beyond the feature table.

    >>> import jax.numpy as jnp
    >>> from jsage.graph import from_edges
    >>> graph = from_edges(src=[1, 2, 0], dst=[0, 0, 1], num_nodes=3)
    >>> (first, last), taken = whole_blocks(graph, jnp.array([1]), [Room(edges=4, nodes=3)])
    >>> first.dst, taken.tolist()  # node 1 reads 0, and 0 reads 1 and 2
    (Array([0, 1, 0], dtype=int32), [[1, 2], [3, 0]])
    """
    blocks, taken, nodes, count = [], [], seeds, jnp.int32(seeds.shape[0])
    for room in rooms:
        degree = jnp.where(jnp.arange(nodes.shape[0]) < count, graph.degrees(nodes), 0)
        edges = edges_into(graph, nodes, degree, room.edges)
        live = jnp.concatenate([jnp.arange(nodes.shape[0]) < count, edges.live])
        found, position, count = distinct(jnp.concatenate([nodes, edges.src]), live, room.nodes)
        own, src = jnp.split(position, [nodes.shape[0]])
        blocks.insert(0, Segments(src, edges.row, degree, edges.edge_data, own))
        taken.append(jnp.stack([degree.sum(), count]))
        nodes = found
    degree = jnp.where(jnp.arange(nodes.shape[0]) < count, graph.degrees(nodes), 0)
    room = None if last is None else jnp.zeros(last, jnp.int8)
    taken.append(jnp.stack([degree.sum(), jnp.zeros_like(count)]))
    return (Pieces(graph, nodes, degree, more, room), *blocks), jnp.stack(taken)


def fit_rooms(
    graph: Adjacency, seeds: Int[Array, " num_seeds"], hops: int, rooms: Sequence[Room] = ()
) -> tuple[tuple[Room, ...], int]:
    """Rooms for the whole neighbourhoods of these seeds, and one for the last hop; on the host.

    Edges are counted hop by hop and rounded up to a power of two, so that few sizes are ever compiled.
    `rooms` are those of the first hops, where they are known.

    >>> import jax.numpy as jnp
    >>> from jsage.graph import from_edges
    >>> fit_rooms(from_edges(src=[1, 2, 0], dst=[0, 0, 1], num_nodes=3), jnp.array([1]), 2)
    ((Room(edges=1, nodes=2),), 4)
    """
    while True:
        edges = rounded(int(_taken(graph, seeds, tuple(rooms))[-1, 0]))
        if len(rooms) == hops - 1:
            return tuple(rooms), edges
        before = rooms[-1].nodes if rooms else seeds.shape[0]
        rooms = (*rooms, Room(edges, min(before + edges, graph.id_limit)))


@cache
def reads_rows(model: Any, num_nodes: int, width: int, num_seeds: int, rooms: tuple[Room, ...]) -> bool:
    """Whether a model's first layer reads the rows of all edges at once: found by shapes alone.

    >>> from jsage import GraphSAGE
    >>> reads_rows(GraphSAGE(hidden=8, out=2), 1000, 16, 1, (Room(edges=4, nodes=5),))
    False
    """

    def start(indptr: Array, h: Array, seeds: Array) -> Any:
        blocks, _ = whole_blocks(Graph(indptr, jnp.zeros(1, jnp.int32)), seeds, rooms)
        return model.init(jax.random.key(0), h, blocks)

    shapes = ((num_nodes + 1,), jnp.int32), ((num_nodes, width), jnp.float32), ((num_seeds,), jnp.int32)
    try:
        jax.eval_shape(start, *(jax.ShapeDtypeStruct(*shape) for shape in shapes))
    except NeedsRoom:
        return True
    return False


@partial(jax.jit, static_argnums=2)
def _taken(graph: Adjacency, seeds: Array, rooms: tuple[Room, ...]) -> Array:
    return whole_blocks(graph, seeds, rooms)[1]


def distinct(
    ids: Int[Array, " num_ids"], live: Bool[Array, " num_ids"], size: int
) -> tuple[Int[Array, " size"], Int[Array, " num_ids"], Int[Array, ""]]:
    """The distinct live ids, ascending, where each of `ids` is among them, and how many there are.

    >>> import jax.numpy as jnp
    >>> distinct(jnp.array([7, 3, 9, 7]), jnp.array([True, True, False, True]), 3)
    (Array([3, 7, 0], dtype=int32), Array([1, 0, 0, 1], dtype=int32), Array(2, dtype=int32))
    """
    key = jnp.where(live, ids, jnp.iinfo(ids.dtype).max)
    order = jnp.argsort(key)
    ordered = take(key, order)
    first = jnp.concatenate([jnp.ones(1, bool), ordered[1:] != ordered[:-1]]) & take(live, order)
    rank = jnp.cumsum(first, dtype=jnp.int32) - 1
    nodes = jnp.zeros(size, ids.dtype).at[jnp.where(first, rank, size)].set(ordered, mode="drop")
    position = jnp.zeros_like(ids).at[order].set(jnp.clip(rank, 0, size - 1))
    return nodes, jnp.where(live, position, 0), rank[-1] + 1
