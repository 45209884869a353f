"""Placements are bijections; balanced ones cost what brute force finds; the device agrees with the host."""

from itertools import combinations_with_replacement, pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jsage.graph import Hashed, Ranges, balanced, contiguous, hashed
from jsage.graph.permutation import permute, restore

MAKERS = {
    "contiguous": contiguous,
    "hashed": hashed,
    "hashed, another seed": lambda num_nodes, shards: hashed(num_nodes, shards, seed=3),
    "balanced": lambda num_nodes, shards: balanced(np.arange(num_nodes) ** 2 % 11, shards),
    "edges alone": lambda num_nodes, shards: balanced(np.arange(num_nodes) % 3, shards, node_cost=0),
}
SIZES = [1, 2, 3, 7, 16, 33, 64, 1000]
SHARDS = [1, 2, 3, 8, 70]


@pytest.mark.parametrize("maker", MAKERS)
def test_a_bijection(maker):
    for num_nodes in SIZES:
        for shards in SHARDS:
            placement, ids = MAKERS[maker](num_nodes, shards), np.arange(num_nodes)
            owner, local = placement.locate(ids)
            assert owner.dtype == local.dtype == np.int32
            assert len({*zip(owner.tolist(), local.tolist(), strict=True)}) == num_nodes
            counts = np.bincount(owner, minlength=shards)
            assert counts.tolist() == [placement.count(shard) for shard in range(shards)]
            assert placement.rows == counts.max()
            assert placement.size == shards * counts.max()
            assert (local < counts[owner]).all()
            for shard in range(shards):
                owned = placement.globals(shard)
                assert np.array_equal(owner[owned], np.full(counts[shard], shard))
                assert np.array_equal(local[owned], np.arange(counts[shard]))
            np.testing.assert_array_equal(placement.nodes(owner, local), ids)
            np.testing.assert_array_equal(placement.placed(ids), owner * placement.rows + local)


