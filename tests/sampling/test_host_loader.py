"""Features on the host: what is fetched, that training is that of the device, and that threads behave."""

import threading
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jsage import data
from jsage.graph import from_edges, sparse_rows
from jsage.losses import cross_entropy, masked_mean
from jsage.nn import GraphSAGE
from jsage.sampling import deduplicated_loss, epoch, fast_key, host_loader, sample_blocks
from jsage.train import init_state, make_update, train_epoch

NODES, WIDTH, CLASSES, FANOUTS = 400, 6, 3, (4, 3)
KEY = fast_key(7)
MODEL = GraphSAGE(8, CLASSES, dropout=0.3, input_dropout=0.0)
OPTIMIZER = optax.adam(0.01)


@pytest.fixture(scope="module")
def graph():
    src, dst = np.random.default_rng(0).integers(0, NODES, (2, 2400), np.int32)
    return from_edges(src, dst, NODES)


@pytest.fixture(scope="module")
def features():
    """Column 0 is the node's own id."""
    rows = np.random.default_rng(1).normal(size=(NODES, WIDTH)).astype(np.float32)
    rows[:, 0] = np.arange(NODES)
    return rows


@pytest.fixture(scope="module")
def labels():
    return jnp.asarray(np.random.default_rng(2).integers(0, CLASSES, NODES, np.int32))


@pytest.fixture(scope="module")
def batches():
    return jax.jit(epoch, static_argnums=2)(jax.random.key(3), np.arange(0, NODES, 4), 16)


@pytest.fixture(scope="module")
def trees(graph):
    """What a loss on the device samples in a step."""
    return jax.jit(lambda step, seeds: sample_blocks(jax.random.fold_in(KEY, step), graph, seeds, FANOUTS))


@pytest.fixture(scope="module")
def loader(graph, features):
    return host_loader.Loader(host_loader.sampler(FANOUTS), graph, features, rows=320)


def single(groups):
    """The batches of groups, one by one."""
    for group in groups:
        for i in range(len(group.batch[0])):
            parts = group.blocks, group.batch
            blocks, batch = jax.tree.map(lambda values, i=i: np.asarray(values)[i], parts)
            yield host_loader.Batch(group.rows, blocks, batch)


def workers() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("jsage-host")]


class TestPrefetch:
    def test_reads_the_ids_that_the_device_samples(self, loader, trees, batches, features):
        for step, batch in enumerate(single(loader.prefetch(KEY, 5, batches))):
            first, last = trees(5 + step, batches[0][step])
            rows = np.asarray(batch.rows)
            assert rows.shape == (320, WIDTH)
            np.testing.assert_array_equal(rows[batch.blocks[0].dst], features[first.dst])
            np.testing.assert_array_equal(rows[batch.blocks[0].src], features[first.src])
            np.testing.assert_array_equal(batch.blocks[0].mask, first.mask)
            np.testing.assert_array_equal(batch.blocks[1].mask, last.mask)
            np.testing.assert_array_equal(batch.batch[0], batches[0][step])
            np.testing.assert_array_equal(batch.batch[1], batches[1][step])

    def test_sparse_features_stay_sparse(self, graph, features, trees, batches):
        """Room for the longest rows: one program for all batches, of the rows of the dense table."""
        table = np.where(np.random.default_rng(4).random(features.shape) < 0.3, features, 0)
        table[::7] = 0
        loader = host_loader.Loader(host_loader.sampler(FANOUTS), graph, sparse_rows(table), rows=200)
        longest = np.sort(np.count_nonzero(table, 1))[-200:].sum()
        groups = list(loader.prefetch(KEY, 5, batches, together=1))
        assert {group.rows.values.shape for group in groups} == {(longest,)}
        for step, batch in enumerate(single(groups)):
            first, _ = trees(5 + step, batches[0][step])
            rows = batch.rows.toarray()
            assert rows.shape == (200, WIDTH)
            np.testing.assert_array_equal(rows[batch.blocks[0].dst], table[first.dst])
            np.testing.assert_array_equal(rows[batch.blocks[0].src], table[first.src])
        with pytest.raises(ValueError, match="sparse features are none: leave it out"):
            host_loader.Loader(host_loader.sampler(FANOUTS), graph, sparse_rows(table), resident_bytes=2**26)

    @pytest.mark.parametrize("rows", [None, 8])
    def test_a_batch_that_reads_more_gets_all_of_its_rows(self, graph, features, trees, batches, rows):
        loader = host_loader.Loader(host_loader.sampler(FANOUTS), graph, features, rows)
        [batch] = single(loader.prefetch(KEY, 0, [part[:1] for part in batches]))
        first, _ = trees(0, batches[0][0])
        assert batch.rows.shape == (16 * 5 * 4, WIDTH)
        np.testing.assert_array_equal(np.asarray(batch.rows)[batch.blocks[0].src], features[first.src])

    def test_a_group_is_its_batches(self, graph, features, batches):
        loader = host_loader.Loader(host_loader.sampler(FANOUTS), graph, features, rows=400)
        groups = list(loader.prefetch(KEY, 5, batches, together=3))
        assert [len(group.batch[0]) for group in groups] == [3, 3, 1]
        assert [group.rows.shape[0] for group in groups] == [400, 400, 320]
        assert max(int(group.blocks[0].src.max()) for group in groups[:2]) < 400
        for one, other in zip(single(groups), single(loader.prefetch(KEY, 5, batches)), strict=True):
            for a, b in zip(one.blocks, other.blocks, strict=True):
                np.testing.assert_array_equal(a.mask, b.mask)
            for block in ("dst", "src"):
                a, b = (np.asarray(x.rows)[getattr(x.blocks[0], block)] for x in (one, other))
                np.testing.assert_array_equal(a, b)

    def test_each_row_is_fetched_once(self, loader, trees, batches):
        [batch] = single([next(loader.prefetch(KEY, 0, batches))])
        first, _ = trees(0, batches[0][0])
        read = np.unique(np.concatenate([first.dst, np.ravel(first.src)]))
        position = np.unique(np.concatenate([batch.blocks[0].dst, np.ravel(batch.blocks[0].src)]))
        assert len(read) <= len(position) < 1.05 * len(read) + 16
        assert position.max() == len(position) - 1

    def test_batches_that_are_kept_stay_as_they_were(self, loader, trees, batches, features):
        kept = list(single(loader.prefetch(KEY, 0, batches, ahead=3)))
        for step, batch in enumerate(kept):
            first, _ = trees(step, batches[0][step])
            np.testing.assert_array_equal(np.asarray(batch.rows)[batch.blocks[0].src], features[first.src])

    def test_rows_keep_their_type(self, graph, features, batches):
        narrow = jnp.asarray(features, jnp.bfloat16)
        loader = host_loader.Loader(host_loader.sampler(FANOUTS), graph, np.asarray(narrow), rows=320)
        [batch] = loader.prefetch(KEY, 0, [part[:1] for part in batches])
        assert batch.rows.dtype == jnp.bfloat16
        assert set(np.asarray(batch.rows[:50, 1])) <= set(np.asarray(narrow[:, 1]))

    def test_works_ahead_of_the_caller_and_no_further(self, loader, batches, monkeypatch):
        gathered, second = [], threading.Event()
        read = loader._table.read

        def count(ids, size):
            gathered.append(len(ids))
            if len(gathered) == 2:
                second.set()
            return read(ids, size)

        monkeypatch.setattr(loader._table, "read", count)
        iterator = loader.prefetch(KEY, 0, batches)
        next(iterator)
        assert second.wait(10)
        iterator.close()
        assert len(gathered) == 2


