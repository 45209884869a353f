"""What is trained to recommend: GraphSAGE on users and items, or two tables of rows without neighbors."""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array

from experiments.links.learners import link_blocks
from experiments.recommend.baselines import Factors
from experiments.recommend.config import Config
from jsage.blocks import Block
from jsage.blocks.aggregate import gcn
from jsage.graph import Graph, has_edge
from jsage.nn import dot
from jsage.sampling import LinkBatch, sample_neighbors, split, with_replacement

SHARE = 4
"""At most one in so many of a user's items is asked for in a step: the others are what it is known by."""
NEVER = -1e9


class Tables(NamedTuple):
    """What every program reads; always an argument."""

    graph: Graph
    """Training interactions in both directions, rows sorted: messages, positives, and what is no negative."""
    full: Block
    """That graph as one block."""
    users: Array
    """Users that train."""
    prior: Array
    """The logarithm of each item's popularity."""


class Learner(NamedTuple):
    """A model as three functions."""

    init: Callable[[Array, Tables], Any]
    """`(key, tables) -> variables`"""
    losses: Callable[[Any, Tables, Array, Array, Array], tuple[Array, Array]]
    """`(variables, tables, users, mask, key) -> (losses [b, positives], valid [b, positives])`"""
    factors: Callable[[Any, Tables], Factors]
    """`(variables, tables) -> rows of all users and items`, deterministic."""


class Recommender(nn.Module):
    """GraphSAGE without matrices between its layers: the mean of a node's row and of every layer's.

    A layer is `aggregate.gcn`, `(h_v + sum_u h_u) / (1 + number of neighbors)` (Hamilton et al., 2017,
    equation 2); without matrices and non-linearities, and with the mean over layers, as He et al. (2020,
    LightGCN) found best. Items have learned rows. Users have none, they are what their items say, unless
    there is no layer.
    """

    num_users: int
    num_items: int
    width: int
    layers: int

    def setup(self) -> None:
        """The tables; with layers the one of users is not there."""
        rows = self.num_items + (0 if self.layers else self.num_users)
        self.embed = nn.Embed(rows, self.width)
        self.bias = self.param("bias", nn.initializers.zeros, (self.num_items,))

    def __call__(self, blocks: tuple[Block, ...]) -> tuple[Array, Array]:
        """Rows at the destinations of the last block, or of all nodes; and each item's learned bias."""
        h = self.embed.embedding
        if self.layers:
            h = jnp.concatenate([jnp.zeros((self.num_users, self.width)), h])
        kept = [h]
        for block in blocks:
            h = gcn(h, block)
            kept = [*(block.own(rows) for rows in kept), h]
        return sum(kept[1:], kept[0]) / len(kept), self.bias


def sage(config: Config, num_users: int, num_items: int) -> Learner:
    """GraphSAGE: sampled neighbors without the pairs asked for; whole neighborhoods at inference."""
    model = Recommender(num_users, num_items, config.width, len(config.fanouts))

    def embed(variables, tables, batch, key) -> Any:
        blocks, everyone = link_blocks(key, tables.graph, batch, config.fanouts)
        rows, bias = model.apply(variables, blocks)  # pyright: ignore[reportAssignmentType]
        return (rows[batch.seeds] if everyone else rows), bias

    return make(model, embed, config)


def table(config: Config, num_users: int, num_items: int) -> Learner:
    """Matrix factorization: a learned row for each user and each item, trained by the same loss."""
    model = Recommender(num_users, num_items, config.width, 0)

    def embed(variables, tables, batch, key) -> Any:
        rows, bias = model.apply(variables, ())  # pyright: ignore[reportAssignmentType]
        return rows[batch.seeds], bias

    return make(model, embed, config)


def make(model: Recommender, embed: Callable, config: Config) -> Learner:
    """The learner of a model whose `embed(variables, tables, batch, key)` gives seeds' rows, and biases.

    The score is `z_u · z_i + log popularity_i + bias_i`, the loss a softmax over the items that the user
    does not have and the one that it has (sampled where they are many: Jean et al., 2015).
    """

    def losses(variables, tables, users, mask, key) -> tuple[Array, Array]:
        pick, noise, draw = jax.random.split(key, 3)
        items, valid = draw_items(pick, tables.graph, users, mask, config.positives)
        others = draw_others(noise, model, config.negatives)
        pairs = jnp.repeat(users, config.positives), items.ravel()
        batch = LinkBatch(*pairs, others, valid.ravel())
        rows, bias = embed(variables, tables, batch, draw)
        src, dst, far = split(rows, batch)
        bias = bias + tables.prior
        known = has_edge(tables.graph, *jnp.broadcast_arrays(others[None], users[:, None]))
        own = dot(src, dst) + bias[jnp.maximum(batch.dst - model.num_users, 0)]
        rest = dot(src[:: config.positives][:, None], far[None]) + bias[others - model.num_users][None]
        rest = jnp.where(known, NEVER, rest + jnp.log(model.num_items / others.shape[0]))
        own, total = own.reshape(valid.shape), jax.nn.logsumexp(rest, axis=1)[:, None]
        return jnp.where(valid, jax.nn.softplus(total - own), 0.0), valid

    def factors(variables, tables) -> Factors:
        rows, bias = model.apply(variables, (tables.full,) * model.layers)  # pyright: ignore[reportAssignmentType]
        users, items = rows[: model.num_users], rows[model.num_users :]
        one = jnp.ones((model.num_users, 1))
        return Factors(
            jnp.concatenate([users, one], 1),
            jnp.concatenate([items, (bias + tables.prior)[:, None]], 1),
        )

    def init(key, tables):
        return model.init(key, (tables.full,) * model.layers)

    return Learner(init, losses, factors)


def draw_items(key: Array, graph: Graph, users: Array, mask: Array, num: int) -> tuple[Array, Array]:
    """`(items, valid)`: nodes that users have in training, `[b, num]`, each draw uniform.

    A quarter of a user's items at most are asked for, one at least.
    """
    block = sample_neighbors(key, graph._replace(edge_data={}), users, num, draw=with_replacement)
    degree = graph.indptr[users + 1] - graph.indptr[users]
    wanted = jnp.maximum(degree // SHARE, 1)
    return block.src, block.mask & mask[:, None] & (jnp.arange(num)[None] < wanted[:, None])


def draw_others(key: Array, model: Recommender, num: int) -> Array:
    """Items, shared by the batch: all of them, or `num` drawn evenly where there are more."""
    if model.num_items <= num:
        return model.num_users + jnp.arange(model.num_items, dtype=jnp.int32)
    return model.num_users + jax.random.randint(key, (num,), 0, model.num_items)
