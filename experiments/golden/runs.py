"""A case on every layout: outputs, gradients and attention weights, from the same parameters."""

import tempfile
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.golden.files import Case
from experiments.golden.layers import EDGE, Layer, Unsupported
from jsage.blocks import Attention, OwnRows, as_tree, sliced_full_block
from jsage.graph import Graph, from_edges
from jsage.infer import embed_all, embed_to_file
from jsage.nn import GraphSAGE
from jsage.nn.attention import attention_of
from jsage.sampling import full_block

WEIGHTS = ("weight", "own_weight")
NUMBER = "number"
"""The name in `edge_data` of each edge's place in the file."""


class Found(NamedTuple):
    """What one layout gave."""

    out: Any
    grads: Mapping[str, Any]
    """As a case's; empty where the layout has none."""
    weights: Any = None
    """Attention weights in the order of the graph's edges, then own ones."""
    note: str | None = None


class Problem(NamedTuple):
    """A case made ready."""

    case: Case
    layer: Layer
    structure: Graph
    """The graph that the layer reads; `number` says which edge of the file each of its edges is."""
    edge_data: dict[str, jax.Array]
    back: Callable[[dict[str, jax.Array]], dict[str, jax.Array]]
    """Gradients of the case's inputs from those of `edge_data`."""

    @property
    def params(self) -> dict[str, jax.Array]:
        """PyG's, as arrays of jax."""
        return {name: jnp.asarray(x) for name, x in self.case.params.items()}

    @property
    def graph(self) -> Graph:
        """The graph with what the layer reads of its edges."""
        return self.structure._replace(edge_data=self.edge_data)

    @property
    def bipartite(self) -> bool:
        """Whether destinations are of another table."""
        return "x_src" in self.case.inputs


def problem_of(case: Case, layer: Layer) -> Problem:
    """The graph as the layer wants it, and the way back to the file's edges."""
    (src, dst), rows = case.inputs["edge_index"], [len(x) for x in tables(case)]
    size = max(rows)
    if layer.in_order:  # one row of zeros more, which every node reads up to the longest neighborhood
        count = np.bincount(dst, minlength=size)
        spare = np.repeat(np.arange(size), count.max() - count)
        src, dst = np.append(src, np.full(len(spare), size)), np.append(dst, spare)
        size += 1
    graph = from_edges(src, dst, size, number=np.arange(len(src), dtype=np.int32))
    floats = {
        name: jnp.asarray(case.inputs[name]) for name in ("edge_weight", "edge_attr") & case.inputs.keys()
    }

    def edge_data(floats: dict[str, jax.Array]) -> tuple[dict[str, jax.Array], Graph]:
        """What the layer reads of edges, and the graph of the edges that it reads."""
        place = np.asarray(graph.edge_data[NUMBER])
        weights = {"weight": floats["edge_weight"][place]} if "edge_weight" in floats else {}
        made = layer.graph(graph._replace(edge_data={**graph.edge_data, **weights}))
        found = {name: made.edge_data[name] for name in WEIGHTS if name in made.edge_data}
        if "edge_attr" in floats:
            found[EDGE] = floats["edge_attr"][np.asarray(made.edge_data[NUMBER])]
        return found, made._replace(edge_data={NUMBER: made.edge_data[NUMBER]})

    data, back, structure = jax.vjp(edge_data, floats, has_aux=True)
    return Problem(case, layer, structure, data, lambda grads: back(grads)[0])


def tables(case: Case) -> list[np.ndarray]:
    """The rows of sources and, where those are others, of destinations."""
    return [case.inputs[name] for name in ("x", "x_src", "x_dst") if name in case.inputs]


def model_of(problem: Problem) -> GraphSAGE:
    """A model of this one layer: what exact inference runs."""
    out: Any = problem.case.out
    return GraphSAGE(hidden=1, out=out.shape[1], num_layers=1, conv=problem.layer.conv)


def block_of(layout: str, graph: Graph, rows: dict[str, jax.Array]) -> tuple[jax.Array, Any]:
    """The rows that a layer reads, and the block, in one of the layouts of slots or edges."""
    block: Any = full_block(graph, slots=True)
    h = rows["x_src" if "x_dst" in rows else "x"]
    if apart := "x_dst" in rows:
        num_dst = rows["x_dst"].shape[0]
        order, degree = block.order[:num_dst], block.degree[:num_dst]
        block = block._replace(order=order, degree=degree, position=jnp.zeros(num_dst, jnp.int32))
    if layout != "segments":
        block = block.in_order()
    if layout == "tree":
        ids, block = as_tree(block)
        h = h[ids]
    return h, OwnRows(block, rows["x_dst"]) if apart else block


def sliced_of(sliced: Any, graph: Graph, rows: dict[str, jax.Array]) -> tuple[jax.Array, Any]:
    """The whole graph in slices; its weights are constants."""
    more = {name: x for name, x in graph.edge_data.items() if name != "weight"}
    return rows["x"], sliced._replace(edge_data={**sliced.edge_data, **more})