def test_contiguous_ids_are_placed_ids():
    for num_nodes in SIZES:
        for shards in SHARDS:
            placement = contiguous(num_nodes, shards)
            np.testing.assert_array_equal(placement.placed(np.arange(num_nodes)), np.arange(num_nodes))
            assert placement.rows == -(-num_nodes // shards)


@pytest.mark.parametrize("shards", [2, 16, 61])
def test_hashed_shards_are_of_one_size_and_look_random(shards):
    num_nodes = 50_000
    placement = hashed(num_nodes, shards)
    owner = placement.owner(np.arange(num_nodes))
    counts = np.bincount(owner)
    assert counts.max() - counts.min() <= 1
    for stride in (1, 2, 16, 64, 1024):  # chi-square of the pairs of shards of two nodes, at 6 sigma
        pairs = np.bincount(owner[:-stride] * shards + owner[stride:], minlength=shards**2)
        mean = (num_nodes - stride) / shards**2
        freedom = shards**2 - 1
        assert ((pairs - mean) ** 2 / mean).sum() < freedom + 6 * np.sqrt(2 * freedom)


def test_seeds_permute_differently():
    orders = {tuple(permute(np.arange(100), 100, seed).tolist()) for seed in range(20)}
    assert len(orders) == 20


def brute_force(costs, shards):
    """The least largest cost of all ways to cut the costs into ranges."""
    n, total = len(costs), np.concatenate([[0], np.cumsum(costs)])
    cuts = combinations_with_replacement(range(n + 1), shards - 1)
    return min(max(total[b] - total[a] for a, b in pairwise((0, *cut, n))) for cut in cuts)


@pytest.mark.parametrize("node_cost", [0, 1, 5])
@pytest.mark.parametrize("shards", [1, 2, 3, 5])
def test_balanced_is_as_good_as_brute_force(shards, node_cost):
    random = np.random.default_rng(shards)
    tables = [random.integers(0, high, size) for size in (1, 2, 4, 8, 9) for high in (1, 3, 50)]
    tables += [np.array([0, 0, 100, 0, 0, 0]), np.array([1, 0, 0, 0, 0, 1]), np.array([9, 1, 1, 1, 1, 1, 9])]
    for degrees in tables:
        bounds, costs = balanced(degrees, shards, node_cost=node_cost).bounds, degrees + node_cost
        assert max(costs[a:b].sum() for a, b in pairwise(bounds)) == brute_force(costs, shards)


def test_balanced_on_heavy_tails():
    degrees = (np.random.default_rng(0).pareto(1.5, 20_000) * 5).astype(np.int32)
    costs = degrees + 1
    placement = balanced(degrees, 16)
    largest = max(costs[a:b].sum() for a, b in pairwise(placement.bounds))
    assert costs.sum() / 16 <= largest < costs.sum() / 16 + costs.max()
    plain = max(costs[a:b].sum() for a, b in pairwise(contiguous(20_000, 16).bounds))
    assert largest < plain


HUGE = 2**33 + 12_345


UNEVEN = (0, 5, *(2**31 - 7 + shard * (2**31 - 1) for shard in range(4)), HUGE)


@pytest.mark.parametrize("placement", [contiguous(HUGE, 7), hashed(HUGE, 7), Ranges(HUGE, 6, UNEVEN)])
def test_ids_above_int32(placement):
    edges = np.array([0, 1, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**32 + 1, HUGE - 1])
    ids = np.concatenate([edges, np.random.default_rng(0).integers(0, HUGE, 1000)])
    owner, local = placement.locate(ids)
    assert owner.dtype == local.dtype == np.int32
    assert owner.min() >= 0
    assert owner.max() < placement.shards
    assert local.min() >= 0
    assert local.max() < placement.rows
    np.testing.assert_array_equal(placement.nodes(owner, local), ids)
    np.testing.assert_array_equal(np.unique(ids).size, np.unique(placement.placed(ids)).size)
    if isinstance(placement, Ranges):
        assert (np.array(placement.bounds)[owner] + local == ids).all()
        assert (ids < np.array(placement.bounds)[owner + 1]).all()
    with pytest.raises(ValueError, match=r"ids on a device are int32, but there are \d+ of them"):
        placement.locate(jnp.arange(3))


@jax.jit
def on_device(placement, ids):
    owner, local = placement.locate(ids)
    return owner, local, placement.placed(ids), placement.nodes(owner, local)


@pytest.mark.parametrize("maker", MAKERS)
def test_the_device_agrees(maker):
    placement, ids = MAKERS[maker](1000, 8), np.arange(1000, dtype=np.int32)
    found = on_device(placement, jnp.asarray(ids))
    expected = (*placement.locate(ids), placement.placed(ids), ids)
    for array, other in zip(found, expected, strict=True):
        assert array.dtype == jnp.int32
        np.testing.assert_array_equal(array, other)


def test_the_same_placement_is_traced_once():
    before = on_device._cache_size()
    for _ in range(3):
        on_device(contiguous(997, 4), jnp.arange(5))
        on_device(hashed(997, 4, seed=1), jnp.arange(5))
    assert on_device._cache_size() == before + 2


@pytest.mark.parametrize("make", [contiguous, hashed])
def test_the_device_agrees_on_the_largest_graphs(make):
    placement = make(2**31, 4)
    ids = np.array([0, 1, 2**30, 2**30 - 1, 2**31 - 2, 2**31 - 1])
    owner, local = placement.locate(ids)
    device = placement.locate(jnp.asarray(ids.astype(np.int32)))
    np.testing.assert_array_equal(device.owner, owner)
    np.testing.assert_array_equal(device.local, local)
    np.testing.assert_array_equal(placement.nodes(*device), ids)


def test_permute_and_restore_on_the_device():
    for size in (1, 5, 100):
        numbers = jnp.arange(size, dtype=jnp.uint32)
        mixed = permute(numbers, size, 5)
        np.testing.assert_array_equal(mixed, permute(np.arange(size), size, 5))
        np.testing.assert_array_equal(restore(mixed, size, 5), numbers)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: contiguous(0, 2), r"num_nodes must be in 1 \.\. 2\^62 - 1, got 0"),
        (lambda: hashed(-1, 2), "num_nodes must be in 1"),
        (lambda: contiguous(3, 0), r"shards must be in 1 .*, got 0"),
        (lambda: hashed(3, 0), r"shards must be in 1 .*, got 0"),
        (lambda: contiguous(2**32, 2), "would hold 2147483648: take more shards"),
        (lambda: hashed(2**32, 2), "would hold 2147483648: take more shards"),
        (lambda: Ranges(3, 2, (0, 3)), "bounds must be 3 numbers from 0 to 3, got 2"),
        (lambda: Ranges(3, 1, (0, 2)), r"bounds must be 2 numbers from 0 to 3, got 2 with the ends \(0, 2\)"),
        (lambda: Ranges(3, 3, (0, 2, 1, 3)), r"bounds must never fall, got \(0, 2, 1, 3\)"),
        (lambda: balanced(np.array([1, -1]), 2), "integers of at least 0, got int64, the least -1"),
        (lambda: balanced(np.array([], int), 2), "got 0 nodes, 2 shards"),
        (lambda: balanced(np.array([1]), 0), "got 1 nodes, 0 shards"),
        (lambda: balanced(np.array([1]), 1, node_cost=-1), "node_cost -1"),
        (lambda: contiguous(3, 2).locate(np.array([3])), r"ids must be node ids in 0 \.\. 2, got 3"),
        (lambda: hashed(3, 2).locate(np.array([-1])), r"ids must be node ids in 0 \.\. 2, got -1"),
        (lambda: Hashed(3, 2).nodes(1, np.array([1])), r"ids must be node ids in 0 \.\. 2, got 3"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()
