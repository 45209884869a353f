"""One layer over nodes in parts, with the tables that it reads on the host or on the device."""

import itertools
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, TypeAlias

import jax
import numpy as np
from jaxtyping import Array, PyTree

from jsage._internal.arrays import pad_rows
from jsage.graph import Graph
from jsage.graph.sparse import map_rows
from jsage.infer.embed_all import edges_into, layer_of
from jsage.infer.layer import Edges, Node, Targets, init_states, layer_rows, read_more
from jsage.infer.resumable import Progress, Stage, parts_by_edges
from jsage.infer.tracing import TracingBlock, apply_reduced
from jsage.typing import HostArray

Span: TypeAlias = slice | np.ndarray


class StreamOptions(NamedTuple):
    """How `embed_to_file` goes about it."""

    nodes: HostArray | None = None
    """Whose rows are written, in this order; None: all."""
    rows: int = 65_536
    """Nodes of one part, at most."""
    edges: int = 2**22
    """Edges of one part, at most; a node with more is read in pieces of so many."""
    gather_on_host: bool = False
    """Read neighbors' rows on the host and send only those: for tables that the device cannot hold."""
    seconds: float = 2.0
    """How often progress is recorded."""
    progress: Callable[[Progress], None] | None = None
    """Called after each part."""


class StreamRun(NamedTuple):
    """What all parts share; the graph is on the host."""

    model: Any
    params: PyTree
    graph: Graph
    options: StreamOptions


class LayerInputs(NamedTuple):
    """What a layer reads."""

    rows: Any
    tables: list[np.ndarray]
    place: np.ndarray | None
    """Each node's position in them; None: its id."""
    on_device: tuple[Array, list[Array]] | None
    names: list[str]
    """What the layer's messages read of `edge_data`."""
    levels: int = 1
    """How many times its edges are read."""


class _Read(NamedTuple):
    """What one part reads."""

    rows: Any
    own: Any
    tables: Any
    edges: Edges


def layer_stage(run: StreamRun, k: int, below: LayerInputs, ids: np.ndarray) -> Stage:
    """Layer `k` over these nodes.

    >>> import jax.numpy as jnp
    >>> from jsage import GraphSAGE, from_edges, full_block
    >>> graph, features = from_edges(src=[1, 2, 0], dst=[0, 0, 1], num_nodes=3), np.eye(3)
    >>> model = GraphSAGE(hidden=8, out=4, num_layers=1)
    >>> params = model.init(jax.random.key(0), jnp.asarray(features), (full_block(graph),))
    >>> run = StreamRun(model, params, jax.tree.map(np.asarray, graph), StreamOptions())
    >>> stage = layer_stage(run, 0, LayerInputs(features, [features], None, None, []), np.array([0, 2]))
    >>> stage.shape, stage.compute(0, 2).shape
    ((2, 4), (2, 4))
    """
    indptr, options = np.asarray(run.graph.indptr), run.options
    degree = indptr[ids + 1] - indptr[ids]
    call = partial(_part, run.model, k, run.params)

    def compute(first: int, last: int) -> np.ndarray:
        part, edges = ids[first:last], degree[first:last]
        if edges[0] > options.edges:
            return _hub(run, k, below, part)
        read = _cut(run, below, part, _span(indptr, part))
        spans = read.own, np.cumsum(edges) - edges, edges
        size = min(options.rows, ids.size)
        targets = Targets(*(pad_rows(x.astype(np.int32), size) for x in spans))
        return np.asarray(call(read._replace(own=None), targets))[: last - first]

    read, one = _cut(run, below, ids[:1], slice(0, 0)), pad_rows(ids[:0], 1)
    like = jax.eval_shape(call, read._replace(own=None), Targets(one, one, one))
    parts = parts_by_edges(degree, options.rows, options.edges)
    return Stage(f"layer-{k}", (ids.size, *like.shape[1:]), np.dtype(like.dtype), parts, compute)


def padded(rows: Any, size: int) -> Any:
    """Rows of a table, dense or sparse, with rows of 0 after them.

    >>> padded(np.array([1, 2]), 3)
    array([1, 2, 0])
    """
    return map_rows(lambda x: pad_rows(x, size), rows)


def _span(indptr: np.ndarray, part: np.ndarray) -> Span:
    """Where the edges into these nodes are."""
    if np.all(np.diff(part) == 1):
        return slice(int(indptr[part[0]]), int(indptr[part[-1] + 1]))
    return edges_into(indptr, part)


def _cut(run: StreamRun, below: LayerInputs, part: np.ndarray, span: Span) -> _Read:
    """Own rows and the positions among them, tables, and the edges at these places, of fixed sizes."""
    graph, options = run.graph, run.options
    size = min(options.edges, max(graph.indices.shape[0], 1))
    src = graph.indices[span]
    data = {name: pad_rows(np.asarray(graph.edge_data[name])[span], size) for name in below.names}
    src, own = (src, part) if below.place is None else (below.place[src], below.place[part])
    if below.on_device is not None:
        rows, tables = below.on_device
        return _Read(rows, own, tables, Edges(pad_rows(src, size), data))
    unique, src = np.unique(src, return_inverse=True)
    room = max(1 << int(max(unique.size, 1) - 1).bit_length(), 256)
    tables = [pad_rows(table[unique], room) for table in below.tables]
    edges = Edges(pad_rows(src.astype(np.int32), size), data)
    mine = padded(map_rows(lambda x: x[own], below.rows), options.rows)
    return _Read(mine, np.arange(part.size), tables, edges)


def _hub(run: StreamRun, k: int, below: LayerInputs, part: np.ndarray) -> np.ndarray:
    """One node with more edges than a part holds, a piece at a time."""
    first, last = int(run.graph.indptr[part[0]]), int(run.graph.indptr[part[0] + 1])
    degree: Any = np.array([last - first], np.int32)
    fixed, states, row = (run.model, k, run.params), None, None
    pieces = range(first, last, run.options.edges)
    for level, at in itertools.product(range(below.levels), pieces):
        end = min(at + run.options.edges, last)
        read = _cut(run, below, part, slice(at, end))
        row: Any = map_rows(lambda x, at=read.own[:1]: np.asarray(x)[at], read.rows)
        states = _begin(*fixed, row, read.tables, read.edges.edge_data) if states is None else states
        node = Node(row, degree, states, np.int32(level))
        states = _go_on(*fixed, node, (read.tables, np.int32(end - at), read.edges))
    data = {name: np.asarray(run.graph.edge_data[name])[:1] for name in below.names}
    return np.asarray(_end(*fixed, row, (degree, data, states)))


@partial(jax.jit, static_argnums=(0, 1))
def _part(model: Any, k: int, params: PyTree, read: _Read, targets: Targets) -> Array:
    return layer_rows(layer_of(model, params, k), read.rows, read.tables, targets, read.edges)


@partial(jax.jit, static_argnums=(0, 1))
def _begin(model: Any, k: int, params: PyTree, row: Any, tables: Any, data: Any) -> list[Any]:
    return init_states(layer_of(model, params, k), row, tables, data)


@partial(jax.jit, static_argnums=(0, 1))
def _go_on(model: Any, k: int, params: PyTree, node: Node, read: tuple[Any, Any, Any]) -> list[Any]:
    return read_more(layer_of(model, params, k), node, *read)


@partial(jax.jit, static_argnums=(0, 1))
def _end(model: Any, k: int, params: PyTree, row: Any, read: tuple[Any, Any, Any]) -> Array:
    return apply_reduced(layer_of(model, params, k), row, TracingBlock(*read))
