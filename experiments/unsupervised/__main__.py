"""Learn node embeddings without labels, then let a linear classifier tell what they are worth.

    python -m experiments.unsupervised                                # 1,797 digits, labels unseen
    python -m experiments.unsupervised --dataset cora.npz --runs 5
    python -m experiments.unsupervised --dataset cora.npz --objective skip_gram --out FOLDER

The protocol of Hamilton et al. (2017), §3.2 and §4: GraphSAGE learns from random walks and negatives
alone; then logistic regression is fitted to the training nodes' embeddings. Labels choose what validation
chooses (the penalty, the epoch) and no more. Needs scikit-learn (extra `plot`).
"""

import dataclasses
import sys
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.common.datasets import load, whole
from experiments.common.learners import Tables, weigh
from experiments.common.options import command, one_a_layer, read
from experiments.common.probe import fit_probe
from experiments.common.programs import make_optimizer, make_start
from experiments.unsupervised.config import Config
from experiments.unsupervised.objectives import Method, Source, deepwalk, graphsage, make_source
from jsage.data import Dataset
from jsage.graph import Graph, in_degrees
from jsage.infer import save_embeddings
from jsage.losses import masked_mean
from jsage.recipes.loop import Run, StoppingPolicy, rank_by_score, train_seeds, train_until_stopped
from jsage.recipes.plots import node_colors, save_tsne
from jsage.recipes.record import Record
from jsage.recipes.report import baseline, print_tables, summarize
from jsage.recipes.tasks import Task, make_task
from jsage.train import TrainState, make_update, train_epoch


def main(config: Config) -> dict:
    """Learn `config.runs` sets of embeddings, probe them and the baselines; return what `--json` writes."""
    dataset, training_graph = weigh(*load(config), config)
    task = make_task(dataset, config.task)
    evaluator = Evaluator(task, dataset, *both_tables(dataset, training_graph, config))
    method = graphsage(config, dataset.graph, identity=dataset.features is None)
    found = learn("GraphSAGE", method, evaluator, config)
    scores = {"GraphSAGE": found.scores}
    if dataset.features is not None:
        scores["features"] = [evaluator.score(dataset.features, dataset.features)[0]]
    walks = dataclasses.replace(config, batch_size=MORE * config.batch_size, lr=TABLE_LR)
    scores["DeepWalk"] = learn("DeepWalk", deepwalk(walks, dataset.graph), evaluator, walks).scores
    scores["GraphSAGE, untrained"] = found.untrained
    name, guess = baseline(task, np.asarray(dataset.train), np.asarray(dataset.test))
    scores[name] = [guess]
    print_tables(task, dataset, scores, found.outputs)
    if config.out:
        test = np.asarray(dataset.test)
        value, name = node_colors(dataset.labels, in_degrees(dataset.graph))
        save_tsne(
            Path(config.out) / "tsne.png", found.rows[test], value[test], f"test nodes, colored by {name}"
        )
    return summarize(config, task.metric, scores, found.runs, found.traces)


MORE, TABLE_LR = 8, 0.01
"""DeepWalk's batches, in GraphSAGE's, and its learning rate: a step is cheap, and moves few rows."""


class Evaluator(NamedTuple):
    """What embeddings are evaluated by, and the tables that they are made from."""

    task: Task
    dataset: Dataset
    training: Tables
    everything: Tables

    def score(self, rows: Any, all_rows: Any) -> tuple[dict[str, float], np.ndarray]:
        """Test scores and outputs of a probe fitted and validated on `rows`, read off `all_rows`."""
        probe, test = fit_probe(self.task, self.dataset, rows), np.asarray(self.dataset.test)
        outputs = probe.outputs(all_rows[test])
        return self.task.scores(outputs, test, probe.threshold), outputs


class Programs(NamedTuple):
    """The compiled parts of a run."""

    start: Callable[[jax.Array, Tables], TrainState]
    epoch: Callable[[TrainState, Source], tuple[TrainState, dict]]
    embed: Callable[[Any, Any, Tables], jax.Array]
    traces: Counter[str]


class Results(NamedTuple):
    """What the runs of one method left: the last one's test outputs and embeddings too."""

    runs: list[Run]
    scores: list[dict[str, float]]
    untrained: list[dict[str, float]]
    outputs: np.ndarray
    rows: np.ndarray
    traces: int


