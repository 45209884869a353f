"""One trace, scan equals loop, padding is nothing, hand-worked early stopping."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jsage.sampling import epoch
from jsage.train import init_state, init_stopping, make_update, observe, should_stop, train_epoch

X = jax.device_put(np.random.default_rng(0).normal(size=(40, 3)).astype(np.float32))
Y = jax.device_put(np.asarray(X) @ np.array([1.0, -2.0, 0.5], np.float32) + np.float32(0.3))
OPTIMIZER = optax.adam(0.1)
shuffled = jax.jit(partial(epoch, batch_size=16))


def loss_fn(params, stats, batch, key):
    """Least squares under dropout, with a running count of valid rows that is not trained."""
    rows, mask, x, y = batch
    kept = jax.random.bernoulli(key, 0.8, (rows.shape[0], 3)) & mask[:, None]
    scores = jnp.where(kept, x[rows], 0.0) @ params["w"] + params["b"]
    error = jnp.where(mask, scores - y[rows], 0.0) ** 2
    weight, stats = mask.sum().astype(jnp.float32), {"seen": stats["seen"] + mask.sum()}
    return error.sum() / weight, ({"loss": error.sum(), "weight": weight}, stats)


@jax.jit
def start(key):
    params = {"w": jnp.zeros(3), "b": jnp.zeros(())}
    return init_state(key, params, OPTIMIZER, stats={"seen": jnp.zeros((), jnp.int32)})


def fresh_state(seed=0):
    return start(jax.random.key(seed))


def tabled(x=X, y=Y):
    """The loss with its tables bound, as a recipe binds them inside jit."""
    return lambda params, stats, batch, key: loss_fn(params, stats, (*batch, x, y), key)


def assert_same(actual, expected, atol=1e-6):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=atol), actual, expected)


def without_key(state):
    return state._replace(key=jax.random.key_data(state.key))


def test_scan_equals_a_loop_of_jitted_updates():
    update = make_update(tabled(), OPTIMIZER)
    batches = shuffled(jax.random.key(5), np.arange(40))
    scanned, sums = jax.jit(partial(train_epoch, update))(fresh_state(), batches)
    looped, total = fresh_state(), {"loss": 0.0, "weight": 0.0}
    for batch in zip(*batches, strict=True):
        looped, metrics = jax.jit(update)(looped, batch)
        total = {name: total[name] + np.asarray(metrics[name]) for name in total}
    assert_same(without_key(scanned), without_key(looped))
    np.testing.assert_allclose(sums["loss"], total["loss"], rtol=1e-5)
    assert sums["weight"] == 40
    assert int(scanned.step) == 3
    assert int(scanned.stats["seen"]) == 40


def test_one_trace_for_all_epochs():
    traces = []

    @partial(jax.jit, donate_argnums=0)
    def run(state, key, x, y):
        traces.append(x.shape)
        update = make_update(tabled(x, y), OPTIMIZER)
        return train_epoch(update, state, epoch(key, jnp.arange(40), 16))

    state, losses = fresh_state(), []
    for k in range(60):
        state, sums = run(state, jax.random.key(k), X, Y)
        losses.append(float(sums["loss"] / sums["weight"]))
    assert len(traces) == 1
    assert losses[-1] < 0.3 * losses[0]


def test_the_step_is_what_optax_does_with_the_key_of_the_step():
    batch = (np.arange(8), np.ones(8, bool))
    state = fresh_state()._replace(step=jnp.int32(7))
    after, _ = jax.jit(make_update(tabled(), OPTIMIZER))(state, batch)
    key = jax.random.fold_in(state.key, 7)
    grads = jax.jit(jax.grad(lambda params: tabled()(params, state.stats, batch, key)[0]))(state.params)
    updates, opt_state = jax.jit(OPTIMIZER.update)(grads, state.opt_state, state.params)
    assert_same(after.params, jax.jit(optax.apply_updates)(state.params, updates))
    assert_same(after.opt_state, opt_state)
    assert int(after.step) == 8
    np.testing.assert_array_equal(jax.random.key_data(after.key), jax.random.key_data(state.key))


def test_each_step_draws_anew():
    update = make_update(tabled(), optax.sgd(0.0))
    state = init_state(jax.random.key(0), {"w": jnp.ones(3), "b": jnp.zeros(())}, optax.sgd(0.0), {"seen": 0})
    same_batch = (np.tile(np.arange(8), (2, 1)), np.ones((2, 8), bool))
    losses = np.asarray(jax.lax.scan(update, state, same_batch)[1]["loss"])
    assert losses[0] != losses[1]


def test_padded_rows_do_not_matter():
    """Other rows, NaN ones included, under mask False: the same parameters, bit for bit."""
    x, y = np.array(X), np.array(Y)
    x[39] = y[39] = np.nan
    mask = np.arange(8) < 5
    update = jax.jit(make_update(tabled(jax.device_put(x), jax.device_put(y)), OPTIMIZER))
    clean, _ = update(fresh_state(), (np.array([0, 1, 2, 3, 4, 4, 4, 4]), mask))
    poisoned, _ = update(fresh_state(), (np.array([0, 1, 2, 3, 4, 39, 7, 39]), mask))
    assert np.isfinite(clean.params["w"]).all()
    assert_same(without_key(clean), without_key(poisoned), atol=0)


def test_stats_are_replaced_and_never_differentiated():
    def counting(params, stats, batch, key):
        return params["w"] * stats["n"].sum() * batch, ({}, {"n": stats["n"] + 1})

    state = init_state(jax.random.key(0), {"w": jnp.ones(())}, optax.sgd(1.0), {"n": np.arange(3)})
    after, _ = make_update(counting, optax.sgd(1.0))(state, jnp.float32(2.0))
    assert after.stats["n"].tolist() == [1, 2, 3]
    assert float(after.params["w"]) == 1.0 - 2.0 * 3.0


def test_states_without_stats_share_nothing():
    first = init_state(jax.random.key(0), {"w": jnp.ones(())}, OPTIMIZER)
    second = init_state(jax.random.key(0), {"w": jnp.ones(())}, OPTIMIZER)
    assert first.stats == {}
    assert first.stats is not second.stats


def test_many_runs_train_in_one_vmap():
    update = make_update(tabled(), OPTIMIZER)
    batches = shuffled(jax.random.key(5), np.arange(40))

    def run(seed):
        params = {"w": jnp.zeros(3), "b": jnp.zeros(())}
        state = init_state(jax.random.key(seed), params, OPTIMIZER, {"seen": jnp.int32(0)})
        return train_epoch(update, state, batches)[0].params

    together = jax.jit(jax.vmap(run))(np.arange(2))
    assert_same(jax.tree.map(lambda leaf: np.asarray(leaf)[1], together), jax.jit(run)(1), atol=1e-5)


def with_weight(weight, step):
    state = init_state(jax.random.key(0), {"w": jnp.float32(weight)}, OPTIMIZER, {"seen": jnp.int32(step)})
    return state._replace(step=jnp.int32(step))


def test_early_stopping_by_hand():
    """Scores 0.5, 0.8, 0.8 (a tie), NaN, 0.9, 0.1, 0.2: best at 0.5, 0.8 and 0.9."""
    stopping = init_stopping(with_weight(0.0, 0))
    assert float(stopping.value) == -np.inf
    seen = []
    for step, score in enumerate([0.5, 0.8, 0.8, np.nan, 0.9, 0.1, 0.2], start=1):
        stopping = observe(stopping, score, with_weight(10.0 * step, step))
        seen.append((int(stopping.step), int(stopping.since), should_stop(stopping, 2)))
    expected = [(1, 0), (2, 0), (2, 1), (2, 2), (5, 0), (5, 1), (5, 2)]
    assert seen == [(step, since, since >= 2) for step, since in expected]
    assert float(stopping.params["w"]) == 50.0
    assert int(stopping.stats["seen"]) == 5
    assert float(stopping.value) == np.float32(0.9)


def test_the_best_parameters_survive_donation():
    state = fresh_state()
    stopping = observe(init_stopping(state), 0.5, state)
    run = jax.jit(partial(train_epoch, make_update(tabled(), OPTIMIZER)), donate_argnums=0)
    state, _ = run(state, shuffled(jax.random.key(0), np.arange(40)))
    assert stopping.params["w"].tolist() == [0.0, 0.0, 0.0]
    assert int(stopping.step) == 0
    assert int(stopping.stats["seen"]) == 0


def test_patience_must_be_positive():
    with pytest.raises(ValueError, match="patience must be at least 1, got 0"):
        should_stop(init_stopping(fresh_state()), 0)
