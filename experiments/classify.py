"""Train GraphSAGE to predict node labels, beside a features-only MLP and the trivial guess.

    python -m experiments.classify                                    # 1,797 digits: about 15 s
    python -m experiments.classify --dataset communities              # 200 k nodes, 4 M edges: minutes
    python -m experiments.classify --dataset cora.npz --runs 5
    python -m experiments.classify --dataset graph_directory --aggregator max --fanouts 25,10

One recipe serves every data set; the model with the best validation score is tested. README.md has the
scores.
"""

import dataclasses
import sys
from collections import Counter
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.fit import Run, Splits, best, compile_programs, fit
from experiments.learners import AGGREGATORS, NORMS, Learner, Tables, mlp, sage, weigh
from experiments.options import command, one_a_layer, option, read
from experiments.record import Record
from experiments.report import Scores, baseline, print_tables, save_plots, summarize
from experiments.tasks import TASKS, Task, make_task
from jsage import data
from jsage.blocks import Block, degree_classes
from jsage.data import Dataset
from jsage.graph import Graph, edges, in_degrees, induced_subgraph
from jsage.nn import l2_normalize
from jsage.sampling import full_block

MESSAGES = 200_000_000
"""Numbers (edges or slots x width) that inference may hold at once: 0.8 GB."""


@dataclass(frozen=True)
class Config:
    """Every option; the defaults are the one recipe."""

    dataset: str = option("digits", "digits, communities, an .npz file or a graph directory")
    aggregator: str = option("gcn", "how neighbours are reduced")
    fanouts: tuple[int, ...] = option(
        (10, 10), "neighbours drawn a hop, the seeds' own first; the last repeats"
    )
    batch_size: int = option(512, "seeds a step")
    hidden: int = option(64, "width of the hidden layers")
    layers: int = option(2, "number of layers, one hop each")
    epochs: int = option(600, "passes over the training nodes, at most")
    lr: float = option(0.01, "learning rate of Adam")
    weight_decay: float = option(0.0005, "L2 penalty on the parameters")
    dropout: float = option(0.6, "rate on every layer's inputs")
    norm: str = option("none", "normalisation of the hidden layers")
    identity: int = option(128, "width of learned embeddings, for graphs without features")
    task: str | None = option(None, "read from the labels unless given")
    labels: str = option("y", "the array of the .npz that holds the labels")
    balanced: bool = option(False, "weigh rare classes up")
    smoothing: float = option(0.2, "share of each label that all classes get alike")
    full_batch: bool = option(False, "train on the whole graph at once instead of on samples")
    patience: int = option(
        100, "steps without a better validation score or loss before stopping; 40 epochs at least"
    )
    runs: int = option(1, "how many runs, with seeds 0 .. runs-1")
    out: str | None = option(None, "folder for checkpoints, metrics.jsonl and plots")
    resume: bool = option(False, "go on with the runs in --out; give the other options again")
    save_every: int = option(10, "epochs between checkpoints")
    json: str | None = option(None, "write the result there; - is standard output")


def main(config: Config) -> dict:
    """Train `config.runs` models and the baselines; print tables; return what `--json` writes."""
    dataset, training_graph = weigh(*load(config), config)
    task = task_of(dataset, config)
    learner = sage(config, task.width, dataset.graph.num_nodes, identity=dataset.features is None)
    found = train_all("GraphSAGE", learner, task, dataset, training_graph, config)
    scores = {"GraphSAGE": found.scores}
    if dataset.features is not None:
        plain = train_all("MLP", mlp(config, task.width), task, dataset, training_graph, config)
        scores["MLP (features only)"] = plain.scores
    name, guess = baseline(task, np.asarray(dataset.train), np.asarray(dataset.test))
    scores[name] = [guess]
    print_tables(task, dataset, scores, found.outputs)
    if config.out:
        save_plots(Path(config.out), task, dataset, [run.history for run in found.runs], found.outputs)
    return summary(config, task, found, scores)


def task_of(dataset: Dataset, config: Config) -> Task:
    """The task of a data set, learned as the options say."""
    return make_task(dataset, config.task, balanced=config.balanced, smoothing=config.smoothing)


class Found(NamedTuple):
    """The runs of one learner, their scores on the test nodes, and the last run's outputs there."""

    runs: list[Run]
    scores: list[dict[str, float]]
    outputs: np.ndarray
    traces: Counter[str]


