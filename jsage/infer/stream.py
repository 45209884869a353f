"""Exact embeddings written to a file part by part: tables on the host or memory-mapped, resumable."""

import re
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from jsage.graph import Graph
from jsage.infer.exchange import answered
from jsage.infer.layer import Edges, Targets, begin, changed, go_on, receive, send, unchanged
from jsage.infer.record import Progress, Stage, Stages, fingerprint, parts_by_edges, parts_of, write_stages
from jsage.infer.whole import check, closure, edges_into, layer_of, positions
from jsage.typing import HostArray


class Streaming(NamedTuple):
    """How `embed_to_file` goes about it."""

    nodes: HostArray | None = None
    """Whose rows are written, in this order; None: all."""
    rows: int = 16_384
    """Nodes of one part, at most."""
    edges: int = 2**20
    """Edges of one part, at most; a node with more is read in pieces of so many."""
    gather_on_host: bool = False
    """Read neighbours' rows on the host and send only those: for tables that the device cannot hold."""
    seconds: float = 2.0
    """How often progress is recorded."""
    progress: Callable[[Progress], None] | None = None
    """Called after each part."""


class _Below(NamedTuple):
    """What a layer reads."""

    rows: np.ndarray
    tables: list[np.ndarray]
    place: np.ndarray | None
    """Each node's position in them; None: its id."""
    on_device: tuple[Array, list[Array]] | None


def embed_to_file(
    path: str,
    model: Any,
    params: PyTree,
    graph: Graph,
    features: Float[HostArray, "num_nodes d"] | None,
    options: Streaming = Streaming(),  # noqa: B008
) -> None:
    """Write what `embed_all` gives to `path`, a `.npy` file that appears once it is complete.

    The tables may be memory maps (`jsage.data.open`). Layers are written beside the file, in a folder
    `.NAME.part`; a run that was killed goes on there when it is called again, and its file has the same bits.
    On the device are the table that a layer reads (on a CPU the file itself, not a copy) and one part; with
    `gather_on_host` one part alone. A node with more edges than a part holds is read in pieces.

    Raises ValueError for input that does not fit, a folder left by another run, or one that is damaged.

    >>> import tempfile, jax
    >>> from jsage import GraphSAGE, from_edges, full_block
    >>> graph, features = from_edges(src=[1, 2, 0], dst=[0, 0, 1], num_nodes=3), jnp.eye(3)
    >>> model = GraphSAGE(hidden=8, out=4)
    >>> params = model.init(jax.random.key(0), features, (full_block(graph),) * 2)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     embed_to_file(f"{folder}/all.npy", model, params, graph, features)
    ...     np.load(f"{folder}/all.npy").shape
    (3, 4)
    """
    check(graph, features, options.nodes)
    host: Graph = jax.tree.map(np.asarray, graph)
    table = None if features is None else np.asarray(features)
    run = _describe(model, params, host, table, options)
    stages = _stages(model, jax.device_put(params), host, table, options)
    write_stages(path, run, stages, seconds=options.seconds, progress=options.progress)


def _stages(
    model: Any, params: PyTree, graph: Graph, features: np.ndarray | None, options: Streaming
) -> Stages:
    wanted = None if options.nodes is None else np.asarray(options.nodes, np.int32)
    layers: list[Any] = [None] * model.num_layers
    if wanted is not None:
        layers = [*closure(graph, wanted, model.num_layers)[:-1], wanted]
        layers = [*layers[:-1], np.unique(wanted)] if model.jump else layers
    every = np.arange(graph.num_nodes, dtype=np.int32)
    if model.identity is None and features is not None:
        rows = features
    else:
        rows = yield _rowwise("inputs", partial(_inputs, model, params), [features, every], options)
    place, kept = None, []
    for k, nodes in enumerate(layers):
        tables = yield from _sent(model, params, k, rows, options)
        device = None if options.gather_on_host else jax.device_put((rows, tables))
        below = _Below(rows, tables, place, device)
        ids = every if nodes is None else nodes
        rows = yield _layer(model, params, k, below, ids, graph, options)
        place = None if nodes is None else positions(ids, graph.num_nodes)
        kept.append((rows, place))
    if model.jump:
        ids = every if wanted is None else wanted
        at = [ids if place is None else place[ids] for _, place in kept]
        tables = [rows for rows, _ in kept]
        yield _rowwise("finish", partial(_finish, model, params, tables), [*at], options)


