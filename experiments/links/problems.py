"""What is split, and what is validated and tested: links of an undirected graph, or events in their order."""

from functools import partial
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
from jsage.data import (
    Dataset,
    TimeSplit,
    destination_negatives,
    historical_negatives,
    split_edges,
    split_edges_by_time,
)
from jsage.graph import (
    Graph,
    add_self_loops,
    edges,
    from_edges,
    in_degrees,
    node_sides,
    sort_by_time,
    sort_rows,
    symmetrize,
)
from jsage.recipes.plots import node_colors
from jsage.recipes.scaling import Scaling
from jsage.sampling import full_block, negatives


class Problem(NamedTuple):
    """One split: what programs read, what is validated and tested, and scores without learning."""

    tables: Any
    """Those of `learners`, or of `mesh`."""
    val: Pairs
    test: Pairs
    plain: dict[str, np.ndarray]
    """Scores of `test.all`."""
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
    tables = Tables(graph, known, features, full, noise(graph, sides, config), pairs, None)
    val, test = Pairs(split.val, wrong[0], None), Pairs(split.test, wrong[1], None)
    colors, drawn = node_colors(dataset.labels, in_degrees(graph)), described(dataset, sides, config)
    return Problem(tables, val, test, heuristics(graph, test.all), drawn, colors)


def event_problem(dataset: Dataset, seed: int, config: Config) -> Problem:
    """Events in their order; the split has no seed, and the negatives of evaluation are those of seed 0.

    Historical ones are of all events before the part that is validated or tested.

    The graph holds all events, in both directions and in order of time: who asks at a time reads no later.
    """
    split, n = by_time(dataset.graph), dataset.graph.num_nodes
    events = np.concatenate([split.train, split.val, split.test])
    time = np.concatenate([split.train_time, split.val_time, split.test_time])
    both = np.concatenate([events, events[:, ::-1]], 1).reshape(-1, 2)
    graph = sort_by_time(from_edges(both[:, 0], both[:, 1], n, time=np.repeat(time, 2)))
    sides = node_sides(dataset.graph, dataset.node_type)
    among = destinations(dataset.graph) if config.test_negatives == "destination" else None

    def pairs_of(before: np.ndarray, part: np.ndarray, when: np.ndarray) -> Pairs:
        if config.test_negatives == "historical":
            return Pairs(part, historical_negatives(before, part, seed=0), when)
        draw = partial(destination_negatives, dataset.graph, part, time=when, among=among, sides=sides)
        return Pairs(part, draw(seed=0), when)

    val = pairs_of(split.train, split.val, split.val_time)
    test = pairs_of(np.concatenate([split.train, split.val]), split.test, split.test_time)
    features = None if dataset.features is None else jnp.asarray(dataset.features)
    pairs, when = jnp.asarray(split.train), jnp.asarray(split.train_time)
    tables = Tables(graph, split.graph, features, None, noise(split.graph, sides, config), pairs, when)
    colors, drawn = node_colors(dataset.labels, in_degrees(graph)), described(dataset, sides, config)
    return Problem(tables, val, test, edgebank(split, test, n), drawn, colors)


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
    }[config.test_negatives]
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
