"""Batches of edges to predict: what is excluded is never drawn, the rest as if it had never been there."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import AWKWARD, DRAWS, NUM_NODES, graph
from scipy import stats

from jsage.blocks import Tree
from jsage.data import split_edges
from jsage.graph import Graph, SortedGraph, from_edges, sort_rows, symmetrize, without_pairs
from jsage.graph.adjacency import Adjacency
from jsage.metrics import auroc
from jsage.nn import GraphSAGE
from jsage.sampling import (
    LinkBatch,
    batches,
    epoch,
    fast_key,
    sample_blocks,
    sample_blocks_by_node,
    sample_link_blocks,
    split,
    with_replacement,
)
from jsage.train import TrainState, init_state, make_update, train_epoch

FANOUTS, PAIRS = (4, 3), 7
ROOM = 48
"""Edges of every awkward graph, those that belong to no node included."""

on_all_graphs = pytest.mark.parametrize("name", AWKWARD)
with_all_draws = pytest.mark.parametrize("draw", DRAWS)

linked = {
    name: jax.jit(partial(sample_link_blocks, fanouts=FANOUTS, draw=draw)) for name, draw in DRAWS.items()
}
plain = {name: jax.jit(partial(sample_blocks, fanouts=FANOUTS, draw=draw)) for name, draw in DRAWS.items()}
hide = jax.jit(without_pairs)
counted = jax.jit(lambda graph, nodes: graph.degrees(nodes))
seeds_of = jax.jit(lambda batch: batch.seeds)
valid_in = jax.jit(lambda batch: batch.seed_mask)
by_node = jax.jit(partial(sample_blocks_by_node, fanouts=(3,)))


def key(seed: int) -> jax.Array:
    """A key whose bits compile fast."""
    return fast_key(seed)


def numbered(src: np.ndarray, dst: np.ndarray, number: np.ndarray, num_nodes: int, room: int) -> Graph:
    """A graph with sorted rows whose edges carry a number, and as many edges of no node as make `room`."""
    kept = sort_rows(from_edges(src, dst, num_nodes, number=number.astype(np.int32)))
    more = (0, room - kept.num_edges)
    data = {"number": jax.device_put(np.pad(kept.edge_data["number"], more, constant_values=-1))}
    return SortedGraph(kept.indptr, jax.device_put(np.pad(kept.indices, more, constant_values=-1)), data)


@cache
def awkward(name: str) -> tuple[Graph, np.ndarray, np.ndarray]:
    """A graph of `AWKWARD` with its edges numbered, and their ends by that number."""
    plain = graph(name)
    src, dst = np.asarray(plain.indices), np.repeat(np.arange(NUM_NODES), np.diff(plain.indptr))
    return numbered(src, dst, np.arange(len(src)), NUM_NODES, ROOM), src, dst


def link_batch(src, dst, negatives, mask=None) -> LinkBatch:
    mask = np.ones(len(src), bool) if mask is None else mask
    ids = (jax.device_put(np.asarray(values, np.int32)) for values in (src, dst, negatives))
    return LinkBatch(*ids, jax.device_put(np.asarray(mask)))


def is_hidden(batch: LinkBatch, src: np.ndarray, dst: np.ndarray) -> np.ndarray:
    """Which edges join the two nodes of a valid pair, by comparing all with all."""
    valid = np.asarray(batch.mask)
    pairs = {
        frozenset((u, v))
        for u, v, here in zip(batch.src.tolist(), batch.dst.tolist(), valid, strict=True)
        if here
    }
    return np.array([frozenset(edge) in pairs for edge in zip(src.tolist(), dst.tolist(), strict=True)], bool)


def awkward_batch(seed: int, src: np.ndarray, dst: np.ndarray) -> LinkBatch:
    """Edges and other pairs, self-pairs, a pair twice and turned round; one in seven is padding."""
    rng = np.random.default_rng(seed)
    u, v = rng.integers(0, NUM_NODES, (2, PAIRS))
    if len(src):
        edge = rng.integers(0, len(src), PAIRS)
        u[:4], v[:4] = src[edge[:4]], dst[edge[:4]]
    u[1], v[1] = (v[0], u[0]) if seed % 2 else (u[0], v[0])
    return link_batch(u, v, rng.integers(0, NUM_NODES, (PAIRS, 2)), rng.random(PAIRS) < 6 / 7)


def drawn(blocks) -> list[np.ndarray]:
    """Sources (where they are written), masks and numbers of edges of all hops; -1 in the padding."""
    found = [np.asarray(blocks[0].dst), np.asarray(blocks[0].src)]
    for block in blocks:
        mask = np.asarray(block.mask)
        found += [mask, np.where(mask, block.edge_data["number"], -1)]
    return found


@on_all_graphs
@with_all_draws
def test_the_draw_is_that_of_the_graph_without_the_edges(draw: str, name: str):
    """Slot for slot, under one key, at every hop: so nothing excluded is drawn, and the rest is uniform."""
    sampled, src, dst = awkward(name)
    left_out = 0
    for seed in range(20):
        batch = awkward_batch(seed, src, dst)
        hidden = is_hidden(batch, src, dst)
        left_out += hidden.sum()
        rest = numbered(src[~hidden], dst[~hidden], np.flatnonzero(~hidden), NUM_NODES, ROOM)
        got = drawn(linked[draw](key(seed), sampled, batch))
        for a, b in zip(got, drawn(plain[draw](key(seed), rest, seeds_of(batch))), strict=True):
            np.testing.assert_array_equal(a, b)
    assert left_out or not len(src)


def test_no_excluded_edge_in_many_draws_and_the_others_equally_often():
    """A hub of 12 edges, some parallel, of which 5 are under supervision: 20 000 draws a hop."""
    src = np.array([1, 2, 2, 2, 3, 4, 5, 6, 7, 7, 8, 9] + [0] * 9)
    dst = np.array([0] * 12 + list(range(1, 10)))
    hub = numbered(src, dst, np.arange(len(src)), 10, len(src))
    repeats = 20_000
    batch = link_batch([2, 0], [0, 7], np.repeat([0, 3], repeats // 2))  # 3 -> 0 once, so hop 2 draws from 0
    hidden = is_hidden(batch, src, dst)
    assert hidden[:12].sum() == 5
    first, last = jax.jit(partial(sample_link_blocks, fanouts=(1, 4)))(key(0), hub, batch)
    assert isinstance(last, Tree)
    assert last.mask.shape == (4 + repeats, 1)
    ends = np.asarray(first.dst)
    np.testing.assert_array_equal(ends[: 4 + repeats], seeds_of(batch))
    hops = {"first": (last, np.asarray(seeds_of(batch))), "second": (first, ends)}
    for hop, (block, rows) in hops.items():
        number = np.asarray(block.edge_data["number"])[np.asarray(block.mask)]
        assert not hidden[number].any(), hop
        at_hub = np.asarray(block.mask)[rows == 0]
        k = at_hub[0].sum()
        assert (at_hub.sum(1) == k).all()
        left = np.flatnonzero(~hidden[:12])
        counts = np.bincount(np.asarray(block.edge_data["number"])[rows == 0][at_hub], minlength=12)[left]
        n, p, rounds = len(left), k / len(left), len(at_hub)
        assert rounds >= repeats // 2
        chi2 = ((counts - rounds * p) ** 2).sum() / (rounds * p * (1 - p)) * (n - 1) / n
        assert stats.chi2.sf(chi2, n - 1) > 1e-3, hop


def test_a_row_whose_every_edge_is_excluded_is_empty():
    sampled, _, _ = awkward("one hub")
    others = np.arange(1, NUM_NODES)
    batch = link_batch(others, 0 * others, np.stack([others, 0 * others], 1))
    first, last = linked["without_replacement"](key(0), sampled, batch)
    assert not np.asarray(first.mask).any()
    assert not np.asarray(last.mask).any()
    np.testing.assert_array_equal(first.src, np.broadcast_to(np.asarray(first.dst)[:, None], first.src.shape))


@pytest.mark.parametrize(
    ("pairs", "left"),
    [
        ([(0, 1)], [0, 7, 2]),  # 1 -> 0 three times, from the end that has no edge back
        ([(2, 1)], [3, 1, 2]),  # six times; 3 -> 1 stays
        ([(5, 5)], [3, 7, 0]),  # a self-pair: its two loops
        ([(1, 1), (0, 7), (6, 6)], [3, 7, 2]),  # no edges
        ([(3, 1), (1, 3), (3, 1)], [3, 6, 2]),  # one edge named three times counts once
        ([(1, 0), (2, 1), (3, 1), (5, 5)], [0, 0, 0]),
        ([], [3, 7, 2]),
    ],
)
def test_what_is_left_of_parallel_edges_and_self_loops(pairs, left):
    sampled, _, _ = awkward("parallel edges")
    src, dst = np.array([*pairs, *[(2, 1)] * (5 - len(pairs))], np.int32).T  # the rest is padding
    without = hide(sampled, src, dst, np.arange(5) < len(pairs))
    np.testing.assert_array_equal(counted(without, np.array([0, 1, 5])), left)


def test_padding_and_no_exclusion_draw_from_the_whole_graph():
    sampled, src, dst = awkward("random")
    batch = awkward_batch(0, src, dst)
    sample = linked["without_replacement"]
    expected = plain["without_replacement"](key(3), sampled, seeds_of(batch))
    padded = sample(key(3), sampled, batch._replace(mask=np.zeros(PAIRS, bool)))
    visible = jax.jit(partial(sample_link_blocks, fanouts=FANOUTS, exclude=False))(key(3), sampled, batch)
    jax.tree.map(np.testing.assert_array_equal, padded, expected)
    jax.tree.map(np.testing.assert_array_equal, visible, expected)
    excluded = sample(key(3), sampled, batch)
    assert any((a != b).any() for a, b in zip(drawn(excluded), drawn(expected), strict=True))


def test_what_stands_in_the_padding_changes_no_valid_row():
    sampled, src, dst = awkward("random")
    batch, here = awkward_batch(1, src, dst), np.arange(PAIRS) < 4
    batch = batch._replace(mask=here)
    other = batch._replace(src=np.where(here, batch.src, 0), dst=np.where(here, batch.dst, 1))
    other = other._replace(negatives=np.where(here[:, None], batch.negatives, 2))
    one, two = (linked["without_replacement"](key(0), sampled, each)[1] for each in (batch, other))
    valid = np.asarray(valid_in(batch))
    numbers = [np.asarray(block.edge_data["number"])[valid] for block in (one, two)]
    np.testing.assert_array_equal(*numbers)
    np.testing.assert_array_equal(np.asarray(one.mask)[valid], np.asarray(two.mask)[valid])


@on_all_graphs
def test_other_samplers_read_the_graph_without_the_edges(name: str):
    sampled, src, dst = awkward(name)
    batch = awkward_batch(2, src, dst)
    hidden = is_hidden(batch, src, dst)
    rest = numbered(src[~hidden], dst[~hidden], np.flatnonzero(~hidden), NUM_NODES, ROOM)
    without = hide(sampled, batch.src, batch.dst, batch.mask)
    assert isinstance(without, Adjacency)
    assert without.id_limit == NUM_NODES
    got, expected = (drawn(by_node(jax.random.key(0), each, seeds_of(batch))) for each in (without, rest))
    for a, b in zip(got, expected, strict=True):
        np.testing.assert_array_equal(a, b)


def test_positions_beyond_what_floats_can_count():
    """A hub of 2^24 + 1000 edges from as many nodes: its sources are their own positions."""
    size, odd = 2**24 + 1000, 2**24 + 3
    indptr = np.full(size + 1, size, np.int32)
    indptr[0] = 0
    hub = SortedGraph(jax.device_put(indptr), jax.device_put(np.arange(size, dtype=np.int32)))
    without = hide(hub, np.array([5, odd]), np.array([0, 0]), np.array([True, True]))
    nodes = np.zeros(1, np.int32)
    assert np.asarray(counted(without, nodes))[0] == size - 2
    offset = np.array([[4, 5, odd - 3, odd - 2, odd - 1, size - 3]], np.int32)
    read = jax.jit(lambda without, nodes, offset, valid: without.edges_at(nodes, offset, valid))
    src, _ = read(without, nodes[:, None], offset, np.ones((1, 6), bool))
    np.testing.assert_array_equal(np.asarray(src)[0], [4, 6, odd - 2, odd - 1, odd + 1, size - 1])


@pytest.mark.parametrize("shape", [(3, 2), (3, 0), (4,)])
def test_the_embeddings_come_apart_as_the_batch_was_put_together(shape: tuple[int, ...]):
    negatives = np.arange(6, 6 + np.prod(shape)).reshape(shape)
    batch = link_batch([0, 1, 2], [3, 4, 5], negatives, [True, True, False])
    apart, seeds, here = jax.jit(split), np.asarray(seeds_of(batch)), np.asarray(valid_in(batch))
    h_src, h_dst, h_negatives = apart(seeds[:, None] * np.ones((1, 2), np.float32), batch)
    np.testing.assert_array_equal(h_src, np.array([[0, 0], [1, 1], [2, 2]]))
    np.testing.assert_array_equal(h_dst, np.array([[3, 3], [4, 4], [5, 5]]))
    np.testing.assert_array_equal(h_negatives, np.stack([negatives] * 2, -1))
    parts = [np.asarray(part) for part in apart(here[:, None] * np.ones((1, 2), np.float32), batch)]
    for part, expected in zip(parts, ([1, 1, 0], [1, 1, 0]), strict=False):
        np.testing.assert_array_equal(part[:, 0], expected)
    own = np.ones(shape) * np.array([1, 1, 0])[:, None] if len(shape) == 2 else np.ones(shape)
    np.testing.assert_array_equal(parts[2][..., 0], own)


def test_vmap_over_batches_equals_a_loop():
    sampled, src, dst = awkward("random")
    many = [awkward_batch(seed, src, dst) for seed in range(3)]
    sample, keys = linked["without_replacement"], jax.random.split(key(0), 3)
    loop = [sample(keys[i], sampled, many[i]) for i in range(3)]
    stacked = jax.tree.map(lambda *rows: np.stack(rows), *many)
    got = jax.jit(jax.vmap(partial(sample_link_blocks, fanouts=FANOUTS), (0, None, 0)))(
        keys, sampled, stacked
    )
    jax.tree.map(np.testing.assert_array_equal, got, jax.tree.map(lambda *rows: np.stack(rows), *loop))


def test_one_trace_for_all_batches_and_graphs_of_a_shape():
    traces = []

    @jax.jit
    def step(key, sampled, batch):
        traces.append(1)
        return sample_link_blocks(key, sampled, batch, (2,))

    for name in ("random", "self-loops", "one hub"):
        sampled, src, dst = awkward(name)
        for seed in range(3):
            step(key(seed), sampled, awkward_batch(seed, src, dst))
    assert len(traces) == 1


def test_temporaries_do_not_grow_with_the_graph():
    def temporaries(num_nodes: int, num_edges: int) -> int:
        ints = partial(jax.ShapeDtypeStruct, dtype=jnp.int32)
        cut = SortedGraph(ints((num_nodes + 1,)), ints((num_edges,)))
        batch = LinkBatch(ints((64,)), ints((64,)), ints((64, 1)), jax.ShapeDtypeStruct((64,), jnp.bool_))

        def step(seed, cut, batch):
            return [block.mask for block in sample_link_blocks(key(seed), cut, batch, (5,))]

        compiled = jax.jit(step).lower(ints(()), cut, batch).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    small = temporaries(10_000, 50_000)
    assert temporaries(1_000_000, 80_000_000) <= small + 1024


def test_no_implicit_promotion(strict_dtypes):
    sampled, src, dst = awkward("random")
    first, last = jax.eval_shape(
        partial(sample_link_blocks, fanouts=(2, 2)), key(0), sampled, awkward_batch(0, src, dst)
    )
    assert first.src.dtype == first.dst.dtype == jnp.int32
    assert first.mask.dtype == last.mask.dtype == jnp.bool_


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"negatives": np.zeros((5, 2))}, r"\[b, q\] with b = 3, or \[q\] .*, got shape \(5, 2\)"),
        ({"negatives": np.zeros((3, 2, 1))}, r"got shape \(3, 2, 1\)"),
        ({"dst": np.zeros(2)}, r"dst must have one entry a pair, 3, got shape \(2,\)"),
        ({"mask": np.ones(4, bool)}, r"mask must have one entry a pair, 3, got shape \(4,\)"),
    ],
)
def test_a_batch_of_unlike_shapes_is_refused(change, message: str):
    sampled, _, _ = awkward("random")
    batch = link_batch([0, 1, 2], [3, 4, 5], np.zeros((3, 1)))
    like = {
        name: jax.device_put(values.astype(getattr(batch, name).dtype)) for name, values in change.items()
    }
    with pytest.raises(ValueError, match=message):
        sample_link_blocks(key(0), sampled, batch._replace(**like), FANOUTS)
    with pytest.raises(ValueError, match=message):
        split(jnp.zeros((9, 2)), batch._replace(**like))


def test_other_errors_say_what_to_do():
    sampled, _, _ = awkward("random")
    batch = link_batch([0, 1, 2], [3, 4, 5], np.zeros((3, 1)))
    with pytest.raises(ValueError, match="3 pairs and 3 negatives has 9 seeds, got 8 rows: pass what"):
        split(jnp.zeros((8, 2)), batch)
    with pytest.raises(ValueError, match="positive number of neighbors, got 0"):
        jax.eval_shape(
            partial(sample_link_blocks, fanouts=(0,), draw=with_replacement), key(0), sampled, batch
        )
    with pytest.raises(ValueError, match="one fanout a layer, got none"):
        jax.eval_shape(partial(sample_link_blocks, fanouts=()), key(0), sampled, batch)


# A random graph with random features: there is nothing to learn, so what is found is a leak.

NODES, BATCH, EPOCHS = 2000, 512, 30
model, optimizer = GraphSAGE(hidden=16, out=16), optax.adam(0.01)


@cache
def chance():
    """Uniform pairs as the graph, 45 % of them held out, and normal features."""
    rng = np.random.default_rng(0)
    src, dst = rng.integers(0, NODES, (2, 6000))
    whole = symmetrize(from_edges(src[src != dst], dst[src != dst], NODES))
    features = jax.device_put(rng.normal(size=(NODES, 16)).astype(np.float32))
    parts = split_edges(whole, seed=0, val=0.0, test=0.45)
    more = (0, whole.num_edges - parts.graph.num_edges)  # of no node: one program for both graphs
    indices = jax.device_put(np.pad(parts.graph.indices, more))
    kept = SortedGraph(parts.graph.indptr, indices, parts.graph.edge_data)
    return whole, parts._replace(graph=kept), features


def scores(params, features, sampled, batch, key, exclude):
    blocks = sample_link_blocks(key, sampled, batch, FANOUTS, exclude=exclude)
    h_src, h_dst, h_negatives = split(model.apply(params, features, blocks), batch)
    return jnp.vecdot(h_src, h_dst), jnp.vecdot(h_src[:, None], h_negatives)


def loss_fn(features, sampled, exclude):
    """Cross-entropy of each pair against a uniform node in the destination's place."""

    def loss(params, stats, batch, key):
        (pairs, mask), (key, negative_key) = batch, jax.random.split(key)
        negatives = jax.random.randint(negative_key, (BATCH, 1), 0, NODES)
        batch = LinkBatch(pairs[:, 0], pairs[:, 1], negatives, mask)
        positive, negative = scores(params, features, sampled, batch, key, exclude)
        losses = jnp.where(mask, jax.nn.softplus(-positive) + jax.nn.softplus(negative[:, 0]), 0.0)
        weight = mask.sum().astype(jnp.float32)
        return losses.sum() / weight, ({"loss": losses.sum(), "weight": weight}, stats)

    return loss


