"""Write sampler, model and parameters as one directory of `jax.export` programs, to be served without flax.

    export.save("artefact", model.apply, params, graph, features, export.Plan(fanouts=(25, 10)))

    meta.json               fanouts, shapes, dtypes, versions, platforms, and the SHA-256 of every other file
    params.npz              the parameters, plain arrays
    embed-16.exported       one program for each function and batch size, for all platforms at once
    loader/                 a copy of jsage/artefact: loads and runs all this with jax, NumPy and flatbuffers

The graph and the features are arguments of the programs, with any number of nodes and edges.
"""

import hashlib
import io
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from importlib import resources
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax import export
from jaxtyping import Array, Int, PyTree

from jsage._internal.files import new_directory
from jsage.blocks import as_tree
from jsage.blocks.layout import Block
from jsage.graph import Graph, TimeSortedGraph
from jsage.graph.adjacency import Adjacency
from jsage.graph.overlay import GraphOverlay
from jsage.graph.sparse import Features, SparseRows, as_rows, is_sparse
from jsage.sampling import ByNode, TimedNodes, sample_blocks_by_node, sample_temporal_blocks
from jsage.serving.runtime.checks import dtype_of
from jsage.serving.runtime.files import FORMAT, META, PARAMS, VERSION, checksum, described
from jsage.serving.runtime.meta import SPARSE, inputs_of
from jsage.serving.runtime.operations import check_operations
from jsage.typing import PRNGKey

BlocksFn: TypeAlias = Callable[[PRNGKey, Adjacency, Int[Array, " n"], Sequence[int]], tuple[Block, ...]]
"""`(key, graph, seeds, fanouts) -> blocks`; for `embed_new` it must read any `Adjacency`."""
TimedBlocksFn: TypeAlias = Callable[[PRNGKey, Any, TimedNodes, Sequence[int]], tuple[Block, ...]]
"""`(key, graph, seeds with times, fanouts) -> blocks`, as `sample_temporal_blocks`."""
Apply: TypeAlias = Callable[[PyTree, Array, Sequence[Block]], Any]
"""`(variables, features, blocks) -> rows`, deterministic: a flax model's `apply`."""

PLATFORMS = ("cpu", "cuda", "rocm", "tpu")


class Plan(NamedTuple):
    """What an artefact is for."""

    fanouts: tuple[int, ...]
    """Adjacency drawn a hop, the one next to the seeds first; at least the largest degree: exact."""
    sizes: tuple[int, ...] = (1, 16, 128)
    """The batch sizes of `embed`; each is a program."""
    new_sizes: tuple[int, ...] = (1, 16)
    """The numbers of new nodes of `embed_new`."""
    new_edges: int = 64
    """Edges for each new node of those sizes."""
    new_words: int = 1024
    """Numbers that are not 0 for each new node of those sizes, where features are sparse."""
    platforms: tuple[str, ...] = ("cpu",)
    """`cpu`, `cuda`, `rocm`, `tpu`: none of them need be here."""
    seed: int = 0
    """The draws are those of `jax.random.key(seed)`, for ever."""
    sampler: BlocksFn = sample_blocks_by_node
    about: Mapping[str, Any] = {}
    """What else `meta.json` should say, as JSON."""
    at_sizes: tuple[int, ...] = ()
    """The batch sizes of `embed_at`: nodes, each as of a time. The graph is then one of `sort_by_time`."""
    sampler_at: TimedBlocksFn = partial(sample_temporal_blocks, draw=ByNode())
    """With other options, what a model was trained with: `partial(sample_temporal_blocks, visible=up_to)`."""


def save(
    path: str | Path, apply: Apply, variables: PyTree, graph: Graph, features: Features, plan: Plan
) -> None:
    """Write an artefact as a new directory; it appears whole, under its name, or not at all.

    Of `graph` and `features` only widths and dtypes are kept. Features may be `jsage.graph.SparseRows`; then
    new nodes' rows are sparse in the program too. What a killed process left of it is removed.
    Raises FileExistsError if `path` exists and is no empty directory, BlockingIOError while another process
    writes it, ValueError for a plan that cannot be or a model that calls foreign code, and what tracing
    `apply` raises.

    >>> import tempfile
    >>> from jsage.serving.runtime import load
    >>> from jsage.graph import from_edges
    >>> graph, features = from_edges([1, 2], [0, 0], num_nodes=3), np.eye(3, dtype=np.float32)
    >>> apply = lambda variables, h, blocks: variables["scale"] * blocks[0].sum(h)
    >>> plan = Plan(fanouts=(4,), sizes=(2,), new_sizes=())
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save(f"{folder}/artefact", apply, {"scale": jnp.float32(10)}, graph, features, plan)
    ...     artefact = load(f"{folder}/artefact")
    >>> embedder = artefact.place(tables_of(graph, features))
    >>> embedder.embed([0])
    array([[ 0., 10., 10.]], dtype=float32)
    """
    features = as_rows(features)
    _check(plan, graph, features)
    with new_directory(Path(path)) as part:
        files: dict[str, dict] = {}
        meta = {"format": FORMAT, "version": VERSION, "versions": _versions(), **_plan(plan)}
        words = plan.new_words if is_sparse(features) else 0
        meta |= {"tables": _tables(graph, features), "params": [], "programs": [], "files": files}
        meta["features"] = {"width": features.shape[1], "words": words}
        for name, data in _contents(meta, apply, variables, plan):
            _write(part / name, data)
            files[name] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        whole = {"sha256": checksum(meta), "artefact": meta}
        _write(part / META, json.dumps(whole, indent=1, allow_nan=False).encode())


