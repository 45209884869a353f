"""The whole graph in degree classes: values and gradients in NumPy, and those of the same edges as a list."""

import itertools
import re
from functools import cache, partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import (
    AGGREGATORS,
    AWKWARD,
    NUM_NODES,
    REFERENCES,
    WIDTH,
    deviation,
    features,
    listed,
    slow_but,
)

from jsage import aggregate
from jsage.blocks import sliced_full_block
from jsage.blocks.layout import Block
from jsage.graph import Graph, from_edges, symmetrize
from jsage.nn import LSTM, GraphSAGE, Pool, SAGEConv, jump_concat
from jsage.sampling import full_block

NODES = NUM_NODES * len(AWKWARD)
SMALL = {"rows": 4, "limit": 3}
"""Many chunks, and nodes in pieces of pieces."""

quick = partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


@cache
def awkward(weighted: bool) -> Graph:
    """All awkward graphs beside each other as one."""
    src, dst = (
        np.concatenate([ends[i] + NUM_NODES * n for n, ends in enumerate(AWKWARD.values())]) for i in (0, 1)
    )
    return from_edges(src, dst, NODES, **({"weight": features(7, len(src), 1)[:, 0]} if weighted else {}))


@cache
def classes(weighted: bool) -> Block:
    return sliced_full_block(awkward(weighted), **SMALL)


def neighbors(graph: Graph) -> list[tuple[np.ndarray, np.ndarray]]:
    """Sources and weights of each node's edges."""
    indptr, indices = np.asarray(graph.indptr), np.asarray(graph.indices)
    weight = np.asarray(graph.edge_data.get("weight", np.ones(len(indices))), np.float64)
    return [(indices[a:b], weight[a:b]) for a, b in itertools.pairwise(indptr)]


def pooled(name: str, graph: Graph, table: np.ndarray) -> np.ndarray:
    """What an aggregator gives, node by node in float64."""
    table = np.asarray(table, np.float64)
    rows = [table[src] * weight[:, None] for src, weight in neighbors(graph)]
    return np.stack([REFERENCES[name](own, found) for own, found in zip(table, rows, strict=True)])


def pulled(name: str, graph: Graph, table: np.ndarray, cotangent: np.ndarray) -> np.ndarray:
    """The gradient, edge by edge in float64."""
    table, cotangent = np.asarray(table, np.float64), np.asarray(cotangent, np.float64)
    grad = np.zeros_like(table)
    for v, (src, weight) in enumerate(neighbors(graph)):
        n, pull = len(src), cotangent[v]
        if name == "gcn":
            pull = pull / (1 + n)
            grad[v] += pull
        if name == "mean":
            pull = pull / max(n, 1)
        share = np.ones((n, table.shape[1]))
        rows = table[src] * weight[:, None]
        if name in ("max", "min") and n:
            won = rows == (rows.max(0) if name == "max" else rows.min(0))
            share = won / won.sum(0)
        if name == "std" and n:
            share = (rows - rows.mean(0)) / (n * np.where(found := deviation(rows), found, np.inf))
        np.add.at(grad, src, share * weight[:, None] * pull)
    return grad


FIRST, OTHERS = ("sum", "mean", "max", "gcn"), ("min", "std")
"""Those that have a program in the quick lane, and those that are made of the others' reductions."""


@partial(quick, static_argnums=3)
def answers(block: Block, table: jax.Array, cotangent: jax.Array, names: tuple[str, ...] = FIRST):
    """Value and gradient of some aggregators."""

    def one(reduce):
        out, pull = jax.vjp(lambda table: reduce(table, block), table)
        return out, pull(cotangent)[0]

    return {name: one(AGGREGATORS[name]) for name in names}


def table(seed: int = 0) -> np.ndarray:
    """Rows with many ties."""
    return np.round(features(seed, NODES) * 2) / 2


@pytest.fixture(params=[False, True], ids=["plain", "weighted"])
def weighted(request) -> bool:
    return request.param