def _sent(model: Any, params: PyTree, k: int, rows: np.ndarray, options: Streaming):
    """The tables that layer `k` reads of neighbours; those that it makes are stages of their own."""
    tables, same = [], _same(model, params, k, rows)
    for i, skip in enumerate(same):
        if skip:
            tables.append(rows)
        else:
            only = tuple(j != i for j in range(len(same)))
            send = partial(_send, model, k, only, params)
            tables.append((yield _rowwise(f"sent-{k}-{i}", send, [rows], options)))
    return tables


def _rowwise(
    name: str, function: Callable[..., Any], arrays: list[np.ndarray | None], options: Streaming
) -> Stage:
    """A stage whose rows are a function of the same rows of some arrays."""
    total = next(len(array) for array in arrays if array is not None)

    def compute(first: int, last: int) -> np.ndarray:
        size = min(options.rows, total)
        cut = [None if array is None else _padded(array[first:last], size) for array in arrays]
        return np.asarray(function(*cut))[: last - first]

    shape = jax.eval_shape(
        function, *[None if a is None else jax.ShapeDtypeStruct((2, *a.shape[1:]), a.dtype) for a in arrays]
    )
    return Stage(name, (total, shape.shape[1]), np.dtype(shape.dtype), parts_of(total, options.rows), compute)


def _layer(
    model: Any, params: PyTree, k: int, below: _Below, ids: np.ndarray, graph: Graph, options: Streaming
) -> Stage:
    degree = graph.indptr[ids + 1] - graph.indptr[ids]
    call = partial(_part, model, k, params)
    cut = partial(_cut, below, graph=graph, options=options)

    def compute(first: int, last: int) -> np.ndarray:
        part = ids[first:last]
        if degree[first] > options.edges:
            return _hub(model, k, params, cut, part)
        own, table, edges = cut(part, edges_into(graph.indptr, part))
        start = np.cumsum(degree[first:last]) - degree[first:last]
        size = min(options.rows, ids.size)
        spans = (own[1], start, degree[first:last])
        targets = Targets(*(_padded(x.astype(np.int32), size) for x in spans))
        return np.asarray(call(own[0], table, targets, edges))[: last - first]

    own, table, edges = cut(ids[:1], np.zeros(0, np.int64))
    like = jax.eval_shape(call, own[0], table, Targets(*[np.zeros(1, np.int32)] * 3), edges)
    parts = parts_by_edges(degree, options.rows, options.edges)
    return Stage(f"layer-{k}", (ids.size, like.shape[1]), np.dtype(like.dtype), parts, compute)


def _cut(below: _Below, part: np.ndarray, at: np.ndarray, *, graph: Graph, options: Streaming):
    """Own rows and the positions among them, tables, and the edges at these places, of fixed sizes."""
    contiguous = at.size > 0 and at[-1] - at[0] == at.size - 1
    span = slice(at[0], at[-1] + 1) if contiguous else at
    src, weight = graph.indices[span], graph.edge_data.get("weight")
    src, own = (src, part) if below.place is None else (below.place[src], below.place[part])
    weight = None if weight is None else _padded(weight[span], options.edges)
    if below.on_device is not None:
        rows, tables = below.on_device
        return (rows, own), tables, Edges(_padded(src, options.edges), weight)
    unique, src = np.unique(src, return_inverse=True)
    size = max(1 << int(unique.size - 1).bit_length() if unique.size else 1, 256)
    tables = [_padded(table[unique], size) for table in below.tables]
    edges = Edges(_padded(src.astype(np.int32), options.edges), weight)
    return (_padded(below.rows[own], options.rows), np.arange(part.size)), tables, edges


def _hub(model: Any, k: int, params: PyTree, cut: Callable[..., Any], part: np.ndarray) -> np.ndarray:
    """One node with more edges than a part holds, a piece at a time."""
    graph, size = cut.keywords["graph"], cut.keywords["options"].edges
    first, last = int(graph.indptr[part[0]]), int(graph.indptr[part[0] + 1])
    states = None
    for at in range(first, last, size):
        count = min(size, last - at)
        own, tables, edges = cut(part, np.arange(at, at + count))
        row = np.asarray(own[0][own[1][:1]])
        states = _begin(model, k, params, row, tables) if states is None else states
        states = _go_on(model, k, params, row, states, (tables, np.int32(count), edges))
    return np.asarray(_end(model, k, params, row, np.array([last - first], np.int32), states))


def _padded(array: np.ndarray, size: int) -> np.ndarray:
    if len(array) == size:
        return np.ascontiguousarray(array)
    out = np.zeros((size, *array.shape[1:]), array.dtype)
    out[: len(array)] = array
    return out


