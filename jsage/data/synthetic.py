"""Graphs made to order: heavy-tailed degrees, communities, noisy features."""

from itertools import pairwise
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from jsage.data.dataset import Dataset
from jsage.graph import Graph, from_edges, symmetrize


class Mixing(NamedTuple):
    """How communities, degrees and features of an artificial graph are drawn."""

    homophily: float = 0.5
    """Probability that an edge stays in its node's community."""
    exponent: float = 2.5
    """That of the degrees' power law, above 2."""
    noise: float = 0.6
    """Standard deviation of a feature about its community's mean."""


def power_law_communities(
    num_nodes: int,
    num_edges: int,
    *,
    num_classes: int = 10,
    num_features: int = 64,
    mixing: Mixing = Mixing(),  # noqa: B008 (a tuple: it cannot change)
    seed: int = 0,
) -> Dataset:
    """A degree-corrected block model whose classes are its communities, with features that only hint at them.

    With `homophily`, `exponent` and `noise` of `mixing`:

    * Degrees: node `v` has weight `w_v ~ Pareto(exponent - 1)`, so that `P(degree > d) ~ d^(1 - exponent)`; a
      weight that would join a node to more than a tenth of the others is cut to that.
    * Edges: `num_edges / 2` undirected ones, drawn by weight, each with ends of one class with probability
      `homophily`. They are stored in both directions. Self-loops and repeats are dropped, so the graph has
      fewer than `num_edges` directed edges: 1.6 % fewer with 200,000 nodes and 4 million edges.
    * Features: `x_v = m_c + noise * z_v`, where class `c` has mean `m_c ~ N(0, I / num_features)` and
      `z_v ~ N(0, I)`.
    * Splits: 5 % of the nodes to train on, 5 % to validate, 10 % to test, at random; the rest in none.

    The same arguments give the same graph under one version of NumPy. Two million nodes with 40 million edges
    take under a minute. Raises ValueError for arguments out of range.

    Source: Karrer and Newman (2011), Stochastic blockmodels and community structure in networks.

    >>> dataset = power_law_communities(1000, 20_000)
    >>> dataset.graph.num_nodes, dataset.features.shape, dataset.test.shape
    (1000, (1000, 64), (100,))
    """
    homophily, exponent, noise = mixing
    _check_sizes(num_nodes, num_edges, num_classes, num_features)
    _check_reals(homophily, exponent, noise)
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.arange(num_nodes, dtype=np.int32) % num_classes)
    weights = _pareto(rng, num_nodes, num_edges, exponent)
    graph = _edges(rng, labels, weights, num_edges // 2, num_classes, homophily)
    means = rng.standard_normal((num_classes, num_features), np.float32) / np.sqrt(np.float32(num_features))
    features = rng.standard_normal((num_nodes, num_features), np.float32)
    features *= np.float32(noise)
    features += means[labels]
    nodes = rng.permutation(num_nodes).astype(np.int32)
    train, val, test, _ = np.split(nodes, [num_nodes // 20, num_nodes // 10, num_nodes // 5])
    return Dataset(graph, *(jnp.asarray(array) for array in (features, labels, train, val, test)))


def _pareto(rng: np.random.Generator, num_nodes: int, num_edges: int, exponent: float) -> np.ndarray:
    weights = (1 - rng.random(num_nodes)) ** (-1 / (exponent - 1))
    return np.minimum(weights, weights.sum() / max(num_edges, 1) * num_nodes / 10)


def _edges(
    rng: np.random.Generator,
    labels: np.ndarray,
    weights: np.ndarray,
    num_pairs: int,
    num_classes: int,
    homophily: float,
) -> Graph:
    """Node `v` has stubs in proportion to `w_v` and starts a pair at each; the other end is any stub of its
    class with probability `homophily`, else any stub of another class.
    """
    order = np.argsort(labels, kind="stable").astype(np.int32)
    ends = np.rint(np.cumsum(weights[order]) * (num_pairs / weights.sum())).astype(np.int64)
    stub = np.repeat(order, np.diff(ends, prepend=0))
    bounds = np.searchsorted(labels[stub], np.arange(num_classes + 1))
    other = np.empty_like(stub)
    for low, high in pairwise(bounds):
        size = high - low
        inside = (rng.random(size) < homophily) | (size == len(stub))
        drawn = rng.integers(0, np.where(inside, size, len(stub) - size))
        drawn[inside] += low
        drawn[~inside & (drawn >= low)] += size
        other[low:high] = stub[drawn]
    apart = stub != other
    return symmetrize(from_edges(stub[apart], other[apart], len(labels)))


def _check_sizes(num_nodes: int, num_edges: int, num_classes: int, num_features: int) -> None:
    if not 2 <= num_classes <= num_nodes:
        raise ValueError(f"num_classes must be in 2 .. num_nodes ({num_nodes}), got {num_classes}")
    if num_features < 1:
        raise ValueError(f"num_features must be at least 1, got {num_features}")
    if not 0 <= num_edges <= num_nodes * (num_nodes - 1):
        raise ValueError(f"num_edges must be in 0 .. num_nodes * (num_nodes - 1), got {num_edges}")


def _check_reals(homophily: float, exponent: float, noise: float) -> None:
    if not 0 <= homophily <= 1:
        raise ValueError(f"homophily is a probability in 0 .. 1, got {homophily}")
    if not 2 < exponent < np.inf:
        raise ValueError(f"exponent must be above 2, where the mean degree is finite, got {exponent}")
    if not 0 <= noise < np.inf:
        raise ValueError(f"noise must be a finite standard deviation of at least 0, got {noise}")
