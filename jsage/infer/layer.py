"""One layer over many nodes that read their whole neighborhoods, in memory bounded whatever their degrees.

Some ten thousand nodes at a time are sorted by degree and cut into classes of a thousand. A class is walked
edge by edge, all its nodes at once, as long as its degrees are alike; else it is cut into smaller ones, and
their nodes, if those differ too, are walked one by one, many edges at once. Nothing of size `[num_edges, d]`
exists, and shapes do not depend on the degrees.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PyTree

from jsage._internal.arrays import take
from jsage.blocks.reductions import State, read_many
from jsage.blocks.sliced import unrolled
from jsage.graph.sparse import map_rows, rows_at
from jsage.infer.tracing import Apply, Asked, TracingBlock, apply_reduced, trace_levels, trace_reductions
from jsage.typing import EdgeData

Table: TypeAlias = Any
"""A row a source: `Float[Array, "num_src d"]`, or `SparseRows`."""

ROWS = 65_536
"""Nodes whose results are computed at once."""
GROUP = 1024
"""Nodes of a class, which are walked together."""
PIECE = 128
"""Edges of one node that are read at once."""
UNEVEN, SPLIT = 1.5, 8
"""Where walking all nodes of a class at once would read so many times its edges, it is cut into so many."""
NARROW, FULL = 16, 64
"""Rows between these widths are padded to the latter: XLA's loops over so few columns are far slower."""


class Edges(NamedTuple):
    """Edges and where the rows are that they read."""

    indices: Int[Array, " num_edges"]
    edge_data: EdgeData = {}
    """One row an edge: what messages read."""
    place: Int[Array, " num_nodes"] | None = None
    """The position of each node's row; None: node `v` is in row `v`."""


class Targets(NamedTuple):
    """The nodes to compute."""

    own: Int[Array, " size"]
    """The position of each node's own row."""
    start: Int[Array, " size"]
    """Its first edge."""
    degree: Int[Array, " size"]


def source_tables(apply: Apply, h: Table, edge_data: EdgeData = {}) -> list[Array]:  # noqa: B006
    """The tables that a layer reads of neighbors: `h` itself, or what it makes of each row beforehand.

    `edge_data` gives the shapes of what messages read of edges.

    >>> import jax.numpy as jnp
    >>> [table] = source_tables(lambda h, block: block.sum(2 * h), jnp.ones((3, 1)))
    >>> table.ravel()
    Array([2., 2., 2.], dtype=float32)
    """
    same = is_input(apply, map_rows(lambda x: x[:1], h), edge_data)
    make = lambda part: made_tables(apply, part, same, edge_data)  # noqa: E731
    made = iter(in_parts(make, (h,), ROWS) if not all(same) else [])
    return [h if skip else next(made) for skip in same]


def is_input(apply: Apply, rows: Table, edge_data: EdgeData = {}) -> list[bool]:  # noqa: B006
    """Which of the tables that a layer sends are its own input as it is.

    >>> import jax.numpy as jnp
    >>> is_input(lambda h, block: block.sum(h) + block.sum(2 * h), jnp.ones((1, 2)))
    [True, False]
    """
    return [sent is rows and not extra for sent, extra in _sent(trace_reductions(apply, rows, edge_data))]


def made_tables(
    apply: Apply,
    rows: Table,
    same: list[bool],
    edge_data: EdgeData = {},  # noqa: B006
) -> list[Array]:
    """What a layer sends of these rows, but for the tables that are its input; padded to a good width.

    >>> import jax.numpy as jnp
    >>> made_tables(lambda h, block: block.sum(h) + block.sum(2 * h), jnp.ones((1, 2)), [True, False])
    [Array([[2., 2.]], dtype=float32)]
    """
    sent = zip(_sent(trace_reductions(apply, rows, edge_data)), same, strict=True)
    return [jnp.pad(x, ((0, 0), (0, extra))) if extra else x for (x, extra), skip in sent if not skip]


def _sent(asked: list[Asked]) -> list[tuple[Array, int]]:
    """All arrays that are sent, and how many columns of zeros go beside each."""
    return [(x, _padding(one, x)) for one in asked for x in jax.tree.leaves(one.src)]


def _padding(asked: Asked, rows: Array) -> int:
    return FULL - rows.shape[1] if asked.plain and NARROW < rows.shape[1] < FULL else 0


def layer_rows(
    apply: Apply, h: Table, tables: list[Array], targets: Targets, edges: Edges
) -> Float[Array, "size d_out"]:
    """The layer's rows at the targets, from own rows in `h` and neighbors' rows in what it sent.

    >>> import jax.numpy as jnp
    >>> layer, h = lambda h, block: h + block.sum(h), jnp.array([[1.0], [2.0], [4.0]])
    >>> targets = Targets(jnp.array([1, 0]), start=jnp.array([0, 0]), degree=jnp.array([0, 2]))
    >>> layer_rows(layer, h, [h], targets, Edges(jnp.array([1, 2]))).ravel()
    Array([2., 7.], dtype=float32)
    """

    def part(targets: Targets) -> Array:
        own = rows_at(h, targets.own)
        states = _reduce(apply, own, tables, targets, edges)
        return apply_reduced(apply, own, TracingBlock(targets.degree, edges.edge_data, states))

    return in_parts(part, targets, ROWS)


