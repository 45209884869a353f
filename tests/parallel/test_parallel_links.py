"""Links learned on a mesh, the batch's edges left out: ids, losses and parameters are those of one device."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import slow_but
from jax.sharding import NamedSharding, PartitionSpec
from sharding import DEVICES

from jsage import graph as graphs
from jsage.blocks import Tree, as_tree
from jsage.graph import Graph, balanced, contiguous, from_edges, hashed, in_degrees, search
from jsage.losses import link_cross_entropy, masked_mean
from jsage.nn import GraphSAGE, dot
from jsage.parallel import (
    ShardedGraph,
    fetch,
    global_loss,
    local_share,
    make_mesh,
    on_mesh,
    replicate,
    sample_blocks,
    shard_features,
    shard_graph,
    sort_rows,
    split,
    without_pairs,
)
from jsage.sampling import LinkBatch, link_batches, negatives, sample_blocks_by_node
from jsage.train import init_state, make_update

NODES, PAIRS, NEGATIVES, FANOUTS, STEPS = 61, 24, 2, (4, 3), 3
SEEDS = PAIRS * (2 + NEGATIVES)
MODEL, OPTIMIZER = GraphSAGE(hidden=5, out=3), optax.sgd(0.3, momentum=0.9)
SPLIT = PartitionSpec("data")


@pytest.fixture(scope="module")
def mesh():
    return make_mesh()


@cache
def crowd() -> Graph:
    """Numbered edges in both directions, unsorted: a hub, parallel edges, self-loops, lone nodes."""
    rng = np.random.default_rng(0)
    ends = rng.integers(0, NODES - 3, (2, 120))
    hub = np.stack([rng.integers(0, NODES - 3, 40), np.full(40, 7)])
    ends = np.concatenate([ends, ends[:, :9], hub, [[5, 5, 9], [5, 5, 9]]], 1)
    src, dst = rng.permutation(np.concatenate([ends, ends[::-1]], 1), axis=1)
    return from_edges(src, dst, NODES, number=np.arange(len(src)))


@cache
def ascending() -> Graph:
    return search.sort_rows(crowd())


PLACEMENTS = {
    "contiguous": lambda: contiguous(NODES, DEVICES),
    "hashed": lambda: hashed(NODES, DEVICES),
    "balanced": lambda: balanced(np.asarray(in_degrees(crowd())), DEVICES),
}
CAPACITIES = {"contiguous": (60, 60, 240), "hashed": (2, 2, 2), "balanced": (2, 3, 5)}


@cache
def pairs() -> tuple[jax.Array, ...]:
    """`(src, dst, mask)` of three batches: edges; edges of the hub, some twice; others, and invalid
    devices."""
    rng, graph = np.random.default_rng(1), ascending()
    src, dst = np.asarray(graph.indices), np.repeat(np.arange(NODES), np.diff(graph.indptr))
    random, at_hub = rng.choice(len(src), PAIRS, replace=False), rng.choice(np.flatnonzero(dst == 7), PAIRS)
    other = rng.integers(0, NODES, (2, PAIRS))
    other[:, :4], other[:, 4:8] = other[::-1, 4:8], np.stack([src[random[:4]], dst[random[:4]]])
    other[:, 8] = 5
    batches = np.stack([[src[random], dst[random]], [src[at_hub], dst[at_hub]], other], 1).astype(np.int32)
    mask = np.ones((STEPS, PAIRS), bool)
    mask[2, 9:15] = False
    return tuple(jnp.asarray(x) for x in (*batches, mask))


@cache
def features() -> jax.Array:
    return jax.device_put(np.random.default_rng(2).normal(size=(NODES, 6)).astype(np.float32))


@cache
def start():
    blocks = Tree(np.ones((5, 3), bool)), Tree(np.ones((1, 4), bool))
    params = jax.jit(MODEL.init)(jax.random.key(2), np.asarray(features())[:20], blocks)
    return init_state(jax.random.key(3), params, OPTIMIZER)


def loss(params, stats, given, key):
    rows, blocks, batch = given
    src, dst, others = link_batches.split(MODEL.apply(params, rows, blocks), batch)
    losses = link_cross_entropy(dot(src, dst), dot(src[:, None], others), batch.mask)
    weight = batch.mask.sum().astype(jnp.float32)
    return masked_mean(losses, batch.mask), ({"loss": losses.sum(), "weight": weight}, stats)


def told(ids, blocks, batch):
    """Ids in the order of the tree, and the numbers of the drawn edges, -1 in the padding."""
    return batch.negatives, ids, [jnp.where(block.mask, block.edge_data["number"], -1) for block in blocks]


def keys():
    return jax.random.split(jax.random.key(9), (STEPS, 2))


@cache
def alone(exclude: bool):
    """Three updates on one device: the state, losses, and what was sampled."""

    def step(state, given):
        (noise, draw), src, dst, mask = given
        others = negatives.uniform(NODES)(noise, (PAIRS, NEGATIVES))
        batch = LinkBatch(src, dst, others, mask)
        left = graphs.without_pairs(ascending(), src, dst, mask & exclude)
        blocks = sample_blocks_by_node(draw, left, batch.seeds, FANOUTS)
        state, sums = make_update(loss, OPTIMIZER)(state, (features(), blocks, batch))
        ids, first = as_tree(blocks[0])
        return state, (sums, told(ids, (first, *blocks[1:]), batch))

    return jax.jit(partial(jax.lax.scan, step))(start(), (keys(), *pairs()))


@cache
def laid(name: str):
    """The arguments of `together`, each where it belongs."""
    mesh, placement = make_mesh(), PLACEMENTS[name]()
    graph = shard_graph(ascending(), placement, mesh), shard_features(features(), placement, mesh)
    return replicate((start(), keys(), jnp.array(True)), mesh), *graph, split(pairs(), mesh, dim=1)


@cache
def program(name: str):
    """The same on the mesh, compiled once a placement; whether edges are excluded is an argument."""
    placement, (near, far, capacity) = PLACEMENTS[name](), CAPACITIES[name]

    def together(given, graph, features, pairs):
        state, keys, exclude = given

        def step(state, given):
            (noise, draw), src, dst, mask = given
            others = local_share(noise, negatives.uniform(NODES), (PAIRS // DEVICES, NEGATIVES))
            batch = LinkBatch(src, dst, others, mask)
            left = without_pairs(graph, src, dst, mask & exclude, placement)
            place = placement.locate(batch.seeds)
            ids, blocks, hops = sample_blocks(draw, left, place, FANOUTS, (near, far))
            rows, last = fetch(features, ids, capacity)
            state, sums = make_update(global_loss(loss), OPTIMIZER)(state, (rows, blocks, batch))
            extra = jnp.stack([count.rounds for count in (*hops, last)])
            return state, (sums, extra, told(placement.nodes(*ids), blocks, batch))

        state, (sums, extra, found) = jax.lax.scan(step, state, (keys, *pairs))
        return (state, sums, extra), found

    out = PartitionSpec(), PartitionSpec(None, "data")
    run = on_mesh(together, make_mesh(), laid(name), out)
    return jax.jit(run).lower(*laid(name)).compile()


def own_rows(device: int) -> list[np.ndarray]:
    """Of the whole batch's tree, hop by hop, the rows that are a device's own."""
    b, rows = PAIRS // DEVICES, np.arange(PAIRS).reshape(DEVICES, -1)[device]
    others = 2 * PAIRS + np.arange(b * NEGATIVES) + rows[0] * NEGATIVES
    parts, size = [np.concatenate([rows, PAIRS + rows, others])], SEEDS
    for fanout in FANOUTS:
        slots = size + parts[-1][:, None] * fanout + np.arange(fanout)
        parts.append(np.concatenate([parts[-1], slots.ravel()]))
        size *= 1 + fanout
    return parts


def close(actual, expected):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), actual, expected)


@pytest.mark.slow
@pytest.mark.parametrize("name", slow_but(["contiguous"], PLACEMENTS))
def test_updates_on_sharded_tables_are_those_of_one_device(name: str):
    """Ids and numbers of edges slot for slot; losses; parameters after each batch's update."""
    (state, sums, rounds), (others, ids, numbers) = program(name)(*laid(name))
    expected, told_alone = alone(True)
    totals, (same_others, same_ids, same_numbers) = jax.tree.map(np.asarray, told_alone)
    np.testing.assert_array_equal(others, same_others)
    far, near = (np.asarray(part).reshape(STEPS, DEVICES, -1, part.shape[-1]) for part in numbers)
    for device in range(DEVICES):
        seeds, frontier, leaves = own_rows(device)
        mine = np.asarray(ids).reshape(STEPS, DEVICES, -1)[:, device]
        np.testing.assert_array_equal(mine, same_ids[:, leaves])
        np.testing.assert_array_equal(near[:, device], same_numbers[1][:, seeds])
        np.testing.assert_array_equal(far[:, device], same_numbers[0][:, frontier])
    close((sums, state.params, state.opt_state), (totals, expected.params, expected.opt_state))
    moved = jax.tree.map(lambda a, b: np.abs(np.asarray(a) - b).max(), state.params, start().params)
    assert min(jax.tree.leaves(moved)) > 1e-3
    assert (np.asarray(rounds) > 1).all() != (name == "contiguous")


