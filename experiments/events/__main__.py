"""Train GraphSAGE to predict a label of the next event between two nodes, beside a boosted tree.

    python -m experiments.events --dataset bitcoin_alpha.npz --runs 5    # will the next rating be a bad one?

The label is whether an array of the edges, `--label`, is below 0: a stand-in for fraud. Events are split in
their order, 70/15/15, and each is asked as of its own time over all that was before, labels of earlier events
too: the latest events of both ends with their ages and values, how often and how long ago both ends, and the
pair, had events, and such events that are labeled 1. The tree counts the same past. The model with the best
validation AUROC is tested.
"""

import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from experiments.common.config import EncoderOptions, RunOptions, TrainingOptions
from experiments.common.options import command, read
from experiments.common.programs import make_optimizer, make_start
from experiments.links.baselines import boosted, table_rows
from experiments.links.config import PARTS
from experiments.links.events import counted_of, embed_seeds, event_model, inputs, parts_of
from experiments.links.history import History, make_history
from experiments.links.learners import in_batches
from experiments.links.problems import by_time
from jsage import metrics
from jsage.data import Dataset, TimeSplit, load_npz
from jsage.graph import Graph, edges
from jsage.losses import binary_cross_entropy, masked_mean
from jsage.recipes.loop import Run, StoppingPolicy, rank_by_score, train_until_stopped
from jsage.recipes.options import option
from jsage.recipes.record import Record
from jsage.recipes.report import Scores, print_scores, summarize_all
from jsage.sampling import epoch as shuffle
from jsage.train import TrainState, make_update, train_epoch


@dataclass(frozen=True)
class Config(RunOptions, TrainingOptions, EncoderOptions):
    """Every option; the defaults are the one recipe."""

    label: str = option("weight", "the array of the edges whose sign is predicted")
    decoder: str = option("pair", "the score of two embeddings that stands beside the counts'", ["pair"])
    aggregator: str = option("mean", "how neighbors are reduced without attention", ["mean"])
    recent: tuple[int, ...] = option((10,), "latest events read a hop, one layer each")
    parts: str = option("neighbors,times,counts,pairs", f"what the model is made of, of {', '.join(PARTS)}")
    hidden: int = option(128, "width of the layers")
    identity: int = option(64, "width of learned embeddings, without counts")
    epochs: int = option(100, "epochs at most")
    batch_size: int = option(1024, "events a step")
    lr: float = option(0.002, "learning rate of Adam")
    weight_decay: float = option(0.0001, "L2 penalty on the parameters")
    dropout: float = option(0.3, "rate on every layer's inputs")


class Tables(NamedTuple):
    """What every program reads; always an argument."""

    graph: Graph
    features: Array | None
    history: History
    """All events."""
    marked: History
    """Those that are labeled 1."""
    pairs: Array
    time: Array
    labels: Array


class Problem(NamedTuple):
    """Events in their order, and where training, validation and test begin."""

    tables: Tables
    cuts: tuple[int, int]
    tree: np.ndarray
    """The boosted tree's probabilities of the test events."""


def problem_of(dataset: Dataset, name: str) -> Problem:
    """The split, what was before each event, and the tree."""
    graph, n = dataset.graph, dataset.graph.num_nodes
    if missing := sorted({"time", name} - graph.edge_data.keys()):
        raise ValueError(f"events with labels need edge data {missing[0]!r}, got {sorted(graph.edge_data)}")
    order = np.argsort(np.asarray(graph.edge_data["time"]), kind="stable")
    values = np.asarray(graph.edge_data[name])[order]
    pairs, time = np.stack(edges(graph), 1)[order], np.asarray(graph.edge_data["time"])[order]
    labels, split = (values < 0).astype(np.int32), by_time(graph)
    first, second = len(split.train), len(split.train) + len(split.val)
    if not 0 < labels[:first].mean() < 1:
        raise ValueError(
            f"all training events have {name!r} on one side of 0: there is nothing to tell apart"
        )
    history = make_history(split, n, values / max(np.abs(values[:first]).max(), 1e-9))
    marked = make_history(marked_of(split, labels), n)._replace(unit=history.unit)
    features = None if dataset.features is None else jnp.asarray(dataset.features)
    tables = Tables(history.both, features, history, marked, *jax.device_put((pairs, time, labels)))
    rows = np.concatenate([table_rows(part, pairs, time) for part in (history, marked)], 1)
    return Problem(tables, (first, second), boosted(rows[:first], labels[:first], rows[second:]))


def marked_of(split: TimeSplit, labels: np.ndarray) -> TimeSplit:
    """The events labeled 1 of each part."""
    names, at = ("train", "val", "test"), 0
    for name in names:
        part, time = getattr(split, name), getattr(split, f"{name}_time")
        kept = labels[at : at + len(part)] == 1
        at += len(part)
        split = split._replace(**{name: part[kept], f"{name}_time": time[kept]})
    return split


