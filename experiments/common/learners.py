"""What is trained: GraphSAGE on sampled blocks or on the whole graph, and a features-only MLP beside it."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from experiments.common.config import AGGREGATORS, CONVOLUTIONS, NORMS, Config, LearnerOptions, ModelOptions
from jsage.blocks import Block
from jsage.data import Dataset
from jsage.graph import AliasGraph, Graph, alias_tables, edges, gcn_weights, symmetric_weights
from jsage.graph.sparse import rows_at
from jsage.nn import Dense, Dropout, GraphSAGE, SAGEConv
from jsage.nn.attention import AttentionConv
from jsage.sampling import batches, sample_blocks, without_replacement
from jsage.typing import AnyDraw


class Tables(NamedTuple):
    """What every program reads; always an argument."""

    graph: Graph
    features: Any
    labels: Array
    full: Block | None
    """The whole graph as one block; None where an LSTM could not read it: then inference samples too."""
    drawn: AliasGraph | None = None
    """The graph that training draws from; None: `graph` itself."""
    cut: Any = None
    """What batches of subgraphs are cut from."""


class Step(NamedTuple):
    """The outputs of a training step on a subgraph."""

    outputs: Array
    nodes: Array
    weight: Array
    """What each node's loss is multiplied by before they are added up; 0: it is not learned from."""
    stats: Any


class Subgraphs(NamedTuple):
    """Training on subgraphs, as two functions."""

    cut: Callable[[Graph, np.ndarray], tuple[Any, int, int]]
    """`(graph, train) -> (cut, units, size)`: what an epoch shuffles, `size` of so many units a step."""
    step: Callable[[Any, Tables, tuple[Array, ...]], Step]
    """`(variables, tables, (units, mask, key)) -> Step`"""


class Learner(NamedTuple):
    """A model as two functions."""

    init: Callable[[Array, Tables], Any]
    """`(key, tables) -> variables`"""
    forward: Callable[[Any, Tables, Array, Array, Array | None], tuple[Array, Any]]
    """`(variables, tables, seeds, mask, key) -> (outputs, stats)`; no key: inference, deterministic."""
    predict: Callable[[Any, Tables, Array], Array]
    """`(variables, tables, nodes) -> outputs`, deterministic."""
    subgraphs: Subgraphs | None = None
    """How training goes where it is not by `forward`."""
    about: Mapping[str, Any] = {}
    """What run.json says of it beside the options: how features are scaled."""


def weigh(dataset: Dataset, training_graph: Graph, config: LearnerOptions) -> tuple[Dataset, Graph]:
    """With `gcn`, both graphs with a GCN's normalization, each by its own degrees."""
    if config.conv != "gcn" and (config.conv != "sage" or config.aggregator != "gcn"):
        return dataset, training_graph
    graph, same = normalized(dataset.graph, config), training_graph is dataset.graph
    return dataset._replace(graph=graph), graph if same else normalized(training_graph, config)


def normalized(graph: Graph, config: LearnerOptions) -> Graph:
    """The graph with a GCN's weights: those of the layer of that name, or of the aggregator."""
    graph = unit_weights(graph)
    return gcn_weights(graph) if config.conv == "gcn" else symmetric_weights(graph)


def unit_weights(graph: Graph) -> Graph:
    """The graph with edge weights of mean size 1, that of a node's own row: their unit says nothing."""
    unit = weight_unit(graph)
    if unit is None:
        return graph
    weight = jnp.asarray(graph.edge_data["weight"] / unit)
    return graph._replace(edge_data={**graph.edge_data, "weight": weight})


def weight_unit(graph: Graph) -> float | None:
    """The mean size of the edge weights, 1 where all are 0; None where there are none."""
    weight = graph.edge_data.get("weight")
    return None if weight is None else float(np.abs(np.asarray(weight, np.float64)).mean()) or 1.0


def check_draw(graph: Graph, config: Config) -> None:
    """Raise ValueError for a draw that this graph, or this training, has no use for."""
    if config.draw == "weighted" and "weight" not in graph.edge_data:
        raise ValueError("--draw weighted needs edges with weights, got none: draw uniform, or labor")
    if config.draw != "uniform" and config.full_batch:
        raise ValueError(f"--full-batch draws no neighbors, got --draw {config.draw}: leave one of them out")


def by_weight(graph: Graph) -> AliasGraph:
    """The graph with its edges drawn by weight, and each weighing as the mean edge of its row.

    A mean over drawn neighbors is then unbiased for the weighted mean that inference takes of all of them:
    weights say what is drawn, not what is learned.
    """
    weight, dst = np.asarray(graph.edge_data["weight"], np.float64), np.asarray(edges(graph)[1])
    total, count = (np.bincount(dst, values, graph.num_nodes)[dst] for values in (weight, None))
    data = {**graph.edge_data, "drawn": graph.edge_data["weight"], "weight": jnp.float32(total / count)}
    return alias_tables(graph._replace(edge_data=data), "drawn")


