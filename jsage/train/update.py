"""Training as pure functions: a state, an update, an epoch as one scan, early stopping.

Nothing here is jitted or knows about graphs. A recipe jits one whole epoch, and may donate the old state:

    @partial(jax.jit, donate_argnums=0)
    def run_epoch(state, tables, seeds, mask): ...

A donated state is gone afterwards, its parameters and its key included: use only what the call returned.
Early stopping keeps copies of its own, so donation cannot take them away.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, PyTree

from jsage.typing import LossFn, PRNGKey


class TrainState(NamedTuple):
    """All that training carries from step to step, and all that a checkpoint needs."""

    step: Int[Array, ""]
    params: PyTree
    opt_state: PyTree
    key: PRNGKey
    stats: PyTree = {}


Update = Callable[[TrainState, Any], tuple[TrainState, dict[str, Array]]]
"""`(state, batch) -> (state, metrics)`, as `make_update` makes it."""


def init_state(
    key: PRNGKey, params: PyTree, optimizer: optax.GradientTransformation, stats: PyTree = None
) -> TrainState:
    """Make the state at step 0; `stats` are variables that are not trained, such as batch norm's averages.

    >>> state = init_state(jax.random.key(0), {"w": jnp.ones(2)}, optax.sgd(0.1))
    >>> int(state.step), state.stats
    (0, {})
    """
    params = jax.tree.map(jnp.asarray, params)
    stats = {} if stats is None else jax.tree.map(jnp.asarray, stats)
    return TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params), key, stats)


def make_update(loss_fn: LossFn, optimizer: optax.GradientTransformation) -> Update:
    """Make one step of training, `update(state, batch) -> (state, metrics)`: pure, to be jitted or scanned.

    `params' = params + optimizer(∇_params loss_fn(params, stats, batch, key))` with
    `key = fold_in(state.key, state.step)`: a resumed run draws what an uninterrupted one does. `stats` and
    the metrics are those that `loss_fn` returned.

    >>> def loss_fn(params, stats, x, key):
    ...     loss = jnp.mean((x - params["w"]) ** 2)
    ...     return loss, ({"loss": loss * x.size, "weight": jnp.float32(x.size)}, stats)
    >>> update = make_update(loss_fn, optax.sgd(0.25))
    >>> state = init_state(jax.random.key(0), {"w": jnp.zeros(())}, optax.sgd(0.25))
    >>> state, metrics = update(state, jnp.array([1.0, 3.0]))
    >>> float(state.params["w"]), float(metrics["loss"]), int(state.step)
    (1.0, 10.0, 1)
    """

    def update(state: TrainState, batch: Any) -> tuple[TrainState, dict[str, Array]]:
        key = jax.random.fold_in(state.key, state.step)
        grads, (metrics, stats) = jax.grad(loss_fn, has_aux=True)(state.params, state.stats, batch, key)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        return TrainState(state.step + 1, params, opt_state, state.key, stats), metrics

    return update


def train_epoch(update: Update, state: TrainState, batches: PyTree) -> tuple[TrainState, dict[str, Array]]:
    """Scan `update` over the leading axis of `batches`; the metrics come back summed over them.

    Metrics are sums, `{"loss": Σ weight·loss, "correct": …, "weight": Σ weight}`, so that unequal batches
    count by their rows; `metrics.mean` divides them once.

    >>> def loss_fn(params, stats, x, key):
    ...     return (x - params) ** 2, ({"loss": (x - params) ** 2, "weight": jnp.ones(())}, stats)
    >>> state = init_state(jax.random.key(0), jnp.zeros(()), optax.sgd(0.5))
    >>> state, sums = train_epoch(make_update(loss_fn, optax.sgd(0.5)), state, jnp.array([1.0, 4.0]))
    >>> float(state.params), {name: float(total) for name, total in sums.items()}
    (4.0, {'loss': 10.0, 'weight': 2.0})
    """
    state, metrics = jax.lax.scan(update, state, batches)
    return state, jax.tree.map(lambda values: values.sum(0), metrics)


class EarlyStopping(NamedTuple):
    """The best parameters so far and how long ago they were: a pytree, checkpointed beside the state."""

    value: Float[Array, ""]
    """The best validation score (float32), -inf before the first."""
    step: Int[Array, ""]
    """The training step that reached it."""
    since: Int[Array, ""]
    """How many observations came after it."""
    params: PyTree
    stats: PyTree


def init_stopping(state: TrainState) -> EarlyStopping:
    """Start early stopping from `state`, before any score is known.

    >>> state = init_state(jax.random.key(0), {"w": jnp.ones(2)}, optax.sgd(0.1))
    >>> float(init_stopping(state).value)
    -inf
    """
    return _remember(jnp.float32(-jnp.inf), state)


def observe(stopping: EarlyStopping, value: float | Float[Array, ""], state: TrainState) -> EarlyStopping:
    """Take in the validation score of `state`, larger is better (for a loss, pass its negative); on the host.

    A score above the best, as float32, keeps copies of the parameters and `stats`; an equal score or NaN does
    not. The best model is `state._replace(params=stopping.params, stats=stopping.stats)`.

    >>> state = init_state(jax.random.key(0), {"w": jnp.ones(2)}, optax.sgd(0.1))
    >>> stopping = init_stopping(state)
    >>> for score in (0.5, 0.7, 0.6, 0.7):
    ...     stopping = observe(stopping, score, state)
    >>> round(float(stopping.value), 3), int(stopping.since), should_stop(stopping, patience=2)
    (0.7, 2, True)
    """
    score = jnp.float32(value)
    if score > stopping.value:
        return _remember(score, state)
    return stopping._replace(since=stopping.since + 1)


def should_stop(stopping: EarlyStopping, patience: int) -> bool:
    """Whether the last `patience` scores were no better than the best; ValueError for `patience < 1`.

    >>> state = init_state(jax.random.key(0), {"w": jnp.ones(2)}, optax.sgd(0.1))
    >>> should_stop(init_stopping(state), patience=1)
    False
    """
    if patience < 1:
        raise ValueError(
            f"patience must be at least 1, got {patience}: with 0 no run gets past its first score"
        )
    return bool(stopping.since >= patience)


def _remember(value: Array, state: TrainState) -> EarlyStopping:
    params, stats, step = jax.tree.map(jnp.copy, (state.params, state.stats, state.step))
    return EarlyStopping(value, step, jnp.zeros((), jnp.int32), params, stats)
