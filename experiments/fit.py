"""One training run: compiled programs made once for all runs, and the loop over epochs."""

import time
from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.learners import Learner, Tables
from experiments.record import Record
from experiments.tasks import Task
from jsage.losses import labelled, masked_mean
from jsage.sampling import epoch as shuffle
from jsage.train import TrainState, init_state, init_stopping, make_update, observe, should_stop, train_epoch

if TYPE_CHECKING:
    from experiments.classify import Config


MIN_PATIENCE = 40
"""Epochs that a run is given to do better, however many steps they have."""


class Programs(NamedTuple):
    """The compiled parts of a run."""

    start: Callable[[jax.Array, Tables], TrainState]
    epoch: Callable[[TrainState, Tables, jax.Array, jax.Array], tuple[TrainState, dict]]
    predict: Callable[[Any, Any, Tables, jax.Array], jax.Array]
    traces: Counter[str]
    """How often `epoch` and `predict` were traced; `predict` is once for each number of nodes."""


class Splits(NamedTuple):
    """What is trained on, and where it is validated."""

    train: jax.Array
    """Node ids in the training tables."""
    val: np.ndarray
    """Node ids in the data set."""
    tables: Tables
    """What validation reads: all that the outputs of its nodes depend on, or the whole graph."""
    place: jax.Array
    """The validation nodes' ids in `tables`."""


class Run(NamedTuple):
    """What a run leaves: the variables with the best validation score, and how it went."""

    params: Any
    stats: Any
    history: list[dict]

    @property
    def seconds_per_epoch(self) -> float:
        """The median over epochs, the first left out where there are more: it compiles."""
        return float(np.median([row["seconds"] for row in self.history[1:] or self.history]))


def compile_programs(learner: Learner, task: Task, config: "Config") -> Programs:
    """Jit the start, the scanned epoch and the prediction; every table is an argument."""
    optimizer = make_optimizer(config.weight_decay, config.lr)
    traces: Counter[str] = Counter()

    def epoch(state, tables, seeds, mask):
        traces["epoch"] += 1

        def loss_fn(params, stats, batch, key):
            seeds, mask = batch
            outputs, stats = learner.forward({"params": params, **stats}, tables, seeds, mask, key)
            labels = tables.labels[seeds]
            live = labelled(labels, mask) if task.name != "regression" else mask
            losses = task.loss(outputs, labels, live)
            sums = {"loss": losses.sum(), "weight": live.sum().astype(jnp.float32)}
            return masked_mean(losses, live), (sums, stats)

        return train_epoch(make_update(loss_fn, optimizer), state, (seeds, mask))

    def predict(params, stats, tables, nodes):
        traces["predict"] += 1
        return learner.predict({"params": params, **stats}, tables, nodes)

    return Programs(
        make_start(learner.init, optimizer), jax.jit(epoch, donate_argnums=0), jax.jit(predict), traces
    )


def make_start(
    init: Callable[[jax.Array, Any], Any], optimizer: optax.GradientTransformation
) -> Callable[[jax.Array, Any], TrainState]:
    """The state that a run starts from, `(key, tables) -> state`, jitted."""

    def start(key, tables):
        stats = dict(init(jax.random.fold_in(key, 0), tables))
        return init_state(jax.random.fold_in(key, 1), stats.pop("params"), optimizer, stats)

    return jax.jit(start)


def make_optimizer(weight_decay: float, lr: float) -> optax.GradientTransformation:
    """Adam with an L2 penalty on all but learned embeddings, at whatever depth a model has them."""
    return optax.chain(optax.add_decayed_weights(weight_decay, mask=not_embeddings), optax.adam(lr))


def not_embeddings(params: Any) -> Any:
    """Which parameters decay: Adam would take an unread row's decay for a gradient, and lose the row."""
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: all(part.key != "embed" for part in path), params
    )


def fit(
    programs: Programs, task: Task, tables: Tables, splits: Splits, config: "Config", record: Record
) -> Run:
    """Train one run to the end, or on from its last checkpoint; the best validation score is kept.

    It ends when neither that score nor the validation loss has got better for `config.patience` steps, so
    that small training sets get many epochs: `MIN_PATIENCE` at least.
    """
    key = jax.random.key(record.seed, impl="philox4x32")
    state = programs.start(key, tables)
    batch_size = min(config.batch_size, splits.train.shape[0])
    patience = max(MIN_PATIENCE, config.patience * batch_size // splits.train.shape[0])
    stopping = init_stopping(state)
    state, stopping, history = record.restore(state, stopping)
    while len(history) < config.epochs and not should_stop(stopping, patience):
        began, number = time.perf_counter(), len(history) + 1
        seeds, mask = shuffle(jax.random.fold_in(key, number), splits.train, batch_size)
        state, sums = programs.epoch(state, tables, seeds, mask)
        row = {"epoch": number, "loss": float(sums["loss"]) / float(sums["weight"])}
        row["seconds"] = time.perf_counter() - began
        row |= validate(programs, task, splits, state)
        stopping = observe(stopping, rank(row, (history or [row])[0], task), state)
        if row["val_loss"] < min((old["val_loss"] for old in history), default=np.inf):
            stopping = stopping._replace(since=jnp.zeros_like(stopping.since))
        history.append(row)
        last = number == config.epochs or should_stop(stopping, patience)
        record.keep(history, {"state": state, "stopping": stopping}, last=last)
    return Run(stopping.params, stopping.stats, history)


def until_no_better(
    state: TrainState,
    config: Any,
    record: Record,
    advance: Callable[[TrainState, int], tuple[TrainState, dict]],
    validate: Callable[[TrainState], tuple[str, float]],
) -> Run:
    """Train to the end, or on from the last checkpoint, and keep the best validation score.

    `advance(state, number)` is epoch `number`, from 1; `validate(state)` names its score, larger being
    better. The run ends when `config.patience` epochs were no better, or after `config.epochs`.
    """
    state, stopping, history = record.restore(state, init_stopping(state))
    while len(history) < config.epochs and not should_stop(stopping, config.patience):
        began, number = time.perf_counter(), len(history) + 1
        state, sums = advance(state, number)
        row = {"epoch": number, "loss": float(sums["loss"]) / max(float(sums["weight"]), 1.0)}
        row["seconds"] = time.perf_counter() - began
        name, score = validate(state)
        row[name] = score
        stopping = observe(stopping, score, state)
        history.append(row)
        last = number == config.epochs or should_stop(stopping, config.patience)
        record.keep(history, {"state": state, "stopping": stopping}, last=last)
    return Run(stopping.params, stopping.stats, history)


def validate(programs: Programs, task: Task, splits: Splits, state: TrainState) -> dict:
    """Loss and score of the validation nodes."""
    outputs = programs.predict(state.params, state.stats, splits.tables, splits.place)
    labels = splits.tables.labels[splits.place]
    losses = task.loss(outputs, labels, jnp.ones(len(labels), bool))
    host = np.asarray(outputs)
    score = task.scores(host, splits.val, task.threshold(host, splits.val))[task.metric]
    return {"val_loss": float(losses.mean()), f"val_{task.metric}": float(score)}


def rank(row: dict, first: dict, task: Task) -> float:
    """How good an epoch is: its validation score, less a tenth of its loss beside the first epoch's.

    Few validation nodes make scores jump, and an early one must not win by luck.
    """
    return row[f"val_{task.metric}"] - 0.1 * row["val_loss"] / first["val_loss"]


def best(history: list[dict], task: Task) -> dict:
    """The epoch that is kept."""
    return max(history, key=lambda row: np.float32(rank(row, history[0], task)))
