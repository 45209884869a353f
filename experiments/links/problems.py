"""What is split, and what is validated and tested: links of an undirected graph, or events in their order."""

from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from experiments.common import datasets
from experiments.common.config import LabelOptions
from experiments.links.baselines import edgebank, heuristics
from experiments.links.config import Config
from experiments.links.learners import Tables
from experiments.links.scores import Pairs
from jsage import data
from jsage.blocks import sliced_full_block
from jsage.data import Dataset, TimeSplit, split_edges, split_edges_by_time
from jsage.graph import (
    Graph,
    add_self_loops,
    edges,
    from_edges,
    in_degrees,
    sort_by_time,
    sort_rows,
    symmetrize,
)
from jsage.recipes.plots import node_colors
from jsage.sampling import full_block, negatives


class Problem(NamedTuple):
    """One split: what programs read, what is validated and tested, and scores without learning."""

    tables: Any
    """Those of `learners`, or of `mesh`."""
    val: Pairs
    test: Pairs
    plain: dict[str, np.ndarray]
    """Scores of `test.all`."""
    colors: tuple[np.ndarray, str]
    """What nodes are colored by in pictures, and its name."""


def load(config: Config) -> Dataset:
    """The data set, features scaled; edges in both directions unless they have times."""
    path = Path(config.dataset)
    if path.is_file():
        dataset = datasets.scaled(data.load_npz(path), config.scale)
    else:
        dataset, _ = datasets.load(LabelOptions(config.dataset, config.scale))
    if "time" in dataset.graph.edge_data:
        return dataset
    if config.by_time:
        raise ValueError(f"--by-time needs edge times, and {config.dataset} has none")
    return dataset._replace(graph=symmetrize(dataset.graph._replace(edge_data={})))


def edge_problem(dataset: Dataset, seed: int, config: Config) -> Problem:
    """A random split of an undirected graph."""
    split = split_edges(dataset.graph, seed=seed)
    graph = split.graph
    width = config.hidden if dataset.features is None else max(config.hidden, dataset.features.shape[1])
    small = graph.num_edges * width <= datasets.MESSAGES
    full = full_block(graph) if small else sliced_full_block(graph)
    known = sort_rows(add_self_loops(graph))
    noise = negatives.by_degree(graph) if config.noise == "degree" else negatives.uniform(graph.num_nodes)
    features = None if dataset.features is None else jnp.asarray(dataset.features)
    tables = Tables(graph, known, features, full, noise, jnp.asarray(split.train), None)
    val, test = Pairs(split.val, split.val_negatives, None), Pairs(split.test, split.test_negatives, None)
    colors = node_colors(dataset.labels, in_degrees(graph))
    return Problem(tables, val, test, heuristics(graph, test.all), colors)


def event_problem(dataset: Dataset, seed: int, config: Config) -> Problem:
    """Events in their order; the split has no seed, and the negatives of evaluation are those of seed 0.

    The graph holds all events, in both directions and in order of time: who asks at a time reads no later.
    """
    split, n = by_time(dataset.graph), dataset.graph.num_nodes
    events = np.concatenate([split.train, split.val, split.test])
    time = np.concatenate([split.train_time, split.val_time, split.test_time])
    both = np.concatenate([events, events[:, ::-1]], 1).reshape(-1, 2)
    graph = sort_by_time(from_edges(both[:, 0], both[:, 1], n, time=np.repeat(time, 2)))
    rng = np.random.default_rng(0)
    test, val = (
        Pairs(part, np.stack([part[:, 0], rng.integers(0, n, len(part))], 1).astype(np.int32), when)
        for part, when in ((split.test, split.test_time), (split.val, split.val_time))
    )
    noise = negatives.by_degree(split.graph) if config.noise == "degree" else negatives.uniform(n)
    features = None if dataset.features is None else jnp.asarray(dataset.features)
    pairs, when = jnp.asarray(split.train), jnp.asarray(split.train_time)
    tables = Tables(graph, split.graph, features, None, noise, pairs, when)
    return Problem(
        tables, val, test, edgebank(split, test, n), node_colors(dataset.labels, in_degrees(graph))
    )


def by_time(graph: Graph) -> TimeSplit:
    """The chronological 70/15/15 split of a graph's events."""
    return split_edges_by_time(*edges(graph), graph.edge_data["time"], graph.num_nodes)