class TestThreads:
    def test_end_with_the_iterator(self, loader, batches):
        for _ in loader.prefetch(KEY, 0, batches, ahead=2):
            assert workers()
        assert not workers()

    def test_end_when_the_caller_leaves(self, loader, batches):
        iterator = loader.prefetch(KEY, 0, batches)
        next(iterator)
        iterator.close()
        assert not workers()

    def test_their_errors_are_the_callers(self, loader, batches, monkeypatch):
        def fail(ids, size):
            raise OSError("the disk is gone")

        iterator = loader.prefetch(KEY, 0, batches)
        next(iterator)
        monkeypatch.setattr(loader._table, "read", fail)
        with pytest.raises(OSError, match="the disk is gone"):
            list(iterator)
        assert not workers()


@cache
def params():
    graph = from_edges([0], [1], NODES)
    blocks = jax.jit(partial(sample_blocks, fanouts=FANOUTS))(KEY, graph, np.arange(2))
    return jax.jit(MODEL.init)(KEY, np.ones((NODES, WIDTH), np.float32), blocks)


@jax.jit
def copies(key, params):
    return jax.tree.map(jnp.copy, init_state(key, params, OPTIMIZER))


def start():
    return copies(KEY, params())


@pytest.mark.slow
class TestTraining:
    """An epoch with rows from the host against the scanned epoch on the device."""

    def losses(self, labels, rows, params, blocks, batch, key):
        seeds, mask = batch
        drop = {"dropout": key}
        logits = MODEL.apply(params, rows, blocks, deterministic=False, rngs=drop)
        losses = cross_entropy(logits, labels[seeds], mask)
        sums = {"loss": losses.sum(), "weight": mask.sum().astype(jnp.float32)}
        return masked_mean(losses, mask), sums

    def on_device(self, graph, features, labels, batches, capacities):
        features = jnp.asarray(features)

        def on_blocks(params, stats, blocks, batch, key):
            loss, sums = self.losses(labels, features, params, blocks, batch, key)
            return loss, (sums, stats)

        def trees(params, stats, batch, key):
            return on_blocks(params, stats, sample_blocks(key, graph, batch[0], FANOUTS), batch, key)

        loss_fn = trees if capacities is None else deduplicated_loss(on_blocks, graph, FANOUTS, capacities)
        scan = jax.jit(partial(train_epoch, make_update(loss_fn, OPTIMIZER)))
        return scan(start(), batches)

    def on_host(self, graph, features, labels, batches, capacities, rows, together=1):
        def loss_fn(params, stats, batch, key):
            traces.append(batch.rows.shape)
            key = key if capacities is None else jax.random.split(key)[1]
            loss, sums = self.losses(labels, batch.rows, params, batch.blocks, batch.batch, key)
            return loss, (sums, stats)

        def counted(sample):
            def run(*arguments):
                samples.append(1)
                return sample(*arguments)

            return sample and run

        traces, samples = [], []
        sampler = host_loader.BlockSampler(*map(counted, host_loader.sampler(FANOUTS, capacities)))
        loader = host_loader.Loader(sampler, graph, features, rows)
        update = jax.jit(host_loader.scan_group(make_update(loss_fn, OPTIMIZER)), donate_argnums=0)
        state, sums = host_loader.train_epoch(update, start(), loader, batches, together=together)
        return state, sums, (len(traces), len(samples)), loader

    def compare(self, graph, features, labels, batches, capacities, rows, together=1):
        state, sums, traces, _ = self.on_host(graph, features, labels, batches, capacities, rows, together)
        expected, expected_sums = self.on_device(graph, features, labels, batches, capacities)
        assert int(state.step) == len(batches[0])
        assert float(sums["weight"]) == float(expected_sums["weight"]) == 100
        np.testing.assert_allclose(sums["loss"], expected_sums["loss"], rtol=1e-6)
        for found, wanted in zip(*map(jax.tree.leaves, (state.params, expected.params)), strict=True):
            np.testing.assert_allclose(found, wanted, rtol=1e-6, atol=1e-6)
        assert jnp.array_equal(jax.random.key_data(state.key), jax.random.key_data(expected.key))
        return traces

    def test_trees_together(self, graph, features, labels, batches):
        """Seven batches, three together: the last one alone is another program."""
        traces = self.compare(graph, features / NODES, labels, batches, None, 400, together=3)
        assert traces == (2, 2)

    def test_batches_that_do_not_fit(self, graph, features, labels, batches):
        """Both limits lie between the sizes, so that all run: pairs; small, large, trees alone."""
        sampler = host_loader.sampler(FANOUTS, (70,))
        plan = jax.jit(host_loader._planner(sampler.sample))
        plans = [plan(KEY, step, graph, seeds[None]) for step, seeds in enumerate(batches[0])]
        assert {bool(plan.fits) for plan in plans} == {True, False}
        sizes = [int(plan.size) for plan in plans if plan.fits]
        traces = self.compare(graph, features / NODES, labels, batches, (70,), sorted(sizes)[-2], together=2)
        assert traces == (4, 3)

    def test_memory_is_used_again(self, graph, features, labels):
        many = jax.jit(epoch, static_argnums=2)(KEY, np.arange(NODES), 16)
        *_, traces, loader = self.on_host(graph, features, labels, many, None, 320)
        assert traces == (1, 1)
        jax.block_until_ready(jnp.zeros(1) + 1)
        assert len(loader._table._free[320 * WIDTH * 4]) <= 4 < len(many[0])


