"""A layer of nodes and edges with types, on whole graphs and on sampled ones."""

from collections.abc import Callable
from functools import partial
from typing import Any, cast

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


def on_typed_layouts(problem: Problem) -> dict[str, Found]:
    """Outputs and gradients, all types one after another, of one program of both layouts.

    All edges at once, and samples of at least as many neighbors as any node has.
    """
    case, layer, graph = problem.case, problem.layer, cast(Any, problem.structure)
    conv: Any = layer.conv()
    cotangent = np.zeros_like(case.out) if case.loss_weight is None else case.loss_weight

    @jax.jit
    def run(given: Any, full: Any, batch: Any) -> dict[str, tuple[jax.Array, Any]]:
        def result(params: Any, rows: Any, lay: Callable) -> jax.Array:
            out = conv.apply({"params": layer.params(params)}, *lay(rows))
            return jnp.concatenate([out[name].ravel() for name in sorted(out)])

        lays = {"segments": lambda x: (x, full), "tree": lambda x: (batch.read(x), batch.blocks[0])}
        found = {}
        for layout, lay in lays.items():
            out, back = jax.vjp(partial(result, lay=lay), *given)
            found[layout] = out, back(jnp.asarray(cotangent, out.dtype))
        return found

    given = problem.params, {name: jnp.asarray(x) for name, x in tables(case).items()}
    found = run(given, typed_full_block(graph), whole_sample(graph))
    return {layout: Found(out, _named(grads, case)) for layout, (out, grads) in found.items()}


def _named(grads: Any, case: Case) -> dict[str, jax.Array]:
    """Those that the case has, by its names."""
    named = {
        f"{kind}/{name}": x
        for kind, part in zip(("param", "x"), grads, strict=True)
        for name, x in part.items()
    }
    return {name: x for name, x in named.items() if name in case.grads}


def whole_sample(graph: TypedGraph) -> Any:
    """One hop into every node, of all its neighbors."""
    seeds = {name: np.arange(graph.num_nodes(name), dtype=np.int32) for name in graph.nodes}
    (fanouts,) = clip_fanouts(graph, (2**20,))
    return jax.jit(lambda graph, seeds: sample_typed_blocks(jax.random.key(0), graph, seeds, (fanouts,)))(
        graph, seeds
    )