def _describe(
    model: Any, params: PyTree, graph: Graph, features: np.ndarray | None, options: Streaming
) -> dict[str, Any]:
    """What the run is; large tables by their shapes, types and evenly spaced rows."""
    flat = jax.tree_util.tree_flatten_with_path(params)[0]
    named = [(jax.tree_util.keystr(path), np.asarray(leaf)) for path, leaf in flat]
    tables = {"features": features, "indices": graph.indices, **graph.edge_data}
    sizes = {name: None if x is None else f"{x.dtype}{list(x.shape)}" for name, x in tables.items()}
    spaced = [(name, x[:: max(len(x) >> 16, 1)]) for name, x in tables.items() if x is not None]
    nodes = [] if options.nodes is None else [("nodes", options.nodes)]
    return {
        "parameters": fingerprint(iter(named)),
        "model": _program(model, params, features),
        "tables": {"num_nodes": graph.num_nodes, **sizes},
        "values": fingerprint(iter([("indptr", graph.indptr), *spaced])),
        "nodes": fingerprint(iter(nodes)),
        "parts": [options.rows, options.edges, options.gather_on_host],
        "jax": [jax.__version__, jax.default_backend()],
    }


def _program(model: Any, params: PyTree, features: np.ndarray | None) -> str:
    """A hash of what the model computes: its layers' programs on two nodes."""

    def whole(params: PyTree, features: Any) -> list[Any]:
        ids, targets = jnp.arange(2), Targets(*[jnp.zeros(2, jnp.int32)] * 3)
        h, kept = _inputs(model, params, features, ids), []
        for k in range(model.num_layers):
            tables = send(layer_of(model, params, k), h)
            h = receive(layer_of(model, params, k), h, tables, targets, Edges(ids))
            kept.append(h)
        return [h, model.apply(params, kept, method="finish") if model.jump else h]

    two = None if features is None else jax.ShapeDtypeStruct((2, features.shape[1]), features.dtype)
    text = re.sub(r" at 0x[0-9a-f]+", "", str(jax.make_jaxpr(whole)(params, two)))
    return fingerprint(iter([(text, np.zeros(0))]))


@partial(jax.jit, static_argnums=0)
def _inputs(model: Any, params: PyTree, features: Any, nodes: Any) -> Array:
    return model.apply(params, features, nodes, method="inputs")


@partial(jax.jit, static_argnums=(0, 1, 2))
def _send(model: Any, k: int, skip: tuple[bool, ...], params: PyTree, rows: Any) -> Array:
    return changed(layer_of(model, params, k), rows, list(skip))[0]


def _same(model: Any, params: PyTree, k: int, rows: np.ndarray) -> list[bool]:
    """Which of the tables that a layer sends are its own input."""
    found: list[bool] = []

    def look(params: PyTree, rows: Array) -> None:
        found.extend(unchanged(layer_of(model, params, k), rows))

    jax.eval_shape(look, params, jax.ShapeDtypeStruct((2, *rows.shape[1:]), rows.dtype))
    return found


@partial(jax.jit, static_argnums=(0, 1))
def _part(
    model: Any, k: int, params: PyTree, rows: Any, tables: Any, targets: Targets, edges: Edges
) -> Array:
    return receive(layer_of(model, params, k), rows, tables, targets, edges)


@partial(jax.jit, static_argnums=(0, 1))
def _begin(model: Any, k: int, params: PyTree, row: Any, tables: Any) -> list[Any]:
    return begin(layer_of(model, params, k), row, tables)


@partial(jax.jit, static_argnums=(0, 1))
def _go_on(
    model: Any, k: int, params: PyTree, row: Any, states: Any, read: tuple[Any, Any, Any]
) -> list[Any]:
    return go_on(layer_of(model, params, k), row, states, *read)


@partial(jax.jit, static_argnums=(0, 1))
def _end(model: Any, k: int, params: PyTree, row: Any, degree: Any, states: Any) -> Array:
    return answered(layer_of(model, params, k), row, degree, states)


def _finish(model: Any, params: PyTree, tables: list[np.ndarray], *at: Any) -> Any:
    if any(isinstance(ids, jax.core.Tracer) for ids in at):
        rows = [jnp.zeros((2, table.shape[1]), table.dtype) for table in tables]
        return model.apply(params, rows, method="finish")
    return _jump(model, params, [table[ids] for table, ids in zip(tables, at, strict=True)])


@partial(jax.jit, static_argnums=0)
def _jump(model: Any, params: PyTree, rows: Any) -> Array:
    return model.apply(params, rows, method="finish")