@pytest.mark.parametrize("names", [FIRST, pytest.param(OTHERS, marks=pytest.mark.slow)])
def test_values_and_gradients_are_those_of_a_loop(weighted: bool, names: tuple[str, ...]):
    assert {*FIRST, *OTHERS} == AGGREGATORS.keys()
    graph, h, cotangent = awkward(weighted), table(), features(1, NODES)
    for name, (out, grad) in answers(classes(weighted), h, cotangent, names).items():
        np.testing.assert_allclose(out, pooled(name, graph, h), rtol=1e-5, atol=1e-5, err_msg=name)
        expected = pulled(name, graph, np.float32(h), cotangent)
        np.testing.assert_allclose(grad, expected, rtol=1e-5, atol=1e-5, err_msg=name)


def test_values_and_gradients_are_those_of_segments(weighted: bool):
    h, cotangent = features(2, NODES), features(3, NODES)
    ours, theirs = (
        answers(block, h, cotangent) for block in (classes(weighted), full_block(awkward(weighted)))
    )
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5), ours, theirs)


@pytest.mark.parametrize("poison", [np.nan, np.inf])
def test_what_no_edge_reads_changes_nothing(poison: float, weighted: bool):
    """Padding points at legal rows: those of nodes that nobody reads, and their cotangents."""
    h, cotangent = table(), features(1, NODES)
    lists = neighbors(awkward(weighted))
    readers = np.array([len(src) for src, _ in lists])
    unread = np.setdiff1d(np.arange(NODES), np.concatenate([src for src, _ in lists]))
    silent = np.flatnonzero(readers == 0)
    assert np.setdiff1d(unread, silent).size > 0
    bad, bad_cotangent = h.copy(), cotangent.copy()
    bad[unread], bad_cotangent[silent] = poison, poison
    clean, dirty = (answers(classes(weighted), *pair) for pair in ((h, cotangent), (bad, bad_cotangent)))
    for name in ("sum", "mean", "max"):
        np.testing.assert_array_equal(dirty[name][0], clean[name][0], err_msg=name)
        np.testing.assert_array_equal(dirty[name][1], clean[name][1], err_msg=name)


def test_a_nan_reaches_its_readers_alone():
    h = table()
    h[NUM_NODES * 3 + 1] = np.nan  # a parallel edge's source
    out = answers(classes(False), h, h)["sum"][0]
    reached = np.flatnonzero(np.isnan(out).any(1))
    assert reached.tolist() == [v for v, (src, _) in enumerate(neighbors(awkward(False))) if 25 in src]


@pytest.mark.slow
def test_read_is_that_of_segments():
    valid = jnp.arange(NODES) % 3 == 0
    for weighted in (False, True):
        expected = full_block(awkward(weighted)).read(valid, NODES)
        np.testing.assert_array_equal(classes(weighted).read(valid, NODES), expected)


def test_without_edges_all_is_zero():
    block = sliced_full_block(from_edges([], [], num_nodes=3))
    out, pull = jax.vjp(lambda h: block.sum(h) + block.max(h), jnp.ones((3, 2)))
    assert not out.any()
    assert not pull(out + 1)[0].any()
    assert block.degrees().tolist() == [0, 0, 0]


def test_bfloat16_rows_are_summed_in_float32():
    rim, hub = np.arange(1, 1000), np.zeros(999, int)
    star = from_edges(np.concatenate([rim, hub]), np.concatenate([hub, rim]), num_nodes=1000)
    ones = jnp.ones((1000, 1), jnp.bfloat16)
    out, pull = jax.vjp(sliced_full_block(star, rows=16, limit=64).sum, ones)
    for rows in (out, pull(ones)[0]):
        assert rows.dtype == jnp.bfloat16
        assert float(rows[0, 0]) == 1000  # 999 rounded: adding ones in bfloat16 stops at 256


@pytest.mark.slow
def test_a_tied_maximum_of_a_hub_is_shared_by_all():
    block = sliced_full_block(
        from_edges(np.arange(1, 101), np.zeros(100, int), num_nodes=101), rows=8, limit=7
    )
    grad = jax.grad(lambda h: block.max(h)[0, 0])(jnp.ones((101, 1)))
    np.testing.assert_allclose(grad[1:, 0], 1 / 100, rtol=1e-6)
    assert float(grad[0, 0]) == 0


