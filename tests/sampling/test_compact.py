"""Compacted frontiers: which ids are kept, what is drawn for them, and trees where a batch does not fit."""

from collections import Counter
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import AWKWARD, NUM_NODES, features, graph
from scipy import stats

from jsage import aggregate
from jsage.blocks import Indexed, Tree
from jsage.graph import from_edges
from jsage.losses import cross_entropy, masked_mean
from jsage.nn import LSTM, GraphSAGE, Pool, SAGEConv
from jsage.sampling import (
    deduplicated_loss,
    distinct_hashed,
    measure_capacities,
    sample_blocks,
    sample_compact_blocks,
)
from jsage.train import init_state, make_update, train_epoch

SEEDS = jax.device_put(np.array([3, 0, 3, 1], np.int32))  # with a repetition, as in a padded batch
FANOUTS = (2, 3)
WHOLE = (64, 64)  # more slots than any node has neighbors

compact_ids = jax.jit(distinct_hashed, static_argnums=1)
sample = jax.jit(sample_compact_blocks, static_argnums=(3, 4))
sample_trees = jax.jit(sample_blocks, static_argnums=3)


def random_graph(num_nodes: int = 300, num_edges: int = 3000):
    src, dst = np.random.default_rng(0).integers(0, num_nodes, (2, num_edges), np.int32)
    return from_edges(src, dst, num_nodes)


class TestCompact:
    @pytest.mark.parametrize("num_ids", [1, 7, 1000, 30_000])
    def test_every_id_is_at_its_position(self, num_ids: int):
        ids = np.random.default_rng(num_ids).integers(0, 5000, num_ids).astype(np.int32)
        found = jax.tree.map(np.asarray, compact_ids(ids, num_ids))
        size, distinct = int(found.size), len(np.unique(ids))
        np.testing.assert_array_equal(np.asarray(found.ids)[found.position], ids)
        assert np.max(found.position) < size
        np.testing.assert_array_equal(np.unique(found.ids[:size]), np.unique(ids))
        assert distinct <= size <= distinct + 0.02 * num_ids, "too many copies are left"
        assert (np.asarray(found.ids)[size:] == ids[0]).all()

    def test_two_ids_of_one_hash_slot_are_kept_apart(self):
        ids = np.arange(200_000, dtype=np.uint32)
        slot = (ids * np.uint32(2654435769)) >> np.uint32(32 - 6)  # six bits: 8 slots an id for four ids
        one, other = np.flatnonzero(slot == slot[1])[:2]
        ids = np.array([one, other, one, other], np.int32)
        found = jax.tree.map(np.asarray, compact_ids(ids, 4))
        np.testing.assert_array_equal(found.ids[found.position], ids)
        assert int(found.size) == 3  # the loser of the slot stays a copy of its own, twice

    def test_what_does_not_fit_is_counted(self):
        found = compact_ids(np.array([5, 6, 7, 8], np.int32), 2)
        assert int(found.size) == 4
        np.testing.assert_array_equal(found.ids, [5, 6])
        assert np.max(found.position) < 2


def drawn(blocks, seeds) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """`(dst, src, mask)` in node ids for each hop, the seeds' first, followed through the positions."""
    first = jax.tree.map(np.asarray, blocks[0])
    hops, ids = [(first.dst, first.src, first.mask)], first.dst
    for block in blocks[1:]:
        block = jax.tree.map(np.asarray, block)
        if isinstance(block, Tree):
            num_dst, fanout = block.mask.shape
            src, dst = ids[num_dst:].reshape(num_dst, fanout), ids[:num_dst]
        else:
            src, dst = ids[block.src], ids[block.dst]
        hops.insert(0, (dst, src, block.mask))
        ids = dst
    np.testing.assert_array_equal(ids, seeds)
    return hops


