"""A whole epoch on a mesh, sampled at the owners, features fetched, in one program: that of one device."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec
from sharding import DEVICES, placements, places

from jsage.data import power_law_communities
from jsage.losses import cross_entropy, masked_mean
from jsage.nn import BatchNorm, GraphSAGE
from jsage.parallel import (
    ShardedFeatures,
    fetch,
    global_loss,
    make_mesh,
    most_sampled,
    on_mesh,
    replicate,
    sample_blocks,
    shard_features,
    shard_graph,
    specs,
    split,
)
from jsage.sampling import epoch, sample_blocks_by_node
from jsage.train import init_state, make_update, train_epoch

NODES, CLASSES, FANOUTS, BATCH = 90, 4, (3, 2), 32
OPTIMIZER = optax.sgd(0.2, momentum=0.9)
TABLE = {"features": 6, "identity": 3}


@pytest.fixture(scope="module")
def mesh():
    return make_mesh()


@pytest.fixture(scope="module")
def dataset():
    return power_law_communities(NODES, 400, num_classes=CLASSES, num_features=TABLE["features"])


def model(axis_name=None):
    norm = nn.BatchNorm if axis_name is None else partial(BatchNorm, axis_name=axis_name)
    return GraphSAGE(hidden=5, out=CLASSES, norm=norm)


def scored(net, params, stats, given):
    """Loss, sums and statistics from `(rows, blocks, labels, mask)`."""
    rows, blocks, labels, mask = given
    variables = {"params": params, "batch_stats": stats}
    scores, changed = net.apply(
        variables, rows, blocks, mask=mask, deterministic=False, mutable=["batch_stats"]
    )
    losses, right = cross_entropy(scores, labels, mask), (scores.argmax(1) == labels) & mask
    sums = {"loss": losses.sum(), "correct": right.sum(), "weight": mask.sum().astype(jnp.float32)}
    return masked_mean(losses, mask), (sums, changed["batch_stats"])


@pytest.fixture(scope="module")
def batches():
    """Seeds, and labels beside them; the last batch has invalid seeds on several devices."""
    return epoch(jax.random.key(4), jnp.arange(NODES, dtype=jnp.int32)[:-10], BATCH)


@pytest.fixture(scope="module")
def embedding():
    return jnp.asarray(np.random.default_rng(6).normal(size=(NODES, TABLE["identity"])).astype(np.float32))


@pytest.fixture(scope="module")
def state(dataset, embedding):
    """A model on features beside identity embeddings, which are trained too."""
    rows = jnp.concatenate([dataset.features, embedding], 1)

    def init(key, graph):
        return model().init(key, rows, sample_blocks_by_node(key, graph, jnp.arange(8), FANOUTS))

    variables = jax.jit(init)(jax.random.key(2), dataset.graph)
    params = {"net": variables["params"], "embedding": embedding}
    return init_state(jax.random.key(3), params, OPTIMIZER, variables["batch_stats"])


def copied(net, reduce, dataset, state, batches):
    """The epoch with jsage's own samplers, and a copy of the tables on every device."""

    def loss(params, stats, batch, key):
        seeds, mask = batch
        blocks = sample_blocks_by_node(key, dataset.graph, seeds, FANOUTS)
        rows = jnp.concatenate([dataset.features, params["embedding"]], 1)
        return scored(net, params["net"], stats, (rows, blocks, dataset.labels[seeds], mask))

    return train_epoch(make_update(reduce(loss), OPTIMIZER), state, batches)


@pytest.fixture(scope="module")
def alone(dataset, state, batches):
    """The epoch on one device."""
    return jax.jit(partial(copied, model(), lambda loss: loss))(dataset, state, batches)


def close(actual, expected, atol=1e-5):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=atol), actual, expected)


def without_key(state):
    return state._replace(key=jax.random.key_data(state.key))


@pytest.mark.slow
def test_an_epoch_with_split_seeds_is_that_of_one_device(mesh, dataset, state, batches, alone):
    """80 seeds in batches of 32: in the last one, devices have nothing but padding."""
    assert not np.asarray(batches[1])[-1].reshape(DEVICES, -1).any(1).all()
    given = *replicate((dataset, state), mesh), split(batches, mesh, dim=1)
    together = (
        jax.jit(on_mesh(partial(copied, model("data"), global_loss), mesh, given)).lower(*given).compile()
    )
    after, sums = together(*given)
    close(without_key(after), without_key(alone[0]))
    close(sums, alone[1])
    assert float(sums["weight"]) == NODES - 10
    text = together.as_text()
    assert 0 < text.count(" all-reduce(") <= 4  # batch norm forwards and backwards, metrics, gradients
    assert not any(name in text for name in (" all-to-all(", " all-gather(", " collective-permute("))


def program(traces, capacity, state, graph, features, batches):
    traces.append(1)

    def loss(params, stats, batch, key):
        seeds, labels, mask = batch
        ids, blocks, hops = sample_blocks(key, graph, seeds, FANOUTS, (capacity,) * 2)
        rows, last = fetch(features, ids, capacity)
        learned, _ = fetch(ShardedFeatures(params["embedding"]), ids, capacity)
        rows = jnp.concatenate([rows, learned], 1)
        value, (sums, stats) = scored(model("data"), params["net"], stats, (rows, blocks, labels, mask))
        return value, (sums | {"overflow": last.overflow + sum(hop.overflow for hop in hops)}, stats)

    return train_epoch(make_update(global_loss(loss, sharded=("embedding",)), OPTIMIZER), state, batches)


def laid(mesh, dataset, state, batches, placement):
    """Everything where it belongs; the embeddings and what the optimizer keeps of them by owner."""
    owner, local = placement.locate(np.arange(NODES))

    def lay(path, leaf):
        if "embedding" not in jax.tree_util.keystr(path):
            return replicate(leaf, mesh)
        table = np.zeros((DEVICES * placement.rows, *leaf.shape[1:]), leaf.dtype)
        table[owner * placement.rows + local] = leaf
        return split(jnp.asarray(table), mesh)

    seeds, mask = batches
    features = shard_features(dataset.features, placement, mesh, hot=most_sampled(dataset.graph, 9))
    graph = shard_graph(dataset.graph, placement, mesh)
    batch = places(placement, seeds, dim=1), *split((dataset.labels[seeds], mask), mesh, dim=1)
    return jax.tree_util.tree_map_with_path(lay, state), graph, features, batch


def gathered(state, placement):
    owner, local = placement.locate(np.arange(NODES))

    def read(path, leaf):
        whole = "embedding" not in jax.tree_util.keystr(path)
        return leaf if whole else np.asarray(leaf)[owner * placement.rows + local]

    return jax.tree_util.tree_map_with_path(read, without_key(state))


def test_an_epoch_on_sharded_tables_is_that_of_one_device(mesh, dataset, state, batches, alone):
    """Two ids an owner and a round: most batches overflow."""
    placement, traces = placements(NODES)["three shards empty"], []
    given = laid(mesh, dataset, state, batches, placement)
    out = specs(given[0]), PartitionSpec()
    run = jax.jit(on_mesh(partial(program, traces, 2), mesh, given, out))
    after, sums = run(*given)
    expected, totals = alone
    overflow = sums.pop("overflow")
    close(sums, totals)
    assert overflow > 0
    close(gathered(after, placement), without_key(expected))
    again, _ = run(after, *given[1:])
    assert len(traces) == 1
    assert int(again.step) == 2 * int(after.step) == 2 * len(batches[0])
    moved = np.abs(gathered(after, placement).params["embedding"] - state.params["embedding"]).max()
    assert moved > 1e-3
