"""Draws that depend on the node alone: the same in any batch, order, padding and on any number of devices."""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import AWKWARD, FANOUT, KEY_KINDS, NUM_NODES, graph
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from scipy import stats

from jsage.graph import Graph, from_edges
from jsage.nn import GraphSAGE
from jsage.sampling import (
    choose,
    fast_key,
    node_bits,
    sample_blocks,
    sample_blocks_by_node,
    sample_neighbors_by_node,
)

NODES, WIDTH, FANOUTS = 600, 6, (4, 3)
KEY = jax.random.key(3)

sample = jax.jit(sample_blocks_by_node, static_argnums=3)
neighbors = jax.jit(sample_neighbors_by_node, static_argnums=3)
bits_of = jax.jit(node_bits, static_argnums=2)
model = GraphSAGE(hidden=8, out=5)


@pytest.fixture(scope="module")
def crowd() -> Graph:
    """Degrees from 0 to 40; every edge has its number."""
    rng = np.random.default_rng(0)
    dst = np.repeat(np.arange(NODES), rng.integers(0, 41, NODES))
    return from_edges(rng.integers(0, NODES, len(dst)), dst, NODES, number=np.arange(len(dst)))


@pytest.fixture(scope="module")
def table() -> jax.Array:
    return jax.device_put(np.random.default_rng(1).normal(size=(NODES, WIDTH)).astype(np.float32))


@pytest.fixture(scope="module")
def params(crowd, table):
    blocks = sample(KEY, crowd, np.zeros(1, np.int32), FANOUTS)
    return jax.jit(model.init)(jax.random.key(0), table, blocks)


@pytest.fixture(scope="module")
def embed():
    def embed(params, crowd, table, seeds):
        return model.apply(params, table, sample_blocks_by_node(KEY, crowd, seeds, FANOUTS))

    return jax.jit(embed)


def subtrees(blocks) -> np.ndarray:
    """Every number of an edge that each seed's tree holds, hop by hop; -1 in the padding."""
    first, last = blocks
    seeds = last.num_dst
    near = np.where(last.mask, last.edge_data["number"], -1)
    far = np.where(first.mask, first.edge_data["number"], -1)
    own, slots = far[:seeds], far[seeds:].reshape(seeds, -1)
    return np.concatenate([near, own, slots], 1)


@pytest.fixture(scope="module")
def expected(crowd) -> np.ndarray:
    """The tree of every node, all nodes in one batch."""
    return subtrees(sample(KEY, crowd, np.arange(NODES, dtype=np.int32), FANOUTS))


@pytest.mark.slow
@pytest.mark.parametrize("batch_size", [1, 7, 512])
def test_a_node_has_the_same_tree_in_batches_of_any_size_and_order(crowd, expected, batch_size: int):
    order = np.random.default_rng(batch_size).permutation(NODES).astype(np.int32)
    for batch in np.array_split(order, range(batch_size, NODES, batch_size))[:20]:
        padded = np.pad(batch, (0, batch_size - len(batch)), mode="edge")
        trees = subtrees(sample(KEY, crowd, padded, FANOUTS))
        np.testing.assert_array_equal(trees, expected[padded])


@pytest.mark.slow
@pytest.mark.parametrize("impl", KEY_KINDS)
def test_one_device_and_eight_draw_the_same(crowd, impl: str):
    key = jax.random.key(5, impl=impl)
    seeds = np.random.default_rng(2).permutation(NODES)[:64].astype(np.int32)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    rows, whole = PartitionSpec("data"), PartitionSpec()
    alone = subtrees(sample(key, crowd, seeds, FANOUTS))
    placed = jax.device_put(seeds, NamedSharding(mesh, rows))
    spread = jax.device_put((key, crowd), NamedSharding(mesh, whole))
    together = sample(*spread, placed, FANOUTS)
    np.testing.assert_array_equal(subtrees(together), alone)

    def local(key, crowd, seeds):
        first, last = sample_blocks_by_node(key, crowd, seeds, FANOUTS)
        return last.edge_data["number"], last.mask, first.edge_data["number"][: len(seeds)]

    specs = {"in_specs": (whole, whole, rows), "out_specs": rows, "check_vma": False}
    mapped = jax.shard_map(local, mesh=mesh, **specs)
    near, mask, own = jax.jit(mapped)(*spread, placed)
    np.testing.assert_array_equal(np.where(mask, near, -1), alone[:, : FANOUTS[0]])
    np.testing.assert_array_equal(own.shape, (64, FANOUTS[1]))