class TestSampling:
    @pytest.mark.parametrize("capacities", [(12,), (None,)])
    @pytest.mark.parametrize("name", AWKWARD)
    def test_only_neighbors_and_none_twice(self, name: str, capacities):
        graph_ = graph(name)
        blocks, fits = sample(jax.random.key(2), graph_, SEEDS, FANOUTS, capacities)
        assert fits
        indptr, indices = map(np.asarray, graph_[:2])
        for (dst, src, mask), fanout in zip(drawn(blocks, SEEDS), FANOUTS, strict=True):
            for v, row, valid in zip(dst, src, mask, strict=True):
                own = indices[indptr[v] : indptr[v + 1]]
                assert Counter(row[valid].tolist()) <= Counter(own.tolist())
                assert valid.sum() in (min(len(own), fanout), 0)  # 0: a row that only fills the capacity
        seeds_hop = drawn(blocks, SEEDS)[0]
        np.testing.assert_array_equal(seeds_hop[2].sum(1), np.minimum(np.diff(indptr)[np.asarray(SEEDS)], 2))

    def test_rows_beyond_the_distinct_nodes_draw_nothing(self):
        blocks, _ = sample(jax.random.key(0), graph("random"), SEEDS, FANOUTS, (12,))
        assert isinstance(blocks[1], Indexed)
        positions = jax.device_get((blocks[1].dst, blocks[1].src.ravel()))
        size = 1 + int(np.concatenate(positions).max())
        assert size <= NUM_NODES  # there are no more nodes to meet
        assert not np.asarray(blocks[0].mask)[size:].any()

    def test_subsets_are_uniform(self):
        """A node of the second frontier with 5 neighbors draws 3: ten subsets, by chi-square."""
        star = from_edges([1, 2, 3, 4, 5, 6], [0, 1, 1, 1, 1, 1], num_nodes=7)

        def draw(key):
            blocks, _ = sample_compact_blocks(key, star, jnp.zeros(1, jnp.int32), (1, 3), (2,))
            return blocks[0].src[1]

        rows = jax.jit(jax.vmap(draw))(jax.random.split(jax.random.key(4), 20_000))
        counts = Counter(tuple(row) for row in np.sort(np.asarray(rows), 1).tolist())
        assert len(counts) == 10
        assert stats.chisquare(list(counts.values())).pvalue > 1e-3

    @pytest.mark.parametrize("capacity", [None, 512])
    def test_hops_are_drawn_apart(self, capacity):
        """The same node in the frontier of two hops draws its neighbors again: one in 1000 agrees."""
        hubs, degree = np.arange(64, dtype=np.int32), 1000
        star = from_edges(np.tile(np.arange(64, 1064), 64), np.repeat(hubs, degree), 1064)
        sample = jax.jit(sample_compact_blocks, static_argnums=(3, 4))
        blocks, fits = sample(jax.random.key(0), star, hubs, (5, 5), (capacity,))
        (_, near, _), (again, far, _) = drawn(blocks, hubs)
        assert fits
        np.testing.assert_array_equal(again[:64], hubs)
        assert (near[:, 0] == far[:64, 0]).mean() < 0.05

    def test_capacities_are_one_fewer_than_fanouts(self):
        with pytest.raises(ValueError, match=r"2 fanouts need 1 capacities.*got 2: measure_capacities"):
            sample_compact_blocks(jax.random.key(0), graph("random"), SEEDS, FANOUTS, (8, 8))

    def test_edge_data_follows(self):
        weighted = graph("random", weighted=True)
        blocks, _ = sample(jax.random.key(0), weighted, SEEDS, WHOLE, (NUM_NODES + 4,))
        trees = sample_trees(jax.random.key(0), weighted, SEEDS, WHOLE)
        weights = jax.jit(lambda first, last: aggregate.sum(jnp.ones((first.num_dst, 1)), last))
        np.testing.assert_allclose(weights(*blocks), weights(*trees), atol=1e-6)


CONVS = {
    "mean": {},
    "max": {"aggregate": aggregate.max},
    "gcn": {"aggregate": aggregate.gcn},
    "sum, projected": {"aggregate": aggregate.sum, "project": True},
    "pool": {"aggregate": Pool(4)},
    "lstm": {"aggregate": LSTM(4)},
}


