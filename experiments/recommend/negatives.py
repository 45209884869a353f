"""Negatives of a step, those that its users share and hard ones of each; and the losses over both."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from experiments.recommend.config import Config
from experiments.recommend.data import Batch
from experiments.recommend.neighborhoods import items_by_walks
from jsage.graph import Graph, has_edge
from jsage.losses import margin
from jsage.sampling import Ranking, batches, curriculum, hard_negatives

NEVER = -1e9
ROWS = 256
"""Users whose walks are counted at once."""


class Scores(NamedTuple):
    """Scores of users' pairs, and scores and masks of their negatives."""

    own: Array
    """`[b, positives]`"""
    others: tuple[Array, Array]
    """Of the negatives that all share, `[b, q]` each."""
    hard: tuple[Array, Array]
    """Of each user's own, `[b, hard negatives]` each."""


def draw_others(key: Array, num_users: int, num_items: int, num: int) -> Array:
    """Items, shared by the batch: all of them, or `num` drawn evenly where there are more."""
    if num_items <= num:
        return num_users + jnp.arange(num_items, dtype=jnp.int32)
    return num_users + jax.random.randint(key, (num,), 0, num_items)


def rank_items(key: Array, graph: Graph, num_users: int, config: Config) -> Ranking | None:
    """The items that walks from each user visit most, its own invalid; None if no hard ones are wanted.

    Raises ValueError unless the ranks are two, the lower one first, and walks visit that many items.
    """
    if not config.hard_negatives:
        return None
    if len(config.hard_ranks) != 2 or config.hard_ranks[0] >= config.hard_ranks[1]:
        raise ValueError(f"--hard-ranks is two numbers, the lower one first, got {config.hard_ranks}")

    @jax.jit
    def rank(key: Array, graph: Graph, rows: Array) -> Ranking:
        def some(users: Array) -> Ranking:
            found = items_by_walks(
                jax.random.fold_in(key, users[0]), graph, users, num_users, config.hard_ranks[1]
            )
            own = has_edge(graph, found.node, jnp.broadcast_to(users[:, None], found.node.shape))
            return found._replace(mask=found.mask & ~own)

        return jax.lax.map(some, rows)

    rows, _ = batches(jnp.arange(num_users, dtype=jnp.int32), min(ROWS, num_users))
    found = rank(key, graph, rows)
    ranking = Ranking(*(array.reshape(-1, array.shape[2])[:num_users] for array in found))
    if not np.asarray(ranking.mask)[:, config.hard_ranks[0] :].any():
        most = int(np.asarray(ranking.visits > 0).sum(1).max())
        raise ValueError(f"walks visit {most} items at most, --hard-ranks begins at {config.hard_ranks[0]}")
    return ranking


def draw_hard(key: Array, ranking: Ranking | None, batch: Batch, config: Config) -> tuple[Array, Array]:
    """`(items, mask)`: hard negatives of a batch's users, as many as the curriculum has in its epoch."""
    if ranking is None:
        shape = batch.users.shape[0], 0
        return jnp.zeros(shape, jnp.int32), jnp.zeros(shape, bool)
    rows = Ranking(*(array[batch.users] for array in ranking))
    count, (low, high) = config.hard_negatives, config.hard_ranks
    items, mask = hard_negatives(key, rows, None, count, ranks=(low, high))
    return items, mask & curriculum(batch.epoch, count)[None] & batch.mask[:, None]


def softmax_loss(scores: Scores, valid: Array, num_items: int) -> Array:
    """A softmax over the negatives and the pair, `[b, positives]`.

    Shared negatives stand for all items, where they are some of them (Jean et al., 2015).
    """
    (others, other_mask), (hard, hard_mask) = scores.others, scores.hard
    others = jnp.where(other_mask, others + jnp.log(num_items / others.shape[1]), NEVER)
    total = jax.nn.logsumexp(jnp.concatenate([others, jnp.where(hard_mask, hard, NEVER)], 1), axis=1)
    return jnp.where(valid, jax.nn.softplus(total[:, None] - scores.own), 0.0)


def margin_loss(scores: Scores, valid: Array, delta: float) -> Array:
    """Max-margin, `[b, positives]`: its mean over the shared negatives, and that over the hard ones."""
    own, num = scores.own.ravel(), valid.shape[1]
    total = jnp.zeros(own.shape)
    for found, mask in (scores.others, scores.hard):
        negatives, kept = (jnp.repeat(array, num, axis=0) for array in (found, mask))
        total += margin(own, negatives, valid.ravel(), kept, delta)
    return total.reshape(valid.shape)