@partial(jax.jit, static_argnums=4)
def fit(state: TrainState, features, sampled, pairs, exclude):
    update = make_update(loss_fn(features, sampled, exclude), optimizer)

    def one(state, key):
        ids, mask = epoch(key, jnp.arange(pairs.shape[0]), BATCH)
        return train_epoch(update, state, (pairs[ids], mask))

    state, sums = jax.lax.scan(one, state, jax.random.split(key(1), EPOCHS))
    return state.params, sums["loss"] / sums["weight"]


@cache
def trained(exclude: bool):
    """Parameters and the loss of each epoch, with the pairs of a batch excluded or in view."""
    _, parts, features = chance()
    one = link_batch([0], [1], [[2]])
    blocks = jax.jit(partial(sample_link_blocks, fanouts=FANOUTS))(key(0), parts.graph, one)
    params = jax.jit(model.init)(key(2), features, blocks)
    state = init_state(key(3), params, optimizer)
    params, losses = fit(state, features, parts.graph, parts.train, exclude)
    return params, np.asarray(losses)


@partial(jax.jit, static_argnums=4)
def scores_of(params, features, sampled, pairs, exclude):
    def one(key, batch):
        ids, mask = batch
        batch = LinkBatch(pairs[ids, 0], pairs[ids, 1], jnp.zeros((BATCH, 0), jnp.int32), mask)
        return key, scores(params, features, sampled, batch, jax.random.fold_in(key, ids[0]), exclude)[0]

    rows = batches(jnp.arange(pairs.shape[0]), BATCH)
    return jax.lax.scan(one, key(4), rows)[1].ravel()[: pairs.shape[0]]


