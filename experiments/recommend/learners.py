"""What is trained to recommend: layers on users and items, or two tables of rows without neighbors."""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array

from experiments.recommend.baselines import Factors
from experiments.recommend.config import Config
from experiments.recommend.data import Batch
from experiments.recommend.negatives import Scores, draw_hard, draw_others, margin_loss, softmax_loss
from experiments.recommend.neighborhoods import link_blocks_of
from jsage.blocks import Block
from jsage.blocks.aggregate import gcn
from jsage.graph import Graph, has_edge
from jsage.nn import PinSAGEConv, dot
from jsage.sampling import LinkBatch, Ranking, sample_neighbors, split, with_replacement

SHARE = 4
"""At most one in so many of a user's items is asked for in a step: the others are what it is known by."""
CONVS: dict[str, Callable[[int], Callable[[Array, Block], Array]]] = {
    "gcn": lambda width: gcn,
    "pinsage": lambda width: PinSAGEConv(width, normalize=False),
}
"""name -> a layer of this width"""


class Tables(NamedTuple):
    """What every program reads; always an argument."""

    graph: Graph
    """Training interactions in both directions, rows sorted: positives, and what is no negative."""
    messages: Graph
    """What messages pass along in training, rows sorted: often the same."""
    full: Block
    """What they pass along at inference, as one block."""
    users: Array
    """Users that train."""
    prior: Array
    """The logarithm of each item's popularity."""
    hard: Ranking | None
    """Items that walks from each user visit most, its own invalid; None without hard negatives."""


class Learner(NamedTuple):
    """A model as three functions."""

    init: Callable[[Array, Tables], Any]
    """`(key, tables) -> variables`"""
    losses: Callable[[Any, Tables, Batch, Array], tuple[Array, Array]]
    """`(variables, tables, batch, key) -> (losses [b, positives], valid [b, positives])`"""
    factors: Callable[[Any, Tables], Factors]
    """`(variables, tables) -> rows of all users and items`, deterministic."""


class Recommender(nn.Module):
    """The mean of a node's row and of every layer's.

    A layer is `aggregate.gcn`, `(h_v + sum_u h_u) / (1 + number of neighbors)` (Hamilton et al., 2017,
    equation 2); without matrices and non-linearities, and with the mean over layers, as He et al. (2020,
    LightGCN) found best. Or it is `PinSAGEConv`, rows of any length. Items have learned rows. Users have
    none, they are what their items say, unless there is no layer.
    """

    num_users: int
    num_items: int
    width: int
    layers: int
    conv: str = "gcn"

    def setup(self) -> None:
        """The tables; with layers the one of users is not there."""
        rows = self.num_items + (0 if self.layers else self.num_users)
        self.embed = nn.Embed(rows, self.width)
        self.bias = self.param("bias", nn.initializers.zeros, (self.num_items,))
        self.convs = [CONVS[self.conv](self.width) for _ in range(self.layers)]

    def __call__(self, blocks: tuple[Block, ...]) -> tuple[Array, Array]:
        """Rows at the destinations of the last block, or of all nodes; and each item's learned bias."""
        h = self.embed.embedding
        if self.layers:
            h = jnp.concatenate([jnp.zeros((self.num_users, self.width)), h])
        kept = [h]
        for conv, block in zip(self.convs, blocks, strict=True):
            h = conv(h, block)
            kept = [*(block.own(rows) for rows in kept), h]
        return sum(kept[1:], kept[0]) / len(kept), self.bias


def sage(config: Config, num_users: int, num_items: int) -> Learner:
    """Sampled neighborhoods without the pairs asked for; whole ones at inference."""
    model = Recommender(num_users, num_items, config.width, len(config.fanouts), config.conv)
    sample = link_blocks_of(config, num_users)

    def embed(variables, tables, batch, key) -> Any:
        blocks, everyone = sample(key, tables.messages, batch)
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

    The score is `z_u · z_i + log popularity_i + bias_i`. Negatives are items that the user does not have:
    those that the batch shares, and hard ones of its own.
    """

    def losses(variables, tables, batch, key) -> tuple[Array, Array]:
        pick, noise, draw = jax.random.split(key, 3)
        users = batch.users
        items, valid = draw_items(pick, tables.graph, users, batch.mask, config.positives)
        others = draw_others(noise, model.num_users, model.num_items, config.negatives)
        hard, hard_mask = draw_hard(jax.random.fold_in(key, 3), tables.hard, batch, config)
        pairs = jnp.repeat(users, config.positives), items.ravel()
        links = LinkBatch(*pairs, jnp.concatenate([others, hard.ravel()]), valid.ravel())
        rows, bias = embed(variables, tables, links, draw)
        src, dst, far = split(rows, links)
        biases = (bias + tables.prior)[jnp.maximum(links.seeds[len(src) :] - model.num_users, 0)]
        own_bias, far_bias = biases[: len(dst)], biases[len(dst) :]
        user, q = src[:: config.positives][:, None], others.shape[0]
        known = has_edge(tables.graph, *jnp.broadcast_arrays(others[None], users[:, None]))
        near = far[q:].reshape(*hard.shape, far.shape[1])
        scores = Scores(
            (dot(src, dst) + own_bias).reshape(valid.shape),
            (dot(user, far[None, :q]) + far_bias[None, :q], ~known),
            (dot(user, near) + far_bias[q:].reshape(hard.shape), hard_mask),
        )
        if config.loss == "margin":
            return margin_loss(scores, valid, config.delta), valid
        return softmax_loss(scores, valid, model.num_items), valid

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
