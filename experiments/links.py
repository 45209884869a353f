"""Train GraphSAGE to predict links, beside a features-only MLP, common neighbours and other heuristics.

    python -m experiments.links                                   # the digits' graph: under a minute
    python -m experiments.links --dataset cora.npz --runs 5
    python -m experiments.links --dataset collegemsg.npz          # has times: what comes next
    python -m experiments.links --devices 8                       # graph and features split over a mesh

A random 85/5/10 split of an undirected graph's edges, with fixed negatives; the edges of a batch are in no
neighbourhood of its step. Events with times are split in their order, 70/15/15, one random destination is
the negative, and a node's neighbours are its latest events before the one asked about: EdgeBank stands
beside. The model with the best validation AUC is tested.

On a mesh (`--devices`) a negative that is an edge to train on stays; without one it is drawn anew. A step
holds the features of all nodes that its pairs and negatives draw: wide ones take a smaller `--batch-size`.
"""

import dataclasses
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from experiments import classify, link_mesh
from experiments.fit import Run
from experiments.learners import AGGREGATORS
from experiments.link_baselines import edgebank, heuristics
from experiments.link_fit import Pairs, Programs, compile_programs, fit, predict, rate
from experiments.link_learners import DECODERS, NEGATIVES, Tables, mlp, sage
from experiments.options import command, option, read
from experiments.picture import colour, draw
from experiments.pod import virtual
from experiments.pod_tables import PLACEMENTS
from experiments.record import Record
from experiments.report import Scores, show, summarize_all
from jsage import data
from jsage.blocks import degree_classes
from jsage.data import Dataset, TimeSplit, split_edges, split_edges_by_time
from jsage.graph import Graph, add_self_loops, edges, from_edges, in_degrees, sort_rows, symmetrize
from jsage.nn import l2_normalize
from jsage.sampling import full_block, negatives


@dataclass(frozen=True)
class Config:
    """Every option; the defaults are the one recipe."""

    dataset: str = option("digits", "digits, communities, an .npz file or a graph directory")
    decoder: str | None = option(None, "the score of two embeddings; mlp unless given, bilinear for events")
    aggregator: str = option("mean", "how neighbours are reduced")
    fanouts: tuple[int, ...] = option((10, 10), "neighbours drawn a hop, one layer each")
    hidden: int = option(128, "width of the layers, the embeddings and the decoder")
    identity: int = option(64, "width of learned embeddings, for graphs without features")
    epochs: int = option(60, "epochs at most")
    pairs: int = option(10_000, "training pairs an epoch at most, drawn anew")
    batch_size: int = option(1024, "pairs a step")
    negatives: int = option(1, "negatives a pair")
    noise: str = option("pairs", "both ends of a negative drawn evenly, or one: evenly or by degree")
    lr: float = option(0.005, "learning rate of Adam")
    weight_decay: float = option(0.0, "L2 penalty on the parameters")
    dropout: float = option(0.3, "rate on every layer's inputs")
    patience: int = option(15, "epochs without a better validation AUC before stopping")
    by_time: bool = option(False, "split by the edges' times; so are all graphs that have them")
    devices: int = option(0, "train on a mesh of so many devices, virtual ones on a CPU; 0: no mesh")
    placement: str = option("hashed", "which device of the mesh owns a node")
    runs: int = option(1, "how many runs, with seeds 0 .. runs-1 of the split and the training")
    out: str | None = option(None, "folder for checkpoints, metrics.jsonl and pictures")
    resume: bool = option(False, "go on with the runs in --out; give the other options again")
    save_every: int = option(10, "epochs between checkpoints")
    json: str | None = option(None, "write the result there; - is standard output")


class Problem(NamedTuple):
    """One split: what programs read, what is validated and tested, and scores without learning."""

    tables: Any
    """`link_learners.Tables`, or `link_mesh.Tables`."""
    val: Pairs
    test: Pairs
    plain: dict[str, np.ndarray]
    """Scores of `test.all`."""
    colour: tuple[np.ndarray, str]
    """What nodes are coloured by in pictures, and its name."""


def main(config: Config) -> dict:
    """Train `config.runs` models and the baseline; print the table; return what `--json` writes."""
    if config.devices:
        virtual(config.devices)
    dataset = load(config)
    by_time = "time" in dataset.graph.edge_data
    if config.decoder is None:  # events have a direction
        config = dataclasses.replace(config, decoder="bilinear" if by_time else "mlp")
    make = event_problem if by_time else edge_problem
    makers = {"GraphSAGE": sage}
    if dataset.features is not None and not by_time and not config.devices:
        makers["MLP (features only)"] = mlp
    scores: Scores = {}
    runs: dict[str, list[Run]] = {}
    programs: dict[str, Programs] = {}
    size = 0
    for seed in range(config.runs):
        problem = make(dataset, seed, config)
        if config.devices:  # anew for each split, whose shards have other sizes
            programs["GraphSAGE"], tables = link_mesh.place(problem.tables, config)
            problem = problem._replace(tables=tables)
        for name, maker in makers.items():
            if name not in programs:
                programs[name] = compile_programs(maker(config, problem.tables), config)
            run, found = train(name, programs[name], problem, seed, config)
            runs.setdefault(name, []).append(run)
            scores.setdefault(name, []).append(found)
        size = len(problem.test.positive)
        for name, values in problem.plain.items():
            scores.setdefault(name, []).append(rate(values[:size], values[size:], ranked=not by_time))
    show(scores, f"{size:,} test {'events' if by_time else 'links'}")
    return summarize_all(config, "auc", scores, runs["GraphSAGE"], programs["GraphSAGE"].traces)