def supervised() -> np.ndarray:
    """`[STEPS, number of edges]`: which edges join the ends of a valid pair, by comparing all with all."""
    whole, (src, dst, mask) = crowd(), (np.asarray(x) for x in pairs())
    ends = np.stack([whole.indices, np.repeat(np.arange(NODES), np.diff(whole.indptr))])
    number, hidden = np.asarray(whole.edge_data["number"]), np.zeros((STEPS, whole.num_edges), bool)
    for step in range(STEPS):
        valid = {frozenset(pair) for pair in zip(src[step][mask[step]], dst[step][mask[step]], strict=True)}
        hidden[step, number] = [frozenset(edge) in valid for edge in ends.T]
    return hidden


@pytest.mark.parametrize("exclude", [True, False])
@pytest.mark.parametrize("name", PLACEMENTS)
def test_no_edge_of_the_batch_is_drawn_unless_exclusion_is_off(name: str, exclude: bool):
    (state, keys, _), *tables = laid(name)
    _, (_, _, numbers) = program(name)((state, keys, replicate(jnp.array(exclude), make_mesh())), *tables)
    hidden = supervised()
    for part in numbers:
        for step in range(STEPS):
            drawn = np.asarray(part)[step]
            leaks = hidden[step][drawn[drawn >= 0]].any()
            assert leaks != exclude, step


