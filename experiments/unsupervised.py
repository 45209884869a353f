"""Learn node embeddings without labels, then let a linear classifier tell what they are worth.

    python -m experiments.unsupervised                                # 1,797 digits, labels unseen
    python -m experiments.unsupervised --dataset cora.npz --runs 5
    python -m experiments.unsupervised --dataset cora.npz --objective skip_gram --out FOLDER

The protocol of Hamilton et al. (2017), §3.2 and §4: GraphSAGE learns from random walks and negatives
alone; then logistic regression is fitted to the training nodes' embeddings. Labels choose what validation
chooses (the penalty, the epoch) and no more.
"""

import dataclasses
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments import classify
from experiments.classify import load, whole
from experiments.fit import Run, make_optimizer, make_start, until_no_better
from experiments.learners import AGGREGATORS, NORMS, Tables, weigh
from experiments.options import command, one_a_layer, option, read
from experiments.pairs import OBJECTIVES, Method, Source, deepwalk, graphsage, make_source
from experiments.picture import colour, draw
from experiments.probe import Fit, fit_probe, make_fit
from experiments.record import Record
from experiments.report import baseline, print_tables, summarize
from experiments.tasks import TASKS, Task, make_task
from jsage.data import Dataset
from jsage.graph import Graph, in_degrees
from jsage.infer import save_embeddings
from jsage.losses import masked_mean
from jsage.train import TrainState, make_update, train_epoch


@dataclass(frozen=True)
class Config:
    """Every option; the defaults are the one recipe."""

    dataset: str = option("digits", "digits, communities, an .npz file or a graph directory")
    objective: str = option("info_nce", "what is learned from")
    aggregator: str = option("gcn", "how neighbours are reduced")
    fanouts: tuple[int, ...] = option(
        (10, 10), "neighbours drawn a hop, the seeds' own first; the last repeats"
    )
    batch_size: int = option(512, "starts of walks a step")
    length: int = option(5, "steps of a walk")
    negatives: int = option(20, "negatives a step, drawn by degree ** 0.75 (skip_gram)")
    weight: float = option(20.0, "Q: how much negatives weigh (skip_gram)")
    normalize: bool = option(False, "score by cosine (skip_gram)")
    temperature: float = option(1.0, "cosines are divided by it (info_nce)")
    hidden: int = option(256, "width of the hidden layers")
    width: int = option(256, "width of the embeddings")
    layers: int = option(2, "number of layers, one hop each")
    steps: int = option(20, "updates an epoch")
    epochs: int = option(20, "epochs, at most")
    lr: float = option(0.001, "learning rate of Adam")
    weight_decay: float = option(0.0, "L2 penalty on the parameters")
    dropout: float = option(0.5, "rate on every layer's inputs")
    norm: str = option("none", "normalisation of the hidden layers")
    identity: int = option(128, "width of learned embeddings, for graphs without features")
    task: str | None = option(None, "read from the labels unless given")
    labels: str = option("y", "the array of the .npz that holds the labels")
    full_batch: bool = option(False, "encode the whole graph at every step instead of samples")
    patience: int = option(5, "epochs without a better validation score before stopping")
    runs: int = option(1, "how many runs, with seeds 0 .. runs-1")
    out: str | None = option(None, "folder for embeddings, checkpoints, metrics.jsonl and a picture")
    resume: bool = option(False, "go on with the runs in --out; give the other options again")
    save_every: int = option(10, "epochs between checkpoints")
    json: str | None = option(None, "write the result there; - is standard output")

    @property
    def common(self) -> classify.Config:
        """The options that `experiments.classify` has too, as the parts made for it read them."""
        names = {field.name for field in dataclasses.fields(self)}
        both = names & {field.name for field in dataclasses.fields(classify.Config)}
        return classify.Config(**{name: getattr(self, name) for name in both})


def main(config: Config) -> dict:
    """Learn `config.runs` sets of embeddings, probe them and the baselines; return what `--json` writes."""
    dataset, training_graph = weigh(*load(config.common), config.common)
    task = make_task(dataset, config.task)
    judge = Judge(task, dataset, make_fit(task), *both_tables(dataset, training_graph, config))
    method = graphsage(config, dataset.graph, identity=dataset.features is None)
    found = learn("GraphSAGE", method, judge, config)
    scores = {"GraphSAGE": found.scores}
    if dataset.features is not None:
        scores["features"] = [judge.score(dataset.features, dataset.features)[0]]
    walks = dataclasses.replace(config, batch_size=MORE * config.batch_size, lr=TABLE_LR)
    scores["DeepWalk"] = learn("DeepWalk", deepwalk(walks, dataset.graph), judge, walks).scores
    scores["GraphSAGE, untrained"] = found.untrained
    name, guess = baseline(task, np.asarray(dataset.train), np.asarray(dataset.test))
    scores[name] = [guess]
    print_tables(task, dataset, scores, found.outputs)
    if config.out:
        test = np.asarray(dataset.test)
        value, name = colour(dataset.labels, in_degrees(dataset.graph))
        draw(Path(config.out) / "tsne.png", found.rows[test], value[test], f"test nodes, coloured by {name}")
    val = [max(row[f"val_{task.metric}"] for row in run.history) for run in found.runs]
    return summarize(config, task.metric, scores, val, found.runs, found.traces)