def main(config: Config) -> dict:
    """Train `config.runs` models; print the table; return what `--json` writes."""
    if not Path(config.dataset).is_file():
        raise FileNotFoundError(f"--dataset {config.dataset}: expected an .npz file whose edges have times")
    dataset = load_npz(Path(config.dataset))
    problem = problem_of(dataset, config.label)
    programs = compile_programs(config, problem)
    truth = np.asarray(problem.tables.labels)[problem.cuts[1] :]
    scores: Scores = {}
    runs: list[Run] = []
    for seed in range(config.runs):
        size = min(config.batch_size, problem.cuts[0])
        with Record("GraphSAGE", seed, config, size, dataset, {"label": f"{config.label} < 0"}) as record:
            runs.append(fit(programs, problem, config, record))
        asked = jnp.arange(problem.cuts[1], len(problem.tables.labels))
        found = np.asarray(programs["predict"](runs[-1].params, problem.tables, asked))
        scores.setdefault("GraphSAGE", []).append(rate(found, truth))
        scores.setdefault("boosted tree", []).append(rate(problem.tree, truth))
    print_scores(scores, f"{len(truth):,} test events, {int(truth.sum()):,} with {config.label} < 0")
    return summarize_all(config, "auroc", scores, runs, programs["traces"]["epoch"])


def rate(scores: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    """AUROC and average precision."""
    scores = scores.astype(np.float32)
    return {"auroc": metrics.auroc(scores, truth), "ap": metrics.average_precision(scores, truth)}


def counted(tables: Any, rows: Any, config: Config) -> Any:
    """What is counted of these events' ends among all events, and among those labeled 1."""
    (src, dst), when, parts = tables.pairs[rows].T, tables.time[rows], parts_of(config)
    found: Any = [counted_of(parts, part, src, dst, when) for part in (tables.history, tables.marked)]
    return None if found[0] is None else jnp.concatenate(found, -1)


def compile_programs(config: Config, problem: Problem) -> dict[str, Any]:
    """`start`, `epoch` and `predict`, jitted; every table is an argument."""
    model = event_model(config, problem.tables)
    optimizer, traces = make_optimizer(config.weight_decay, config.lr), {"epoch": 0}

    def logits(variables: Any, tables: Any, rows: Array, **options: Any) -> Any:
        nodes, when = tables.pairs[rows].T.ravel(), jnp.tile(tables.time[rows], 2)
        h = embed_seeds(model, config, variables, tables, nodes, when, **options)
        ends = None if h is None else tuple(jnp.split(h, 2))
        return model.apply(variables, ends, counted(tables, rows, config), method="score", **options)

    def init(key: Array, tables: Any) -> Any:
        src, when = tables.pairs[:1, 0], tables.time[:1]
        read = None if model.encoder is None else inputs(tables, src, when, config)
        return model.init(key, read, counted(tables, slice(1), config))

    def epoch(state: Any, tables: Any, rows: Array, mask: Array) -> Any:
        traces["epoch"] += 1

        def loss_fn(params: Any, stats: Any, batch: Any, key: Array) -> Any:
            rows, mask = batch
            options = {"deterministic": False, "rngs": {"dropout": key}}
            found = logits({"params": params}, tables, rows, **options)
            losses = binary_cross_entropy(found[:, None], tables.labels[rows][:, None], mask)
            sums = {"loss": losses.sum(), "weight": mask.sum().astype(jnp.float32)}
            return masked_mean(losses, mask), (sums, stats)

        return train_epoch(make_update(loss_fn, optimizer), state, (rows, mask))

    def predict(params: Any, tables: Any, events: Array) -> Any:
        of = lambda rows: logits({"params": params}, tables, events[rows])  # noqa: E731
        return in_batches(of, events.shape[0], config.batch_size)

    return {
        "start": make_start(init, optimizer),
        "epoch": jax.jit(epoch, donate_argnums=0),
        "predict": jax.jit(predict),
        "traces": traces,
    }


def fit(programs: dict[str, Any], problem: Problem, config: Config, record: Record) -> Run:
    """Train one run to the end, or on from its last checkpoint; the best validation AUROC is kept."""
    tables, (first, second) = problem.tables, problem.cuts
    order = jnp.arange(first, dtype=jnp.int32)
    asked, truth = jnp.arange(first, second), np.asarray(tables.labels)[first:second]

    def advance(state: TrainState, number: int) -> tuple[TrainState, dict]:
        key = jax.random.fold_in(record.key, number)
        rows, mask = shuffle(key, order, min(config.batch_size, first))
        return programs["epoch"](state, tables, rows, mask)

    def validate(state: TrainState) -> dict[str, float]:
        found = np.asarray(programs["predict"](state.params, tables, asked))
        return {"val_auroc": metrics.auroc(found, truth)}

    policy = StoppingPolicy(config.epochs, config.patience, rank_by_score("val_auroc"))
    return train_until_stopped(programs["start"](record.key, tables), advance, validate, policy, record)


def parse(arguments: list[str] | None = None) -> Config:
    """Read the command line."""
    return read(Config, arguments, "events", __doc__)


def run(arguments: list[str] | None = None) -> int:
    """The command: 0, or 2 and one line on standard error for bad input."""
    return command(main, partial(parse, arguments))


if __name__ == "__main__":
    sys.exit(run())
