"""Users with tastes and items with popularity, made to order."""

from typing import NamedTuple

import numpy as np


class Interactions(NamedTuple):
    """Who took what: distinct pairs of a user and an item."""

    users: np.ndarray
    items: np.ndarray
    num_users: int
    num_items: int


def taste(
    num_users: int = 2000, num_items: int = 3000, num_interactions: int = 60_000, *, seed: int = 0
) -> Interactions:
    """Distinct items for each user, drawn one after another in proportion to `chances` of them.

    How many a user takes is log-normal, 5 at least. The same seed gives the same graph under one version of
    NumPy.
    """
    rng = np.random.default_rng(seed)
    chance = chances(rng, num_users, num_items)
    activity = rng.lognormal(0.0, 0.6, num_users)
    size = np.clip(np.rint(num_interactions * activity / activity.sum()).astype(int), 5, num_items)
    # The largest sums of log-chance and Gumbel noise are draws without replacement (Vieira, 2014).
    order = np.argsort(-(np.log(chance) + rng.gumbel(size=chance.shape)), axis=1)
    items = np.concatenate([row[:count] for row, count in zip(order, size, strict=True)])
    return Interactions(np.repeat(np.arange(num_users), size), items, num_users, num_items)


def chances(rng: np.random.Generator, num_users: int, num_items: int) -> np.ndarray:
    """Each user's chances of the items, `[num_users, num_items]`: rows that sum to 1.

    `0.9 p_i exp(5 cos(t_u, t_i)) / Z_u + 0.1 p_i`: popularity `p_i` by Zipf's law, tastes `t` in eight
    dimensions around those of twelve groups, and one choice in ten by popularity alone.
    """
    centres = rng.normal(size=(12, 8))
    tastes = []
    for size in (num_users, num_items):
        rows = centres[rng.integers(0, 12, size)] + 0.5 * rng.normal(size=(size, 8))
        tastes.append(rows / np.linalg.norm(rows, axis=1, keepdims=True))
    popularity = rng.permutation(1 / np.arange(1, num_items + 1))
    popularity /= popularity.sum()
    liked = popularity * np.exp(5 * tastes[0] @ tastes[1].T)
    return 0.9 * liked / liked.sum(1, keepdims=True) + 0.1 * popularity
