"""Exact embeddings of all nodes, one layer at a time, each device computing the rows of its own nodes.

A turn reads some ten thousand consecutive edges of a device's own nodes: the rows at their sources are
fetched from their owners, each distinct one once, and reduced as on one device. A node of more edges takes
several turns, for each level of the layer's reductions (`jsage.infer.tracing`). All devices make as many
turns, and nothing beside the tables depends on their size.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PyTree

from jsage._internal.arrays import take
from jsage.blocks.reductions import State
from jsage.graph import Location
from jsage.graph.search import bisect
from jsage.infer.embed_all import check_model, layer_of
from jsage.infer.layer import (
    Edges,
    Node,
    Targets,
    in_parts,
    init_states,
    layer_rows,
    num_levels,
    read_more,
    source_tables,
)
from jsage.infer.tracing import Apply, TracingBlock, apply_reduced
from jsage.parallel.exchange import gather_remote, plan_route
from jsage.parallel.features import ShardedFeatures
from jsage.parallel.graph import ShardedGraph
from jsage.parallel.mesh import AXIS
from jsage.parallel.place import unpack

EDGES, ROWS = 32_768, 8192
"""Edges that a device reads in one turn, and nodes that it computes at most."""


class Budget(NamedTuple):
    """What one turn may take on each device; more than all a shard has is no use."""

    capacity: int
    """Distinct sources that are asked of one owner at once; the others take another round."""
    edges: int = EDGES
    rows: int = ROWS


class Work(NamedTuple):
    """How far a device has come."""

    node: Int[Array, ""]
    """The first node that is not done."""
    edge: Int[Array, ""]
    """The first edge that was not read, at this level."""
    level: Int[Array, ""]
    """Which reductions of a node of many turns are reading."""
    states: list[State]
    """What a node of many turns has read."""
    out: Float[Array, "rows d_out"]
    going: Bool[Array, ""]
    """Whether any device has nodes left."""


class Turn(NamedTuple):
    """One turn's edges and the rows at their sources, and the nodes that they complete."""

    tables: list[Array]
    edges: Edges
    num_edges: Int[Array, ""]
    """How many of the edges are valid."""
    stop: Int[Array, ""]
    """All edges of the nodes before it are read; the first node itself if it takes several turns."""
    ids: Int[Array, " group"]
    """The rows that may be written."""


def embed_all(
    model: Any,
    params: PyTree,
    graph: ShardedGraph,
    features: ShardedFeatures | None,
    budget: Budget,
    axis: str = AXIS,
) -> Float[Array, "rows out"]:
    """Every node's output row from its whole neighborhood, as `jsage.embed_all`, where its features are.

    For use inside `on_mesh`, in one jitted program: `model` and `budget` are static. `features` is None for a
    model with identity embeddings alone. Rows of the padding are arbitrary.

    >>> from jsage import GraphSAGE, from_edges, full_block
    >>> from jsage.parallel import make_mesh, on_mesh, replicate, shard_features, shard_graph
    >>> from jsage.graph import contiguous
    >>> mesh, graph, rows = make_mesh(jax.devices()[:1]), from_edges([1, 2, 0], [0, 0, 1], 3), jnp.eye(3)
    >>> model = GraphSAGE(hidden=8, out=4)
    >>> params = jax.jit(model.init)(jax.random.key(0), rows, (full_block(graph),) * 2)
    >>> features = shard_features(rows, contiguous(3, 1), mesh)
    >>> given = replicate(params, mesh), shard_graph(graph, contiguous(3, 1), mesh), features
    >>> run = lambda *given: embed_all(model, *given, Budget(4, edges=4, rows=2))
    >>> jax.jit(on_mesh(run, mesh, given, jax.P("data")))(*given).shape
    (3, 4)
    """
    model, rows = check_model(model), None if features is None else features.rows
    rows = model.apply(params, rows, graph.names[0].astype(jnp.int32), method="inputs")
    kept = []
    for k in range(model.num_layers):
        rows = sharded_layer_rows(layer_of(model, params, k), graph, rows, budget, axis)
        kept.append(rows)
    if not model.jump:
        return rows
    return in_parts(lambda *rows: model.apply(params, list(rows), method="finish"), tuple(kept), budget.rows)


