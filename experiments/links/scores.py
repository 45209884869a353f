"""What links are told from, and how well scores tell them."""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from jsage import metrics
from jsage.metrics import ranking

ROWS = 512
"""Positives that are ranked at once."""


class Pairs(NamedTuple):
    """Links and as many that are none, to be told apart."""

    positive: np.ndarray
    negative: np.ndarray
    time: np.ndarray | None
    """When the links were, by time; the negatives, each beside its link, are of the same times."""

    @property
    def all(self) -> np.ndarray:
        """The links, then the negatives, `[2 n, 2]`."""
        return np.concatenate([self.positive, self.negative])


def rate(positive: np.ndarray, negative: np.ndarray, *, ranked: bool) -> dict[str, float]:
    """AUC and average precision; where `ranked`, the ranks of the links among all negatives too.

    Hits@k as OGB has it: the share of links above the k-th best negative.
    """
    scores = np.concatenate([positive, negative]).astype(np.float32)
    truth = np.repeat([1, 0], [len(positive), len(negative)])
    found = {"auc": metrics.auroc(scores, truth), "ap": metrics.average_precision(scores, truth)}
    if not ranked:
        return found
    links, others = jnp.asarray(scores[: len(positive)]), jnp.asarray(scores[len(positive) :])
    parts = [links[i : i + ROWS] for i in range(0, len(links), ROWS)]
    total = [
        len(part)
        * float(ranking.mrr(ranking.ranks(part, jnp.broadcast_to(others, (len(part), len(others))))))
        for part in parts
    ]
    found["mrr"] = sum(total) / len(links)
    return found | {f"hits@{k}": float(ranking.hits_above(links, others, k)) for k in (10, 50)}
