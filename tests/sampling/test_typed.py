"""Typed sampling: the homogeneous one's bits, right types alone, fanouts a relation, sizes known before."""

from functools import partial

import jax
import numpy as np
import pytest

from jsage.blocks import as_tree
from jsage.graph import from_edges, typed_graph
from jsage.sampling import (
    clip_fanouts,
    fast_key,
    sample_blocks,
    sample_typed_blocks,
    typed_full_block,
    typed_sizes,
    with_replacement,
)

SIZES = {"a": 40, "b": 7, "c": 25, "none": 0}
TO, BACK, LIKES, IN, EMPTY, LOST = RELATIONS = [
    ("a", "to", "b"),
    ("b", "back", "a"),
    ("a", "likes", "a"),
    ("c", "in", "a"),
    ("b", "empty", "c"),
    ("none", "lost", "a"),
]
SEEDS = {"a": np.array([3, 0, 39, 3], np.int32), "b": np.array([6, 1], np.int32)}
FANOUTS = (3, {TO: 2, BACK: 4, LIKES: 0, IN: 3, EMPTY: 2, LOST: 1})
draw_blocks = jax.jit(lambda key, graph, seeds: sample_typed_blocks(key, graph, seeds, FANOUTS))


def sampled(graph, seeds: dict, fanouts: tuple):
    return jax.jit(partial(sample_typed_blocks, fanouts=fanouts))(fast_key(0), graph, seeds)


def random_edges(seed: int, num_edges: int = 150) -> dict:
    rng = np.random.default_rng(seed)
    return {
        (s, r, d): tuple(rng.integers(0, SIZES[x], num_edges) for x in (s, d))
        if r not in ("empty", "lost")
        else (np.empty(0, np.int32),) * 2
        for s, r, d in RELATIONS
    }


EDGES = random_edges(0)
GRAPH = typed_graph(SIZES, EDGES)


def same(a: object, b: object) -> None:
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(np.testing.assert_array_equal, a, b)


def slots_of(batch, hop: int) -> dict:
    """Each relation's slot ids and destinations' ids, by the law of rows, in NumPy."""
    block = batch.blocks[hop]
    nodes = batch.nodes if hop == 0 else batch.blocks[hop - 1].dst
    end, found = {name: len(ids) for name, ids in block.dst.items()}, {}
    for relation in sorted(block.blocks):
        source, _, target = relation
        mask, start = np.asarray(block.blocks[relation].mask), end.get(source, 0)
        end[source] = start + mask.size
        ids = np.asarray(nodes[source])[start : end[source]].reshape(mask.shape)
        found[relation] = np.asarray(block.dst[target]), ids, mask
    assert end == {name: len(ids) for name, ids in nodes.items()}
    return found


@pytest.mark.parametrize("seed", range(5))
def test_valid_slots_are_edges_of_the_relation_and_as_many_as_there_are(seed: int):
    batch = jax.tree.map(np.asarray, draw_blocks(fast_key(seed), GRAPH, SEEDS))
    fanouts = [FANOUTS[1], dict.fromkeys(RELATIONS, FANOUTS[0])]
    for hop in (0, 1):
        found = slots_of(batch, hop)
        assert found.keys() == {r for r, k in fanouts[hop].items() if k and r[2] in batch.blocks[hop].dst}
        for relation, (dst, ids, mask) in found.items():
            source, destination = EDGES[relation]
            assert mask.shape == (len(dst), fanouts[hop][relation])
            for row, node in enumerate(dst):
                allowed = source[destination == node]
                assert mask[row].sum() == min(len(allowed), mask.shape[1])
                drawn, times = np.unique(ids[row][mask[row]], return_counts=True)
                assert all((allowed == one).sum() >= n for one, n in zip(drawn, times, strict=True))
            assert ((ids >= 0) & (ids < max(SIZES[relation[0]], 1))).all()
    for name, ids in SEEDS.items():
        np.testing.assert_array_equal(batch.nodes[name][: len(ids)], ids)
        np.testing.assert_array_equal(batch.blocks[1].dst[name], ids)


@pytest.mark.parametrize("draw", [None, with_replacement])
def test_one_type_and_one_relation_are_the_homogeneous_sampler_to_the_bit(draw):
    src, dst = np.random.default_rng(1).integers(0, 30, (2, 200))
    number = np.arange(200, dtype=np.int32)
    relation, seeds, more = (
        ("n", "r", "n"),
        np.array([4, 9, 29], np.int32),
        {} if draw is None else {"draw": draw},
    )
    typed = typed_graph({"n": 30}, {relation: (src, dst)}, edge_data={relation: {"number": number}})
    plain = from_edges(src, dst, 30, number=number)
    same(typed.edges[relation], plain)
    batch = jax.jit(partial(sample_typed_blocks, fanouts=(4, 3), **more))(fast_key(0), typed, {"n": seeds})
    blocks = jax.jit(partial(sample_blocks, fanouts=(4, 3), **more))(fast_key(0), plain, seeds)
    ids, tree = as_tree(blocks[0])
    np.testing.assert_array_equal(batch.nodes["n"], ids)
    same([block.blocks[relation] for block in batch.blocks], [tree, blocks[1]])
    rows = np.arange(len(ids), dtype=np.float32)[:, None]
    h, block = batch.blocks[0].join({"n": rows}, relation)
    np.testing.assert_array_equal(h, rows)
    same(block, tree)


