"""Exact embeddings of all nodes, or of some, with the tables on the device."""

from functools import partial
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PyTree

from jsage._internal.arrays import run_positions, take
from jsage._internal.checks import check_ids
from jsage.graph import Graph, GraphBefore
from jsage.graph.as_of import check_one_time
from jsage.graph.sparse import Features, as_rows, rows_at
from jsage.infer.layer import ROWS, Edges, Targets, in_parts, layer_rows, source_tables
from jsage.infer.tracing import Apply
from jsage.typing import HostArray, LayeredModel

Ids: TypeAlias = Int[np.ndarray, " size"]


class Kept(NamedTuple):
    """A layer's rows, and each node's position among them (None: node `v` is in row `v`)."""

    rows: Any
    place: Array | None


def embed_all(
    model: Any,
    params: PyTree,
    graph: Graph | GraphBefore,
    features: Features | None,
    *,
    nodes: HostArray | None = None,
) -> Float[Array, "size out"]:
    """Every node's output row from its whole neighborhood, one layer at a time over all nodes.

    `model` is a `GraphSAGE`, or any other `jsage.typing.LayeredModel`; `features` is None for a model with
    identity embeddings alone. With `nodes` only their rows are returned, in that order, and each layer
    computes only the nodes that they depend on.

    A layer is one program, compiled once for each size of graph; the sizes of subsets are rounded up, by an
    eighth or so. Memory beyond the tables: the rows of two layers, whatever the largest degree.

    Of a graph as of one time (`jsage.graph.before`, `up_to`, `within`) all layers read what is visible then;
    another time compiles nothing. Raises ValueError for features or nodes that do not fit the graph, and for
    a time for each node.

    >>> import jax, jax.numpy as jnp
    >>> from jsage import GraphSAGE, from_edges, full_block
    >>> graph, features = from_edges(src=[1, 2, 0], dst=[0, 0, 1], num_nodes=3), jnp.eye(3)
    >>> model = GraphSAGE(hidden=8, out=4)
    >>> params = model.init(jax.random.key(0), features, (full_block(graph),) * 2)
    >>> embed_all(model, params, graph, features).shape
    (3, 4)
    >>> embed_all(model, params, graph, features, nodes=jnp.array([2, 0])).shape
    (2, 4)
    """
    table = as_rows(features)
    check(graph, table, nodes)
    check_one_time(graph, "exact inference")
    model = check_model(model)
    graph, table = jax.device_put((graph, table))
    last = Kept(_inputs(model, params, graph, table), None)
    kept: list[Kept] = []
    for k, step in enumerate(_steps(graph, nodes, model.num_layers)):
        placed = None if step is None else (jnp.asarray(step[0]), jnp.int32(step[1]))
        rows = _layer(model, k, params, last, graph, placed)
        last = Kept(
            rows, None if step is None else jnp.asarray(positions(step[0][: step[1]], graph.num_nodes))
        )
        kept.append(last)
        if not model.jump:
            kept.clear()
    if nodes is None and not model.jump:
        return last.rows
    wanted = jnp.arange(graph.num_nodes) if nodes is None else jnp.asarray(nodes, jnp.int32)
    return _finish(model, params, kept or [last], wanted)


def layer_of(model: Any, params: PyTree, k: int) -> Apply:
    """Layer `k` of a model as a function of rows and a block.

    >>> import jax, jax.numpy as jnp
    >>> from jsage import GraphSAGE
    >>> from jsage.blocks import Tree
    >>> h, block = jnp.ones((2, 3)), Tree(jnp.ones((1, 1), bool))
    >>> model = GraphSAGE(hidden=8, out=4, num_layers=1)
    >>> params = model.init(jax.random.key(0), h, (block,))
    >>> layer_of(model, params, 0)(h, block).shape
    (1, 4)
    """
    return lambda rows, block: model.apply(params, k, rows, block, method="layer")


def check_model(model: Any) -> LayeredModel:
    """The model, or a TypeError that says what it lacks to be run layer by layer.

    >>> check_model("not a model")
    Traceback (most recent call last):
    TypeError: str is no LayeredModel: it lacks num_layers, identity, jump, apply, layer, inputs, finish...
    """
    names = ("num_layers", "identity", "jump", "apply", "layer", "inputs", "finish")
    if missing := [name for name in names if not hasattr(model, name)]:
        raise TypeError(
            f"{type(model).__name__} is no LayeredModel: it lacks {', '.join(missing)}. Exact inference runs "
            "one layer at a time: jsage.typing.LayeredModel says what it calls, GraphSAGE has it all"
        )
    return model