def _contents(meta: dict, apply: Apply, variables: PyTree, plan: Plan) -> Iterator[tuple[str, bytes]]:
    """The files and what they hold; `meta` learns of parameters and programs as they come."""
    leaves, tree = jax.tree_util.tree_flatten_with_path(variables)
    named = {
        jax.tree_util.keystr(path, simple=True, separator="/") or "variables": np.asarray(leaf)
        for path, leaf in leaves
    }
    meta["params"] = [{"name": name, **spec} for name, spec in described(named).items()]
    buffer = io.BytesIO()
    stored = {name: a.view(np.uint16) if a.dtype == jnp.bfloat16 else a for name, a in named.items()}
    # Without allow_pickle=False, which numpy 2.0 takes for one more array.
    np.savez(buffer, **stored)  # type: ignore[arg-type]
    yield PARAMS, buffer.getvalue()

    def whole(params: list, features: Array, blocks: Sequence[Block]) -> Array:
        return apply(jax.tree_util.tree_unflatten(tree, params), features, blocks)

    width = meta["features"]["width"]
    made = [("embed", size, _embed(whole, plan, width)) for size in plan.sizes]
    made += [("embed_at", size, _embed_at(whole, plan, width)) for size in plan.at_sizes]
    made += [("embed_new", size, _embed_new(whole, plan, width)) for size in plan.new_sizes]
    for function, size, run in made:
        entry = {"function": function, "size": size, "file": f"{function}-{size}.exported"}
        entry["inputs"] = inputs_of(meta, function, size)
        yield entry["file"], _program(meta, entry, run, plan)
        meta["programs"].append(entry)
    for file in resources.files("jsage.serving.runtime").iterdir():
        if file.name.endswith(".py"):
            yield f"loader/{file.name}", file.read_bytes()


def _program(meta: dict, entry: dict, run: Callable, plan: Plan) -> bytes:
    exported = export.export(jax.jit(run), platforms=plan.platforms)(*_arguments(meta, entry))
    output, *more = exported.out_avals
    if more or len(output.shape) != 2 or output.shape[0] != entry["size"]:
        shapes = [aval.shape for aval in exported.out_avals]
        raise ValueError(f"apply must give one row a seed, [{entry['size']}, width], got {shapes}")
    meta["output"] = {"width": output.shape[1], "dtype": output.dtype.name}
    try:
        check_operations(exported)
    except ValueError as error:
        raise ValueError(
            f"no loader would take {entry['file']}: {error}: write apply without them"
        ) from error
    return bytes(exported.serialize())


def _arguments(meta: dict, entry: dict) -> tuple[list, dict, dict]:
    """The shapes and dtypes that a program takes: parameters, tables, inputs."""
    scope = export.SymbolicScope()

    def shaped(spec: dict) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(
            export.symbolic_shape(spec["shape"], scope=scope), dtype_of(spec["dtype"])
        )

    both = meta["tables"], entry["inputs"]
    tables, inputs = ({name: shaped(spec) for name, spec in specs.items()} for specs in both)
    return [shaped(spec) for spec in meta["params"]], tables, inputs


def _embed(apply: Apply, plan: Plan, width: int) -> Callable:
    def embed(params: list, tables: dict, inputs: dict) -> Array:
        blocks = plan.sampler(jax.random.key(plan.seed), _graph(tables), inputs["seeds"], plan.fanouts)
        return apply(params, _features(tables, width), blocks)

    return embed