class Node(NamedTuple):
    """A node that is read by `read_more` in several calls."""

    row: Float[Array, "1 d"]
    """Its own row."""
    degree: Int[Array, "1"]
    states: list[State]
    """What it has read, at first those of `init_states`."""
    level: Any = 0
    """Which reductions read; all edges are read for one level after another (`num_levels`)."""


def init_states(apply: Apply, row: Table, tables: list[Array], edge_data: EdgeData = {}) -> list[State]:  # noqa: B006
    """The states of one node that has read nothing.

    >>> import jax.numpy as jnp
    >>> init_states(lambda h, block: block.sum(h), jnp.ones((1, 2)), [jnp.ones((1, 2))])
    [Array([[0., 0.]], dtype=float32)]
    """
    edges = Edges(jnp.zeros(1, jnp.int32), edge_data)
    return _start(_walks(apply, row, TracingBlock(jnp.ones(1, jnp.int32), edge_data), tables), edges, 1)


def num_levels(apply: Apply, row: Table, edge_data: EdgeData = {}) -> int:  # noqa: B006
    """How many times a layer's edges are read: once, or more where `dst` depends on other reductions.

    >>> import jax.numpy as jnp
    >>> num_levels(lambda h, block: block.sum(h) + block.max(h), jnp.ones((1, 2)))
    1
    """
    block = TracingBlock(jnp.ones(row.shape[0], jnp.int32), edge_data)
    return 1 + max(trace_levels(apply, row, block), default=0)


def read_more(
    apply: Apply, node: Node, tables: list[Array], count: Int[Array, ""], edges: Edges
) -> list[State]:
    """The states of one node once its reductions of one level have read the first `count` of these edges.

    >>> import jax.numpy as jnp
    >>> layer, h = lambda h, block: block.sum(h), jnp.array([[1.0], [2.0]])
    >>> node = Node(h[:1], jnp.array([2]), init_states(layer, h[:1], [h]))
    >>> read_more(layer, node, [h], jnp.array(2), Edges(jnp.array([1, 1])))
    [Array([[4.]], dtype=float32)]
    """
    walks = _walks(apply, node.row, TracingBlock(node.degree, edges.edge_data, node.states), tables)
    span = jnp.zeros((), jnp.int32), count, [walk.asked.dst for walk in walks]
    states = _read_all(walks, edges, span, node.states)
    if not any(walk.level for walk in walks):
        return states
    return [
        jax.tree.map(partial(jnp.where, node.level == walk.level), new, old)
        for walk, new, old in zip(walks, states, node.states, strict=True)
    ]


