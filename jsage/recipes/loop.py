"""The one training loop: epochs until validation gets no better, from the last checkpoint on."""

import math
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeVar

import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from jsage.recipes.options import RunOptions
from jsage.recipes.record import Record, Row
from jsage.train import TrainState, init_stopping, observe, should_stop

Advance = Callable[[TrainState, int], tuple[TrainState, dict[str, Any]]]
"""`(state, number) -> (state, sums)`: epoch `number`, from 1, and its sums `loss` and `weight`."""
Validate = Callable[[TrainState], dict[str, float]]
"""`state -> {name: score}`; the last one is shown while it trains."""
Rank = Callable[[Row, Row], float]
"""`(row, first) -> value`: how good an epoch is, beside the first one; larger is better."""
Result = TypeVar("Result")


class StoppingPolicy(NamedTuple):
    """When a run ends, and which of its epochs is kept."""

    epochs: int
    """So many at most."""
    patience: int
    """So many in a row that were no better end the run."""
    rank: Rank
    """The epoch that ranks highest is kept: as float32, the first of equals."""
    loss: str | None = None
    """A value of `validate`: an epoch where it is lower than ever is better too, though it is not kept."""


class Run(NamedTuple):
    """What a run leaves: the variables of its best epoch, that epoch's row, and how it went."""

    params: PyTree
    stats: PyTree
    best: Row
    history: list[Row]

    @property
    def seconds_per_epoch(self) -> float:
        """The median over epochs, the first left out where there are more: it compiles."""
        return float(np.median([row["seconds"] for row in self.history[1:] or self.history]))


def rank_by_score(name: str) -> Rank:
    """Rank epochs by one value of `validate`, larger being better.

    >>> rank_by_score("val_auc")({"val_auc": 0.75}, {"val_auc": 0.5})
    0.75
    """
    return lambda row, first: row[name]


def rank_by_score_and_loss(score: str, loss: str) -> Rank:
    """Rank epochs by `score - 0.1 · loss / first loss`.

    Few validation rows make scores jump, and an early one must not win by luck.

    >>> rank = rank_by_score_and_loss("val_f1", "val_loss")
    >>> round(rank({"val_f1": 0.5, "val_loss": 1.0}, {"val_f1": 0.1, "val_loss": 2.0}), 3)
    0.45
    """
    return lambda row, first: row[score] - 0.1 * row[loss] / first[loss]


def train_until_stopped(
    state: TrainState,
    advance: Advance,
    validate: Validate,
    policy: StoppingPolicy,
    record: Record | None = None,
    *,
    on_epoch: Callable[[Row], None] | None = None,
) -> Run:
    """Train to the end, or on from the last checkpoint of `record`, and keep the best epoch's variables.

    The row of an epoch is its number, its mean training loss, its seconds without validation, and what
    `validate` says; NaN ranks last there. `record` keeps the rows and the checkpoints; `on_epoch(row)` is
    called after that. A run that was killed and goes on ends with the very same numbers, if what `advance`
    draws depends on the state and the epoch's number alone.

    Raises FloatingPointError for a loss that is not finite, and for an infinite score.

    >>> import jax, optax
    >>> from jsage.train import init_state
    >>> state = init_state(jax.random.key(0), {"w": jnp.zeros(())}, optax.sgd(0.1))
    >>> def advance(state, number):
    ...     return state._replace(params={"w": state.params["w"] + 1.0}), {"loss": 6.0, "weight": 2.0}
    >>> def validate(state):
    ...     return {"val_score": -abs(float(state.params["w"]) - 3)}
    >>> policy = StoppingPolicy(epochs=10, patience=2, rank=rank_by_score("val_score"))
    >>> run = train_until_stopped(state, advance, validate, policy)
    >>> float(run.params["w"]), len(run.history), run.best["epoch"], run.best["loss"]
    (3.0, 5, 3, 3.0)
    """
    if policy.epochs < 1:
        raise ValueError(
            f"expected a policy of at least one epoch, got {policy.epochs}: there is no best of none"
        )
    stopping, history = init_stopping(state), []
    if record is not None:
        state, stopping, history = record.restore(state, stopping)
    while len(history) < policy.epochs and not should_stop(stopping, policy.patience):
        began, number = time.perf_counter(), len(history) + 1
        state, sums = advance(state, number)
        row: Row = {"epoch": number, "loss": float(sums["loss"]) / max(float(sums["weight"]), 1.0)}
        row["seconds"] = time.perf_counter() - began
        row |= validate(state)
        _check_finite(row, {"loss", policy.loss}, state)
        stopping = observe(stopping, policy.rank(row, (history or [row])[0]), state)
        if policy.loss and row[policy.loss] < min((old[policy.loss] for old in history), default=np.inf):
            stopping = stopping._replace(since=jnp.zeros_like(stopping.since))
        history.append(row)
        last = number == policy.epochs or should_stop(stopping, policy.patience)
        if record is not None:
            record.keep(history, {"state": state, "stopping": stopping}, last=last)
        if on_epoch is not None:
            on_epoch(row)
    ranks = np.array([policy.rank(row, history[0]) for row in history], np.float32)
    best = history[int(np.where(np.isnan(ranks), -np.inf, ranks).argmax())]  # as `observe` keeps them
    return Run(stopping.params, stopping.stats, best, history)


def _check_finite(row: Row, losses: set[str | None], state: TrainState) -> None:
    for name, value in row.items():
        if math.isinf(value) or (math.isnan(value) and name in losses):
            raise FloatingPointError(
                f"{name} is {value} in epoch {row['epoch']} (step {int(state.step)}), expected a finite "
                "number: lower the learning rate, or look for NaN in features, labels and weights"
            )


def train_seeds(
    name: str,
    options: RunOptions,
    rows_per_epoch: int,
    train: Callable[[Record], Result],
    data: PyTree = None,
    about: Mapping[str, Any] | None = None,
) -> list[Result]:
    """What `train(record)` gives for the seeds `0 .. options.runs - 1`, each with a record of its own.

    `data` are the arrays that are learned from, `about` what else is to be known of it (as JSON): a resumed
    run must have the same.

    >>> train_seeds("GraphSAGE", RunOptions(runs=3), 1000, lambda record: record.seed)
    [0, 1, 2]
    """
    found = []
    for seed in range(options.runs):
        with Record(name, seed, options, rows_per_epoch, data, about) as record:
            found.append(train(record))
    return found