def both_tables(dataset: Dataset, training_graph: Graph, config: Config) -> tuple[Tables, Tables]:
    """The tables of the training graph and of the whole one, without labels."""
    features = None if dataset.features is None else jnp.asarray(dataset.features)
    width = max(config.hidden, config.identity if features is None else features.shape[1])

    def tables(graph):
        return Tables(graph, features, jnp.zeros(0), whole(graph, width, config))

    everything = tables(dataset.graph)
    return everything if training_graph is dataset.graph else tables(training_graph), everything


def compile_programs(method: Method, config: Config) -> Programs:
    """Jit the start, the scanned epoch (walks, negatives, blocks, update) and the embedding of all nodes."""
    optimizer = make_optimizer(config.weight_decay, config.lr)
    traces: Counter[str] = Counter()

    def epoch(state, source):
        traces["epoch"] += 1

        def loss_fn(params, stats, batch, key):
            losses, valid, stats = method.loss({"params": params, **stats}, source, key)
            sums = {"loss": losses.sum(), "weight": valid.sum().astype(jnp.float32)}
            return masked_mean(losses, valid), (sums, stats)

        return train_epoch(make_update(loss_fn, optimizer), state, jnp.arange(config.steps))

    def embed(params, stats, tables):
        nodes = jnp.arange(tables.graph.num_nodes, dtype=jnp.int32)
        return method.embed({"params": params, **stats}, tables, nodes)

    return Programs(
        make_start(method.init, optimizer), jax.jit(epoch, donate_argnums=0), jax.jit(embed), traces
    )


def learn(name: str, method: Method, evaluator: Evaluator, config: Config) -> Results:
    """Learn embeddings with seeds `0 .. runs-1` on the training graph; judge each on the whole graph."""
    programs, source = compile_programs(method, config), make_source(evaluator.training)

    def train(record: Record) -> tuple[Run, dict, dict, np.ndarray, np.ndarray]:
        state = programs.start(record.key, evaluator.training)
        untrained = evaluate(programs, evaluator, state.params, state.stats)[0]
        run = fit(programs, state, source, evaluator, config, record)
        score, outputs, rows = evaluate(programs, evaluator, run.params, run.stats)
        if record.folder:
            save_embeddings(record.folder / "embeddings.npy", rows)
        return run, score, untrained, outputs, rows

    data = evaluator.training.graph, evaluator.dataset
    done = train_seeds(name, config, config.steps * config.batch_size, train, data)
    runs, scores, untrained, outputs, rows = map(list, zip(*done, strict=True))
    return Results(runs, scores, untrained, outputs[-1], rows[-1], programs.traces["epoch"])


def evaluate(
    programs: Programs, evaluator: Evaluator, params: Any, stats: Any
) -> tuple[dict, np.ndarray, np.ndarray]:
    """Test scores, test outputs and the embeddings of all nodes."""
    rows = all_rows = programs.embed(params, stats, evaluator.training)
    if evaluator.everything is not evaluator.training:
        all_rows = programs.embed(params, stats, evaluator.everything)
    return *evaluator.score(rows, all_rows), np.asarray(all_rows)


def fit(
    programs: Programs,
    state: TrainState,
    source: Source,
    evaluator: Evaluator,
    config: Config,
    record: Record,
) -> Run:
    """Train one run to the end, or on from its last checkpoint; the best validation score is kept."""
    name = f"val_{evaluator.task.metric}"

    def validate(state: TrainState) -> dict[str, float]:
        rows = programs.embed(state.params, state.stats, evaluator.training)
        return {name: fit_probe(evaluator.task, evaluator.dataset, rows).score}

    advance = lambda state, number: programs.epoch(state, source)  # noqa: E731
    policy = StoppingPolicy(config.epochs, config.patience, rank_by_score(name))
    return train_until_stopped(state, advance, validate, policy, record)


def parse(arguments: list[str] | None = None) -> Config:
    """Read the command line."""
    config = read(Config, arguments, "unsupervised", __doc__)
    return dataclasses.replace(config, fanouts=one_a_layer(config.fanouts, config.layers))


def run(arguments: list[str] | None = None) -> int:
    """The command: 0, or 2 and one line on standard error for bad input."""
    return command(main, partial(parse, arguments))


if __name__ == "__main__":
    sys.exit(run())
