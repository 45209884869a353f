"""One training run of link prediction: compiled programs made once for all runs, and the loop over epochs."""

from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from experiments.common.programs import make_optimizer, make_start
from experiments.links.config import Config
from experiments.links.learners import Learner, Tables
from experiments.links.scores import EventPairs, Pairs
from jsage import metrics
from jsage.losses import link_cross_entropy, masked_mean
from jsage.recipes.loop import Run, StoppingPolicy, rank_by_score, train_until_stopped
from jsage.recipes.record import Record
from jsage.sampling import epoch as shuffle
from jsage.train import TrainState, make_update, train_epoch


class Programs(NamedTuple):
    """The compiled parts of a run."""

    start: Callable[[Array, Tables], TrainState]
    epoch: Callable[[TrainState, Tables, Array, Array], tuple[TrainState, dict]]
    predict: Callable[[Any, Tables, Array, Array | None], Array]
    embed: Callable[[Any, Tables], Array]
    traces: Counter[str]


def compile_programs(learner: Learner, config: Config) -> Programs:
    """Jit the start, the scanned epoch and the prediction; every table is an argument."""
    optimizer = make_optimizer(config.weight_decay, config.lr)
    traces: Counter[str] = Counter()

    def epoch(state, tables, rows, mask):
        traces["epoch"] += 1

        def loss_fn(params, stats, batch, key):
            rows, mask = batch
            scores = learner.forward({"params": params}, tables, rows, mask, key)
            losses = link_cross_entropy(scores[0], scores[1], mask, scores[2])
            return masked_mean(losses, mask), ({"loss": losses.sum(), "weight": mask.sum()}, stats)

        return train_epoch(make_update(loss_fn, optimizer), state, (rows, mask))

    def predict(params, tables, pairs, time):
        traces["predict"] += 1
        return learner.predict({"params": params}, tables, pairs, time)

    embed = jax.jit(lambda params, tables: learner.embed({"params": params}, tables))
    return Programs(
        make_start(learner.init, optimizer), jax.jit(epoch, donate_argnums=0), jax.jit(predict), embed, traces
    )


def fit(programs: Programs, tables: Tables, val: Pairs, config: Config, record: Record) -> Run:
    """Train one run to the end, or on from its last checkpoint; the best validation AUC is kept.

    An epoch is `config.pairs` training pairs at most, in random order, so that large graphs are validated
    as often as small ones; the run ends when `config.patience` epochs were no better.
    """
    key, num = record.key, tables.pairs.shape[0]

    def advance(state: TrainState, number: int) -> tuple[TrainState, dict]:
        order = jax.random.permutation(jax.random.fold_in(key, number), num)[: config.pairs]
        rows, mask = shuffle(jax.random.fold_in(key, number), order, min(config.batch_size, len(order)))
        return programs.epoch(state, tables, rows, mask)

    def validate(state: TrainState) -> dict[str, float]:
        scores = predict(programs, state.params, tables, val)
        return {"val_auc": metrics.auroc(scores, np.repeat([1, 0], len(val.positive)))}

    policy = StoppingPolicy(config.epochs, config.patience, rank_by_score("val_auc"))
    return train_until_stopped(programs.start(key, tables), advance, validate, policy, record)


def predict(programs: Programs, params: Any, tables: Tables, asked: Pairs | EventPairs) -> np.ndarray:
    """The scores of all that is asked."""
    when = None if asked.when is None else jnp.asarray(asked.when)
    return np.asarray(programs.predict(params, tables, jnp.asarray(asked.all), when))
