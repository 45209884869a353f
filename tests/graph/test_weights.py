"""Symmetric weights, against the dense matrix of Kipf and Welling (2017), equation 2."""

import jax
import jax.numpy as jnp
import numpy as np

from jsage import aggregate, from_edges, full_block
from jsage.graph import symmetric_weights, symmetrize


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
