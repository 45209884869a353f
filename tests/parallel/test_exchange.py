"""Rows fetched from the devices that own them: those of the whole table, in any number of rounds."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from sharding import DEVICES, Listed, placements, places

from jsage.graph import Location, from_edges
from jsage.parallel import (
    ShardedFeatures,
    fetch,
    gather_remote,
    make_mesh,
    most_sampled,
    on_mesh,
    plan_route,
    shard_features,
    specs,
    split,
)

NODES, WIDTH, IDS = 37, 3, 12
ROOM = placements(NODES)["permuted"].rows
ROWS = PartitionSpec("data")


PLACEMENTS = placements(NODES)
IDS_OF = {
    "random": np.random.default_rng(1).integers(0, NODES, (DEVICES, IDS)),
    "one id": np.full((DEVICES, IDS), 20),
    "one owner": np.random.default_rng(2).integers(10, 15, (DEVICES, IDS)),
    "distinct": np.stack([np.random.default_rng(i).permutation(NODES)[:IDS] for i in range(DEVICES)]),
    "one device asks for much": np.where(np.arange(DEVICES)[:, None] == 3, np.arange(IDS), 0),
}
CAPACITIES = (1, 64)


@pytest.fixture(scope="module")
def mesh():
    return make_mesh()


@pytest.fixture(scope="module")
def table():
    return np.random.default_rng(3).normal(size=(NODES, WIDTH)).astype(np.float32)


def padded(placement: Listed, table: np.ndarray) -> np.ndarray:
    """The shards' rows end to end, NaN in the padding."""
    parts = np.full((DEVICES, placement.rows, table.shape[1]), np.nan, np.float32)
    owner, local = placement.locate(np.arange(NODES))
    parts[owner, local] = table
    return parts.reshape(-1, table.shape[1])


@pytest.fixture(scope="module")
def fetched(mesh):
    """One compiled program a capacity, for all placements and ids."""
    rows = jax.ShapeDtypeStruct((DEVICES * ROOM, WIDTH), jnp.float32, sharding=NamedSharding(mesh, ROWS))
    ids = jax.ShapeDtypeStruct((DEVICES * IDS,), jnp.int32, sharding=NamedSharding(mesh, ROWS))
    arguments = ShardedFeatures(rows), Location(ids, ids)

    def run(features, ids, capacity):
        rows, counts = fetch(features, ids, capacity)
        return rows, jax.tree.map(lambda x: x[None], counts)

    def program(capacity):
        mapped = on_mesh(partial(run, capacity=capacity), mesh, arguments, ROWS)
        return jax.jit(mapped).lower(*arguments).compile()

    return {capacity: program(capacity) for capacity in CAPACITIES}


