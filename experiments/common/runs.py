"""Runs on labels: trained until validation gets no better, tested, and told in numbers."""

from collections import Counter
from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.common.config import Config, SupervisedOptions
from experiments.common.datasets import around, make_tables
from experiments.common.learners import Learner
from experiments.common.programs import Programs, compile_programs
from jsage.data import Dataset
from jsage.graph import Graph
from jsage.recipes.loop import Run, StoppingPolicy, rank_by_score_and_loss, train_seeds, train_until_stopped
from jsage.recipes.record import Record
from jsage.recipes.tasks import Task, called, make_task
from jsage.sampling import epoch as shuffle
from jsage.train import TrainState

MIN_PATIENCE = 40
"""Epochs that a run is given to do better, however many steps they have."""


class Job(NamedTuple):
    """A task, the nodes of each split, and the tables that each reads."""

    task: Task
    tables: Any
    """What is trained on."""
    train: jax.Array
    """What an epoch shuffles into batches: node ids in `tables`, or numbers of clusters or subgraphs."""
    val_tables: Any
    """All that the outputs of the validation nodes depend on, or the whole graph."""
    val_positions: jax.Array
    """The validation nodes' ids in `val_tables`."""
    val: np.ndarray
    """Their ids in the data set."""
    test_tables: Any
    test: np.ndarray
    data: Any
    """The arrays that all this was made from, which a resumed run must be given again."""
    batch_size: int | None = None
    """How many of `train` are a batch; None: as the options say."""
    about: Mapping[str, Any] = {}
    """What run.json says beside the options."""


class Results(NamedTuple):
    """The runs of one learner, their scores on the test nodes, and the last run's outputs there.

    Of two classes, the larger output is that of the class that is called.
    """

    runs: list[Run]
    scores: list[dict[str, float]]
    outputs: np.ndarray
    traces: Counter[str]
    thresholds: list[float]
    """Chosen on the validation nodes, one a run."""


def task_of(dataset: Dataset, config: SupervisedOptions) -> Task:
    """The task of a data set, learned as the options say."""
    balanced, smoothing, threshold = config.balanced, config.smoothing, config.threshold
    return make_task(dataset, config.task, balanced=balanced, smoothing=smoothing, threshold=threshold)


def train_all(
    name: str, learner: Learner, task: Task, dataset: Dataset, training_graph: Graph, config: Config
) -> Results:
    """Train with seeds `0 .. runs-1` on the training graph; test each on the whole graph."""
    tables = make_tables(training_graph, dataset, task, config)
    same = training_graph is dataset.graph
    everything = tables if same else make_tables(dataset.graph, dataset, task, config)
    val, test = np.asarray(dataset.val), np.asarray(dataset.test)
    data = dataset if same else (training_graph, dataset)
    train = jnp.asarray(dataset.train)
    cut_to = around(val, tables, config)
    job = Job(task, tables, train, *cut_to, val, everything, test, data, about=learner.about)
    if learner.subgraphs is not None:
        cut, units, size = learner.subgraphs.cut(training_graph, np.asarray(dataset.train))
        cut_tables, units = tables._replace(cut=cut), jnp.arange(units)
        job = job._replace(tables=cut_tables, train=units, data=(data, cut), batch_size=size)
    return train_job(name, compile_programs(learner, task, config), job, config)


def train_job(name: str, programs: Programs, job: Job, config: SupervisedOptions) -> Results:
    """Train with seeds `0 .. runs-1`, and test each."""

    def train(record: Record) -> tuple[Run, dict[str, float], np.ndarray, float]:
        run = fit(programs, job, config, record)
        validated, outputs = (
            np.asarray(programs.predict(run.params, run.stats, tables, nodes))
            for tables, nodes in (
                (job.val_tables, job.val_positions),
                (job.test_tables, jnp.asarray(job.test)),
            )
        )
        threshold = job.task.threshold(validated, job.val)
        scores = job.task.scores(outputs, job.test, threshold)
        return run, scores, called(job.task, outputs, threshold), float(threshold)

    found = train_seeds(name, config, len(job.train), train, job.data, job.about)
    runs, scores, outputs, thresholds = zip(*found, strict=True)
    return Results(list(runs), list(scores), outputs[-1], programs.traces, list(thresholds))


def fit(programs: Programs, job: Job, config: SupervisedOptions, record: Record) -> Run:
    """Train one run to the end, or on from its last checkpoint; the best validation score is kept.

    It ends when neither that score nor the validation loss has got better for `config.patience` steps, so
    that small training sets get many epochs: `MIN_PATIENCE` at least.
    """
    num = job.train.shape[0]
    size = min(job.batch_size or config.batch_size, num)

    def advance(state: TrainState, number: int) -> tuple[TrainState, dict]:
        seeds, mask = shuffle(jax.random.fold_in(record.key, number), job.train, size)
        return programs.epoch(state, job.tables, seeds, mask)

    patience = max(MIN_PATIENCE, config.patience * size // num)
    rank = rank_by_score_and_loss(f"val_{job.task.metric}", "val_loss")
    policy = StoppingPolicy(config.epochs, patience, rank, "val_loss")
    start = programs.start(record.key, job.tables)
    return train_until_stopped(start, advance, partial(validate, programs, job), policy, record)


def validate(programs: Programs, job: Job, state: TrainState) -> dict[str, float]:
    """Loss and score of the validation nodes."""
    task = job.task
    outputs = programs.predict(state.params, state.stats, job.val_tables, job.val_positions)
    labels = job.val_tables.labels[job.val_positions]
    losses = task.loss(outputs, labels, jnp.ones(len(labels), bool))
    host = np.asarray(outputs)
    score = task.scores(host, job.val, task.threshold(host, job.val))[task.metric]
    return {"val_loss": float(losses.mean()), f"val_{task.metric}": float(score)}