LAYOUTS = {name: partial(block_of, name) for name in ("indexed", "tree", "segments")}
"""name -> (graph, rows) -> (h, block), differentiable with respect to the rows and the graph's edge_data"""


def on_layouts(problem: Problem) -> dict[str, Found]:
    """Outputs and gradients of one program of all layouts that have both."""
    layouts = dict(LAYOUTS)
    if not problem.bipartite and not problem.layer.in_order:
        layouts["sliced"] = partial(sliced_of, sliced_full_block(problem.graph))
    model, case, spare = model_of(problem), problem.case, int(problem.layer.in_order)
    cotangent = np.zeros_like(case.out) if case.loss_weight is None else case.loss_weight

    def loss(given: Any, lay: Callable) -> tuple[jax.Array, tuple[jax.Array, Any]]:
        params, rows, edge_data = given
        rows = {name: jnp.pad(x, ((0, spare), (0, 0))) for name, x in rows.items()}
        h, block = lay(problem.structure._replace(edge_data=edge_data), rows)
        variables = {"params": {"convs_0": problem.layer.params(params)}}
        out: Any = model.apply(variables, h, (block,))
        out = out[: cotangent.shape[0]]
        return (out * cotangent).sum(), out

    def run(given: Any) -> dict[str, Any]:
        value = jax.grad(loss, has_aux=True)
        if case.loss_weight is None:
            value = lambda given, lay: (None, loss(given, lay)[1])  # noqa: E731
        found = {name: value(given, lay) for name, lay in layouts.items()}
        weights = {} if case.alpha is None else {name: attention(given, LAYOUTS[name]) for name in LAYOUTS}
        return {name: (*result, weights.get(name)) for name, result in found.items()}

    def attention(given: Any, lay: Callable) -> Attention:
        params, rows, edge_data = given
        h, block = lay(problem.structure._replace(edge_data=edge_data), rows)
        [found] = attention_of(model, {"params": {"convs_0": problem.layer.params(params)}}, h, (block,))
        return found

    rows = {name: jnp.asarray(x) for name, x in case.inputs.items() if name.startswith("x")}
    found = jax.jit(run)((problem.params, rows, problem.edge_data))
    return {name: _found(problem, name, *found[name]) for name in layouts}


def encoded(case: Case, layer: Layer) -> tuple[Problem, Found]:
    """Encodings of a case's times, with gradients where the case gives them; there is no graph."""
    problem = Problem(case, layer, from_edges([], [], 0), {}, lambda grads: {})
    out: Any = case.out
    encoder = layer.conv(features=out.shape[1])

    def encode(params: dict[str, jax.Array], times: jax.Array) -> Any:
        return encoder.apply({"params": layer.params(params)}, times)

    cotangent = jnp.zeros_like(out) if case.loss_weight is None else jnp.asarray(case.loss_weight)

    @jax.jit
    def run(*given: Any) -> tuple[jax.Array, Any]:
        found, back = jax.vjp(encode, *given)
        return found, back(cotangent)

    found, (d_params, d_times) = run(problem.params, jnp.asarray(case.inputs["times"]))
    if case.loss_weight is None:
        return problem, Found(found, {})
    return problem, Found(found, {**{f"param/{name}": x for name, x in d_params.items()}, "times": d_times})


def _found(problem: Problem, layout: str, grads: Any, out: jax.Array, weights: Attention | None) -> Found:
    found = None if weights is None else listed(weights)
    if grads is None:
        return Found(out, {}, found)
    (d_params, d_rows, d_edges), note = grads, None
    if layout == "sliced" and "weight" in d_edges:
        d_edges, note = {}, "weights are constants here: no gradient of edge_weight"
    d_inputs = problem.back(d_edges) if d_edges else {}
    named = {f"param/{name}": x for name, x in d_params.items()}
    return Found(out, {**named, **d_rows, **d_inputs}, found, note)


def listed(weights: Attention) -> np.ndarray:
    """Attention weights in the order of the graph's edges, then the own ones."""
    slots = np.asarray(weights.slots)[np.asarray(weights.mask)]
    return slots if weights.own is None else np.concatenate([slots, weights.own])


def exactly(problem: Problem) -> Iterator[tuple[str, Found]]:
    """All nodes' outputs by layers, on the device and into a file."""
    if problem.bipartite:
        raise Unsupported("exact inference and slices are of one graph: sources and destinations are apart")
    if problem.layer.in_order:
        raise Unsupported("an LSTM reads ordered slots, which whole neighborhoods of all nodes have not")
    model, x = model_of(problem), np.asarray(problem.case.inputs["x"])
    params = {"params": {"convs_0": problem.layer.params(problem.params)}}
    yield "exact", Found(embed_all(model, params, problem.graph, jnp.asarray(x)), {})
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/rows.npy"
        embed_to_file(path, model, params, problem.graph, x)
        yield "streamed", Found(np.load(path), {})