def model(options: dict) -> GraphSAGE:
    return GraphSAGE(hidden=6, out=3, conv=lambda **sizes: SAGEConv(**sizes, **options))


@pytest.mark.slow
@pytest.mark.parametrize("options", CONVS.values(), ids=CONVS)
def test_whole_neighborhoods_give_what_trees_give(options: dict):
    """With every neighbor drawn nothing is left to chance: values and gradients agree with the slow form."""
    table, net, random = jax.device_put(features(3)), model(options), graph("random")
    trees = sample_trees(jax.random.key(0), random, SEEDS, WHOLE)
    small, fits = sample(jax.random.key(1), random, SEEDS, WHOLE, (NUM_NODES + 6,))
    assert fits
    params = jax.jit(net.init)(jax.random.key(2), table, trees)
    pull = features(5, len(SEEDS), 3)

    @jax.jit
    def run(params, blocks):
        return jax.value_and_grad(lambda params: (net.apply(params, table, blocks) * pull).sum())(params)

    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-5),
        run(params, small),
        run(params, trees),
    )


def test_rows_that_fill_the_capacity_are_never_read():
    """Node 0 is in no row, so NaN in its features changes neither values nor gradients."""
    line = from_edges([2, 3, 1], [1, 2, 3], num_nodes=4)
    table = features(0, 4)
    table[0] = np.nan
    net, seeds = model({}), np.array([1, 2], np.int32)
    blocks, _ = sample(jax.random.key(0), line, seeds, (2, 2), (6,))
    params = jax.jit(net.init)(jax.random.key(1), np.nan_to_num(table), blocks)
    run = jax.jit(jax.value_and_grad(lambda params, table: net.apply(params, table, blocks).sum()))
    value, grads = run(params, table)
    assert np.isfinite(value)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(grads))


@pytest.mark.slow
class TestLoss:
    """`deduplicated_loss` against the loss on the blocks that it should have taken."""

    net, fanouts, capacities = model({}), (5, 4), (150,)
    graph, table = random_graph(), jax.device_put(features(1, 300))
    mask = np.ones(40, bool)
    batches = {  # few distinct nodes, and too many
        True: (np.tile(np.arange(5, dtype=np.int32), 8), mask),
        False: (np.arange(40, dtype=np.int32), mask),
    }

    @classmethod
    def loss(cls, params, stats, blocks, batch, key):
        seeds, mask = batch
        losses = cross_entropy(cls.net.apply(params, cls.table, blocks), seeds % 3, mask)
        return masked_mean(losses, mask), ({"loss": losses.sum()}, stats)

    @classmethod
    @cache
    def params(cls):
        blocks = sample_trees(jax.random.key(0), cls.graph, cls.batches[False][0], cls.fanouts)
        return jax.jit(cls.net.init)(jax.random.key(1), cls.table, blocks)

    @classmethod
    @cache
    def compiled(cls):
        """`(by, params, batch, key)` to the value and gradient of the loss times `by`."""
        fn = deduplicated_loss(cls.loss, cls.graph, cls.fanouts, cls.capacities)

        def scaled(params, by, batch, key):
            value, rest = fn(params, {}, batch, key)
            return by * value, rest

        return jax.jit(jax.value_and_grad(scaled, has_aux=True))

    @pytest.mark.parametrize("fits", [True, False])
    def test_a_batch_that_fits_and_one_that_does_not(self, fits: bool):
        params = self.params()
        batch, key = self.batches[fits], jax.random.key(7)
        draw, rest = jax.random.split(key)
        blocks, found = sample(draw, self.graph, batch[0], self.fanouts, self.capacities)
        assert bool(found) is fits
        if not fits:
            blocks = sample_trees(draw, self.graph, batch[0], self.fanouts)
        wanted = jax.jit(jax.value_and_grad(self.loss, has_aux=True))(params, {}, blocks, batch, rest)
        got = self.compiled()(params, 1.0, batch, key)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), got, wanted)

    def test_gradients_scale_with_the_cotangent(self):
        once, thrice = (
            self.compiled()(self.params(), by, self.batches[True], jax.random.key(0))[1] for by in (1.0, 3.0)
        )
        once = jax.tree.map(np.asarray, once)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(3 * a, b, rtol=1e-5, atol=1e-7), once, thrice)

    def test_an_epoch_of_both_kinds_is_traced_once_and_learns(self):
        traces, optimizer = [], optax.adam(0.05)

        @jax.jit
        def epoch(state, graph_, batches):
            traces.append(1)
            update = make_update(
                deduplicated_loss(self.loss, graph_, self.fanouts, self.capacities), optimizer
            )
            return train_epoch(update, state, batches)

        batches = jax.tree.map(lambda *arrays: np.stack(arrays), *self.batches.values())
        state = jax.jit(lambda params: init_state(jax.random.key(0), params, optimizer))(self.params())
        losses = []
        for _ in range(30):
            state, sums = epoch(state, self.graph, batches)
            losses.append(float(sums["loss"]))
        assert losses[-1] < 0.7 * losses[0]
        assert len(traces) == 1