def auc(exclude_in_training: bool, sampled: Graph, exclude: bool) -> float:
    """The area under the curve of held-out pairs against pairs that are no edges."""
    _, parts, features = chance()
    pairs = np.concatenate([parts.test, parts.test_negatives])
    params, _ = trained(exclude_in_training)
    found = scores_of(params, features, sampled, pairs, exclude)
    return auroc(np.asarray(found), np.arange(len(pairs)) < len(parts.test))


@pytest.mark.slow
def test_training_has_converged():
    _, losses = trained(True)
    assert losses[-5:].mean() > 0.98 * losses[10:15].mean()
    assert losses[-5:].mean() < 2 * np.log(2) + 0.01  # no worse than knowing nothing


@pytest.mark.slow
def test_chance_where_the_edges_under_supervision_are_excluded():
    """Held-out pairs, hidden from the graph or in it: 2 700 of them, so a standard error of 0.008."""
    whole, parts, _ = chance()
    assert abs(auc(True, parts.graph, True) - 0.5) < 0.03
    assert abs(auc(True, whole, True) - 0.5) < 0.03


@pytest.mark.slow
def test_the_leak_that_exclusion_closes():
    """The same training and the same pairs, never trained on, without exclusion: the model reads them off."""
    whole, parts, _ = chance()
    assert auc(False, whole, False) > 0.7
    assert trained(False)[1][-5:].mean() < trained(True)[1][-5:].mean() - 0.2
    assert abs(auc(False, parts.graph, True) - 0.5) < 0.03  # and has learned nothing else
