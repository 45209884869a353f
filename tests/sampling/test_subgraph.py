"""Batches that are subgraphs: what they hold is what the graph has between their nodes, in one shape."""

from functools import cache, partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import AWKWARD, NUM_NODES, features, graph, slow_but
from numpy.testing import assert_allclose, assert_array_equal

from jsage import aggregate
from jsage.graph import (
    Graph,
    cluster,
    edges,
    from_edges,
    gcn_weights,
    induced_subgraph,
    remove_self_loops,
    symmetric_weights,
)
from jsage.nn import GCNConv, GraphSAGE, SAGEConv
from jsage.sampling import (
    Subgraph,
    cluster_batch,
    epoch,
    estimated_batch,
    full_block,
    gcn_block,
    induced_batch,
    measure_saint,
    saint_edges,
    saint_nodes,
    saint_walks,
    symmetric_block,
)

PART = np.array([0, 2, 1, 2, 2, 0, 2, 1])
NODES = np.array([6, 1, 3, 1, 0, 4], np.int32)
TABLE = features(3)

batches = jax.jit(jax.vmap(cluster_batch, in_axes=(None, 0, 0)))
by_nodes = jax.jit(induced_batch, static_argnums=3)
FORMS = (aggregate.sum, aggregate.mean, aggregate.max, aggregate.gcn)
pooled = jax.jit(lambda h, block: [form(h, block) for form in FORMS])


@cache
def clusters(name: str, *, weighted: bool = False):
    return cluster(graph(name, weighted=weighted), 3, partition=lambda graph, num: PART)


def one(found: Subgraph, step: int) -> Subgraph:
    return jax.tree.map(lambda x: np.asarray(x)[step], found)


def listed(batch: Subgraph) -> list[tuple[int, int]]:
    """The edges of a batch, by the graph's ids."""
    block, nodes = batch.block, np.asarray(batch.nodes)
    valid = np.asarray(block.dst) < block.num_dst
    return sorted(zip(nodes[np.asarray(block.src)[valid]], nodes[np.asarray(block.dst)[valid]], strict=True))


def between(plain: Graph, nodes: np.ndarray) -> list[tuple[int, int]]:
    src, dst = map(np.asarray, edges(plain))
    inside = np.isin(src, nodes) & np.isin(dst, nodes)
    return sorted(zip(src[inside], dst[inside], strict=True))


@pytest.mark.parametrize("name", AWKWARD)
@pytest.mark.parametrize("q", slow_but([2], [1, 2, 3]))
def test_an_epoch_holds_each_node_once_and_each_edge_inside_its_batches(name: str, q: int):
    chosen, mask = epoch(jax.random.key(q), np.arange(3), q)
    found, met, inside = batches(clusters(name), chosen, mask), [], []
    for step in range(len(chosen)):
        batch = one(found, step)
        nodes = batch.nodes[batch.mask]
        assert set(PART[nodes]) == set(np.asarray(chosen[step])[np.asarray(mask[step])])
        assert listed(batch) == between(graph(name), nodes)
        degree = np.bincount([dst for _, dst in listed(batch)], minlength=NUM_NODES)[batch.nodes]
        assert_array_equal(batch.block.degree, np.where(batch.mask, degree, 0))
        met, inside = [*met, *nodes], [*inside, *listed(batch)]
    assert sorted(met) == list(range(NUM_NODES))
    src, dst = map(np.asarray, edges(graph(name)))
    same = PART[src] == PART[dst]
    assert set(zip(src[same], dst[same], strict=True)) <= set(inside)


@cache
def cut(kind: str, name: str) -> Subgraph:
    """A batch with padding, of a graph of `AWKWARD` with weights."""
    if kind == "clusters":
        chosen, mask = np.array([[1, 2, 2]], np.int32), np.array([[True, True, False]])
        return one(batches(clusters(name, weighted=True), chosen, mask), 0)
    return jax.tree.map(np.asarray, by_nodes(jax.random.key(0), graph(name, weighted=True), NODES, 64))


kinds = pytest.mark.parametrize("kind", ["clusters", "nodes"])
on_all_graphs = pytest.mark.parametrize("name", AWKWARD)


@kinds
@on_all_graphs
def test_a_batch_is_the_induced_subgraph_of_its_nodes_and_padding_is_never_read(kind: str, name: str):
    batch = cut(kind, name)
    assert not batch.mask.all()
    nodes = batch.nodes[batch.mask]
    alone = full_block(induced_subgraph(graph(name, weighted=True), nodes))
    h = np.where(batch.mask[:, None], TABLE[batch.nodes], np.nan).astype(np.float32)
    assert listed(batch) == between(graph(name), nodes)
    for ours, theirs in zip(pooled(h, batch.block), pooled(TABLE[nodes], alone), strict=True):
        assert_allclose(np.asarray(ours)[batch.mask], theirs, atol=1e-6)


SAGE = GraphSAGE(hidden=4, out=2)


@jax.jit
def gradients(block, h, mask):
    params = SAGE.init(jax.random.key(0), h, (block,) * 2)

    def loss(params, h):
        return jnp.where(mask[:, None], SAGE.apply(params, h, (block,) * 2), 0).sum()

    return jax.grad(loss, argnums=(0, 1))(params, h)


