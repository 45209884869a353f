"""What is trained to predict links: encoders with decoders, and the scores of a batch and its negatives."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from experiments.common.config import AGGREGATORS
from experiments.common.learners import MLP
from experiments.links.config import Config
from experiments.links.history import History
from jsage.blocks import Block
from jsage.graph import Graph, has_edge, without_pairs
from jsage.nn import GraphSAGE, SAGEConv, decoders
from jsage.sampling import (
    LinkBatch,
    batches,
    negatives,
    sample_blocks,
    sample_link_blocks,
    sample_neighbors,
    split,
)


class Tables(NamedTuple):
    """What every program reads; always an argument."""

    graph: Graph
    """What messages pass along: training edges with sorted rows, or all events, each row in order of time."""
    known: Graph
    """The edges that are no negatives: those to train on and self-loops."""
    features: Array | None
    full: Block | None
    """The training graph as one block; None by time."""
    sampler: negatives.NegativeSampler | negatives.BySide
    pairs: Array
    """What is trained on, `[n, 2]`."""
    time: Array | None = None
    """When each of them was, by time."""
    history: History | None = None
    """Counts of the past, by time."""


class Learner(NamedTuple):
    """A model as four functions."""

    init: Callable[[Array, Tables], Any]
    """`(key, tables) -> variables`"""
    forward: Callable[[Any, Tables, Array, Array, Array], tuple[Array, Array, Array]]
    """`(variables, tables, rows, mask, key) -> (scores [b], negatives' scores [b, q], negatives' mask)`"""
    predict: Callable[[Any, Tables, Array, Array | None], Array]
    """`(variables, tables, pairs, time) -> scores`, deterministic."""
    embed: Callable[[Any, Tables], Array]
    """`(variables, tables) -> rows [num_nodes, hidden]`, deterministic; by time, after all events."""


class Cosine(nn.Module):
    """The cosine with a learned scale and offset, so that it is a logit."""

    @nn.compact
    def __call__(self, x: Array, y: Array) -> Array:
        scale = self.param("scale", nn.initializers.constant(5.0), ())
        return scale * decoders.cosine(x, y) + self.param("offset", nn.initializers.zeros, ())


MAKE_DECODER: dict[str, Callable[[Config], Callable]] = {
    "dot": lambda config: decoders.dot,
    "cosine": lambda config: Cosine(),
    "bilinear": lambda config: decoders.Bilinear(),
    "mlp": lambda config: decoders.MLP(config.hidden, symmetric=True),
    "pair": lambda config: decoders.MLP(config.hidden),
}
"""name -> the score of two embeddings"""


class LinkModel(nn.Module):
    """An encoder of nodes and a decoder of pairs."""

    encoder: nn.Module
    decoder: Callable

    def embed(self, *inputs: Any, deterministic: bool = True) -> Array:
        """Rows of the nodes."""
        return self.encoder(*inputs, deterministic=deterministic)

    def score(self, x: Array, y: Array) -> Array:
        """Logits of the pairs."""
        return self.decoder(x, y)

    def __call__(self, *inputs: Any) -> Array:
        rows = self.embed(*inputs)
        return self.score(rows, rows)


def link_model(config: Config, identity: tuple[int, int] | None = None) -> LinkModel:
    """GraphSAGE and a decoder."""
    conv = partial(SAGEConv, aggregate=AGGREGATORS[config.aggregator](config.hidden))
    hidden, layers = config.hidden, len(config.fanouts)
    encoder = GraphSAGE(hidden, hidden, layers, conv, dropout=config.dropout, identity=identity)
    return LinkModel(encoder, MAKE_DECODER[config.decoder or "mlp"](config))


def sage(config: Config, tables: Tables) -> Learner:
    """GraphSAGE on sampled neighbors without the edges of the batch."""
    model = link_model(config, (tables.graph.num_nodes, config.identity) if tables.features is None else None)

    def embed(variables, tables, batch, key) -> Any:
        """The embeddings of the batch's seeds."""
        draw, drop = jax.random.split(key)
        options = {"method": "embed", "deterministic": False, "rngs": {"dropout": drop}}
        blocks, everyone = link_blocks(draw, tables.graph, batch, config.fanouts)
        rows: Any = model.apply(variables, tables.features, blocks, **options)
        return rows[batch.seeds] if everyone else rows

    def init(key, tables):
        seeds = jnp.zeros(1, jnp.int32)
        blocks = sample_blocks(key, tables.graph._replace(edge_data={}), seeds, config.fanouts)
        return model.init(key, tables.features, blocks)

    def embed_all(variables, tables) -> Any:
        whole = (tables.full,) * len(config.fanouts)
        return model.apply(variables, tables.features, whole, method="embed")

    return Learner(init, scorer(model, embed, config), from_rows(model, embed_all), embed_all)


