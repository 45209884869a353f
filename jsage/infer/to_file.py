"""Exact embeddings written to a file part by part: tables on the host or memory-mapped, resumable."""

import re
from collections.abc import Callable, Generator, Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from jsage.graph import Graph
from jsage.graph.sparse import Features, as_rows, is_sparse, map_rows
from jsage.infer.embed_all import check, check_model, closure, layer_of, positions
from jsage.infer.layer import Edges, Targets, is_input, layer_rows, made_tables, num_levels, source_tables
from jsage.infer.parts import LayerInputs, StreamOptions, StreamRun, layer_stage, padded
from jsage.infer.resumable import Stage, Stages, fingerprint, parts_of, write_stages
from jsage.infer.tracing import names_read
from jsage.typing import EdgeData

Read = Callable[[int, int], list[Any]]


def embed_to_file(
    path: str,
    model: Any,
    params: PyTree,
    graph: Graph,
    features: Features | None,
    options: StreamOptions = StreamOptions(),  # noqa: B008
) -> None:
    """Write what `embed_all` gives to `path`, a `.npy` file that appears once it is complete.

    The tables may be memory maps (`jsage.data.open`). Layers are written beside the file, in a folder
    `.NAME.part`; a run that was killed goes on there when it is called again, and its file has the same bits.
    On the device are the table that a layer reads (on a CPU the file itself, not a copy) and one part; with
    `gather_on_host` one part alone, and the words of sparse features. A node with more edges than a part
    holds is read in pieces. Rows that a `.npy` has no name for, bfloat16, are written as float32.

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
    given = as_rows(features)
    check(graph, given, options.nodes)
    model = check_model(model)
    table: Any = given if given is None or is_sparse(given) else np.asarray(given)
    run = StreamRun(model, jax.device_put(params), jax.tree.map(np.asarray, graph), options)
    what, stages = _describe(run, table), _stages(run, _placed(table))
    write_stages(path, what, stages, seconds=options.seconds, progress=options.progress)


def _stages(run: StreamRun, features: Any) -> Stages:
    model, every = run.model, np.arange(run.graph.num_nodes, dtype=np.int32)
    wanted = every if run.options.nodes is None else np.asarray(run.options.nodes, np.int32)
    rows: Any = features
    place, kept = None, []
    if model.identity is not None or features is None or _cut(run, features):
        read: Read = lambda first, last: [_slice(features, first, last), every[first:last]]  # noqa: E731
        stage = _rowwise(run, "inputs", partial(_inputs, model, run.params), read, every.size)
        rows = yield from _kept(stage)
    for k, ids in enumerate(_layers(run, wanted)):
        names, same, levels = _read_by(run, k, rows)
        tables = yield from _sent(run, k, rows, same)
        device = None if run.options.gather_on_host else jax.device_put((rows, tables))
        below = LayerInputs(rows, tables, place, device, names, levels)
        stage = layer_stage(run, k, below, every if ids is None else ids)
        last = k == model.num_layers - 1 and not model.jump
        rows = (yield _named(stage)) if last else (yield from _kept(stage))
        place = None if ids is None else positions(ids, every.size)
        kept.append((rows, place))
    if model.jump:
        read = lambda first, last: [_at(rows, place, wanted[first:last]) for rows, place in kept]  # noqa: E731
        yield _named(_rowwise(run, "finish", partial(_finish, model, run.params), read, wanted.size))


def _placed(features: Any) -> Any:
    """Sparse rows with their words on the device; others as they are."""
    if not is_sparse(features):
        return features
    placed = jax.device_put(features)
    return placed._replace(start=np.asarray(features.start), length=np.asarray(features.length))


def _cut(run: StreamRun, features: Any) -> bool:
    """Whether the first layer reads fewer columns than there are."""
    if is_sparse(features):
        return False
    one = jax.ShapeDtypeStruct((1, features.shape[1]), features.dtype)
    return (
        jax.eval_shape(partial(_inputs, run.model), run.params, one, np.zeros(1, np.int32)).shape != one.shape
    )


def _named(stage: Stage) -> Stage:
    """A stage in a dtype that a `.npy` has a name for: float32 for bfloat16."""
    return stage._replace(dtype=np.dtype(np.float32)) if stage.dtype.kind == "V" else stage


def _kept(stage: Stage) -> Generator[Stage, np.ndarray, np.ndarray]:
    """A stage in its own dtype: rows of one that a `.npy` has no name for are written as their bits."""
    if stage.dtype.kind != "V":
        return (yield stage)
    bits = np.dtype(f"u{stage.dtype.itemsize}")
    rows = yield stage._replace(dtype=bits, compute=lambda *part: stage.compute(*part).view(bits))
    return rows.view(stage.dtype)


def _layers(run: StreamRun, wanted: np.ndarray) -> list[Any]:
    """The nodes of each layer; None: all."""
    depth = run.model.num_layers
    if run.options.nodes is None:
        return [None] * depth
    below = closure(run.graph, wanted, depth)
    return [*below[:-1], below[-1] if run.model.jump else wanted]


def _sent(
    run: StreamRun, k: int, rows: Any, same: list[bool]
) -> Generator[Stage, np.ndarray, list[np.ndarray]]:
    """The tables that layer `k` reads of neighbors; those that it makes are stages of their own."""
    tables, edge_data = [], _shapes(run.graph)
    for i, skip in enumerate(same):
        if not skip:
            others = tuple(j != i for j in range(len(same)))
            make = partial(_send, run.model, k, others, run.params, edge_data)
            read: Read = lambda first, last: [_slice(rows, first, last)]  # noqa: E731
            tables.append((yield from _kept(_rowwise(run, f"sent-{k}-{i}", make, read, rows.shape[0]))))
        else:
            tables.append(rows)
    return tables


def _rowwise(run: StreamRun, name: str, function: Callable[..., Any], read: Read, total: int) -> Stage:
    """A stage whose rows are a function of the same rows of what `read` reads."""
    size = min(run.options.rows, total)

    def compute(first: int, last: int) -> np.ndarray:
        cut = [None if array is None else padded(array, size) for array in read(first, last)]
        return np.asarray(function(*cut))[: last - first]

    like = jax.eval_shape(function, *read(0, 1))
    return Stage(name, (total, *like.shape[1:]), np.dtype(like.dtype), parts_of(total, size), compute)


def _slice(array: Any, first: int, last: int) -> Any:
    return None if array is None else map_rows(lambda x: x[first:last], array)


def _at(rows: np.ndarray, place: np.ndarray | None, ids: np.ndarray) -> np.ndarray:
    return rows[ids if place is None else place[ids]]


def _describe(run: StreamRun, features: Any) -> dict[str, Any]:
    """What the run is: a hash of every number that it reads."""
    _, params, graph, options = run
    flat = jax.tree_util.tree_flatten_with_path(params)[0]
    named = [(jax.tree_util.keystr(path), np.asarray(leaf)) for path, leaf in flat]
    words = {"features": features}
    if is_sparse(features):
        words = {f"features.{name}": x for name, x in features._asdict().items()}
    tables = {**words, "indices": graph.indices, **graph.edge_data}
    sizes = {name: None if x is None else f"{x.dtype}{list(x.shape)}" for name, x in tables.items()}
    values = [(name, x) for name, x in tables.items() if x is not None]
    nodes = [] if options.nodes is None else [("nodes", options.nodes)]
    return {
        "parameters": fingerprint(iter(named)),
        "model": _program(run, features),
        "tables": {"num_nodes": graph.num_nodes, **sizes},
        "values": fingerprint(iter([("indptr", graph.indptr), *values])),
        "nodes": fingerprint(iter(nodes)),
        "parts": [options.rows, options.edges, options.gather_on_host],
        "jax": [jax.__version__, jax.default_backend()],
    }


def _program(run: StreamRun, features: Any) -> str:
    """A hash of what the model computes: its layers' programs on two nodes."""

    model, params, edge_data = run.model, run.params, _shapes(run.graph)

    def whole(params: PyTree, features: Any, edge_data: Any) -> list[Any]:
        ids, targets = jnp.arange(2), Targets(*[jnp.zeros(2, jnp.int32)] * 3)
        h, kept = _inputs(model, params, features, ids), []
        for k in range(model.num_layers):
            tables = source_tables(layer_of(model, params, k), h, edge_data)
            h = layer_rows(layer_of(model, params, k), h, tables, targets, Edges(ids, edge_data))
            kept.append(h)
        return [h, model.apply(params, kept, method="finish") if model.jump else h]

    two = None if features is None else _two(features)
    program = jax.make_jaxpr(whole)(params, two, edge_data)
    text = re.sub(r" at 0x[0-9a-f]+", "", str(program))
    return fingerprint(iter([(text, np.zeros(0)), *(("", x) for x in _constants(program))]))