def test_a_symmetric_graph_keeps_its_edges_once():
    src, dst = np.random.default_rng(0).integers(0, 50, (2, 200))
    both = symmetrize(from_edges(src, dst, num_nodes=50))
    once = sliced_full_block(both)
    assert once.backward is once.forward
    lopsided = from_edges(*np.array([[0, 1], [1, 0]]), num_nodes=2, weight=[1.0, 2.0])
    turned = sliced_full_block(lopsided)
    grad = jax.grad(lambda h: turned.sum(h)[0, 0])(jnp.ones((2, 1)))
    assert grad.ravel().tolist() == [0.0, 2.0]  # edge 1 -> 0 has weight 2


def test_nothing_has_a_row_for_every_edge_and_one_program_serves_all_values():
    src, dst = np.random.default_rng(0).integers(0, 100, (2, 20_000))
    block, traces = sliced_full_block(from_edges(src, dst, num_nodes=100), rows=32), []

    @jax.jit
    def run(h, block):
        traces.append(1)
        return jax.vjp(lambda h: aggregate.mean(h, block) + aggregate.max(h, block), h)[1](h)

    h = jnp.ones((100, 64))
    text = run.lower(h, block).compile().as_text()
    held = [np.prod([int(n) for n in dims.split(",")]) for dims in re.findall(r"f32\[([\d,]+)\]", text)]
    assert max(held) < 20 * h.size < 20_000 * 64 / 8
    run(h, block)
    run(h + 1, block)
    assert len(traces) == 1


def test_clear_errors():
    with pytest.raises(ValueError, match=r"must have one row a node, got 3 rows"):
        classes(False).sum(jnp.ones((3, 2)))
    with pytest.raises(TypeError, match=r"use full_block\(graph, slots=True\)"):
        listed(jnp.ones((NODES, 2)), classes(False), 4)
    with pytest.raises(TypeError, match=r"use full_block\(graph, slots=True\)"):
        SAGEConv(2, aggregate=LSTM()).init(jax.random.key(0), jnp.ones((NODES, 2)), classes(False))
    with pytest.raises(ValueError, match=r"need a graph with nodes"):
        sliced_full_block(from_edges([], [], num_nodes=0))
    with pytest.raises(ValueError, match=r"limit of 2 or more, got 8 and 1"):
        sliced_full_block(awkward(False), rows=8, limit=1)


MODELS = {
    "mean, wide to narrow": {"conv": partial(SAGEConv), "hidden": 3},
    "gcn, residual, batch norm": {
        "conv": partial(SAGEConv, aggregate=aggregate.gcn),
        "residual": True,
        "norm": nn.BatchNorm,
    },
    "max pool, jump": {"conv": partial(SAGEConv, aggregate=Pool()), "jump": jump_concat},
    "max, concat, normalize, project": {
        "conv": partial(SAGEConv, aggregate=aggregate.max, concat=True, normalize=True, project=True)
    },
}


@pytest.mark.slow
@pytest.mark.parametrize("name", slow_but(["max, concat, normalize, project"], MODELS))
def test_a_model_is_that_on_segments(name: str):
    """Which is Algorithm 1 in NumPy: tests/test_sage.py."""
    model = GraphSAGE(**{"hidden": 6, "out": 3, **MODELS[name]})
    h, mask = features(4, NODES, WIDTH), jnp.arange(NODES) % 5 != 0
    whole = (full_block(awkward(True)),) * 2
    variables = quick(model.init)(jax.random.key(0), h, whole)

    def loss(params, h, blocks):
        everything = {**variables, "params": params}
        out, _ = model.apply(everything, h, blocks, mask=mask, deterministic=False, mutable=["batch_stats"])
        return (out**2).sum() + out.sum()

    grads = [
        quick(jax.value_and_grad(loss, argnums=(0, 1)))(variables["params"], h, blocks)
        for blocks in (whole, (classes(True),) * 2)
    ]
    jax.tree.map(partial(np.testing.assert_allclose, rtol=2e-4, atol=2e-4), *grads)
