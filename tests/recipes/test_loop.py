"""The training loop: which epoch is the best, and which parameters are kept for it."""

import jax
import numpy as np
import optax
import pytest

from jsage.recipes.loop import StoppingPolicy, rank_by_score, train_until_stopped
from jsage.train import init_state


@pytest.mark.parametrize(
    ("scores", "best"),
    [((np.nan, 0.5, 0.9, 0.1), 3), ((0.5, np.nan, 0.4, 0.5), 1), ((0.1, 0.2, np.nan, 0.3), 4)],
)
def test_the_best_row_is_that_of_the_kept_parameters_whatever_is_nan(scores: tuple[float, ...], best: int):
    state = init_state(jax.random.key(0), {"w": np.float32(0)}, optax.sgd(0.1))

    def advance(state, number):
        return state._replace(params={"w": jax.device_put(np.float32(number))}), {"loss": 1.0, "weight": 1.0}

    policy = StoppingPolicy(epochs=4, patience=9, rank=rank_by_score("val_score"))
    left = iter(scores)
    run = train_until_stopped(state, advance, lambda state: {"val_score": next(left)}, policy)
    assert run.best["epoch"] == int(run.params["w"]) == best


@pytest.mark.parametrize(
    ("loss", "row", "message"),
    [
        ([1.0, np.nan], {"val_loss": 1.0}, r"loss is nan in epoch 2 \(step 2\), expected a finite number"),
        ([1.0, np.inf], {"val_loss": 1.0}, r"loss is inf in epoch 2 \(step 2\)"),
        ([1.0, 1.0], {"val_loss": np.nan}, r"val_loss is nan in epoch 1 \(step 1\)"),
        ([1.0, 1.0], {"val_loss": 1.0, "val_score": -np.inf}, r"val_score is -inf in epoch 1 \(step 1\)"),
    ],
)
def test_a_loss_that_is_not_finite_ends_the_run(loss, row, message):
    state, left = init_state(jax.random.key(0), {"w": np.float32(0)}, optax.sgd(0.1)), iter(loss)

    def advance(state, number):
        return state._replace(step=state.step + 1), {"loss": next(left), "weight": 1.0}

    policy = StoppingPolicy(3, 9, rank_by_score("val_score"), "val_loss")
    with pytest.raises(FloatingPointError, match=message):
        train_until_stopped(state, advance, lambda state: {"val_score": 0.5} | row, policy)