def train_all(
    name: str, learner: Learner, task: Task, dataset: Dataset, training_graph: Graph, config: Config
) -> Found:
    """Train with seeds `0 .. runs-1` on the training graph; test each on the whole graph."""
    programs = compile_programs(learner, task, config)
    tables = make_tables(training_graph, dataset, task, config)
    same = training_graph is dataset.graph
    everything = tables if same else make_tables(dataset.graph, dataset, task, config)
    val = np.asarray(dataset.val)
    splits = Splits(jnp.asarray(dataset.train), val, *around(val, tables, config))
    test = jnp.asarray(dataset.test)
    runs, scores, outputs = [], [], np.empty(0)
    for seed in range(config.runs):
        folder = Path(config.out) / f"{name.lower()}-{seed}" if config.out else None
        with Record(name, seed, config, len(dataset.train), folder) as record:
            run = fit(programs, task, tables, splits, config, record)
        found, outputs = (
            np.asarray(programs.predict(run.params, run.stats, where, nodes))
            for where, nodes in ((splits.tables, splits.place), (everything, test))
        )
        threshold = task.threshold(found, splits.val)
        runs.append(run)
        scores.append(task.scores(outputs, np.asarray(dataset.test), threshold))
    return Found(runs, scores, outputs, programs.traces)


def load(config: Config) -> tuple[Dataset, Graph]:
    """The data set, feature rows scaled to length 1, and the graph to train on."""
    path = Path(config.dataset)
    if config.dataset == "digits":
        dataset = data.digits()
    elif config.dataset == "communities":
        dataset = data.power_law_communities(200_000, 4_000_000)
    elif path.is_dir():
        dataset = jax.device_put(data.open(path))
    elif path.is_file():
        dataset = data.load_npz(path, labels=config.labels)
    else:
        raise FileNotFoundError(
            f"--dataset {config.dataset}: expected digits, communities, an .npz file or a graph directory"
        )
    data.validate_dataset(dataset)
    if dataset.features is not None:
        dataset = dataset._replace(features=l2_normalize(jnp.asarray(dataset.features)))
    return dataset, data.inductive(dataset) if config.dataset == "digits" else dataset.graph


def make_tables(graph: Graph, dataset: Dataset, task: Task, config: Config) -> Tables:
    """What the programs read, on the device."""
    features = None if dataset.features is None else jnp.asarray(dataset.features)
    width = config.identity if features is None else features.shape[1]
    return Tables(graph, features, jnp.asarray(task.labels), whole(graph, max(width, config.hidden), config))


def around(nodes: np.ndarray, tables: Tables, config: Config) -> tuple[Tables, jax.Array]:
    """The tables cut to what the outputs of `nodes` depend on, and the nodes' ids there.

    A graph without features stays whole, as its embeddings go by node id; so does one that is mostly read.
    """
    graph, features, labels, _ = tables
    src, dst = map(np.asarray, edges(graph))
    read = np.zeros(graph.num_nodes, bool)
    read[nodes] = True
    for _ in range(config.layers):
        read[src[read[dst]]] = True
    ids = np.flatnonzero(read)
    if features is None or 2 * len(ids) > graph.num_nodes:
        return tables, jnp.asarray(nodes)
    cut, width = induced_subgraph(graph, ids), max(features.shape[1], config.hidden)
    place = jnp.asarray(np.searchsorted(ids, nodes).astype(np.int32))
    return Tables(cut, features[ids], labels[ids], whole(cut, width, config)), place


def whole(graph: Graph, width: int, config: Config) -> Block | None:
    """The graph as one block, for exact inference and for `--full-batch`.

    An edge list compiles fastest; a graph with many messages goes in degree classes, which hold none. The
    LSTM reads slots: None where their table is too large.
    """
    if config.aggregator == "lstm":
        slots = graph.num_nodes * int(in_degrees(graph).max(initial=0))
        return full_block(graph, slots=True) if slots * width <= MESSAGES or config.full_batch else None
    return full_block(graph) if graph.num_edges * width <= MESSAGES else degree_classes(graph)


def summary(config: Config, task: Task, found: Found, scores: Scores) -> dict:
    """The JSON of this experiment."""
    val = [best(run.history, task)[f"val_{task.metric}"] for run in found.runs]
    return summarize(config, task.metric, scores, val, found.runs, found.traces["epoch"])


def parse(arguments: list[str] | None = None, name: str = "classify", text: str | None = __doc__) -> Config:
    """Read the command line of an experiment with this `Config`."""
    choices = {"aggregator": list(AGGREGATORS), "norm": list(NORMS), "task": list(TASKS)}
    config = read(Config, choices, arguments, name, text)
    return dataclasses.replace(config, fanouts=one_a_layer(config.fanouts, config.layers))


def run(arguments: list[str] | None = None) -> int:
    """The command: 0, or 2 and one line on standard error for bad input."""
    return command(main, partial(parse, arguments))


if __name__ == "__main__":
    sys.exit(run())
