"""Clusters: every node in one, each a slice; partitions that are balanced and cut few edges."""

from importlib.util import find_spec

import numpy as np
import pytest
from helpers import AWKWARD, NUM_NODES, graph
from numpy.testing import assert_array_equal

from jsage.graph import cluster, edges, from_edges, multilevel, propagated

without = pytest.mark.skipif(find_spec("pymetis") is None, reason="no pymetis")
partitions = pytest.mark.parametrize("partition", [propagated, pytest.param(multilevel, marks=without)])


def given(part: list[int]):
    return lambda graph, num: np.array(part)


def communities(size: int, count: int):
    """Rings with chords, one after another in a shuffled order of ids, and one edge from each to the next."""
    rng = np.random.default_rng(0)
    ids = rng.permutation(size * count).reshape(count, size)
    src = np.concatenate([np.roll(ids, step, 1).ravel() for step in (1, 2, 3, 4, 5)] + [ids[:, 0]])
    dst = np.concatenate([ids.ravel()] * 5 + [np.roll(ids, 1, 0)[:, 0]])
    return from_edges(np.append(src, dst), np.append(dst, src), size * count)


@pytest.mark.parametrize("name", AWKWARD)
def test_every_edge_is_in_the_slice_of_its_destinations_cluster(name: str):
    part = [0, 2, 1, 2, 2, 0, 2, 3]
    plain = graph(name, weighted=True)
    found = cluster(plain, 5, partition=given(part))  # cluster 4 is empty
    order, rows = np.asarray(found.order), len(found.row)
    assert_array_equal(np.diff(found.node_ptr), np.bincount(part, minlength=5))
    assert_array_equal(np.sort(order[:NUM_NODES]), np.arange(NUM_NODES))
    begins = np.asarray(found.node_ptr[:-1])
    node = {c * rows + i: order[begin + i] for c, begin in enumerate(begins) for i in range(rows)}
    src_row, dst_row, weight = map(np.asarray, (found.src, found.dst, found.edge_data["weight"]))
    node_ptr, edge_ptr, taken = np.asarray(found.node_ptr), np.asarray(found.edge_ptr), []
    for c in range(found.num):
        begin, end = edge_ptr[c], edge_ptr[c + 1]
        assert end - begin <= len(found.slot)
        assert begin + len(found.slot) <= len(found.src)
        assert node_ptr[c] + rows <= len(order)
        for e in range(begin, end):
            ends = node[src_row[e]], node[c * rows + dst_row[e]]
            assert part[ends[1]] == c
            taken.append((*ends, weight[e]))
    src, dst = map(np.asarray, edges(plain))
    assert sorted(taken) == sorted(zip(src, dst, np.asarray(plain.edge_data["weight"]).tolist(), strict=True))


@partitions
def test_a_partition_is_balanced_and_finds_communities(partition):
    planted = communities(size=60, count=20)
    part = partition(planted, 10)
    counts, (src, dst) = np.bincount(part, minlength=10), map(np.asarray, edges(planted))
    assert len(counts) == 10
    assert counts.max() <= 1.05 * 120
    assert (part[src] != part[dst]).mean() < 0.3  # 0.9 at random
    assert_array_equal(part, partition(planted, 10))


@partitions
@pytest.mark.parametrize("name", AWKWARD)
def test_a_partition_takes_any_graph(partition, name: str):
    for num in (1, 3, NUM_NODES):
        part = partition(graph(name), num)
        assert part.shape == (NUM_NODES,)
        assert part.min() >= 0
        assert np.bincount(part).max() <= -(-NUM_NODES // num) + 2
        assert part.max() < num


def test_refusals():
    plain = graph("random")
    for num in (0, NUM_NODES + 1):
        with pytest.raises(ValueError, match=rf"num must be in 1 \.\. 8, the number of nodes, got {num}"):
            cluster(plain, num)
    for part in ([0, 1], [0, 1, 2, 0, 0, 0, 0, 0], [-1, *[0] * 7], [0.5] * 8):
        with pytest.raises(ValueError, match=r"each of 8 nodes one of the parts 0 \.\. 1, got"):
            cluster(plain, 2, partition=given(part))