def in_parts(function: Callable[..., Any], arrays: Any, rows: int) -> Any:
    """`function` on `rows` rows of each array at a time; the last part begins earlier, so as to be full.

    >>> import jax.numpy as jnp
    >>> in_parts(lambda x: 2 * x, (jnp.arange(5),), 2)
    Array([0, 2, 4, 6, 8], dtype=int32)
    """
    total = arrays[0].shape[0]
    rows = min(rows, total)
    if total == rows:
        return _call(function, arrays)
    shapes = jax.eval_shape(lambda: _call(function, _cut(arrays, 0, rows)))
    out = jax.tree.map(lambda x: jnp.zeros((total, *x.shape[1:]), x.dtype), shapes)

    def step(i: Array, out):
        at = jnp.minimum(i * rows, total - rows)
        done = _call(function, _cut(arrays, at, rows))
        return jax.tree.map(lambda x, y: jax.lax.dynamic_update_slice_in_dim(x, y, at, 0), out, done)

    return jax.lax.fori_loop(0, -(-total // rows), step, out)


def _call(function: Callable[..., Any], arrays: Any) -> Any:
    return function(arrays) if isinstance(arrays, Targets) else function(*arrays)


def _cut(arrays: Any, at: Any, rows: int) -> Any:
    return map_rows(lambda x: jax.lax.dynamic_slice_in_dim(x, at, rows), arrays)


class _Walk(NamedTuple):
    """One reduction, the tables that it reads, and its level."""

    asked: Asked
    tables: PyTree
    level: int


Span: TypeAlias = tuple[Array, Array, list[PyTree]]
"""Some nodes' first edges, their degrees, and their rows for each reduction."""


def _walks(apply: Apply, own: Table, block: TracingBlock, tables: list[Array]) -> list[_Walk]:
    """What a layer asks a block for at nodes with these own rows."""
    given, found = iter(tables), []
    levels = trace_levels(apply, own, block)
    for asked, level in zip(block.asked, levels, strict=True):
        leaves, tree = jax.tree.flatten(asked.src)
        found.append(_Walk(asked, tree.unflatten([next(given) for _ in leaves]), level))
    return found


def _reduce(apply: Apply, own: Table, tables: list[Array], targets: Targets, edges: Edges) -> list[State]:
    """The states of all targets once they have read everything, one level after another."""
    size = targets.degree.shape[0]
    walks = _walks(apply, own, TracingBlock(targets.degree, edges.edge_data), tables)
    if edges.indices.shape[0] == 0 or not walks:
        return _start(walks, edges, size)
    order = jnp.argsort(targets.degree)
    states: list[State] = [None] * len(walks)
    for level in range(1 + max(walk.level for walk in walks)):
        if level:
            walks = _walks(apply, own, TracingBlock(targets.degree, edges.edge_data, states), tables)
        now = {i: walk for i, walk in enumerate(walks) if walk.level == level}
        span = targets.start, targets.degree, [walk.asked.dst for walk in now.values()]
        read = _walk([*now.values()], edges, jax.tree.map(lambda x: take(x, order), span), GROUP)
        back = jnp.argsort(order)
        read = jax.tree.map(lambda x, back=back: take(x, back), read)
        states = [read.pop(0) if i in now else state for i, state in enumerate(states)]
    return states


def _walk(walks: list[_Walk], edges: Edges, spans: Span, group: int) -> list[State]:
    """States of nodes sorted by degree, in classes; an uneven one is cut into smaller ones, then nodes."""
    size = spans[0].shape[0]
    classes = -(-size // group)
    each = -(-size // classes)

    def one(span: Span) -> list[State]:
        slots = each * span[1].max().astype(jnp.float32)
        uneven = slots > UNEVEN * span[1].sum().astype(jnp.float32) + PIECE
        finer = _one_by_one if group < GROUP else partial(_walk, group=max(GROUP // SPLIT, 1))
        return jax.lax.cond(uneven, lambda: finer(walks, edges, span), lambda: _together(walks, edges, span))

    def cut(x: Array) -> Array:
        padded = jnp.pad(x, ((0, classes * each - size), *((0, 0),) * (x.ndim - 1)))
        return padded.reshape(classes, each, *x.shape[1:])

    states = jax.lax.map(one, jax.tree.map(cut, spans))
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:])[:size], states)


def _start(walks: list[_Walk], edges: Edges, size: int) -> list[State]:
    return [
        walk.asked.reduction.start(walk.asked.like(walk.tables, edges.edge_data, size), size)
        for walk in walks
    ]


def _together(walks: list[_Walk], edges: Edges, span: Span) -> list[State]:
    """Nodes of like degrees: what each of them has is read without a mask, and several slots a pass."""
    start, degree, dst = span
    last = start + jnp.maximum(degree - 1, 0)

    def slot(i: Array, states: list[State], mask: Bool[Array, " nodes"] | None) -> list[State]:
        sent = _messages(walks, edges, jnp.minimum(start + i, last), dst)
        given = zip(walks, states, sent, strict=True)
        return [walk.asked.reduction.step(state, x, mask) for walk, state, x in given]

    states, least = _start(walks, edges, start.size), jnp.zeros((), jnp.int32)
    if all(walk.asked.plain for walk in walks):  # sums and maxima: cheap to compile several times over
        least = degree.min()
        states = unrolled(jnp.zeros_like(least), least, lambda i, states: slot(i, states, None), states)
    return jax.lax.fori_loop(least, degree.max(), lambda i, states: slot(i, states, i < degree), states)


def _one_by_one(walks: list[_Walk], edges: Edges, spans: Span) -> list[State]:
    def node(span: Span) -> list[State]:
        start, degree, dst = span
        row = jax.tree.map(lambda x: x[None], dst)
        return _read_all(walks, edges, (start, degree, row), _start(walks, edges, 1))

    states = jax.lax.map(node, spans)
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), states)


def _read_all(walks: list[_Walk], edges: Edges, span: Span, states: list[State]) -> list[State]:
    """One node reads all its edges, a piece at a time."""
    start, degree, row = span
    dst = jax.tree.map(lambda x: jnp.broadcast_to(x, (PIECE, *x.shape[1:])), row)

    def piece(i: Array, states: list[State]) -> list[State]:
        offset = i * PIECE + jnp.arange(PIECE, dtype=jnp.int32)
        valid: Bool[Array, " piece"] = offset < degree
        sent = _messages(walks, edges, start + jnp.where(valid, offset, 0), dst)
        given = zip(walks, states, sent, strict=True)
        return [read_many(walk.asked.reduction, state, x, valid) for walk, state, x in given]

    return jax.lax.fori_loop(0, (degree + PIECE - 1) // PIECE, piece, states)


def _messages(walks: list[_Walk], edges: Edges, at: Array, dst: list[PyTree]) -> list[PyTree]:
    """The messages along these edges."""
    src = take(edges.indices, at)
    src = src if edges.place is None else take(edges.place, src)
    data = {name: take(x, at) for name, x in edges.edge_data.items()}
    return [
        walk.asked.message(mine, jax.tree.map(lambda x: take(x, src), walk.tables), data)
        for walk, mine in zip(walks, dst, strict=True)
    ]
