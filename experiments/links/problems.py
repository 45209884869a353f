"""What is split, and what is validated and tested: links of an undirected graph, or events in their order."""

from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from experiments.common import datasets
from experiments.common.config import LabelOptions
from experiments.links.baselines import TABLE, edgebank, heuristics, table_scores
from experiments.links.config import Config
from experiments.links.history import make_history
from experiments.links.learners import Tables
from experiments.links.scores import EventPairs, Pairs
from jsage import data
from jsage.blocks import sliced_full_block
from jsage.data import (
    Dataset,
    TimeSplit,
    destination_negatives,
    hist_rnd_negatives,
    historical_negatives,
    split_edges,
    split_edges_by_time,
    unseen_nodes,
)
from jsage.graph import (
    Graph,
    add_self_loops,
    edges,
    in_degrees,
    node_sides,
    sort_rows,
    symmetrize,
)
from jsage.recipes.plots import node_colors
from jsage.recipes.scaling import Scaling
from jsage.sampling import full_block, negatives

RANKED = 2000
"""Test events that are ranked among many at most."""


class Problem(NamedTuple):
    """One split: what programs read, what is validated and tested, and scores without learning."""

    tables: Any
    """Those of `learners`, or of `mesh`."""
    val: Pairs
    test: Pairs | EventPairs
    plain: dict[str, np.ndarray]
    """Scores of `test.all`, each a baseline's."""
    drawn: str
    """How the negatives of `val` and `test` were drawn."""
    colors: tuple[np.ndarray, str]
    """What nodes are colored by in pictures, and its name."""


def load(config: Config) -> tuple[Dataset, Scaling | None]:
    """The data set, features scaled, and how; edges in both directions unless they have times."""
    path = Path(config.dataset)
    if path.is_file():
        dataset, scaling = datasets.scaled(data.load_npz(path), config.scale)
    else:
        options = LabelOptions(config.dataset, config.scale)
        dataset, _, scaling = datasets.prepare(datasets.read(options), options)
    if "time" in dataset.graph.edge_data:
        return dataset, scaling
    if config.by_time:
        raise ValueError(f"--by-time needs edge times, and {config.dataset} has none")
    return dataset._replace(graph=symmetrize(dataset.graph._replace(edge_data={}))), scaling


def edge_problem(dataset: Dataset, seed: int, config: Config) -> Problem:
    """A random split of an undirected graph."""
    if config.test_negatives == "historical":
        raise ValueError(f"--test-negatives historical needs edge times, and {config.dataset} has none")
    sides = node_sides(dataset.graph, dataset.node_type)
    split = split_edges(dataset.graph, seed=seed, sides=sides)
    graph, wrong = split.graph, [split.val_negatives, split.test_negatives]
    if config.test_negatives == "destination":
        draw = partial(destination_negatives, dataset.graph, among=destinations(dataset.graph), sides=sides)
        wrong = [draw(part, seed=seed) for part in (split.val, split.test)]
    width = config.hidden if dataset.features is None else max(config.hidden, dataset.features.shape[1])
    small = graph.num_edges * width <= datasets.MESSAGES
    full = full_block(graph) if small else sliced_full_block(graph)
    known = sort_rows(add_self_loops(graph))
    features = None if dataset.features is None else jnp.asarray(dataset.features)
    pairs = jnp.asarray(split.train)
    tables = Tables(graph, known, features, full, noise(graph, sides, config), pairs)
    val, test = Pairs(split.val, wrong[0], None), Pairs(split.test, wrong[1], None)
    colors, drawn = node_colors(dataset.labels, in_degrees(graph)), described(dataset, sides, config)
    return Problem(tables, val, test, heuristics(graph, test.all), drawn, colors)