@pytest.mark.parametrize("capacity", CAPACITIES)
@pytest.mark.parametrize("ids", IDS_OF)
@pytest.mark.parametrize("name", PLACEMENTS)
def test_rows_are_those_of_the_table_in_any_number_of_rounds(mesh, table, fetched, name, ids, capacity):
    placement, nodes = PLACEMENTS[name], IDS_OF[ids]
    features = split(ShardedFeatures(jnp.asarray(padded(placement, table))), mesh)
    rows, counts = fetched[capacity](features, places(placement, nodes.ravel()))
    np.testing.assert_array_equal(rows, table[nodes.ravel()])
    wanted = np.array([np.bincount(placement.owners[np.unique(row)], minlength=DEVICES) for row in nodes])
    np.testing.assert_array_equal(counts.distinct, wanted.sum(1))
    np.testing.assert_array_equal(counts.overflow, np.maximum(wanted - min(capacity, IDS), 0).sum(1))
    np.testing.assert_array_equal(counts.most, np.full(DEVICES, wanted.max()))
    np.testing.assert_array_equal(counts.rounds, np.full(DEVICES, -(-wanted.max() // min(capacity, IDS))))


def test_the_program_has_two_exchanges_a_round_and_a_maximum(fetched):
    """All rounds are one loop."""
    text = fetched[1].as_text()
    assert text.count(" all-to-all(") == 2
    assert text.count(" all-reduce(") == 1
    assert not any(name in text for name in (" all-gather(", " collective-permute(", " reduce-scatter("))


def test_copies_of_hot_rows_are_not_asked_for(mesh, table):
    placement, nodes = PLACEMENTS["three shards empty"], IDS_OF["random"]
    hot = np.random.default_rng(4).permutation(NODES)[:14]
    features = shard_features(table, placement, mesh, hot=np.concatenate([hot, hot[:2]]))
    features = features._replace(hot=features.hot._replace(rows=features.hot.rows + 100))
    ids = places(placement, nodes.ravel())

    def run(features, ids):
        rows, counts = fetch(features, ids, 2)
        return rows, counts.distinct[None]

    rows, distinct = jax.jit(on_mesh(run, mesh, (features, ids), ROWS))(features, ids)
    copied = np.isin(nodes, hot)
    np.testing.assert_array_equal(rows, table[nodes.ravel()] + 100 * copied.reshape(-1, 1).astype(np.float32))
    asked = [len(np.unique(row[~known])) for row, known in zip(nodes, copied, strict=True)]
    np.testing.assert_array_equal(distinct, asked)


def test_features_lie_by_owner_padded_with_zeros_to_whole_lanes(mesh, table):
    placement = PLACEMENTS["three shards empty"]
    rows = np.asarray(shard_features(table, placement, mesh, lanes=4).rows).reshape(DEVICES, -1, 4)
    assert rows.shape[1] == placement.rows
    for shard in range(DEVICES):
        nodes = placement.globals(shard)
        np.testing.assert_array_equal(rows[shard, : len(nodes), :WIDTH], table[nodes])
        assert not rows[shard, len(nodes) :].any()
        assert not rows[shard, :, WIDTH:].any()
    assert shard_features(table, placement, mesh, hot=np.array([], int)).hot is None


def test_embeddings_get_the_sum_of_their_gradients_over_all_devices(mesh, table):
    placement, nodes = PLACEMENTS["permuted"], IDS_OF["random"]
    features, ids = shard_features(table, placement, mesh), places(placement, nodes.ravel())
    scale = np.random.default_rng(5).normal(size=(DEVICES * IDS, WIDTH)).astype(np.float32)

    def run(features, ids, scale):
        loss = lambda rows: (scale * jnp.square(fetch(ShardedFeatures(rows), ids, 1)[0])).sum()  # noqa: E731
        return jax.grad(loss)(features.rows)

    arguments = features, ids, split(jnp.asarray(scale), mesh)
    grad = jax.jit(on_mesh(run, mesh, arguments, ROWS))(*arguments)
    expected = np.zeros((NODES, WIDTH))
    np.add.at(expected, nodes.ravel(), 2.0 * scale * table[nodes.ravel()])
    owner, local = placement.locate(np.arange(NODES))
    np.testing.assert_allclose(np.asarray(grad)[owner * placement.rows + local], expected, atol=1e-5)


def test_answers_may_be_any_arrays(mesh):
    ids = places(PLACEMENTS["contiguous"], IDS_OF["distinct"].ravel())

    def run(ids):
        me = jax.lax.axis_index("data")

        def answer(local):
            return {"even": (local + me) % 2 == 0, "pair": (local, jnp.stack([local, local], 1) + me)}

        return gather_remote(plan_route(ids), answer, 1)

    said = jax.jit(on_mesh(run, mesh, (ids,), ROWS))(ids)
    np.testing.assert_array_equal(said["even"], (ids.local + ids.owner) % 2 == 0)
    np.testing.assert_array_equal(said["pair"][0], ids.local)
    np.testing.assert_array_equal(said["pair"][1], np.stack([ids.local + ids.owner] * 2, 1))


def test_the_hottest_nodes_have_most_edges_out():
    graph = from_edges([3, 3, 3, 1, 1, 0], [0, 1, 2, 0, 2, 0], num_nodes=4)
    assert most_sampled(graph, 2).tolist() == [3, 1]
    assert most_sampled(graph, 9).tolist() == [3, 1, 0, 2]


def test_bad_calls_are_refused(mesh, table):
    with pytest.raises(ValueError, match="mesh of 8 devices takes as many shards, got a placement over 6"):
        shard_features(table, Listed(NODES, 6, np.arange(NODES) % 6, ROOM), mesh)
    ids = places(PLACEMENTS["contiguous"], IDS_OF["random"].ravel())
    with pytest.raises(ValueError, match="capacity is a positive number of ids for each owner, got 0"):
        jax.eval_shape(
            on_mesh(lambda ids: gather_remote(plan_route(ids), lambda x: x, 0), mesh, (ids,), ROWS), ids
        )
    assert specs(ids) == Location(ROWS, ROWS)
