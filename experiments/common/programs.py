"""The compiled parts of a run on labels: the start, a scanned epoch, the prediction."""

from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from experiments.common.config import TrainingOptions
from experiments.common.learners import Learner, Tables
from jsage.losses import labeled, masked_mean
from jsage.recipes.tasks import Task
from jsage.train import TrainState, init_state, make_update, train_epoch


class Programs(NamedTuple):
    """The compiled parts of a run."""

    start: Callable[[jax.Array, Tables], TrainState]
    epoch: Callable[[TrainState, Tables, jax.Array, jax.Array], tuple[TrainState, dict]]
    predict: Callable[[Any, Any, Tables, jax.Array], jax.Array]
    traces: Counter[str]
    """How often `epoch` and `predict` were traced; `predict` is once for each number of nodes."""


def compile_programs(learner: Learner, task: Task, config: TrainingOptions) -> Programs:
    """Jit the start, the scanned epoch and the prediction; every table is an argument."""
    optimizer = make_optimizer(config.weight_decay, config.lr)
    traces: Counter[str] = Counter()

    def epoch(state, tables, seeds, mask):
        traces["epoch"] += 1

        def loss_fn(params, stats, batch, key):
            seeds, mask = batch
            variables = {"params": params, **stats}
            if learner.subgraphs is not None:
                return weighted_loss(*learner.subgraphs.step(variables, tables, (seeds, mask, key)))
            outputs, stats = learner.forward(variables, tables, seeds, mask, key)
            labels = tables.labels[seeds]
            valid = labeled(labels, mask) if task.name != "regression" else mask
            losses = task.loss(outputs, labels, valid)
            sums = {"loss": losses.sum(), "weight": valid.sum().astype(jnp.float32)}
            return masked_mean(losses, valid), (sums, stats)

        def weighted_loss(outputs, nodes, weight, stats):
            labels, valid = tables.labels[nodes], weight > 0
            if task.name != "regression":
                valid = labeled(labels, valid)
            loss = (task.loss(outputs, labels, valid) * weight).sum()
            return loss, ({"loss": loss, "weight": jnp.where(valid, weight, 0).sum()}, stats)

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
