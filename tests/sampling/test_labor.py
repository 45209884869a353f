"""LABOR: each seed's subsets are uniform, and seeds agree: the smallest random numbers, by brute force."""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import AWKWARD, NUM_NODES, graph, slow_but
from scipy import stats

from jsage.graph import from_edges
from jsage.sampling import (
    Labor,
    deduplicated_loss,
    distinct_hashed,
    measure_capacities,
    sample_blocks,
    sample_compact_blocks,
    sample_neighbors,
    without_replacement,
)
from jsage.sampling.host_loader import sampler
from jsage.sampling.labor import node_numbers

SCANS = [3, 5, 8, 64]
NODES = np.arange(NUM_NODES, dtype=np.int32)

compiled = jax.jit(lambda draw, k, *given: draw.offsets(*given, k), static_argnums=(0, 1))


@jax.jit
def numbers(key, ids):
    """The random number of each node that a draw ranks by."""
    return node_numbers(jax.random.bits(jax.random.fold_in(key, 0x6C61626F), (3, 2), jnp.uint32)[0], ids)


def star(degree: int, hubs: int = 1):
    """Hubs that all have the same neighbors."""
    src = np.tile(np.arange(hubs, hubs + degree), hubs)
    return from_edges(src, np.repeat(np.arange(hubs), degree), hubs + degree)


@partial(jax.jit, static_argnums=(0, 1, 4))
def over_keys(draw, k, cut, nodes, draws: int):
    """The offsets of the nodes under many keys, `[draws, nodes, k]`."""
    keys = jax.random.split(jax.random.key(0), draws)
    return jax.lax.map(lambda key: draw.offsets(key, cut, nodes, k)[0], keys, batch_size=1000)


@pytest.mark.parametrize("draws", slow_but([10_000], [10_000, 100_000]))
@pytest.mark.parametrize("scan", slow_but([5, 64], SCANS))
def test_subsets_of_one_seed_are_uniform(scan: int, draws: int):
    n, k = 8, 3
    offset = np.asarray(over_keys(Labor(scan), k, star(n), jnp.zeros(1, jnp.int32), draws))[:, 0]
    counts = np.unique(np.sort(offset, 1) @ [1, n, n * n], return_counts=True)[1]
    assert len(counts) == math.comb(n, k)
    assert stats.chisquare(counts).pvalue > 1e-3


@pytest.mark.parametrize("scan", slow_but([5, 64], SCANS))
def test_seeds_agree(scan: int):
    """Two seeds with 4 of 8 neighbors in common draw more of them together than two that draw apart."""
    cut = from_edges([*range(2, 10), *range(6, 14)], [0] * 8 + [1] * 8, num_nodes=14)
    draws, k = 4000, 3
    offset = np.asarray(over_keys(Labor(scan), k, cut, jnp.array([0, 1], jnp.int32), draws))
    one, other = offset[:, 0] + 2, offset[:, 1] + 6
    has = [np.stack([(ids == node).any(1) for node in range(6, 10)], 1) for ids in (one, other)]
    for mine in has:
        assert abs(mine.mean() - k / 8) < 0.02
    both = (has[0] & has[1]).mean(0)
    deviation = np.sqrt(both * (1 - both) / draws)
    if scan == k:  # what is scanned is all that is drawn, apart for each seed
        assert (abs(both - (k / 8) ** 2) < 4 * deviation).all()
    else:
        assert (both - (k / 8) ** 2 > 4 * deviation).all()


@pytest.mark.parametrize("name", AWKWARD)
def test_it_is_the_smallest_numbers_by_brute_force(name: str):
    """With `scan` at the largest degree and above: the same draw, slot for slot."""
    cut, key, k = graph(name), jax.random.key(3), 3
    degrees = np.diff(cut.indptr)
    offset, mask = map(np.asarray, compiled(Labor(64), k, key, cut, NODES))
    number = np.asarray(numbers(key, NODES))
    indptr, indices = map(np.asarray, cut[:2])
    for v in NODES:
        source = indices[indptr[v] : indptr[v + 1]]
        smallest = (
            np.argsort(number[source], kind="stable")[:k] if len(source) > k else np.arange(len(source))
        )
        np.testing.assert_array_equal(offset[v][mask[v]], smallest[:k])
        assert mask[v].sum() == min(degrees[v], k)
        assert (offset[v][~mask[v]] == 0).all()


def test_a_scan_of_the_largest_degree_is_no_bound():
    cut = graph("random")
    most = int(np.diff(cut.indptr).max())
    ours, theirs = (compiled(Labor(scan), 3, jax.random.key(1), cut, NODES) for scan in (most, 10 * most))
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)


