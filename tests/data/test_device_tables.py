"""Features on a device: whole lanes on a TPU, and a model that does not mind."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import NUM_NODES, features, graph

import jsage
from jsage.data import device_tables, to_device_table, whole_lanes
from jsage.nn import GraphSAGE
from jsage.sampling import sample_blocks

ROWS = features(0, NUM_NODES, 5)
close = partial(np.testing.assert_allclose, rtol=1e-6, atol=1e-6)


class Chip:
    """As much of a TPU as `to_device_table` asks about."""

    platform = "tpu"


@pytest.mark.parametrize("rows", [ROWS, jnp.asarray(ROWS), ROWS.astype(np.float16)])
def test_rows_are_padded_with_zeros_to_whole_lanes(rows):
    placed = to_device_table(rows, lanes=8)
    assert isinstance(placed, jax.Array)
    assert (placed.shape, placed.dtype) == ((NUM_NODES, 8), rows.dtype)
    np.testing.assert_array_equal(placed[:, :5], rows)
    assert not placed[:, 5:].any()


def test_only_a_tpu_pads_unless_it_is_told_to(monkeypatch):
    assert to_device_table(ROWS).shape == ROWS.shape
    tpu = Chip()
    assert (
        device_tables._platform(jax.devices()[1]),
        device_tables._platform(tpu),
        device_tables._platform(None),
    ) == (
        "cpu",
        "tpu",
        "cpu",
    )
    monkeypatch.setattr(jax, "device_put", lambda rows, device: jnp.asarray(rows))
    assert to_device_table(ROWS, tpu).shape == (NUM_NODES, 128)
    assert to_device_table(ROWS, tpu, lanes=1).shape == ROWS.shape


def test_rows_lie_where_they_should():
    device = jax.devices()[3]
    assert to_device_table(ROWS, device, lanes=8).devices() == {device}
    mesh = jax.make_mesh((4,), ("nodes",), axis_types=(jax.sharding.AxisType.Auto,))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("nodes"))
    assert to_device_table(ROWS, sharding, lanes=8).sharding == sharding


def test_whole_lanes():
    assert [whole_lanes(width) for width in (1, 100, 128, 129, 602)] == [128, 128, 128, 256, 640]
    with pytest.raises(ValueError, match="lanes must be at least 1, got 0"):
        whole_lanes(5, 0)


@pytest.mark.slow
def test_a_model_gives_the_same_and_the_columns_of_zeros_get_no_gradient():
    blocks = sample_blocks(jax.random.key(0), graph("random"), jnp.arange(3, dtype=jnp.int32), (3, 2))
    model, narrow, wide = GraphSAGE(6, 2), to_device_table(ROWS), to_device_table(ROWS, lanes=8)
    params = model.init(jax.random.key(1), wide, blocks)
    fit = lambda x: x[:5] if x.shape == (8, 6) else x  # noqa: E731
    run = jax.jit(jax.value_and_grad(lambda params, h: (model.apply(params, h, blocks) ** 2).sum()))
    value, grads = run(params, wide)
    expected, narrow_grads = run(jax.tree.map(fit, params), narrow)
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(fit(a), b, rtol=1e-5, atol=1e-6), grads, narrow_grads
    )
    padded = [grad for grad in jax.tree.leaves(grads) if grad.shape == (8, 6)]
    assert len(padded) == 2
    assert not any(grad[5:].any() for grad in padded)


@pytest.mark.parametrize("identity", [None, (NUM_NODES, 3)])
def test_one_script_whether_rows_are_padded_or_not(identity, tmp_path):
    """Parameters made on rows of their own width read padded ones, sampled, whole and exact, and back."""
    model, wide = GraphSAGE(6, 2, in_features=5, identity=identity), to_device_table(ROWS, lanes=8)
    one, key = graph("random"), jax.random.key(0)
    blocks = sample_blocks(key, one, jnp.arange(3, dtype=jnp.int32), (3, 2))
    params, again = (jax.jit(model.init)(key, rows, blocks) for rows in (ROWS, wide))
    jax.tree.map(np.testing.assert_array_equal, params, again)
    for given in (blocks, (jsage.full_block(one),) * 2):
        close(*(jax.jit(model.apply)(params, rows, given) for rows in (ROWS, wide)))
    close(*(jsage.embed_all(model, params, one, rows) for rows in (ROWS, wide)))
    for name, rows in (("own", ROWS), ("wide", wide)):
        jsage.embed_to_file(str(tmp_path / f"{name}.npy"), model, params, one, rows)
    close(np.load(tmp_path / "own.npy"), np.load(tmp_path / "wide.npy"))
    with pytest.raises(ValueError, match=r"in_features=5 columns at least, got shape \(\d+, 4\)"):
        jsage.embed_all(model, params, one, ROWS[:, :4])


def test_new_nodes_need_not_be_padded():
    model, one, wide = GraphSAGE(6, 2, in_features=5), graph("random"), to_device_table(ROWS, lanes=8)
    params = jax.jit(model.init)(jax.random.key(0), ROWS, (jsage.full_block(one),) * 2)
    new = jsage.NewNodes(ROWS[:2] / 2, [0, 1, -1], [-1, -1, -2])
    close(*(jsage.embed_new(model, params, one, rows, new) for rows in (ROWS, wide)))