@kinds
def test_gradients_are_those_of_the_induced_subgraph_whatever_the_padding_holds(kind: str):
    batch = cut(kind, "random")
    nodes, valid = batch.nodes[batch.mask], batch.block.dst < batch.block.num_dst
    weight = np.where(valid, batch.block.edge_data["weight"], np.nan)
    block = batch.block._replace(edge_data={"weight": weight})
    alone = full_block(induced_subgraph(graph("random", weighted=True), nodes))
    ours, to_rows = gradients(block, TABLE[batch.nodes], batch.mask)
    theirs, to_theirs = gradients(alone, TABLE[nodes], np.ones(len(nodes), bool))
    for one_of, other in zip(*map(jax.tree.leaves, (ours, theirs)), strict=True):
        assert_allclose(one_of, other, atol=1e-5)
    assert_allclose(np.asarray(to_rows)[batch.mask], to_theirs, atol=1e-5)
    assert not np.asarray(to_rows)[~batch.mask].any()


WEIGHTS = {
    "symmetric": (symmetric_block, symmetric_weights, partial(SAGEConv, aggregate=aggregate.gcn)),
    "gcn": (gcn_block, gcn_weights, GCNConv),
}


@kinds
@pytest.mark.parametrize("weights", WEIGHTS)
def test_a_batch_is_normalized_by_its_own_degrees(kind: str, weights: str):
    of_block, of_graph, conv = WEIGHTS[weights]
    src, dst, size = AWKWARD["random"]
    plain = remove_self_loops(from_edges(src, dst, size, weight=np.abs(features(7, len(src), 1)[:, 0])))
    if kind == "clusters":
        found = cluster(plain, 3, partition=lambda graph, num: PART)
        batch = one(batches(found, np.array([[2, 0]]), np.array([[True, True]])), 0)
    else:
        batch = jax.tree.map(np.asarray, by_nodes(jax.random.key(0), plain, NODES, 64))
    nodes = batch.nodes[batch.mask]
    alone = full_block(of_graph(induced_subgraph(plain, nodes)))
    layer: nn.Module = conv(3)
    params = jax.jit(layer.init)(jax.random.key(0), TABLE[nodes], alone)
    apply = jax.jit(layer.apply)
    h = np.where(batch.mask[:, None], TABLE[batch.nodes], np.nan).astype(np.float32)
    ours = apply(params, h, jax.jit(of_block)(batch.block))
    assert_allclose(np.asarray(ours)[batch.mask], apply(params, TABLE[nodes], alone), atol=1e-5)


def test_a_node_draws_its_width_of_edges_before_it_is_known_where_they_come_from():
    """Of 7 edges into a hub 3 are looked up: each other node of the batch is found in 3 of 7 keys."""
    plain, repeats = graph("one hub"), 7000
    keys = jax.random.split(jax.random.key(0), repeats)
    found = jax.jit(jax.vmap(lambda key: induced_batch(key, plain, jnp.array([5, 0, 2]), 3).block))(keys)
    dst = np.asarray(found.dst).reshape(repeats, 3, 3)
    assert (dst[:, 1:, 0] == [1, 2]).all()  # nodes 2 and 5 read the hub, their only edge
    source = np.where(dst[:, 0] == 0, np.asarray(found.src).reshape(repeats, 3, 3)[:, 0], 0)
    for row in (1, 2):
        share = (source == row).any(1).mean()
        assert abs(share - 3 / 7) < 4 * np.sqrt(3 / 7 * 4 / 7 / repeats)


def ring(num_nodes: int) -> Graph:
    at = np.arange(num_nodes)
    ends = [(at + step) % num_nodes for step in (1, 2, 5)]
    return from_edges(np.concatenate(ends), np.tile(at, 3), num_nodes)


SAMPLERS = {
    "nodes": partial(saint_nodes, size=48, width=4),
    "edges": partial(saint_edges, size=24, width=4),
    "walks": partial(saint_walks, roots=16, length=2, width=4),
}


def source_of(kind: str, num_nodes: int):
    """What a step draws from, and how."""
    plain = ring(num_nodes)
    if kind == "clusters":
        found = cluster(plain, num_nodes // 40, partition=lambda graph, num: np.arange(num_nodes) // 40)
        return found, lambda key, found: cluster_batch(found, jax.random.choice(key, 20, (4,), replace=False))
    saint = measure_saint(jax.random.key(0), plain, SAMPLERS[kind], repeats=2)
    return saint, lambda key, saint: estimated_batch(key, saint, SAMPLERS[kind])[0]


@pytest.mark.parametrize("kind", ["clusters", *SAMPLERS])
def test_a_step_is_traced_once_and_its_memory_is_not_the_graphs(kind: str):
    model, used = GraphSAGE(hidden=16, out=4), []
    for num_nodes in (800, 6400):
        (source, draw), traces = source_of(kind, num_nodes), []

        @jax.jit
        def step(params, source, rows, key, traces=traces, draw=draw):
            traces.append(key)
            batch = draw(key, source)

            def loss(params):
                out = model.apply(params, rows[batch.nodes], (batch.block,) * 2)
                return jnp.where(batch.mask[:, None], out, 0).sum()

            return jax.grad(loss)(params), batch.nodes

        def init(source, rows, draw=draw):
            return model.init(jax.random.key(0), rows, (draw(jax.random.key(0), source).block,) * 2)

        rows = np.zeros((num_nodes, 32), np.float32)
        params = jax.tree.map(lambda x: np.ones(x.shape, x.dtype), jax.eval_shape(init, source, rows))
        drawn = [step(params, source, rows, jax.random.key(seed))[1].tolist() for seed in (0, 1, 0)]
        assert drawn[0] == drawn[2] != drawn[1]
        assert len(traces) == 1
        compiled = step.lower(params, source, rows, jax.random.key(0)).compile()
        used.append(compiled.memory_analysis().temp_size_in_bytes)
    assert abs(used[1] - used[0]) <= 0.02 * used[0] + 256, used
