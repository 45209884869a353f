"""Exact inference on sharded tables: the rows that one device computes."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec
from sharding import placements

from jsage import aggregate
from jsage.graph import Graph, from_edges
from jsage.nn import LSTM, GraphSAGE, Pool, SAGEConv, jump_concat
from jsage.parallel import Budget, embed_all, make_mesh, on_mesh, replicate, shard_features, shard_graph
from jsage.sampling import full_block

NODES, WIDTH = 50, 6
BUDGET = Budget(capacity=3, edges=16, rows=4)


def layers(features: int, dropout: float) -> SAGEConv:
    """A layer that transforms what it sends, then one that reads neighbors in their order."""
    return SAGEConv(features, aggregate=Pool() if features == 5 else LSTM(), dropout=dropout)


MODELS = {
    "pool and lstm": (GraphSAGE(hidden=5, out=3, conv=layers), "three shards empty"),
    "max": (
        GraphSAGE(
            hidden=5,
            out=3,
            conv=partial(SAGEConv, aggregate=aggregate.max),
            jump=jump_concat,
            identity=(NODES, 2),
        ),
        "permuted",
    ),
}
"""name -> model, placement"""


@pytest.fixture(scope="module")
def crowd() -> Graph:
    """Degrees from 0 to 9, some hubs of 33 to 70, weights of either sign."""
    rng = np.random.default_rng(0)
    degrees = rng.integers(0, 10, NODES)
    degrees[[3, 4, 17, 49]] = 70, 33, 16, 50
    dst = np.repeat(np.arange(NODES), degrees)
    weight = rng.normal(size=len(dst)).astype(np.float32)
    return from_edges(rng.integers(0, NODES, len(dst)), dst, NODES, weight=weight)


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_rows_are_those_of_one_device(crowd, name: str):
    """Hubs take up to five turns; sources overflow the capacity; shards have unequal numbers of turns."""
    model, placed = MODELS[name]
    mesh, placement = make_mesh(), placements(NODES)[placed]
    table = np.random.default_rng(1).normal(size=(NODES, WIDTH)).astype(np.float32)
    blocks = (full_block(crowd, slots=True),) * model.num_layers
    init = partial(model.init_with_output, jax.random.key(0))
    expected, params = jax.jit(init)(jnp.asarray(table), blocks)
    given = (
        replicate(params, mesh),
        shard_graph(crowd, placement, mesh),
        shard_features(table, placement, mesh),
    )
    run = on_mesh(lambda *given: embed_all(model, *given, BUDGET), mesh, given, PartitionSpec("data"))
    rows = jax.jit(run)(*given)
    owner, local = placement.locate(np.arange(NODES))
    np.testing.assert_allclose(rows[owner * placement.rows + local], expected, rtol=1e-5, atol=1e-5)
