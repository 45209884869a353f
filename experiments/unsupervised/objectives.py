"""Learning without labels: pairs from walks, negatives by degree, or infomax; a batch is but a key."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from experiments.common.learners import Learner, Tables, sage, sage_model
from experiments.unsupervised.config import Config
from jsage._internal.arrays import take
from jsage.graph import Graph, in_degrees
from jsage.losses import dgi as dgi_loss
from jsage.losses import info_nce as info_nce_loss
from jsage.losses import skip_gram as skip_gram_loss
from jsage.nn import DeepGraphInfomax, cosine, dot
from jsage.sampling import LinkBatch, positive_pairs, sample_blocks, split
from jsage.sampling.negatives import AliasTable, Choice, by_degree, choice, in_batch


class Source(NamedTuple):
    """What a step draws its batch from: tables without labels, and two samplers of nodes."""

    tables: Tables
    starts: Choice
    """Every node that has an edge, equally likely."""
    noise: AliasTable | Choice
    """Negatives, in proportion to `degree ** 0.75`."""


class Method(NamedTuple):
    """A way to learn embeddings, as three functions."""

    init: Callable[[Array, Tables], Any]
    """`(key, tables) -> variables`"""
    loss: Callable[[Any, Source, Array], tuple[Array, Array, Any]]
    """`(variables, source, key) -> (losses [b], valid [b], stats)`"""
    embed: Callable[[Any, Tables, Array], Array]
    """`(variables, tables, nodes) -> rows`, deterministic; exact where `tables.full` is there."""


def make_source(tables: Tables) -> Source:
    """The samplers of a graph; raises ValueError where it has no edge."""
    connected = np.flatnonzero(in_degrees(tables.graph))
    if connected.size == 0:
        raise ValueError("walks need edges: this graph has none that ends at a node to train on")
    return Source(tables, choice(connected), by_degree(tables.graph))


def draw_pairs(key: Array, source: Source, config: Config) -> LinkBatch:
    """A batch of starts, each with a partner that a walk from it visits, and negatives that all share."""
    start, walk, pick, noise = jax.random.split(key, 4)
    src = source.starts(start, (config.batch_size,))
    dst, mask = draw_partners((walk, pick), source.tables.graph, src, config.length)
    return LinkBatch(src, dst, source.noise(noise, (config.negatives,)), mask)


def draw_partners(keys: tuple[Array, Array], graph: Graph, src: Array, length: int) -> tuple[Array, Array]:
    """`(dst, mask)`: for each start one of the nodes that a walk from it visits.

    The node is drawn uniformly from the places of the walk that are not the start: a pair has the
    probability that the paper's 50 walks a node give it. Starts whose walk leads nowhere are invalid.
    """
    walk, pick = keys
    partners, valid = positive_pairs(walk, graph, src, walks=1, length=length)
    place = jax.random.categorical(pick, jnp.where(valid, 0.0, -jnp.inf))
    mask = valid.any(1)
    return jnp.where(mask, jnp.take_along_axis(partners, place[:, None], 1)[:, 0], src), mask


def skip_gram(rows: Array, batch: LinkBatch, config: Config) -> Array:
    """Equation 1 of the paper: negatives drawn by degree, shared by the batch; `Q` is `config.weight`."""
    src, dst, noise = split(rows, batch)
    other = batch.src[:, None] != batch.negatives[None]
    score = cosine if config.normalize else dot
    scale = 1 / config.temperature
    return skip_gram_loss(
        scale * score(src, dst), scale * score(src, noise[None]), batch.mask, other, Q=config.weight
    )


def info_nce(rows: Array, batch: LinkBatch, config: Config) -> Array:
    """Each start's partner against the partners of the others, by cosine."""
    src, dst, _ = split(rows, batch)
    negative = in_batch(batch.src, batch.dst, batch.mask) & (batch.src[:, None] != batch.dst[None])
    scores = cosine(src[:, None], dst[None])
    return info_nce_loss(scores, batch.mask, negative, config.temperature)


def by_pairs(learner: Learner, loss: Callable[..., Array], config: Config) -> Method:
    """Embeddings by any encoder, trained on pairs of nodes."""
    if loss is info_nce:  # its negatives are the other pairs' partners: no more are drawn and embedded
        config = dataclasses.replace(config, negatives=0)

    def losses(variables, source, key):
        drawn, encode = jax.random.split(key)
        batch = draw_pairs(drawn, source, config)
        rows, stats = learner.forward(variables, source.tables, batch.seeds, batch.seed_mask, encode)
        return loss(rows, batch, config), batch.mask, stats

    return Method(learner.init, losses, learner.predict)


def by_infomax(learner: Learner, config: Config, identity: tuple[int, int] | None) -> Method:
    """Deep Graph Infomax on sampled neighborhoods, around the encoder that `learner` has."""
    model = DeepGraphInfomax(sage_model(config, config.width, identity))

    def apply(variables, tables, seeds, key):
        draw, drop, corrupt = jax.random.split(key, 3)
        blocks = sample_blocks(draw, tables.graph, seeds, config.fanouts)
        streams = {"dropout": drop, "order": drop, "corrupt": corrupt}
        options = {"deterministic": False, "rngs": streams, "mutable": ["batch_stats"]}
        return model.apply(variables, tables.features, blocks, **options)

    def init(key, tables):
        blocks = sample_blocks(key, tables.graph, jnp.zeros(1, jnp.int32), config.fanouts)
        keys = {"params": key, "corrupt": key}
        return model.init(keys, tables.features, blocks)

    def losses(variables, source, key):
        start, rest = jax.random.split(key)
        seeds = source.starts(start, (config.batch_size,))
        (true, false), stats = apply(variables, source.tables, seeds, rest)
        valid = jnp.ones(seeds.shape, bool)
        return dgi_loss(true, false, valid), valid, stats

    def embed(variables, tables, nodes):
        return learner.predict({name: of["encoder"] for name, of in variables.items()}, tables, nodes)

    return Method(init, losses, embed)


def lookup(width: int, num_nodes: int) -> Learner:
    """An encoder that knows no features and no neighbors: one learned row a node, as DeepWalk has."""
    table = nn.Embed(num_nodes, width)

    def forward(variables, tables, seeds, mask, key):
        return take(variables["params"]["embedding"], seeds), {}

    def predict(variables, tables, nodes):
        return take(variables["params"]["embedding"], nodes)

    return Learner(lambda key, tables: table.init(key, jnp.zeros(1, jnp.int32)), forward, predict)


PAIRS: dict[str, Callable[[Array, LinkBatch, Config], Array]] = {
    "skip_gram": skip_gram,
    "info_nce": info_nce,
}
"""name -> a loss of embedded pairs"""


def graphsage(config: Config, graph: Graph, *, identity: bool) -> Method:
    """GraphSAGE with the objective that the options name."""
    learner = sage(config, config.width, graph.num_nodes, identity=identity)
    if config.objective == "dgi":
        return by_infomax(learner, config, (graph.num_nodes, config.identity) if identity else None)
    return by_pairs(learner, PAIRS[config.objective], config)


def deepwalk(config: Config, graph: Graph) -> Method:
    """A table of embeddings, trained on the same pairs by the same loss (by skip-gram beside `dgi`)."""
    loss = PAIRS.get(config.objective, skip_gram)
    return by_pairs(lookup(config.width, graph.num_nodes), loss, config)