def layers(config: ModelOptions) -> dict[str, Any]:
    """What makes the layers: `SAGEConv` with the aggregator, or the convolution that is named.

    Attention has all its heads in the hidden layers and one in the last, and drops weights as it drops rows.
    """
    if not isinstance(config, LearnerOptions) or config.conv == "sage":
        return {"conv": partial(SAGEConv, aggregate=AGGREGATORS[config.aggregator](config.hidden))}
    conv: Any = CONVOLUTIONS[config.conv]
    if not issubclass(conv, AttentionConv):
        return {"conv": conv}
    conv = partial(conv, attention_dropout=config.dropout)
    return {"conv": partial(conv, heads=config.heads), "last_conv": conv}


def sage_model(config: ModelOptions, width: int, identity: tuple[int, int] | None = None) -> GraphSAGE:
    """The module; `identity` is the shape of learned embeddings, where there are no features."""
    return GraphSAGE(
        hidden=config.hidden,
        out=width,
        num_layers=config.layers,
        **layers(config),
        norm=NORMS[config.norm],
        dropout=config.dropout,
        identity=identity,
    )


def sage(
    config: LearnerOptions,
    width: int,
    num_nodes: int,
    *,
    identity: bool,
    draw: AnyDraw = without_replacement,
) -> Learner:
    """GraphSAGE: trained on sampled neighbors, exact at inference unless the graph is too large."""
    model = sage_model(config, width, (num_nodes, config.identity) if identity else None)

    def whole(variables, tables, **options):
        return model.apply(variables, tables.features, (tables.full,) * config.layers, **options)

    def init(key, tables):
        blocks = sample_blocks(key, tables.graph, jnp.zeros(1, jnp.int32), config.fanouts)
        return model.init(key, tables.features, blocks)

    def forward(variables, tables, seeds, mask, key) -> tuple[Any, Any]:
        if key is None:
            blocks = sample_blocks(jax.random.key(0), tables.graph, seeds, config.fanouts)
            return model.apply(variables, tables.features, blocks, mask=mask), {}
        sample, drop, order = jax.random.split(key, 3)
        options = {
            "deterministic": False,
            "rngs": {"dropout": drop, "order": order},
            "mutable": ["batch_stats"],
        }
        if config.full_batch:
            outputs, stats = whole(variables, tables, **options)
            return outputs[seeds], stats
        graph = tables.graph if tables.drawn is None else tables.drawn
        blocks = sample_blocks(sample, graph, seeds, config.fanouts, draw=draw)
        return model.apply(variables, tables.features, blocks, mask=mask, **options)

    def predict(variables, tables, nodes):
        if tables.full is not None:
            return whole(variables, tables)[nodes]
        return in_batches(forward, config.batch_size, variables, tables, nodes)

    return Learner(init, forward, predict)


class MLP(nn.Module):
    """Features alone: as many dense layers as GraphSAGE has convolutions."""

    hidden: int
    out: int
    num_layers: int
    dropout: float

    @nn.compact
    def __call__(self, h: Array, *, deterministic: bool = True) -> Array:
        drop = Dropout(self.dropout, deterministic=deterministic)
        for _ in range(self.num_layers - 1):
            h = nn.relu(Dense(self.hidden)(drop(h)))
        return Dense(self.out)(drop(h))


def mlp(config: LearnerOptions, width: int) -> Learner:
    """The features-only baseline, trained in the same way."""
    model = MLP(config.hidden, width, config.layers, config.dropout)

    def forward(variables, tables, seeds, mask, key) -> tuple[Any, Any]:
        rows = rows_at(tables.features, seeds)
        if key is None:
            return model.apply(variables, rows), {}
        return model.apply(variables, rows, deterministic=False, rngs={"dropout": key}), {}

    def init(key, tables):
        return model.init(key, rows_at(tables.features, jnp.zeros(1, jnp.int32)))

    return Learner(init, forward, partial(in_batches, forward, config.batch_size))


def in_batches(forward, batch_size: int, variables, tables: Tables, nodes: Array) -> Array:
    """Deterministic outputs of `nodes`, a batch at a time."""
    seeds, mask = batches(nodes, min(batch_size, nodes.shape[0]))
    outputs = jax.lax.map(lambda batch: forward(variables, tables, *batch, None)[0], (seeds, mask))
    return outputs.reshape(seeds.size, -1)[: nodes.shape[0]]
