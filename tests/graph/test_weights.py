"""Weights made from a graph, against the dense matrix of Kipf and Welling (2017), equations 2 and 9."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jsage import aggregate, from_edges, full_block
from jsage.graph import gcn_weights, remove_self_loops, symmetric_weights, symmetrize
from jsage.nn import GCNConv


def normalized(adjacency: np.ndarray) -> np.ndarray:
    """`D^-1/2 (A + I) D^-1/2`, its degrees those of the rows and of the columns."""
    looped = adjacency + np.eye(len(adjacency))
    return looped / np.sqrt(1 + (adjacency != 0).sum(1))[:, None] / np.sqrt(1 + (adjacency != 0).sum(0))


def test_gcn_is_the_normalized_adjacency() -> None:
    rng = np.random.default_rng(0)
    graph = symmetrize(from_edges(*rng.integers(0, 30, (2, 80)), num_nodes=32))
    adjacency = np.zeros((32, 32))
    adjacency[np.repeat(np.arange(32), np.diff(graph.indptr)), np.asarray(graph.indices)] = 1
    h = rng.normal(size=(32, 5))
    found = aggregate.gcn(jnp.asarray(h, jnp.float32), full_block(symmetric_weights(graph)))
    np.testing.assert_allclose(found, normalized(adjacency) @ h, rtol=1e-5, atol=1e-6)
    assert np.abs(found - aggregate.gcn(jnp.asarray(h, jnp.float32), full_block(graph))).max() > 0.1


def test_weights_multiply_those_of_the_graph_and_leave_other_data() -> None:
    graph = from_edges(
        [0, 1, 2, 0], [1, 2, 1, 2], num_nodes=4, weight=[1.0, 2.0, 3.0, 4.0], time=[1, 2, 3, 4]
    )
    weighted = symmetric_weights(graph)
    into, out = np.array([0, 2, 2, 0]), np.array([2, 1, 1, 0])
    src, dst = np.asarray(graph.indices), np.array([1, 1, 2, 2])
    expected = np.sqrt((1 + into[dst]) / (1 + out[src])) * np.asarray(graph.edge_data["weight"])
    np.testing.assert_allclose(weighted.edge_data["weight"], expected, rtol=1e-6)
    assert weighted.edge_data["weight"].dtype == jnp.float32
    assert weighted.edge_data["time"] is graph.edge_data["time"]
    assert isinstance(weighted.edge_data["weight"], jax.Array)


SRC, DST = np.random.default_rng(1).integers(0, 9, (2, 40))
SRC, DST = np.append(SRC, [3, 3, 9]), np.append(DST, [3, 3, 9])  # two loops of one node; a node with no other
WEIGHT = np.random.default_rng(2).random(43).astype(np.float32) + np.float32(0.1)
NODES = 11
"""Node 10 has no edge."""


def dense(weight: np.ndarray, loop: float = 1.0, both: bool = False) -> np.ndarray:
    """`D^-1/2 (A + loops) D^-1/2` edge by edge: one loop a node, the last of its own where it has some."""
    matrix, loops = np.zeros((NODES, NODES)), np.full(NODES, loop)
    for u, v, e in zip(SRC, DST, weight.astype(np.float64), strict=True):
        if u != v or not loop:
            matrix[v, u] += e
        else:
            loops[v] = e
    into = matrix.sum(1) + loops
    out = matrix.sum(0) + loops if both else into
    matrix = matrix + np.diag(loops)
    roots = [np.where(d > 0, 1 / np.sqrt(np.where(d > 0, d, 1)), 0) for d in (into, out)]
    return roots[0][:, None] * matrix * roots[1]


@jax.jit
def convolved(h, block):
    conv = GCNConv(h.shape[1], bias=False)
    return conv.apply({"params": {"dense": {"kernel": jnp.eye(h.shape[1])}}}, h, block)


@pytest.mark.parametrize(
    ("options", "same"),
    [
        ({}, {}),
        ({"self_loop": 2.0}, {"loop": 2.0}),
        ({"self_loop": 0.0}, {"loop": 0.0}),
        ({"both": True},) * 2,
    ],
)
def test_a_graph_convolution_is_the_normalized_adjacency(options, same) -> None:
    h = np.random.default_rng(3).normal(size=(NODES, 4)).astype(np.float32)
    for weight in (None, WEIGHT):
        given = {} if weight is None else {"weight": weight}
        graph = gcn_weights(from_edges(SRC, DST, NODES, **given), **options)
        matrix = dense(np.ones(len(SRC)) if weight is None else weight, **same)
        np.testing.assert_allclose(convolved(h, full_block(graph)), matrix @ h, rtol=1e-5, atol=1e-6)


def test_weights_that_are_not_normalized_may_be_of_either_sign() -> None:
    signed = from_edges(SRC, DST, NODES, weight=WEIGHT - np.float32(0.6), time=np.arange(43))
    h = np.random.default_rng(3).normal(size=(NODES, 4)).astype(np.float32)
    graph, matrix = gcn_weights(signed, self_loop=0.0, normalize=False), np.zeros((NODES, NODES))
    np.add.at(matrix, (DST, SRC), WEIGHT.astype(np.float64) - 0.6)
    np.testing.assert_allclose(convolved(h, full_block(graph)), matrix @ h, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(graph.edge_data["time"], signed.edge_data["time"])
    with pytest.raises(ValueError, match=r"weights must be 0 or more .* got -0\.\d+: pass normalize=False"):
        gcn_weights(signed)


def test_weights_of_a_graph_convolution_are_differentiable() -> None:
    graph = from_edges(SRC, DST, NODES)
    cotangent = np.random.default_rng(4).normal(size=(NODES, 4)).astype(np.float32)
    h = np.random.default_rng(3).normal(size=(NODES, 4)).astype(np.float32)
    order = np.argsort(DST, kind="stable")

    def loss(weight):
        block = full_block(gcn_weights(graph._replace(edge_data={"weight": weight[order]})))
        return (convolved(h, block) * cotangent).sum()

    slope, step = np.asarray(jax.grad(loss)(jnp.asarray(WEIGHT))), 1e-6
    for edge in range(0, len(WEIGHT), 3):
        moved = [WEIGHT.astype(np.float64) + step * sign * (np.arange(43) == edge) for sign in (1, -1)]
        change = [((dense(weight) @ h) * cotangent).sum() for weight in moved]
        np.testing.assert_allclose(slope[edge], (change[0] - change[1]) / (2 * step), rtol=1e-3, atol=1e-4)


def test_loops_are_removed_and_what_is_left_keeps_its_data() -> None:
    graph = remove_self_loops(from_edges(SRC, DST, NODES, weight=WEIGHT))
    keep = np.flatnonzero(SRC != DST)[np.argsort(DST[SRC != DST], kind="stable")]
    np.testing.assert_array_equal(graph.indices, SRC[keep])
    np.testing.assert_array_equal(graph.edge_data["weight"], WEIGHT[keep])
    assert type(remove_self_loops(symmetrize(graph))) is type(symmetrize(graph))