MORE, TABLE_LR = 8, 0.01
"""DeepWalk's batches, in GraphSAGE's, and its learning rate: a step is cheap, and moves few rows."""


class Judge(NamedTuple):
    """What embeddings are judged by, and the tables that they are made from."""

    task: Task
    dataset: Dataset
    fit: Fit
    training: Tables
    everything: Tables

    def score(self, rows: Any, all_rows: Any) -> tuple[dict[str, float], np.ndarray]:
        """Test scores and outputs of a probe fitted and validated on `rows`, read off `all_rows`."""
        probe, test = fit_probe(self.fit, self.task, self.dataset, rows), np.asarray(self.dataset.test)
        outputs = probe.outputs(all_rows[test])
        return self.task.scores(outputs, test, probe.threshold), outputs


class Programs(NamedTuple):
    """The compiled parts of a run."""

    start: Callable[[jax.Array, Tables], TrainState]
    epoch: Callable[[TrainState, Source], tuple[TrainState, dict]]
    embed: Callable[[Any, Any, Tables], jax.Array]
    traces: Counter[str]


class Found(NamedTuple):
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
        return Tables(graph, features, jnp.zeros(0), whole(graph, width, config.common))

    everything = tables(dataset.graph)
    return everything if training_graph is dataset.graph else tables(training_graph), everything


def compile_programs(method: Method, config: Config) -> Programs:
    """Jit the start, the scanned epoch (walks, negatives, blocks, update) and the embedding of all nodes."""
    optimizer = make_optimizer(config.weight_decay, config.lr)
    traces: Counter[str] = Counter()

    def epoch(state, source):
        traces["epoch"] += 1

        def loss_fn(params, stats, batch, key):
            losses, live, stats = method.loss({"params": params, **stats}, source, key)
            sums = {"loss": losses.sum(), "weight": live.sum().astype(jnp.float32)}
            return masked_mean(losses, live), (sums, stats)

        return train_epoch(make_update(loss_fn, optimizer), state, jnp.arange(config.steps))

    def embed(params, stats, tables):
        nodes = jnp.arange(tables.graph.num_nodes, dtype=jnp.int32)
        return method.embed({"params": params, **stats}, tables, nodes)

    return Programs(
        make_start(method.init, optimizer), jax.jit(epoch, donate_argnums=0), jax.jit(embed), traces
    )


def learn(name: str, method: Method, judge: Judge, config: Config) -> Found:
    """Learn embeddings with seeds `0 .. runs-1` on the training graph; judge each on the whole graph."""
    programs, source = compile_programs(method, config), make_source(judge.training)
    runs, scores, untrained, outputs, rows = [], [], [], np.empty(0), np.empty(0)
    for seed in range(config.runs):
        folder = Path(config.out) / f"{name.lower()}-{seed}" if config.out else None
        starts = config.steps * config.batch_size
        with Record(name, seed, config.common, starts, folder) as record:
            state = programs.start(jax.random.key(seed, impl="philox4x32"), judge.training)
            untrained.append(judged(programs, judge, state.params, state.stats)[0])
            run = fit(programs, state, source, judge, config, record)
        score, outputs, rows = judged(programs, judge, run.params, run.stats)
        runs.append(run)
        scores.append(score)
        if folder:
            save_embeddings(folder / "embeddings.npy", rows)
    return Found(runs, scores, untrained, outputs, rows, programs.traces["epoch"])


def judged(programs: Programs, judge: Judge, params: Any, stats: Any) -> tuple[dict, np.ndarray, np.ndarray]:
    """Test scores, test outputs and the embeddings of all nodes."""
    rows = all_rows = programs.embed(params, stats, judge.training)
    if judge.everything is not judge.training:
        all_rows = programs.embed(params, stats, judge.everything)
    return *judge.score(rows, all_rows), np.asarray(all_rows)


def fit(
    programs: Programs, state: TrainState, source: Source, judge: Judge, config: Config, record: Record
) -> Run:
    """Train one run to the end, or on from its last checkpoint; the best validation score is kept."""
    name = f"val_{judge.task.metric}"

    def validate(state: TrainState) -> tuple[str, float]:
        rows = programs.embed(state.params, state.stats, judge.training)
        return name, fit_probe(judge.fit, judge.task, judge.dataset, rows).score

    advance = lambda state, number: programs.epoch(state, source)  # noqa: E731
    return until_no_better(state, config, record, advance, validate)


def parse(arguments: list[str] | None = None) -> Config:
    """Read the command line."""
    choices = {"objective": OBJECTIVES, "aggregator": list(AGGREGATORS)}
    choices |= {"norm": list(NORMS), "task": list(TASKS)}
    config = read(Config, choices, arguments, "unsupervised", __doc__)
    return dataclasses.replace(config, fanouts=one_a_layer(config.fanouts, config.layers))


def run(arguments: list[str] | None = None) -> int:
    """The command: 0, or 2 and one line on standard error for bad input."""
    return command(main, partial(parse, arguments))


if __name__ == "__main__":
    sys.exit(run())
