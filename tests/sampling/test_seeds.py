"""Every node exactly once, legal padding, and shapes that depend on sizes alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jsage.sampling import batches, epoch, fast_key

shuffled = jax.jit(epoch, static_argnums=2)
in_order = jax.jit(batches, static_argnums=1)
SIZES = [(1, 1), (1, 4), (5, 5), (7, 3), (8, 3), (9, 3), (10, 100)]


def some_nodes(count):
    """Ids that are not their own positions, in no order."""
    return 5 + 3 * np.random.default_rng(0).permutation(count).astype(np.int32)


@pytest.mark.parametrize(("count", "batch_size"), SIZES)
def test_an_epoch_holds_every_node_once_and_pads_with_legal_ids(count, batch_size):
    nodes = some_nodes(count)
    seeds, mask = map(np.asarray, shuffled(jax.random.key(1), nodes, batch_size))
    assert seeds.shape == mask.shape == (-(-count // batch_size), batch_size)
    assert seeds.dtype == jnp.int32
    assert sorted(seeds[mask].tolist()) == sorted(nodes.tolist())
    assert set(seeds.ravel().tolist()) <= set(nodes.tolist())
    assert mask[:-1].all(), "only the last batch is padded"


@pytest.mark.parametrize(("count", "batch_size"), SIZES)
def test_batches_keep_the_order(count, batch_size):
    nodes = some_nodes(count)
    seeds, mask = map(np.asarray, in_order(nodes, batch_size))
    assert seeds[mask].tolist() == nodes.tolist()
    assert seeds.shape == (-(-count // batch_size), batch_size)


def test_epochs_differ_by_key_and_repeat_by_key():
    nodes = np.arange(100)
    first, second, again = (shuffled(jax.random.key(k), nodes, 10)[0].tolist() for k in (0, 1, 0))
    assert first == again
    assert first != second
    assert first != batches(nodes, 10)[0].tolist()


def test_the_shuffle_is_uniform():
    """Each of the 24 orders of 4 nodes, 24 000 draws: 23 degrees of freedom, p = 1e-4 at 55.3."""
    keys = jax.random.split(jax.random.key(3), 24_000)
    orders = jax.jit(jax.vmap(lambda key: epoch(key, jnp.arange(4), 2)[0].ravel()))(keys)
    counts = np.unique(np.asarray(orders) @ np.array([64, 16, 4, 1]), return_counts=True)[1]
    assert len(counts) == 24
    assert ((counts - 1000) ** 2 / 1000).sum() < 55.3


def test_one_trace_serves_all_epochs():
    traces = []

    @jax.jit
    def run(key, nodes):
        traces.append(nodes.shape)
        return epoch(key, nodes, 4)

    nodes = some_nodes(10)
    for k in range(3):
        compiled = run(jax.random.key(k), nodes)
        for got, expected in zip(compiled, epoch(jax.random.key(k), nodes, 4), strict=True):
            np.testing.assert_array_equal(got, expected)
    assert len(traces) == 1


@pytest.mark.parametrize("key", [jax.random.key(0), fast_key(0)])
def test_ids_stay_int32_at_the_edge_of_their_range(key):
    nodes = np.array([2**31 - 1, 0, 2**31 - 2], np.int32)
    seeds, mask = map(np.asarray, shuffled(key, nodes, 2))
    assert sorted(seeds[mask].tolist()) == [0, 2**31 - 2, 2**31 - 1]


@pytest.mark.parametrize("cut", [batches, lambda nodes, size: epoch(jax.random.key(0), nodes, size)])
def test_refusals(cut):
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        cut(jnp.arange(3), 0)
    with pytest.raises(ValueError, match="cannot cut 0 nodes into batches"):
        cut(jnp.arange(0), 3)
