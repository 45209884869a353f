"""One layer over many nodes that read their whole neighbourhoods, in memory bounded whatever their degrees.

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
from jaxtyping import Array, Bool, Float, Int

from jsage._internal.arrays import take
from jsage.blocks.sliced import unrolled
from jsage.infer.tracing import Apply, Fold, State, answered, heard

Table: TypeAlias = Float[Array, "num_src d"]

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
    weight: Float[Array, " num_edges"] | None = None
    place: Int[Array, " num_nodes"] | None = None
    """The position of each node's row; None: node `v` is in row `v`."""


class Targets(NamedTuple):
    """The nodes to compute."""

    own: Int[Array, " size"]
    """The position of each node's own row."""
    start: Int[Array, " size"]
    """Its first edge."""
    degree: Int[Array, " size"]


def send(apply: Apply, h: Table) -> list[Array]:
    """The tables that a layer reads of neighbours: `h` itself, or what it makes of each row beforehand.

    >>> import jax.numpy as jnp
    >>> [table] = send(lambda h, block: block.sum(2 * h), jnp.ones((3, 1)))
    >>> table.ravel()
    Array([2., 2., 2.], dtype=float32)
    """
    same = unchanged(apply, h[:1])
    made = iter(in_parts(lambda part: changed(apply, part, same), (h,), ROWS) if not all(same) else [])
    return [h if skip else next(made) for skip in same]


def unchanged(apply: Apply, rows: Table) -> list[bool]:
    """Which of the tables that a layer sends are its own input as it is.

    >>> import jax.numpy as jnp
    >>> unchanged(lambda h, block: block.sum(h) + block.sum(2 * h), jnp.ones((1, 2)))
    [True, False]
    """
    return [sent is rows and not _padding(fold, sent) for fold, sent in heard(apply, rows)]


def changed(apply: Apply, rows: Table, same: list[bool]) -> list[Array]:
    """What a layer sends of these rows, but for the tables that are its input; padded to a good width.

    >>> import jax.numpy as jnp
    >>> changed(lambda h, block: block.sum(h) + block.sum(2 * h), jnp.ones((1, 2)), [True, False])
    [Array([[2., 2.]], dtype=float32)]
    """
    asked = zip(heard(apply, rows), same, strict=True)
    return [jnp.pad(sent, ((0, 0), (0, _padding(fold, sent)))) for (fold, sent), skip in asked if not skip]


def _padding(fold: Fold, rows: Table) -> int:
    width = rows.shape[1]
    return FULL - width if fold.by_column and NARROW < width < FULL else 0


def receive(
    apply: Apply, h: Table, tables: list[Array], targets: Targets, edges: Edges
) -> Float[Array, "size d_out"]:
    """The layer's rows at the targets, from own rows in `h` and neighbours' rows in what it sent.

    >>> import jax.numpy as jnp
    >>> layer, h = lambda h, block: h + block.sum(h), jnp.array([[1.0], [2.0], [4.0]])
    >>> targets = Targets(jnp.array([1, 0]), start=jnp.array([0, 0]), degree=jnp.array([0, 2]))
    >>> receive(layer, h, [h], targets, Edges(jnp.array([1, 2]))).ravel()
    Array([2., 7.], dtype=float32)
    """
    folds = [fold for fold, _ in heard(apply, h[:1])]

    def part(targets: Targets) -> Array:
        states = _reduce(folds, tables, targets, edges)
        return answered(apply, take(h, targets.own), targets.degree, states)

    return in_parts(part, targets, ROWS)


def begin(apply: Apply, h: Table, tables: list[Array]) -> list[State]:
    """The states of one node that has read nothing: for a node that is read by `go_on` in several calls.

    >>> import jax.numpy as jnp
    >>> begin(lambda h, block: block.sum(h), jnp.ones((1, 2)), [jnp.ones((1, 2))])
    [Array([[0., 0.]], dtype=float32)]
    """
    return _start([fold for fold, _ in heard(apply, h[:1])], tables, 1)


def go_on(
    apply: Apply, h: Table, states: list[State], tables: list[Array], count: Int[Array, ""], edges: Edges
) -> list[State]:
    """The states of one node once it has read the first `count` of these edges as well.

    >>> import jax.numpy as jnp
    >>> layer, h = lambda h, block: block.sum(h), jnp.array([[1.0], [2.0]])
    >>> go_on(layer, h, begin(layer, h, [h]), [h], jnp.array(2), Edges(jnp.array([1, 1])))
    [Array([[4.]], dtype=float32)]
    """
    folds = [fold for fold, _ in heard(apply, h[:1])]
    return _read_all(folds, tables, edges, jnp.zeros((), jnp.int32), count, states)


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
    return jax.tree.map(lambda x: jax.lax.dynamic_slice_in_dim(x, at, rows), arrays)


