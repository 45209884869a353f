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

    @property
    def when(self) -> np.ndarray | None:
        """The time of each of `all`."""
        return None if self.time is None else np.tile(self.time, 2)

    def rate(self, scores: np.ndarray) -> dict[str, float]:
        """Of the scores of `all`."""
        links, others = np.split(scores, [len(self.positive)])
        return rate(links, others, ranked=self.time is None)


class EventPairs(NamedTuple):
    """Events to be told from several kinds of others, each asked as of its own time."""

    positive: np.ndarray
    negative: np.ndarray
    time: np.ndarray
    anyone: np.ndarray
    """As many others, with any node for a destination."""
    new: np.ndarray
    """Which events have an end that no training event has (the inductive part)."""
    ranked: np.ndarray
    """Numbers of the events that are ranked among many."""
    many: np.ndarray
    """Their sources with other destinations, `[ranked, k, 2]`."""

    @property
    def all(self) -> np.ndarray:
        """Everything that is scored, `[m, 2]`."""
        return np.concatenate([self.positive, self.negative, self.anyone, self.many.reshape(-1, 2)])

    @property
    def when(self) -> np.ndarray:
        """The time of each of `all`."""
        return np.concatenate([np.tile(self.time, 3), np.repeat(self.time[self.ranked], self.many.shape[1])])

    def rate(self, scores: np.ndarray) -> dict[str, float]:
        """AUC and average precision beside `negative`, of events of new nodes too, beside anyone; MRR."""
        size = len(self.positive)
        links, others, anyone, many = np.split(scores.astype(np.float32), [size, 2 * size, 3 * size])
        found = rate(links, others, ranked=False)
        if self.new.any():
            found |= named("new", rate(links[self.new], others[self.new], ranked=False))
        found |= named("anyone", rate(links, anyone, ranked=False))
        if len(self.ranked):
            few, many = jnp.asarray(links[self.ranked]), jnp.asarray(many.reshape(self.many.shape[:2]))
            found["mrr"] = float(ranking.mrr(ranking.ranks(few, many)))
        return found


def named(kind: str, scores: dict[str, float]) -> dict[str, float]:
    """The scores by names of their own."""
    return {f"{name} {kind}": value for name, value in scores.items()}


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