def closure(graph: Graph | GraphBefore, nodes: HostArray, num_layers: int) -> list[Ids]:
    """The nodes whose rows each layer must compute, ascending, for those of `nodes` to be exact.

    >>> from jsage.graph import from_edges
    >>> closure(from_edges([0, 1, 2], [1, 2, 3], num_nodes=4), np.array([3]), num_layers=2)
    [array([2, 3], dtype=int32), array([3], dtype=int32)]
    """
    if isinstance(graph, GraphBefore):
        start, stop = map(np.asarray, _bounds(graph, np.arange(graph.num_nodes, dtype=np.int32)))
        indices = np.asarray(graph.events.indices)
    else:
        indptr, indices = np.asarray(graph.indptr), np.asarray(graph.indices)
        start, stop = indptr[:-1], indptr[1:]
    degree = stop - start
    ids = [np.unique(np.asarray(nodes)).astype(np.int32)]
    for _ in range(num_layers - 1):
        read = np.zeros(graph.num_nodes, bool)
        read[ids[0]] = True
        read[indices[run_positions(start[ids[0]], degree[ids[0]])]] = True
        ids.insert(0, np.flatnonzero(read).astype(np.int32))
    return ids


def edges_into(indptr: np.ndarray, nodes: Ids) -> Int[np.ndarray, " num_edges"]:
    """The positions of the edges into these nodes, node after node.

    >>> edges_into(np.array([0, 2, 2, 5]), np.array([2, 0]))
    array([2, 3, 4, 0, 1])
    """
    return run_positions(indptr[nodes], indptr[nodes + 1] - indptr[nodes])


def positions(ids: Ids, num_nodes: int) -> Int[np.ndarray, " num_nodes"]:
    """Where each node is among these; 0 for one that is not.

    >>> positions(np.array([2, 0]), num_nodes=4)
    array([1, 0, 0, 0], dtype=int32)
    """
    place = np.zeros(num_nodes, np.int32)
    place[ids] = np.arange(ids.size, dtype=np.int32)
    return place


def check(graph: Graph | GraphBefore, features: Any, nodes: HostArray | None) -> None:
    """Raise ValueError for features or nodes that do not fit the graph.

    >>> from jsage.graph import from_edges
    >>> check(from_edges([0], [1], num_nodes=2), np.zeros((3, 8)), None)
    Traceback (most recent call last):
    ValueError: features must be [num_nodes, d] with num_nodes = 2, got shape (3, 8)
    """
    if features is not None and (features.ndim != 2 or features.shape[0] != graph.num_nodes):
        raise ValueError(
            f"features must be [num_nodes, d] with num_nodes = {graph.num_nodes}, got shape {features.shape}"
        )
    if nodes is None:
        return
    if len(check_ids(nodes, graph.num_nodes, "nodes")) == 0:
        raise ValueError("nodes must hold one id at least, got none: leave nodes out for the rows of all")


@jax.jit
def _bounds(graph: Graph | GraphBefore, nodes: Array) -> tuple[Array, Array]:
    """Where each node's edges begin and end among those of `_edges`."""
    if isinstance(graph, GraphBefore):
        return graph.bounds(nodes)
    return take(graph.indptr, nodes), take(graph.indptr, nodes + 1)


def _edges(graph: Graph | GraphBefore) -> Edges:
    """All edges of a graph; as of a time with their ages."""
    if not isinstance(graph, GraphBefore):
        return Edges(graph.indices, dict(graph.edge_data))
    events, time = graph.events, jnp.reshape(jnp.asarray(graph.time), ())
    return Edges(events.indices, dict(graph.with_age(events.edge_data, time)))


def _steps(
    graph: Graph | GraphBefore, nodes: HostArray | None, num_layers: int
) -> list[tuple[Ids, int] | None]:
    """Each layer's nodes, padded, and how many they are; None: all."""
    if nodes is None:
        return [None] * num_layers
    steps: list[tuple[Ids, int] | None] = []
    for ids in closure(graph, nodes, num_layers):
        unit = max(2 ** (int(ids.size - 1).bit_length() - 3), 1)
        padded = np.pad(ids, (0, -ids.size % unit))
        steps.append((padded, ids.size) if padded.size < graph.num_nodes else None)
    return steps


@partial(jax.jit, static_argnums=0)
def _inputs(model: Any, params: PyTree, graph: Graph | GraphBefore, features: Any) -> Any:
    nodes = jnp.arange(graph.num_nodes)
    return model.apply(params, features, nodes, method="inputs")


@partial(jax.jit, static_argnums=(0, 1))
def _layer(
    model: Any,
    k: int,
    params: PyTree,
    below: Kept,
    graph: Graph | GraphBefore,
    step: tuple[Array, Array] | None,
) -> Array:
    ids, count = (jnp.arange(graph.num_nodes), graph.num_nodes) if step is None else step
    apply, (start, stop) = layer_of(model, params, k), _bounds(graph, ids)
    degree = jnp.where(jnp.arange(ids.size) < count, stop - start, 0)
    own = ids if below.place is None else take(below.place, ids)
    edges = _edges(graph)._replace(place=below.place)
    tables = source_tables(apply, below.rows, edges.edge_data)
    return layer_rows(apply, below.rows, tables, Targets(own, start, degree), edges)


@partial(jax.jit, static_argnums=0)
def _finish(model: Any, params: PyTree, kept: list[Kept], wanted: Array) -> Array:
    def part(ids: Array) -> Array:
        rows = [rows_at(layer.rows, ids if layer.place is None else take(layer.place, ids)) for layer in kept]
        return model.apply(params, rows, method="finish") if model.jump else rows[0]

    return in_parts(part, (wanted,), ROWS)