def _reduce(folds: list[Fold], tables: list[Array], targets: Targets, edges: Edges) -> list[State]:
    """The states of all targets once they have read everything."""
    size = targets.degree.shape[0]
    if edges.indices.shape[0] == 0 or not folds:
        return _start(folds, tables, size)
    order = jnp.argsort(targets.degree)
    states = _walk(folds, tables, edges, (take(targets.start, order), take(targets.degree, order)), GROUP)
    back = jnp.argsort(order)
    return jax.tree.map(lambda x: take(x, back), states)


def _walk(
    folds: list[Fold], tables: list[Array], edges: Edges, spans: tuple[Array, Array], group: int
) -> list[State]:
    """States of nodes sorted by degree, in classes; an uneven one is cut into smaller ones, then nodes."""
    size = spans[0].shape[0]
    classes = -(-size // group)
    each = -(-size // classes)

    def one(span: tuple[Array, Array]) -> list[State]:
        slots = each * span[1].max().astype(jnp.float32)
        uneven = slots > UNEVEN * span[1].sum().astype(jnp.float32) + PIECE
        finer = _one_by_one if group < GROUP else partial(_walk, group=max(GROUP // SPLIT, 1))
        return jax.lax.cond(
            uneven,
            lambda: finer(folds, tables, edges, span),
            lambda: _together(folds, tables, edges, *span),
        )

    cut = [jnp.pad(x, (0, classes * each - size)).reshape(classes, each) for x in spans]
    states = jax.lax.map(one, tuple(cut))
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:])[:size], states)


def _start(folds: list[Fold], tables: list[Array], size: int) -> list[State]:
    return [fold.start(size, table.shape[1]) for fold, table in zip(folds, tables, strict=True)]


def _together(
    folds: list[Fold], tables: list[Array], edges: Edges, start: Array, degree: Array
) -> list[State]:
    """Nodes of like degrees: what each of them has is read without a mask, and several slots a pass."""
    last = start + jnp.maximum(degree - 1, 0)

    def slot(i: Array, states: list[State], live: Bool[Array, " nodes"]) -> list[State]:
        rows = _rows(tables, edges, jnp.minimum(start + i, last))
        return [fold.step(state, row, live) for fold, state, row in zip(folds, states, rows, strict=True)]

    def whole(i: Array, states: list[State]) -> list[State]:
        return slot(i, states, jnp.ones(start.size, bool))

    states, least = _start(folds, tables, start.size), jnp.zeros((), jnp.int32)
    if all(fold.by_column for fold in folds):  # sums and maxima: cheap to compile several times over
        least = degree.min()
        states = unrolled(jnp.zeros_like(least), least, whole, states)
    return jax.lax.fori_loop(least, degree.max(), lambda i, states: slot(i, states, i < degree), states)


def _one_by_one(
    folds: list[Fold], tables: list[Array], edges: Edges, spans: tuple[Array, Array]
) -> list[State]:
    def node(span: tuple[Array, Array]) -> list[State]:
        return _read_all(folds, tables, edges, *span, _start(folds, tables, 1))

    states = jax.lax.map(node, spans)
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), states)


def _read_all(
    folds: list[Fold], tables: list[Array], edges: Edges, start: Array, degree: Array, states: list[State]
) -> list[State]:
    """One node reads all its edges, a piece at a time."""

    def piece(i: Array, states: list[State]) -> list[State]:
        offset = i * PIECE + jnp.arange(PIECE, dtype=jnp.int32)
        live: Bool[Array, " piece"] = offset < degree
        rows = _rows(tables, edges, start + jnp.where(live, offset, 0))
        return [fold.many(state, row, live) for fold, state, row in zip(folds, states, rows, strict=True)]

    return jax.lax.fori_loop(0, (degree + PIECE - 1) // PIECE, piece, states)


def _rows(tables: list[Array], edges: Edges, at: Array) -> list[Array]:
    """The rows that these edges read, times their weights."""
    src = take(edges.indices, at)
    src = src if edges.place is None else take(edges.place, src)
    rows = [take(table, src) for table in tables]
    if edges.weight is None:
        return rows
    return [row * take(edges.weight, at)[:, None].astype(row.dtype) for row in rows]