def event_problem(dataset: Dataset, seed: int, config: Config) -> Problem:
    """Events in their order; the split has no seed, and the negatives of evaluation are those of seed 0.

    Historical ones are of all events before the part that is validated or tested.

    The graph holds all events, in both directions and in order of time: who asks at a time reads no later.
    """
    split, n = by_time(dataset.graph), dataset.graph.num_nodes
    history, sides = make_history(split, n), node_sides(dataset.graph, dataset.node_type)
    draw = partial(destination_negatives, dataset.graph, sides=sides, seed=0)
    listed = destinations(dataset.graph)

    def pairs_of(before: np.ndarray, part: np.ndarray, when: np.ndarray) -> Pairs:
        if config.test_negatives == "historical":
            return Pairs(part, historical_negatives(before, part, seed=0), when)
        among = None if config.test_negatives == "uniform" else listed
        return Pairs(part, draw(part, time=when, among=among), when)

    val = pairs_of(split.train, split.val, split.val_time)
    known = pairs_of(np.concatenate([split.train, split.val]), split.test, split.test_time)
    new = unseen_nodes(split).test
    anyone = draw(split.test, time=split.test_time)
    test = EventPairs(*known[:2], split.test_time, anyone, new, *ranked(split))
    features = None if dataset.features is None else jnp.asarray(dataset.features)
    pairs, when = jnp.asarray(split.train), jnp.asarray(split.train_time)
    sampler = event_noise(split.graph, sides, config)
    tables = Tables(history.both, split.graph, features, None, sampler, pairs, when, history)
    others = draw(split.train, time=split.train_time, among=listed)
    plain = edgebank(split, test) | {TABLE: table_scores(history, split, others, test)}
    colors, drawn = node_colors(dataset.labels, in_degrees(history.both)), described(dataset, sides, config)
    return Problem(tables, val, test, plain, drawn, colors)


def ranked(split: TimeSplit) -> tuple[np.ndarray, np.ndarray]:
    """Up to `RANKED` test events, evenly spaced, and 100 others of each; none if nodes are few."""
    at = np.linspace(0, len(split.test) - 1, min(len(split.test), RANKED)).astype(int)
    try:
        many = hist_rnd_negatives(split.train, split.test, split.test_time, seed=0)[at]
    except ValueError as reason:
        print(f"no MRR: {reason}")
        return at[:0], np.zeros((0, 1, 2), np.int32)
    return at, np.stack(np.broadcast_arrays(split.test[at, :1], many), -1)


def event_noise(
    graph: Graph, sides: np.ndarray, config: Config
) -> negatives.NegativeSampler | negatives.BySide:
    """What destinations of negatives are drawn from in training: those that training events have."""
    if config.noise == "degree" or (sides != sides[0]).any():
        return noise(graph, sides, config)
    return negatives.choice(destinations(graph))


def noise(graph: Graph, sides: np.ndarray, config: Config) -> negatives.NegativeSampler | negatives.BySide:
    """What ends of negatives are drawn from in training: all nodes, or those of a node's own side."""
    if (sides != sides[0]).any():
        weights = np.asarray(in_degrees(graph)) ** 0.75 if config.noise == "degree" else None
        return negatives.by_side(sides, weights)
    return negatives.by_degree(graph) if config.noise == "degree" else negatives.uniform(graph.num_nodes)


def destinations(graph: Graph) -> np.ndarray:
    """The nodes that edges lead to."""
    return np.flatnonzero(np.asarray(in_degrees(graph)))


def described(dataset: Dataset, sides: np.ndarray, config: Config) -> str:
    """How negatives of evaluation are drawn, in a sentence."""
    events, sizes = "time" in dataset.graph.edge_data, np.bincount(sides)
    both = "the source kept, another destination drawn evenly" if events else "both ends drawn evenly"
    how = {
        "uniform": both,
        "destination": "one end kept, the other drawn evenly among nodes that occur as destinations",
        "historical": "pairs drawn evenly that were joined before the part they are in, and not in it",
    }[str(config.test_negatives)]
    kept = {True: "no event of that very time", False: "no edge of the graph"}[events]
    kept = "" if config.test_negatives == "historical" else f", {kept} among them"
    if not (sides != sides[0]).any():
        return f"{how}{kept}; all nodes are of one side"
    why = "by two colors, or the edges' direction" if dataset.node_type is None else "by the types of nodes"
    numbers = ", ".join(f"{size:,}" for size in sizes[sizes > 0])
    return f"{how}{kept}, of the same sides as the link's ends ({why}: {numbers} nodes)"


def by_time(graph: Graph) -> TimeSplit:
    """The chronological 70/15/15 split of a graph's events."""
    return split_edges_by_time(*edges(graph), graph.edge_data["time"], graph.num_nodes)
