"""GraphSAINT: sums over subgraphs are those over the graph, on average; what has no estimate is refused."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import graph, slow_but
from numpy.testing import assert_allclose

from jsage import aggregate
from jsage.blocks import SOFTMAX_SUM
from jsage.graph import Graph, edges, from_edges, out_degrees
from jsage.sampling import (
    estimated_batch,
    full_block,
    measure_saint,
    saint_edges,
    saint_nodes,
    saint_walks,
)

WIDTH = 4
SAMPLERS = {
    "nodes": partial(saint_nodes, size=14, width=WIDTH),
    "edges": partial(saint_edges, size=8, width=WIDTH),
    "walks": partial(saint_walks, roots=5, length=2, width=WIDTH),
}
SUMS = aggregate.sum, aggregate.mean, aggregate.gcn
TABLE = np.random.default_rng(0).uniform(1, 2, (30, 3)).astype(np.float32)
VALUE = np.random.default_rng(1).uniform(1, 2, 30).astype(np.float32)
estimated = jax.jit(estimated_batch, static_argnums=2)
SUBGRAPHS, COUNTED = 10_000, 40_000


@cache
def wired() -> Graph:
    """30 nodes walked both ways, a hub with more neighbors than `WIDTH`, one node without any; weights."""
    rng = np.random.default_rng(2)
    src, dst = rng.integers(0, 29, (2, 40))
    src, dst = np.append(src, np.arange(1, 13)), np.append(dst, np.zeros(12, int))
    src, dst = np.append(src, dst), np.append(dst, src)
    return from_edges(src, dst, 30, weight=rng.uniform(0.5, 2, len(src)).astype(np.float32))


@pytest.mark.parametrize("name", slow_but([], SAMPLERS))
def test_sums_over_subgraphs_are_unbiased(name: str):
    """Two numbers a subgraph and aggregator: with the norms, whose mean is the graph's, and without."""
    plain, sample = wired(), SAMPLERS[name]
    saint = measure_saint(jax.random.key(0), plain, sample, repeats=COUNTED)

    def total(block, nodes, weight):
        rows, weight = jnp.asarray(TABLE)[nodes], jnp.asarray(VALUE)[nodes] * weight
        return jnp.stack([(form(rows, block).sum(1) * weight).sum() for form in SUMS])

    @jax.jit
    def draw(key):
        batch, weight = estimated_batch(key, saint, sample)
        bare, nodes, mask = sample(key, plain)
        return total(batch.block, batch.nodes, weight), total(bare, nodes, mask * weight)

    keys = jax.random.split(jax.random.key(1), SUBGRAPHS)
    with_norms, without = (np.asarray(x, np.float64) for x in jax.lax.map(draw, keys))
    whole = np.asarray(total(full_block(plain), np.arange(30), np.ones(30, np.float32)), np.float64)
    error = np.sqrt(1 / SUBGRAPHS + 1 / COUNTED)
    z = (with_norms.mean(0) - whole) / (with_norms.std(0) * error)
    assert (abs(z) < 4).all(), z
    assert (abs(without.mean(0) - whole) > 20 * without.std(0) * error).any()


def test_node_norms_are_those_of_draws_with_replacement():
    plain, repeats = wired(), 2000
    saint = measure_saint(jax.random.key(0), plain, SAMPLERS["nodes"], repeats=repeats)
    share = (1 + np.asarray(out_degrees(plain))) / (plain.num_edges + plain.num_nodes)
    p = 1 - (1 - share) ** 14
    z = (1 / np.asarray(saint.node) - p) / np.sqrt(p * (1 - p) / repeats)
    assert abs(z).max() < 4
    assert 0.5 < (z**2).mean() < 2


def test_edges_are_drawn_by_the_degrees_of_both_ends():
    """A path: the edge at an end, 1 / 1 + 1 / 2, comes more often than the one in the middle."""
    path, repeats = from_edges([0, 1, 1, 2, 2, 3], [1, 0, 2, 1, 3, 2], 5), 6000
    draw = jax.jit(jax.vmap(lambda key: saint_edges(key, path, 1, 2)[1:]))
    nodes, mask = map(np.asarray, draw(jax.random.split(jax.random.key(0), repeats)))
    first, pair = np.sort(nodes, 1)[:, 0], mask.all(1)
    counts = np.array([(pair & (first == 0)).sum(), (pair & (first == 1)).sum(), (~pair).sum()])
    p = np.array([1.5, 1.0, 1.0]) / 5  # node 4 has no edge, and is drawn alone
    assert (abs(counts - repeats * p) < 4 * np.sqrt(repeats * p * (1 - p))).all()


@pytest.mark.parametrize("name", SAMPLERS)
def test_norms_are_ratios_of_counts(name: str):
    """By hand, over the same subgraphs; what was in none counts as in one."""
    plain, sample, repeats = wired(), SAMPLERS[name], 5
    saint, key = measure_saint(jax.random.key(3), plain, sample, repeats=repeats), jax.random.key(3)
    numbered = plain._replace(edge_data={"edge": np.arange(plain.num_edges, dtype=np.int32)})
    node, edge = np.zeros(30), np.zeros(plain.num_edges)
    draw = jax.jit(sample)
    for number in range(repeats):
        block, nodes, mask = jax.tree.map(np.asarray, draw(jax.random.fold_in(key, number), numbered))
        node[nodes[mask]] += 1
        edge[block.edge_data["edge"][block.dst < len(nodes)]] += 1
    assert node.max() > 1
    node, edge = np.maximum(node, 1), np.maximum(edge, 1)
    assert_allclose(saint.node, repeats / node, rtol=1e-6)
    assert_allclose(saint.graph.edge_data["norm"], node[np.asarray(edges(plain)[1])] / edge, rtol=1e-6)


@pytest.mark.parametrize("name", ["no edges", "isolated nodes", "random"])
def test_any_graph_has_norms(name: str):
    for sample in SAMPLERS.values():
        saint = measure_saint(jax.random.key(0), graph(name), sample, repeats=2)
        batch, weight = estimated(jax.random.key(1), saint, sample)
        assert np.isfinite(np.asarray(weight)).all()
        assert not np.asarray(weight)[~np.asarray(batch.mask)].any()


def test_refusals():
    plain, sample = wired(), SAMPLERS["nodes"]
    with pytest.raises(ValueError, match=r"repeats is the number of subgraphs that are counted, .* got 0"):
        measure_saint(jax.random.key(0), plain, sample, repeats=0)
    saint = measure_saint(jax.random.key(0), plain, sample, repeats=1)
    batch, _ = estimated(jax.random.key(0), saint, sample)
    rows = TABLE[batch.nodes]
    for refused in (aggregate.max, aggregate.min):
        with pytest.raises(TypeError, match="unbiased estimates of sums alone"):
            refused(rows, batch.block)
    with pytest.raises(TypeError, match="unbiased estimates of sums alone"):
        batch.block.reduce(lambda dst, src, edge: (src[:, 0], src), SOFTMAX_SUM, None, rows)