def test_the_pairs_take_one_collective_more(mesh):
    """An all-gather of the pairs; then as `sample_blocks`: ids out, neighbors and numbers back."""
    text = program("hashed").as_text()
    assert text.count(" all-gather(") == 1
    assert text.count(" all-to-all(") == len(FANOUTS) * 3 + 2
    assert not any(name in text for name in (" collective-permute(", " reduce-scatter("))


@pytest.mark.parametrize("name", PLACEMENTS)
def test_rows_are_sorted_as_on_one_device(mesh, name: str):
    placement = PLACEMENTS[name]()
    found = sort_rows(shard_graph(crowd(), placement, mesh), placement, mesh)
    expected = shard_graph(ascending(), placement, mesh)
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_negatives_by_degree_are_those_of_one_device(mesh):
    """Uniform ones are in the updates above."""
    key, sampler = jax.random.key(4), negatives.by_degree(crowd())
    given = replicate((key, sampler), mesh)
    run = on_mesh(lambda key, sampler: local_share(key, sampler, (3, 2)), mesh, given, SPLIT)
    expected = jax.jit(lambda key, sampler: sampler(key, (24, 2)))(key, sampler)
    np.testing.assert_array_equal(jax.jit(run)(*given), expected)


def test_memory_is_that_of_the_batch(mesh):
    """Tables of 2^31 nodes and 2^33 edges."""
    lies, placement = NamedSharding(mesh, SPLIT), hashed(2**31, DEVICES)

    def table(length, dtype=jnp.int32):
        return jax.ShapeDtypeStruct((DEVICES * length,), dtype, sharding=lies)

    graph = ShardedGraph(table(2**28 + 1), (table(2**30),), (table(2**28, jnp.uint32),))
    given = graph, table(3), table(3), table(3, jnp.bool_)

    def degrees(graph, src, dst, mask):
        left = without_pairs(graph, src, dst, mask, placement)
        return left.degrees(placement.local(src))

    found = jax.jit(on_mesh(degrees, mesh, given, SPLIT)).lower(*given).compile().memory_analysis()
    assert found.argument_size_in_bytes > 2**32
    assert found.temp_size_in_bytes < 2**14


def test_bad_calls_are_refused(mesh):
    graph = shard_graph(crowd(), PLACEMENTS["hashed"](), mesh)
    message = r"the graph has 8 shards of 8 rows, but the placement 4 of 16: pass the one that"
    with pytest.raises(ValueError, match=message):
        sort_rows(graph, contiguous(NODES, 4), mesh)
    given = graph, *split(tuple(x[0] for x in pairs()), mesh)
    for placement, error in (
        (contiguous(NODES, 4), message),
        (hashed(2**33, DEVICES), "of 1073741824: pass"),
    ):
        run = on_mesh(lambda *given: without_pairs(*given, placement), mesh, given, SPLIT)  # noqa: B023
        with pytest.raises(ValueError, match=error):
            jax.eval_shape(run, *given)
    with pytest.raises(ValueError, match=r"ids on a device are int32, but there are 8589934592 of them"):
        hashed(2**33, DEVICES).locate(jnp.zeros(2, jnp.int32))