def _constants(program: Any) -> Iterator[Any]:
    """The arrays that a jaxpr and those within it hold."""
    for x in getattr(program, "consts", ()):
        yield jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x
    for step in program.eqns:
        yield from (x.val for x in step.invars if np.ndim(getattr(x, "val", 0)))
        for inner in jax.tree.leaves(step.params, is_leaf=lambda x: hasattr(x, "eqns")):
            yield from _constants(inner) if hasattr(inner, "eqns") else ()


@partial(jax.jit, static_argnums=0)
def _inputs(model: Any, params: PyTree, features: Any, nodes: Any) -> Any:
    return model.apply(params, features, nodes, method="inputs")


@partial(jax.jit, static_argnums=0)
def _finish(model: Any, params: PyTree, *rows: Any) -> Array:
    return model.apply(params, rows, method="finish")


@partial(jax.jit, static_argnums=(0, 1, 2))
def _send(
    model: Any, k: int, skip: tuple[bool, ...], params: PyTree, edge_data: EdgeData, rows: Any
) -> Array:
    return made_tables(layer_of(model, params, k), rows, list(skip), edge_data)[0]


def _read_by(run: StreamRun, k: int, rows: Any) -> tuple[list[str], list[bool], int]:
    """What layer `k` reads of `edge_data`, which tables that it sends are its own input, and its levels."""
    found: list[Any] = []

    def look(params: PyTree, rows: Array, edge_data: EdgeData) -> None:
        apply = layer_of(run.model, params, k)
        found.extend(learn(apply, rows, edge_data) for learn in (names_read, is_input, num_levels))

    two = _two(rows)
    jax.eval_shape(look, run.params, two, _shapes(run.graph))
    names, same, levels = found
    return names, same, levels


def _two(rows: Any) -> Any:
    """The shapes of two rows of a table."""
    if is_sparse(rows):
        like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), rows)
        two = jax.ShapeDtypeStruct((2,), np.int32)
        return like._replace(start=two, length=two)
    return jax.ShapeDtypeStruct((2, *rows.shape[1:]), rows.dtype)


def _shapes(graph: Graph) -> dict[str, np.ndarray]:
    """Two rows of zeros like those of each array of `edge_data`."""
    return {name: np.zeros((2, *x.shape[1:]), x.dtype) for name, x in graph.edge_data.items()}