@pytest.mark.slow
@pytest.mark.parametrize("batch_size", [1, 7, 512])
def test_embeddings_are_the_same_whatever_the_batch(crowd, table, params, embed, batch_size: int):
    nodes = np.arange(NODES, dtype=np.int32)
    whole = np.asarray(embed(params, crowd, table, nodes))
    order = np.random.default_rng(0).permutation(NODES)[:512].astype(np.int32)
    for batch in order.reshape(-1)[: (512 // batch_size) * batch_size].reshape(-1, batch_size)[:10]:
        rows = embed(params, crowd, table, batch)
        np.testing.assert_allclose(rows, whole[batch], atol=1e-6)


def test_at_one_shape_embeddings_are_the_same_bit_for_bit(crowd, table, params, embed):
    """Whatever else is in the batch, and wherever in it a node stands."""
    rng = np.random.default_rng(4)
    first = np.asarray(embed(params, crowd, table, np.arange(64, dtype=np.int32)))
    for _ in range(5):
        batch = rng.permutation(NODES)[:64].astype(np.int32)
        batch[:3] = 0, 5, 63
        rows = np.asarray(embed(params, crowd, table, batch))
        np.testing.assert_array_equal(rows[:3], first[[0, 5, 63]])
        known = batch < 64
        np.testing.assert_array_equal(rows[known], first[batch[known]])


@pytest.mark.slow
def test_other_keys_and_hops_draw_others(crowd):
    degree = jax.jit(crowd.degrees)(np.arange(NODES))
    seeds = np.flatnonzero(np.asarray(degree) > 20).astype(np.int32)[:100]
    one, other = (subtrees(sample(jax.random.key(seed), crowd, seeds, (3, 3))) for seed in (0, 1))
    assert (one[:, :3] != other[:, :3]).any(1).mean() > 0.9
    assert (one[:, :3] != one[:, 3:6]).any(1).mean() > 0.9  # the seeds' own second hop


@pytest.mark.parametrize("name", AWKWARD)
def test_valid_slots_are_distinct_edges_into_the_seed(name: str):
    plain = graph(name, weighted=True)
    seeds = np.concatenate([np.arange(NUM_NODES, dtype=np.int32)[::-1]] * 2)
    block = jax.tree.map(np.asarray, neighbors(KEY, plain, seeds, FANOUT))
    src, dst, _ = AWKWARD[name]
    weights, indptr = np.asarray(plain.edge_data["weight"]), np.asarray(plain.indptr)
    for row, seed in enumerate(seeds):
        valid, into = block.mask[row], np.flatnonzero(dst == seed)
        assert valid.sum() == min(len(into), FANOUT)
        got = list(zip(block.src[row][valid], block.edge_data["weight"][row][valid], strict=True))
        edges = list(zip(plain.indices.tolist(), weights, strict=True))[indptr[seed] : indptr[seed + 1]]
        assert all(got.count(edge) <= edges.count(edge) for edge in got)
        assert sorted(u for u, _ in edges) == sorted(src[into])
        assert (block.src[row][~valid] == seed).all()


def is_uniform(values: np.ndarray, cells: int) -> bool:
    return stats.chisquare(np.bincount(values, minlength=cells)).pvalue > 1e-3


def subsets(bits: jax.Array, n: int) -> np.ndarray:
    """A number for the subset of `0 .. n-1` that each column of words draws."""
    offset, mask = map(np.asarray, jax.jit(choose)(bits, np.full(bits.shape[1], n, np.int32)))
    assert mask.all()
    return np.unique(np.sort(offset, 1) @ n ** np.arange(bits.shape[0]), return_inverse=True)[1]


@pytest.mark.parametrize("apart", [1, 2, 50_000])
def test_subsets_are_uniform_over_nodes_and_independent_of_each_other(apart: int):
    bits = bits_of(KEY, np.arange(100_000, dtype=np.int32), 3)
    found = subsets(bits, 6)
    assert is_uniform(found, math.comb(6, 3))
    first = np.arange(100_000).reshape(-1, 2 * apart)[:, :apart].ravel()
    assert is_uniform(found[first] * 20 + found[first + apart], 400)


def test_subsets_of_one_node_are_uniform_over_keys():
    keys = jax.random.split(jax.random.key(9), 50_000)
    bits = jax.jit(jax.vmap(lambda key: node_bits(key, jnp.array([123]), 3)))(keys)
    assert is_uniform(subsets(np.asarray(bits)[:, :, 0].T, 6), math.comb(6, 3))


def test_every_bit_of_a_word_is_fair_and_slots_are_independent():
    bits = np.asarray(bits_of(KEY, np.arange(100_000, dtype=np.int32), 5))
    assert bits.shape == (5, 100_000)
    ones = ((bits[..., None] >> np.arange(32, dtype=np.uint32)) & 1).mean(1)
    assert np.abs(ones - 0.5).max() < 5 * 0.5 / math.sqrt(100_000)
    low = (bits >> 29).astype(np.int64)
    for a, b in ((0, 1), (0, 3), (2, 4)):  # halves of one hash, and of different ones
        assert is_uniform(low[a] * 8 + low[b], 64)


def threefry(key: tuple[int, int], x: int, y: int) -> tuple[int, int]:
    """Threefry-2x32 by plain Python: the 20 rounds, rotations and key schedule of Salmon et al. (2011)."""
    ks = (*key, key[0] ^ key[1] ^ 0x1BD11BDA)
    x, y = (x + ks[0]) % 2**32, (y + ks[1]) % 2**32
    for group in range(5):
        for turn in ((13, 15, 26, 6), (17, 29, 16, 24))[group % 2]:
            x = (x + y) % 2**32
            y = ((y << turn | y >> (32 - turn)) % 2**32) ^ x
        x = (x + ks[(group + 1) % 3]) % 2**32
        y = (y + ks[(group + 2) % 3] + group + 1) % 2**32
    return x, y


def test_the_words_are_those_of_the_published_cipher():
    assert threefry((0, 0), 0, 0) == (0x6B200159, 0x99BA4EFE)  # the authors' test vector
    words = threefry((0, 3), 0x6E6F6465, 0)  # of jax.random.key(3)
    got = np.asarray(bits_of(KEY, np.array([41, 7], np.int32), 4))
    for column, node in enumerate((41, 7)):
        for half in (0, 1):
            assert (got[half, column], got[2 + half, column]) == threefry(words, node, half)


def test_ids_beyond_32_bits_have_words_of_their_own():
    """Bits 32 to 47 go into the counter's second word, above the number of the slots."""
    words, ids = threefry((0, 3), 0x6E6F6465, 0), (41, 41 + 2**32, 41 + 3 * 2**32)
    low, high = np.full(3, 41, np.uint32), np.array([0, 1, 3], np.uint32)
    got = np.asarray(bits_of(KEY, low, 4, high))
    for column, node in enumerate(ids):
        for half in (0, 1):
            expected = threefry(words, node % 2**32, half + (node // 2**32 << 16))
            assert (got[half, column], got[2 + half, column]) == expected


def test_a_fanout_above_every_degree_reads_the_same_edges_as_any_sampler(crowd):
    nodes = np.arange(50, dtype=np.int32)
    key = fast_key(3)
    by_draw = jax.jit(sample_blocks, static_argnums=3)
    keyed, plain = sample(key, crowd, nodes, (41,))[0], by_draw(key, crowd, nodes, (41,))[0]
    jax.tree.map(np.testing.assert_array_equal, keyed, plain)


def test_reading_an_edgeless_graph_gives_shapes():
    edgeless = from_edges([], [], 3, weight=np.zeros(0, np.float32))
    src, data = jax.jit(edgeless.edges_at)(*np.zeros((2, 2), int), np.zeros(2, bool))
    assert src.shape == data["weight"].shape == (2,)


def test_one_trace_for_all_seeds_and_keys(crowd):
    traces = []

    @jax.jit
    def step(key, seeds):
        traces.append(1)
        return sample_blocks_by_node(key, crowd, seeds, (2, 2))

    for i in range(3):
        step(jax.random.key(i), np.arange(i, i + 5))
    assert len(traces) == 1


def test_no_implicit_promotion(strict_dtypes):
    first, last = jax.eval_shape(
        partial(sample_blocks_by_node, fanouts=(3, 2)), KEY, graph("random", weighted=True), jnp.arange(4)
    )
    assert first.src.dtype == first.dst.dtype == jnp.int32
    assert first.mask.dtype == last.mask.dtype == jnp.bool_


def test_fanouts_must_be_there_and_positive():
    with pytest.raises(ValueError, match="positive number of neighbors, got 0: leave the hop out"):
        sample_neighbors_by_node(KEY, graph("random"), jnp.arange(3), 0)
    with pytest.raises(ValueError, match=r"one fanout a layer, got none: pass for instance fanouts="):
        sample_blocks_by_node(KEY, graph("random"), jnp.arange(3), ())