def from_rows(model: LinkModel, embed_all: Callable[[Any, Tables], Any]) -> Callable:
    """`predict` by the rows of all nodes."""

    def predict(variables, tables, pairs, time) -> Any:
        rows = embed_all(variables, tables)
        return model.apply(variables, rows[pairs[:, 0]], rows[pairs[:, 1]], method="score")

    return predict


def mlp(config: Config, tables: Tables) -> Learner:
    """The features-only baseline, trained in the same way."""
    encoder = MLP(config.hidden, config.hidden, len(config.fanouts), config.dropout)
    model = LinkModel(encoder, MAKE_DECODER[config.decoder or "mlp"](config))

    def embed(variables, tables, batch, key) -> Any:
        options = {"method": "embed", "deterministic": False, "rngs": {"dropout": key}}
        if len(tables.features) < len(batch.seeds):
            return model.apply(variables, tables.features, **options)[batch.seeds]
        return model.apply(variables, tables.features[batch.seeds], **options)

    def embed_all(variables, tables) -> Any:
        return model.apply(variables, tables.features, method="embed")

    init = lambda key, tables: model.init(key, tables.features[:1])  # noqa: E731
    return Learner(init, scorer(model, embed, config), from_rows(model, embed_all), embed_all)


def scorer(model: LinkModel, embed: Callable, config: Config) -> Callable:
    """A function that gives the scores of training pairs and of negatives, and which of these are valid."""

    def forward(variables, tables, rows, mask, key) -> Any:
        turn, draw, key = jax.random.split(key, 3)
        src, dst = tables.pairs[rows].T
        flip = jax.random.bernoulli(turn, shape=src.shape)  # an undirected pair has no first end
        src, dst = jnp.where(flip, dst, src), jnp.where(flip, src, dst)
        negatives, valid = draw_negatives(draw, tables, src, dst, config)
        batch = LinkBatch(src, dst, negatives, mask)
        one, other, far = split(embed(variables, tables, batch, key), batch)
        score = partial(model.apply, variables, method="score")
        if config.noise == "pairs":
            return score(one, other), score(*jnp.split(far, 2, axis=1)), valid
        return score(one, other), score(one, far), valid

    return forward


def near(sampler: negatives.NegativeSampler | negatives.BySide, nodes: Array) -> negatives.NegativeSampler:
    """The sampler of nodes on the sides of these, where there are several."""
    return partial(sampler, like=nodes[:, None]) if isinstance(sampler, negatives.BySide) else sampler


def draw_negatives(key: Array, tables: Tables, src: Array, dst: Array, config: Config) -> tuple[Array, Array]:
    """`(nodes, mask)`: the other ends of negatives, or both ends side by side; no edge to train on is valid.

    Each end is of the side of the one that it stands for. By time none is excluded: that two nodes were in
    touch before or will be later is no link now.
    """
    first, again = jax.random.split(key)
    shape = src.shape[0], config.negatives
    source, target = near(tables.sampler, src), near(tables.sampler, dst)
    if tables.time is not None:
        return target(first, shape), jnp.ones(shape, bool)
    if config.noise != "pairs":
        return negatives.exclude_edges(again, tables.known, src, target(first, shape), target)

    def ends(key: Array) -> tuple[Array, Array]:
        one, other = jax.random.split(key)
        return source(one, shape), target(other, shape)

    wrong = lambda ends: has_edge(tables.known, *ends)  # noqa: E731
    kept, valid = negatives.resample(again, ends(first), ends, wrong)
    return jnp.concatenate(kept, axis=1), valid


def link_blocks(
    key: Array, graph: Graph, batch: LinkBatch, fanouts: tuple[int, ...]
) -> tuple[tuple[Block, ...], bool]:
    """Blocks of the seeds without the batch's edges, or (True) of all nodes where that is less work.

    On a small graph the seeds meet every node many times: each node then draws once a hop, for all of them.
    """
    frontier = len(batch.seeds) * int(np.prod([1 + fanout for fanout in fanouts[:-1]]))
    if frontier < graph.num_nodes:
        return sample_link_blocks(key, graph, batch, fanouts), False
    left = without_pairs(graph, batch.src, batch.dst, batch.mask)
    nodes = jnp.arange(graph.num_nodes, dtype=jnp.int32)
    hops = zip(jax.random.split(key, len(fanouts)), reversed(fanouts), strict=True)
    return tuple(sample_neighbors(one, left, nodes, fanout) for one, fanout in hops), True


def in_batches(of: Callable[[Array], Array], num: int, batch_size: int) -> Array:
    """`of(rows)` of all rows, a batch at a time."""
    rows, _ = batches(jnp.arange(num, dtype=jnp.int32), min(batch_size, num))
    found = jax.lax.map(of, rows)
    return found.reshape(-1, *found.shape[2:])[:num]
