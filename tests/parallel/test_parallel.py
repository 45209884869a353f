"""A mesh and what is reduced over it: losses, gradients and statistics of a whole batch."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from jsage.losses import masked_mean
from jsage.nn import BatchNorm
from jsage.parallel import global_loss, make_mesh, on_mesh, per_device_key, replicate, specs, split


@pytest.fixture(scope="module")
def mesh():
    return make_mesh()


def close(actual, expected, atol=1e-5):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=atol), actual, expected)


def test_the_loss_is_the_mean_over_all_valid_seeds(mesh):
    """Devices of 0 to 3 valid seeds, a regularizer, a gradient through a coupling of the devices."""
    x = np.random.default_rng(0).normal(size=(24, 3)).astype(np.float32)
    mask = np.random.default_rng(1).random(24) < np.repeat(np.arange(8) % 4, 3) / 3

    def loss(params, stats, batch, key, axis=None):
        x, mask = batch
        rows = jnp.where(mask[:, None], x, 0) @ params
        total = rows.sum(0)
        total = total if axis is None else jax.lax.psum(total, axis)
        losses = (rows * total[None]).sum(1)
        metrics = {"weight": mask.sum().astype(jnp.float32), "loss": losses.sum()}
        return masked_mean(losses, mask) + jnp.square(params).sum(), (metrics, stats)

    params = jax.device_put(np.random.default_rng(2).normal(size=(3, 2)).astype(np.float32))
    key, batch = jax.random.key(0), (jax.device_put(x), jax.device_put(mask))
    expected = jax.jit(jax.value_and_grad(loss, has_aux=True))(params, {}, batch, key)
    placed = *replicate((params, key), mesh), split(batch, mesh)

    def run(params, key, batch):
        whole = global_loss(partial(loss, axis="data"))
        return jax.value_and_grad(whole, has_aux=True)(params, {}, batch, key)

    close(jax.jit(on_mesh(run, mesh, placed))(*placed), expected)


def test_named_parameters_keep_their_own_gradients(mesh):
    def run(params, batch):
        def loss(params, stats, batch, key):
            return (params["table"] * batch).sum() + params["w"], ({"weight": jnp.float32(1)}, stats)

        return jax.grad(global_loss(loss, sharded=("table",)), has_aux=True)(
            params, {}, batch, jax.random.key(0)
        )[0]

    params = {"table": split(jnp.zeros(16), mesh), "w": replicate(jnp.zeros(()), mesh)}
    batch = split(jnp.arange(16.0), mesh)
    grads = jax.jit(on_mesh(run, mesh, (params, batch), specs(params)))(params, batch)
    close(grads, {"table": jnp.arange(16.0) / 8, "w": jnp.ones(())})


def test_metrics_need_a_weight():
    loss = global_loss(lambda params, stats, batch, key: (jnp.zeros(()), ({"loss": jnp.zeros(())}, stats)))
    with pytest.raises(ValueError, match=r"must have a 'weight'.*got \['loss'\]"):
        loss({}, {}, (), jax.random.key(0))


def test_each_device_has_a_key_of_its_own(mesh):
    key = replicate(jax.random.key(7), mesh)
    draw = on_mesh(
        lambda key: jax.random.bits(per_device_key(key), (1,)), mesh, (key,), PartitionSpec("data")
    )
    expected = [int(jax.random.bits(jax.random.fold_in(jax.random.key(7), i), (1,))[0]) for i in range(8)]
    assert jax.jit(draw)(key).tolist() == expected


def test_what_does_not_divide_is_refused(mesh):
    with pytest.raises(ValueError, match=r"axis 1 must be a multiple of the 8 devices .* \(4, 12\)"):
        split(jnp.zeros((4, 12)), mesh, dim=1)
    with pytest.raises(ValueError, match=r"axis 1 must be .* got shape \(8,\)"):
        split(jnp.zeros(8), mesh, dim=1)


@pytest.mark.parametrize(("valid", "training"), [(0, True), (5, True), (7, True), (5, False)])
def test_batch_norm_is_that_of_flax_on_one_device(valid: int, training: bool):
    rng = np.random.default_rng(valid)
    row = partial(np.asarray, dtype=np.float32)
    x, mask = row(rng.normal(2, 3, (7, 4))), (np.arange(7) < valid)[:, None]
    stats = {"mean": row(rng.normal(size=4)), "var": row(np.full(4, 2.5))}
    params = {"scale": row(np.linspace(1, 2, 4)), "bias": row(np.linspace(-1, 1, 4))}
    variables = {"params": params, "batch_stats": stats}

    def run(norm):
        apply = partial(norm.apply, use_running_average=not training, mutable=["batch_stats"])
        return jax.jit(apply)(variables, x, mask=mask)

    ours, theirs = run(BatchNorm(momentum=0.8)), run(nn.BatchNorm(momentum=0.8))
    if valid or not training:
        close(ours, theirs)
    assert np.isfinite(ours[0]).all()


def test_batch_norm_has_the_options_of_flax():
    x = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
    options = {"use_scale": False, "use_bias": False, "epsilon": 0.1, "dtype": jnp.bfloat16}
    ours, theirs = (
        jax.jit(kind(use_running_average=False, **options).init_with_output)(jax.random.key(0), x)
        for kind in (BatchNorm, nn.BatchNorm)
    )
    assert ours[0].dtype == theirs[0].dtype == jnp.bfloat16
    close(jax.tree.map(lambda leaf: np.asarray(leaf).astype(np.float32), ours), theirs, atol=1e-2)
    assert "params" not in ours[1]