def test_a_long_row_takes_the_smallest_of_its_candidates():
    """A hub of 5,000: distinct edges all over the row, the smallest numbers of about `scan`."""
    n, k, scan = 5000, 10, 40
    cut, key = star(n, 300), jax.random.key(2)
    offset, mask = map(np.asarray, compiled(Labor(scan), k, key, cut, np.arange(300, dtype=np.int32)))
    assert mask.all()
    assert (np.diff(np.sort(offset, 1), axis=1) > 0).all()
    assert stats.chisquare(np.bincount(offset.ravel() * 20 // n, minlength=20)).pvalue > 1e-3
    number = np.asarray(numbers(key, np.arange(300, 300 + n)))[offset] / 2.0**32
    assert (np.diff(number, axis=1) > -(2.0**-26)).all()
    np.testing.assert_allclose(number.mean(0), np.arange(1, k + 1) / (scan + 1), atol=0.03)


def test_a_node_draws_alike_wherever_it_is():
    cut = graph("random")
    seeds = np.concatenate([NODES[::-1], NODES])
    offset, _ = map(np.asarray, compiled(Labor(3), 2, jax.random.key(0), cut, seeds))
    np.testing.assert_array_equal(offset[:NUM_NODES][::-1], offset[NUM_NODES:])


def test_with_a_key_of_its_own_hops_and_batches_agree():
    hubs = 16
    cut, seeds = star(1000, hubs), np.arange(hubs, dtype=np.int32)
    sample = jax.jit(lambda key, own: sample_blocks(key, cut, seeds, (5, 5), draw=Labor(key=own)))
    own = jax.random.key(9)
    first, again = (sample(jax.random.key(seed), own)[0] for seed in (0, 1))
    np.testing.assert_array_equal(np.asarray(first.dst)[hubs:].reshape(hubs, 5), np.asarray(first.src)[:hubs])
    np.testing.assert_array_equal(first.src, again.src)
    apart = jax.jit(partial(sample_blocks, fanouts=(5, 5), draw=Labor()))(own, cut, seeds)[0]
    assert (np.asarray(apart.dst)[hubs:].reshape(hubs, 5) == np.asarray(apart.src)[:hubs]).mean() < 0.05


def powerlaw(num_nodes: int = 2000, num_edges: int = 60_000):
    rng = np.random.default_rng(0)
    src = (num_nodes * rng.random(num_edges) ** 2).astype(int)
    return from_edges(src, rng.integers(0, num_nodes, num_edges), num_nodes)


def test_a_batch_meets_fewer_distinct_nodes():
    cut, seeds = powerlaw(), np.arange(100, dtype=np.int32)
    count = {}
    for name, draw in (("uniform", without_replacement), ("labor", Labor())):
        block = jax.jit(partial(sample_neighbors, fanout=10, draw=draw))(jax.random.key(0), cut, seeds)
        count[name] = len(np.unique(block.src))
    assert count["labor"] < 0.75 * count["uniform"]
    capacities = (
        measure_capacities(jax.random.key(0), cut, jnp.arange(2000), 100, (10, 10), draw=draw)[0]
        for draw in (Labor(), without_replacement)
    )
    small, large = (capacity or 1100 for capacity in capacities)
    assert small < large


class TestCompacted:
    """Compacted frontiers of agreed neighbors: the same nodes as on trees, and the same numbers."""

    cut, seeds, fanouts = powerlaw(), np.arange(64, dtype=np.int32), (5, 4)

    def ids(self, blocks) -> np.ndarray:
        """Each seed's neighbors."""
        first, last = jax.tree.map(np.asarray, blocks)
        if hasattr(last, "src"):
            return first.dst[last.src]
        return first.dst[last.num_dst :].reshape(last.mask.shape)

    def test_trees_and_compacted_frontiers_hold_the_same_nodes(self):
        key = jax.random.key(4)
        trees = jax.jit(partial(sample_blocks, fanouts=self.fanouts, draw=Labor()))(key, self.cut, self.seeds)
        compact = jax.jit(
            partial(sample_compact_blocks, fanouts=self.fanouts, capacities=(384,), draw=Labor())
        )
        blocks, fits = compact(key, self.cut, self.seeds)
        assert fits
        np.testing.assert_array_equal(self.ids(blocks), self.ids(trees))
        met = {int(v): set(row) for v, row in zip(trees[0].dst, np.asarray(trees[0].src), strict=True)}
        for v, row, mask in zip(
            *map(np.asarray, (blocks[0].dst, blocks[0].src, blocks[0].mask)), strict=True
        ):
            assert set(row[mask]) <= met[int(v)]

    def test_the_loss_is_that_of_trees_bit_for_bit_in_what_is_drawn(self):
        """A node's neighbors depend on the node alone, so both forms of a step compute the same loss."""
        table = np.random.default_rng(0).normal(size=(2000, 3)).astype(np.float32)

        def loss(params, stats_, blocks, batch, key):
            first, last = blocks
            h = first.sum(table) + first.own(table)
            rows = (last.sum(h) + last.own(h)) @ params
            return rows.sum(), ({"rows": jnp.float32(rows.shape[0])}, stats_)

        def value(capacities):
            fn = deduplicated_loss(loss, self.cut, self.fanouts, capacities, draw=Labor())
            return jax.jit(
                jax.value_and_grad(lambda p: fn(p, {}, (jnp.asarray(self.seeds),), jax.random.key(1))[0])
            )

        params = np.ones((3, 2), np.float32)
        for ours, theirs in zip(value((384,))(params), value((8,))(params), strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-2)

    def test_the_host_loader_reads_fewer_rows(self):
        rows = []
        for draw in (Labor(), without_replacement):
            sample = jax.jit(sampler(self.fanouts, (384,), draw=draw).sample)
            (first, _), fits = sample(jax.random.key(0), self.cut, self.seeds)
            assert fits
            ids = jnp.concatenate([first.dst, first.src.ravel()])
            rows.append(int(distinct_hashed(ids, len(ids)).size))
        assert rows[0] < 0.8 * rows[1]
