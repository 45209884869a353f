"""Training on subgraphs instead of on seeds and their neighbors: whole clusters, or GraphSAINT's walks."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from experiments.common.config import Config
from experiments.common.learners import Learner, Step, Subgraphs, Tables, sage_model, unit_weights
from jsage.graph import Graph, cluster, remove_self_loops
from jsage.graph.sparse import rows_at
from jsage.sampling import (
    cluster_batch,
    estimated_batch,
    gcn_block,
    measure_saint,
    saint_walks,
    symmetric_block,
)

CLUSTERS = 8
"""Clusters a batch."""
WALK = 2
"""Steps of GraphSAINT's walks."""
WIDTH = 32
"""Edges into a node that GraphSAINT looks up."""
COUNTED = 50
"""How often a node is, on average, in the subgraphs that GraphSAINT's norms are counted on."""


class Cut(NamedTuple):
    """What batches are cut from."""

    source: Any
    """The clusters, or the graph with GraphSAINT's norms."""
    share: Array
    """Each node's weight in a batch's loss, beside its norm: the mean over training nodes, on average."""


class Plan(NamedTuple):
    """How training goes."""

    config: Config
    width: int
    """Of the outputs."""
    identity: bool
    """Whether the model has embeddings of its own, for graphs without features."""
    plain: Graph | None
    """The training graph before edges were weighed by the degrees of both ends, which in clusters are the
    batch's; None: they are not."""


def on_subgraphs(learner: Learner, plan: Plan) -> Learner:
    """The learner, trained as `--batches` says; its inference is as it was."""
    config = plan.config
    if config.batches == "neighbors":
        return learner
    for option, given in ("--full-batch", config.full_batch), ("--draw", config.draw != "uniform"):
        if given:
            raise ValueError(f"{option} has no meaning with --batches {config.batches}: leave one out")
    if config.batches == "saint" and config.conv != "sage":
        raise ValueError(f"--batches saint estimates sums, expected --conv sage, got {config.conv}")
    if config.aggregator == "lstm" or (config.batches == "saint" and config.aggregator not in LINEAR):
        fit = f"one of {', '.join(LINEAR)}" if config.batches == "saint" else "one without an order"
        raise ValueError(f"--batches {config.batches} needs an aggregator, {fit}: got {config.aggregator}")
    cut = {"clusters": clustered, "saint": walked}[config.batches]
    return learner._replace(subgraphs=Subgraphs(partial(cut, plan), partial(train_step, plan)))


LINEAR = ("gcn", "mean", "sum")
"""Aggregators whose sums a subgraph estimates."""


def clustered(plan: Plan, graph: Graph, train: np.ndarray) -> tuple[Cut, int, int]:
    """The graph in clusters, how many, and how many of them are a batch."""
    if plan.plain is not None:  # weighed in each batch
        graph = unit_weights(plan.plain)
        graph = remove_self_loops(graph) if plan.config.conv == "gcn" else graph
    num = min(-(-CLUSTERS * graph.num_nodes // plan.config.subgraph), graph.num_nodes)
    size = min(CLUSTERS, num)
    return Cut(cluster(graph, num), shares(graph, train, -(-num // size))), num, size


def walked(plan: Plan, graph: Graph, train: np.ndarray) -> tuple[Cut, int, int]:
    """The graph with the norms of walks, and how many subgraphs are an epoch, each of them a batch."""
    steps = -(-graph.num_nodes // plan.config.subgraph)
    norms = measure_saint(jax.random.key(0), graph, walks(plan.config), repeats=COUNTED * steps)
    return Cut(norms, shares(graph, train, 1)), steps, 1


def walks(config: Config) -> Any:
    """GraphSAINT's sampler."""
    return partial(saint_walks, roots=-(-config.subgraph // (1 + WALK)), length=WALK, width=WIDTH)


def shares(graph: Graph, train: np.ndarray, steps: int) -> Array:
    """`steps / number of training nodes` on these, 0 elsewhere."""
    share = np.zeros(graph.num_nodes, np.float32)
    share[train] = steps / len(train)
    return jnp.asarray(share)


def train_step(plan: Plan, variables: Any, tables: Tables, batch: tuple[Array, ...]) -> Step:
    """Outputs of a batch's nodes."""
    config, width, identity, plain = plan
    chosen, mask, key = batch
    draw, drop = jax.random.split(key)
    if config.batches == "clusters":
        found = cluster_batch(tables.cut.source, chosen, mask)
        weight = found.mask.astype(jnp.float32)
        weigh = gcn_block if config.conv == "gcn" else symmetric_block
        block = found.block if plain is None else weigh(found.block)
    else:
        found, weight = estimated_batch(draw, tables.cut.source, walks(config))
        block = found.block
    model = sage_model(config, width, (len(found.nodes), config.identity) if identity else None)
    if identity:
        table = variables["params"]["embed"]["embedding"][found.nodes]
        variables = {**variables, "params": {**variables["params"], "embed": {"embedding": table}}}
    outputs, stats = model.apply(
        variables,
        None if tables.features is None else rows_at(tables.features, found.nodes),
        (block,) * config.layers,
        mask=found.mask,
        deterministic=False,
        rngs={"dropout": drop},
        mutable=["batch_stats"],
    )
    return Step(outputs, found.nodes, weight * tables.cut.share[found.nodes], stats)