def test_a_fanout_of_0_is_the_graph_without_the_relation():
    left_out = {relation: 0 if relation == BACK else 2 for relation in RELATIONS}
    without = typed_graph(SIZES, {relation: ends for relation, ends in EDGES.items() if relation != BACK})
    same(
        sampled(GRAPH, SEEDS, (left_out, left_out)),
        sampled(without, SEEDS, (2, 2)),
    )


def test_the_order_in_which_relations_were_given_does_not_matter():
    turned = typed_graph(dict(reversed(SIZES.items())), dict(reversed(EDGES.items())))
    same(draw_blocks(fast_key(3), turned, SEEDS), draw_blocks(fast_key(3), GRAPH, SEEDS))


def test_relations_draw_apart():
    """Two relations with the same edges do not draw the same neighbors."""
    src, dst = np.arange(100), np.zeros(100, np.int32)
    graph = typed_graph({"n": 100}, {("n", "r", "n"): (src, dst), ("n", "s", "n"): (src, dst)})
    ids = np.asarray(sampled(graph, {"n": np.zeros(1, np.int32)}, (20,)).nodes["n"])
    assert set(ids[1:21]) != set(ids[21:])


def test_shapes_are_known_before_and_one_trace_serves_all_batches():
    traces = []

    @jax.jit
    def rows(key, graph, seeds):
        traces.append(None)
        return sample_typed_blocks(key, graph, seeds, FANOUTS).nodes

    sizes = typed_sizes(GRAPH, {"a": 4, "b": 2}, FANOUTS)
    # The first hop brings 3 of each relation into 4 of a and 2 of b.
    a, b, c, none = 4 + 2 * 3 + 4 * 3, 2 + 4 * 3, 4 * 3, 4 * 3
    assert sizes == {"a": a + 2 * b, "b": b + 4 * a + 2 * c, "c": c + 3 * a, "none": none + a}
    for seed in range(3):
        found = rows(fast_key(seed), typed_graph(SIZES, random_edges(seed)), SEEDS)
        assert {name: len(ids) for name, ids in found.items()} == sizes
    assert len(traces) == 1


def test_clipped_fanouts_lose_no_edge():
    most = {
        r: max(np.bincount(dst, minlength=1).max(), 1) if len(dst) else 1 for r, (_, dst) in EDGES.items()
    }
    assert clip_fanouts(GRAPH, (1000,)) == [most]
    assert clip_fanouts(GRAPH, FANOUTS)[1] == {r: min(FANOUTS[1][r], most[r]) for r in RELATIONS}


def test_a_batch_reads_tables_and_a_type_without_nodes_as_zeros():
    tables = {name: np.arange(size * 2, dtype=np.float32).reshape(size, 2) for name, size in SIZES.items()}
    batch = draw_blocks(fast_key(0), GRAPH, SEEDS)
    rows = batch.read(tables)
    np.testing.assert_array_equal(rows["c"], tables["c"][batch.nodes["c"]])
    np.testing.assert_array_equal(rows["none"], np.zeros((len(batch.nodes["none"]), 2)))
    with pytest.raises(ValueError, match="the batch reads type 'a'"):
        batch.read({"b": tables["b"]})


def test_seeds_that_nothing_points_at_are_their_own_rows():
    seeds = {"none": np.zeros(0, np.int32), "c": np.array([5], np.int32)}
    batch = sampled(GRAPH, seeds, (2,))
    assert batch.nodes["c"].tolist() == [5]
    assert batch.nodes["b"].shape == (2,)
    assert batch.blocks[0].relations == [EMPTY]


def test_the_full_block_has_every_edge():
    full = typed_full_block(GRAPH)
    for relation, (src, dst) in EDGES.items():
        table = np.zeros((SIZES[relation[2]], SIZES[relation[0]]))
        np.add.at(table, (dst, src), 1)
        block, found = full.blocks[relation], np.zeros_like(table)
        valid = np.asarray(block.dst) < len(table)
        np.add.at(found, (np.asarray(block.dst)[valid], np.asarray(block.src)[valid]), 1)
        np.testing.assert_array_equal(block.degree, table.sum(1))
        np.testing.assert_array_equal(found, table)


@pytest.mark.parametrize(
    ("seeds", "fanouts", "message"),
    [
        ({"x": np.array([0])}, (1,), "seeds are of type 'x'"),
        ({}, (1,), "seeds of one type at least"),
        (SEEDS, (), "one fanout a layer"),
        (SEEDS, ({TO: 1},), r"must name every relation, got none for \('a', 'likes', 'a'\)"),
        (SEEDS, ({("a", "b", "c"): 1},), r"fanouts name relation \('a', 'b', 'c'\)"),
        (SEEDS, (-1,), r"fanout of relation \('a', 'likes', 'a'\) must be 0 or more, got -1"),
    ],
)
def test_errors(seeds: dict, fanouts: tuple, message: str):
    with pytest.raises(ValueError, match=message):
        sample_typed_blocks(fast_key(0), GRAPH, seeds, fanouts)
    with pytest.raises(ValueError, match=message):
        typed_sizes(GRAPH, {name: len(ids) for name, ids in seeds.items()}, fanouts)