def test_a_batch_fits_as_many_rows_as_it_has_nodes_and_no_fewer():
    """Node 0, its neighbors 1 to 4, and their neighbors 5 to 8: frontiers of 1, 5 and 9 nodes."""
    tree, batch = from_edges(range(1, 9), [0, 0, 0, 0, 1, 2, 3, 4], num_nodes=9), (jnp.zeros(1, jnp.int32),)

    def on_trees(params, stats, blocks, batch, key):
        return jnp.float32(isinstance(blocks[1], Tree)), ({}, stats)

    for capacities, fits in (((5, 9), True), ((4, 9), False), ((5, 8), False), ((None, 9), True)):
        run = jax.jit(deduplicated_loss(on_trees, tree, (4, 2, 1), capacities))
        assert run({}, {}, batch, jax.random.key(0))[0] == (not fits), capacities


class TestCapacities:
    def test_every_batch_fits_what_was_measured(self):
        graph_ = random_graph(3000, 12_000)
        nodes, key = jax.device_put(np.arange(3000, dtype=np.int32)), jax.random.key(0)
        (rows,) = measure_capacities(key, graph_, nodes, 100, (5, 5))
        assert rows is not None
        assert rows % 128 == 0

        @jax.jit
        def fits(key):
            seeds = jax.random.permutation(key, nodes)[:100]
            return sample_compact_blocks(key, graph_, seeds, (5, 5), (rows,))[1]

        assert sum(bool(fits(key)) for key in jax.random.split(key, 20)) >= 18

    @pytest.mark.slow
    def test_a_tree_before_a_compacted_frontier_is_measured_as_such(self):
        """The first hop meets other nodes only, so it stays a tree, whose copies draw apart in the second."""
        src, dst = np.random.default_rng(1).integers(0, 20_000, (2, 200_000), np.int32)
        graph_ = from_edges(np.append(src, src % 500), np.append(dst, dst), 20_000)
        nodes, key, fanouts = np.arange(20_000, dtype=np.int32), jax.random.key(0), (2, 12, 2)
        nodes = jax.device_put(nodes)
        capacities = measure_capacities(key, graph_, nodes, 200, fanouts)
        assert capacities[0] is None
        assert capacities[1] is not None

        @jax.jit
        def fits(key):
            seeds = jax.random.permutation(key, nodes)[:200]
            return sample_compact_blocks(key, graph_, seeds, fanouts, capacities)[1]

        assert sum(bool(fits(key)) for key in jax.random.split(key, 20)) >= 18

    def test_nothing_to_gain_leaves_trees(self):
        wide = from_edges(np.arange(1, 2000), np.zeros(1999, np.int32), num_nodes=2000)
        assert measure_capacities(jax.random.key(0), wide, jnp.arange(1), 1, (1000, 2)) == (None,)