def test_a_graph_directory_with_a_bound(graph, features, batches, trees, tmp_path):
    split = np.arange(3, dtype=np.int32)
    data.save(tmp_path / "graph", data.Dataset(graph, features, None, split, split, split))
    dataset = data.open(tmp_path / "graph")
    loader = host_loader.Loader(
        host_loader.sampler(FANOUTS), dataset.graph, dataset.features, 320, resident_bytes=2**26
    )
    [batch] = single(loader.prefetch(KEY, 0, [part[:1] for part in batches]))
    first, _ = trees(0, batches[0][0])
    np.testing.assert_array_equal(np.asarray(batch.rows)[batch.blocks[0].src], features[first.src])


class TestErrors:
    def test_features_of_another_graph(self, graph, features):
        with pytest.raises(ValueError, match=r"one row a node, 400, got shape \(399, 6\)"):
            host_loader.Loader(host_loader.sampler(FANOUTS), graph, features[1:])

    def test_numbers(self, graph, features, loader, batches):
        with pytest.raises(ValueError, match="rows must be at least 1, got 0"):
            host_loader.Loader(host_loader.sampler(FANOUTS), graph, features, 0)
        with pytest.raises(ValueError, match="ahead and together must be at least 1, got 0 and 1"):
            loader.prefetch(KEY, 0, batches, ahead=0)

    def test_blocks_over_something_else(self, graph, features, batches):
        def second(key, graph, seeds):
            return sample_blocks(key, graph, seeds, FANOUTS)[1:], jnp.array(True)

        loader = host_loader.Loader(host_loader.BlockSampler(second), graph, features)
        with pytest.raises(TypeError, match="first block must be Indexed, by node ids, got Tree"):
            next(loader.prefetch(KEY, 0, batches))


def test_measured_rows_fit(graph, batches, trees):
    rows = host_loader.measure_rows(host_loader.sampler(FANOUTS), KEY, graph, batches)
    read = [len(np.unique(np.asarray(trees(step, seeds)[0].src))) for step, seeds in enumerate(batches[0])]
    assert max(read) <= rows <= 1.04 * max(read) + 128