def train(name: str, programs: Programs, problem: Problem, seed: int, config: Config) -> tuple[Run, dict]:
    """One run and its test scores."""
    folder = Path(config.out) / f"{name.split()[0].lower()}-{seed}" if config.out else None
    pairs = min(config.pairs, problem.tables.pairs.shape[0])
    with Record(name, seed, config, pairs, folder) as record:  # pyright: ignore[reportArgumentType]
        run = fit(programs, problem.tables, problem.val, config, record)
    if folder:
        value, shade = problem.colour
        rows = np.asarray(programs.embed(run.params, problem.tables))
        draw(folder / "tsne.png", rows, value, f"nodes, coloured by {shade}")
    found = predict(programs, run.params, problem.tables, problem.test)
    return run, rate(*found, ranked=problem.test.time is None)


def load(config: Config) -> Dataset:
    """The data set, feature rows scaled to length 1; edges in both directions unless they have times."""
    path = Path(config.dataset)
    if path.is_file():
        dataset = data.load_npz(path)
        if dataset.features is not None:
            dataset = dataset._replace(features=l2_normalize(jnp.asarray(dataset.features)))
    else:
        dataset, _ = classify.load(classify.Config(dataset=config.dataset))
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
    small = graph.num_edges * width <= classify.MESSAGES
    full = full_block(graph) if small else degree_classes(graph)
    known = sort_rows(add_self_loops(graph))
    noise = negatives.by_degree(graph) if config.noise == "degree" else negatives.uniform(graph.num_nodes)
    features = None if dataset.features is None else jnp.asarray(dataset.features)
    tables = Tables(graph, known, features, full, noise, jnp.asarray(split.train), None)
    val, test = Pairs(split.val, split.val_negatives, None), Pairs(split.test, split.test_negatives, None)
    shade = colour(dataset.labels, in_degrees(graph))
    return Problem(tables, val, test, heuristics(graph, test.all), shade)


def event_problem(dataset: Dataset, seed: int, config: Config) -> Problem:
    """Events in their order; the split has no seed, and the negatives of evaluation are those of seed 0.

    The graph holds all events, in both directions and in order of time: who asks at a time reads no later.
    """
    split, n = by_time(dataset.graph), dataset.graph.num_nodes
    events = np.concatenate([split.train, split.val, split.test])
    time = np.concatenate([split.train_time, split.val_time, split.test_time])
    both = np.concatenate([events, events[:, ::-1]], 1).reshape(-1, 2)
    graph = from_edges(both[:, 0], both[:, 1], n, time=np.repeat(time, 2))
    rng = np.random.default_rng(0)
    test, val = (
        Pairs(part, np.stack([part[:, 0], rng.integers(0, n, len(part))], 1).astype(np.int32), when)
        for part, when in ((split.test, split.test_time), (split.val, split.val_time))
    )
    noise = negatives.by_degree(split.graph) if config.noise == "degree" else negatives.uniform(n)
    features = None if dataset.features is None else jnp.asarray(dataset.features)
    pairs, when = jnp.asarray(split.train), jnp.asarray(split.train_time)
    tables = Tables(graph, split.graph, features, None, noise, pairs, when)
    return Problem(tables, val, test, edgebank(split, test, n), colour(dataset.labels, in_degrees(graph)))


def by_time(graph: Graph) -> TimeSplit:
    """The chronological 70/15/15 split of a graph's events."""
    return split_edges_by_time(*edges(graph), graph.edge_data["time"], graph.num_nodes)


def parse(arguments: list[str] | None = None) -> Config:
    """Read the command line."""
    slotless = [name for name in AGGREGATORS if name != "lstm"]
    choices = {
        "aggregator": slotless,
        "decoder": list(DECODERS),
        "noise": NEGATIVES,
        "placement": list(PLACEMENTS),
    }
    return read(Config, choices, arguments, "links", __doc__)


def run(arguments: list[str] | None = None) -> int:
    """The command: 0, or 2 and one line on standard error for bad input."""
    return command(main, partial(parse, arguments))


if __name__ == "__main__":
    sys.exit(run())
