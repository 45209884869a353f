"""A layer of nodes and edges with types, on whole graphs and on sampled ones."""

from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.golden.files import Case
from experiments.golden.layers import Layer
from experiments.golden.runs import Found, Problem
from jsage.graph import TypedGraph, typed_graph
from jsage.sampling import clip_fanouts, sample_typed_blocks, typed_full_block


def typed_problem(case: Case, layer: Layer) -> Problem:
    """A case made ready."""
    sizes = {name: len(x) for name, x in tables(case).items()}
    ends: Any = {
        tuple(name.removeprefix("edge_index/").split("__")): (x[0], x[1])
        for name, x in case.inputs.items()
        if name.startswith("edge_index/")
    }
    graph: Any = typed_graph(sizes, ends)
    return Problem(case, layer, graph, {}, lambda grads: grads)


def tables(case: Case) -> dict[str, np.ndarray]:
    """The features of each type."""
    return {name[2:]: x for name, x in case.inputs.items() if name.startswith("x/")}


def on_typed_layouts(problem: Problem) -> Iterator[tuple[str, Found]]:
    """All edges at once, and samples of at least as many neighbors as any node has."""
    graph: Any = problem.structure
    full = typed_full_block(graph)
    yield "segments", found(problem, lambda x: (x, full))
    batch = whole_sample(graph)
    yield "tree", found(problem, lambda x: (batch.read(x), batch.blocks[0]))


def whole_sample(graph: TypedGraph) -> Any:
    """One hop into every node, of all its neighbors."""
    seeds = {name: np.arange(graph.num_nodes(name), dtype=np.int32) for name in graph.nodes}
    (fanouts,) = clip_fanouts(graph, (2**20,))
    return jax.jit(lambda graph, seeds: sample_typed_blocks(jax.random.key(0), graph, seeds, (fanouts,)))(
        graph, seeds
    )


def found(problem: Problem, read: Any) -> Found:
    """Output and gradients, all types one after another."""
    case, layer = problem.case, problem.layer
    conv = layer.conv()

    def forward(params: Mapping[str, Any], x: Mapping[str, Any]) -> jax.Array:
        out: Any = conv.apply({"params": layer.params(params)}, *read(x))
        return jnp.concatenate([out[name].ravel() for name in sorted(out)])

    given = problem.params, {name: jnp.asarray(x) for name, x in tables(case).items()}
    out = jax.jit(forward)(*given)
    weight: Any = case.loss_weight
    if weight is None:
        return Found(out, {})
    of_params, of_rows = jax.jit(jax.grad(lambda p, x: (forward(p, x) * weight).sum(), (0, 1)))(*given)
    grads = {f"param/{name}": x for name, x in of_params.items()} | {
        f"x/{name}": x for name, x in of_rows.items()
    }
    return Found(out, {name: x for name, x in grads.items() if name in case.grads})