def _embed_at(apply: Apply, plan: Plan, width: int) -> Callable:
    def embed_at(params: list, tables: dict, inputs: dict) -> Array:
        seeds, graph = TimedNodes(inputs["seeds"], inputs["times"]), TimeSortedGraph(*_graph(tables))
        blocks = plan.sampler_at(jax.random.key(plan.seed), graph, seeds, plan.fanouts)
        return apply(params, _features(tables, width), blocks)

    return embed_at


def _embed_new(apply: Apply, plan: Plan, width: int) -> Callable:
    def embed_new(params: list, tables: dict, inputs: dict) -> Array:
        known, features = inputs["num_nodes"], _features(inputs, width)
        ends = inputs["src"], inputs["dst"]
        graph = GraphOverlay(_graph(tables), known, features, *ends, _edge_data(inputs))
        seeds = known + jnp.arange(features.shape[0], dtype=jnp.int32)
        blocks: Any = plan.sampler(jax.random.key(plan.seed), graph, seeds, plan.fanouts)
        ids, tree = as_tree(blocks[0])  # rows of two tables, so they are copied
        return apply(params, graph.rows(_features(tables, width), ids), (tree, *blocks[1:]))

    return embed_new


def _graph(tables: dict) -> Graph:
    return Graph(tables["indptr"], tables["indices"], _edge_data(tables))


def _features(arrays: dict, width: int) -> Any:
    """A table, or sparse rows of so many columns."""
    if "features" in arrays:
        return arrays["features"]
    parts = [arrays[name] for name in SPARSE]
    return SparseRows(*parts, columns=jnp.zeros((width, 0), parts[-1].dtype))


def _edge_data(arrays: dict) -> dict[str, Array]:
    return {name.removeprefix("edge_"): a for name, a in arrays.items() if name.startswith("edge_")}


def tables_of(graph: Graph, features: Features) -> dict[str, Any]:
    """A graph and its features, dense or sparse, under the names that `Artifact.place` takes.

    >>> from jsage.graph import from_edges, sparse_rows
    >>> graph = from_edges([1, 2], [0, 0], num_nodes=3)
    >>> list(tables_of(graph, np.eye(3)))
    ['indptr', 'indices', 'features']
    >>> list(tables_of(graph, sparse_rows(np.eye(3))))[2:]
    ['features_start', 'features_length', 'features_indices', 'features_values']
    """
    features = as_rows(features)
    rows = dict(zip(SPARSE, features, strict=False)) if is_sparse(features) else {"features": features}
    edge_data = {f"edge_{name}": values for name, values in graph.edge_data.items()}
    return {"indptr": graph.indptr, "indices": graph.indices, **rows, **edge_data}


def _tables(graph: Graph, features: Any) -> dict[str, dict]:
    """Shapes and dtypes, the numbers of nodes, edges and words left open."""
    first = {"indptr": "num_nodes + 1", "indices": "num_edges", "features": "num_nodes", **SPARSE}
    return {
        name: {
            "shape": ", ".join([first.get(name, "num_edges"), *map(str, array.shape[1:])]),
            "dtype": array.dtype.name,
        }
        for name, array in tables_of(graph, features).items()
    }


def _plan(plan: Plan) -> dict:
    fields = {name: value for name, value in plan._asdict().items() if not name.startswith("sampler")}
    return fields | {"sampler": getattr(plan.sampler, "__name__", "sampler"), "about": dict(plan.about)}


def _check(plan: Plan, graph: Graph, features: Any) -> None:
    if len(features.shape) != 2:
        raise ValueError(f"features must be one row a node, [num_nodes, width], got shape {features.shape}")
    if not plan.sizes + plan.at_sizes:
        raise ValueError("sizes must name at least one batch size of embed, got none (nor at_sizes)")
    if plan.at_sizes and not isinstance(graph, TimeSortedGraph):
        raise ValueError(
            f"at_sizes need a graph whose rows are in order of time, got a {type(graph).__name__}: pass "
            "jsage.graph.sort_by_time(graph)"
        )
    sizes = (*plan.sizes, *plan.at_sizes, *plan.new_sizes)
    numbers = (*plan.fanouts, *sizes, plan.new_edges, plan.new_words)
    if not plan.fanouts or min(numbers) < 1:
        raise ValueError(
            f"fanouts, sizes, new_edges and new_words must be positive numbers, got {plan._asdict()}"
        )
    if not plan.platforms or not set(plan.platforms) <= set(PLATFORMS):
        raise ValueError(f"platforms must be some of {', '.join(PLATFORMS)}, got {plan.platforms}")


def _versions() -> dict[str, str]:
    found = {"jax": jax.__version__, "numpy": np.__version__}
    for name in ("jaxlib", "jsage"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "unknown"
    return found


def _write(path: Path, data: bytes) -> None:
    path.parent.mkdir(exist_ok=True)
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