def sharded_layer_rows(
    apply: Apply, graph: ShardedGraph, h: Float[Array, "rows d"], budget: Budget, axis: str = AXIS
) -> Float[Array, "rows d_out"]:
    """One layer's rows of the nodes that each device owns, from all devices' rows `h`; inside `on_mesh`.

    >>> from jsage import from_edges
    >>> from jsage.parallel import make_mesh, on_mesh, shard_graph, split
    >>> from jsage.graph import contiguous
    >>> mesh = make_mesh(jax.devices()[:1])
    >>> graph = shard_graph(from_edges([1, 2, 0], [0, 0, 1], 3), contiguous(3, 1), mesh)
    >>> h = split(jnp.eye(3), mesh)
    >>> layer = lambda h, block: block.sum(h)
    >>> run = lambda graph, h: sharded_layer_rows(layer, graph, h, Budget(2, edges=1, rows=2))
    >>> jax.jit(on_mesh(run, mesh, (graph, h), jax.P("data")))(graph, h)
    Array([[0., 1., 1.],
           [1., 0., 0.],
           [0., 0., 0.]], dtype=float32)
    """
    data = dict(graph.edge_data)
    num_rows, tables = h.shape[0], source_tables(apply, h, data)
    budget = budget._replace(rows=min(budget.rows, num_rows))
    group = Targets(*(jnp.zeros(1, jnp.int32),) * 3)
    width = jax.eval_shape(lambda: layer_rows(apply, h, tables, group, Edges(jnp.zeros(1, jnp.int32), data)))
    out = jnp.zeros((num_rows, *width.shape[1:]), width.dtype)
    levels = num_levels(apply, h[:1], data)

    def turn(work: Work) -> Work:
        read = _read(graph, tables, work, budget, axis)
        alone = (read.stop == work.node) & (work.node < num_rows)
        parts = partial(_piece, apply, levels, graph, h), partial(_group, apply, graph, h)
        rows, fresh, (stop, edge, level, states) = jax.lax.cond(alone, *parts, work, read)
        old = jax.lax.dynamic_slice_in_dim(work.out, read.ids[0], budget.rows)
        out = jax.lax.dynamic_update_slice_in_dim(
            work.out, jnp.where(fresh[:, None], rows, old), read.ids[0], 0
        )
        going = jax.lax.psum((stop < num_rows).astype(jnp.int32), axis) > 0
        return Work(stop, edge, level, states, out, going)

    zero = jnp.zeros((), jnp.int32)
    start = Work(zero, zero, zero, init_states(apply, h[:1], tables, data), out, jnp.ones((), bool))
    return jax.lax.while_loop(lambda work: work.going, turn, start).out


def _read(graph: ShardedGraph, tables: list[Array], work: Work, budget: Budget, axis: str) -> Turn:
    """Choose a turn's edges and fetch what they read."""
    num_rows, num_edges = graph.indptr.shape[0] - 1, graph.sources[0].shape[0]
    most = jnp.minimum(work.edge, 2**31 - 1 - budget.edges) + budget.edges  # no sum beyond 2^31
    end = jnp.minimum(work.node + budget.rows, num_rows) + 1
    stop = bisect(graph.indptr, work.node, end, most, after=True) - 1
    stop = jnp.where(work.edge > take(graph.indptr, work.node), work.node, stop)  # go on with a node begun
    last = jnp.where(stop > work.node, stop, jnp.minimum(work.node + 1, num_rows))
    count = jnp.minimum(take(graph.indptr, last) - work.edge, budget.edges)
    slot = jnp.arange(budget.edges, dtype=jnp.int32)
    valid = slot < count
    edge = jnp.where(valid, work.edge + jnp.minimum(slot, num_edges - 1), 0)
    sources = unpack(tuple(take(word, edge) for word in graph.sources), num_rows)
    route = plan_route(
        Location(jnp.where(valid, sources.owner, jax.lax.axis_size(axis)), sources.local), axis
    )
    rows = gather_remote(route, lambda local: [take(table, local) for table in tables], budget.capacity, axis)
    data = {name: take(x, edge) for name, x in graph.edge_data.items()}
    ids = jnp.minimum(work.node, num_rows - budget.rows) + jnp.arange(budget.rows, dtype=jnp.int32)
    return Turn(rows, Edges(slot, data), count, stop, ids)


def _group(apply: Apply, graph: ShardedGraph, h: Array, work: Work, read: Turn) -> Any:
    """Many nodes whose edges are all there."""
    fresh = (read.ids >= work.node) & (read.ids < read.stop)
    start = take(graph.indptr, read.ids)
    degree = jnp.where(fresh, take(graph.indptr, read.ids + 1) - start, 0)
    targets = Targets(read.ids, jnp.where(degree > 0, start - work.edge, 0), degree)
    rows = layer_rows(apply, h, read.tables, targets, read.edges)
    return rows, fresh, (read.stop, work.edge + read.num_edges, work.level, work.states)


def _piece(apply: Apply, levels: int, graph: ShardedGraph, h: Array, work: Work, read: Turn) -> Any:
    """One node, of which these are the next edges, and perhaps the last."""
    first, end = take(graph.indptr, work.node), take(graph.indptr, work.node + 1)
    own, data = take(h, work.node[None]), read.edges.edge_data
    node = Node(own, (end - first)[None], work.states, work.level)
    states = read_more(apply, node, read.tables, read.num_edges, read.edges)
    row = apply_reduced(apply, own, TracingBlock(node.degree, data, states))
    edge = work.edge + read.num_edges
    over = edge == end
    done = over & (work.level == levels - 1)
    rows = jnp.broadcast_to(row, (read.ids.shape[0], *row.shape[1:]))
    again = jax.tree.map(
        lambda new, old: jnp.where(done, old, new), states, init_states(apply, own, read.tables, data)
    )
    level = jnp.where(done, 0, work.level + over)
    reached = work.node + done, jnp.where(over & ~done, first, edge), level, again
    return rows, (read.ids == work.node) & done, reached
