"""Embeddings of nodes that are in no table, from their features and their edges to known or other new nodes.

The graph is not rebuilt (`jsage.graph.overlay`): the cost depends on the new nodes' neighborhoods, not on its
size.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from jsage._internal.arrays import round_up
from jsage.blocks.block import block_ids, read_tables
from jsage.blocks.layout import Block
from jsage.graph.overlay import GraphOverlay, KnownNodes, NewNodes, overlay
from jsage.graph.sparse import Features, as_rows, is_sparse, sparse_rows
from jsage.infer.apply_exact import apply_exact
from jsage.infer.embed_all import check_model
from jsage.sampling import HopSize, exact_blocks, measure_hop_sizes, sample_blocks_by_node
from jsage.sampling.exact import StreamedBlock, table_rows

BATCH = 512
"""New nodes that are embedded at once."""
Blocks: TypeAlias = tuple[Block, ...]


def embed_new(
    model: Any,
    params: PyTree,
    graph: KnownNodes,
    features: Features,
    new: NewNodes,
    fanouts: Sequence[int] | None = None,
) -> Float[np.ndarray, "num_new out"]:
    """The model's outputs for nodes that are in no table: what it gives on the graph rebuilt with them.

    Neighborhoods are read whole, those of known neighbors with their new edges too; or sampled where
    `fanouts` are given, by the draws of `sample_blocks_by_node` under key 0, so that a node's result depends
    on its neighborhood alone. Neither rebuilds nor copies the graph or its features. As of a time
    (`jsage.graph.before(graph, time)`) it is what the model gives on the events visible then, new ones too.

    A host function that compiles for powers of two, and reuses what it compiled: a service sets
    `new.capacity`, and a model of two layers then has one program. An LSTM reads ordered slots: give it
    fanouts no smaller than any degree. A model with `in_features` takes new rows without the table's padding.
    Where features are sparse new rows may be either, and all words are copied together once a call.
    Raises ValueError as `overlay` does.

    >>> import jax
    >>> from jsage import GraphSAGE, sample_blocks
    >>> from jsage.data import digits
    >>> graph, features, *_ = digits()
    >>> model, key = GraphSAGE(hidden=8, out=10), jax.random.key(0)
    >>> params = model.init(key, features, sample_blocks(key, graph, jnp.array([0]), (2, 2)))
    >>> new = NewNodes(features[:2] / 2, src=[5, 6, -1], dst=[-1, -1, -2])
    >>> embed_new(model, params, graph, features, new).shape
    (2, 10)
    """
    features = jax.tree.map(jnp.asarray, as_rows(features))
    new = _as_wide(model, new._replace(features=as_rows(new.features)), features)
    _check_model(model, graph, features, new)
    joined, count = overlay(graph, new), new.features.shape[0]
    capacity = joined.features.shape[0]
    size = min(capacity, BATCH)
    rows = []
    for first in range(0, count, size):
        seeds = graph.id_limit + np.minimum(np.arange(first, first + size), capacity - 1).astype(np.int32)
        if fanouts is None:
            rooms = _rooms(model, joined, new, seeds)
            out = _whole(model, rooms, params, joined, features, seeds)
        else:
            out = _sampled(model, tuple(fanouts), params, joined, features, seeds)
        rows.append(np.asarray(out))
    return np.concatenate(rows)[:count]


def apply_blocks(
    model: Any, params: PyTree, features: Features, joined: GraphOverlay, blocks: Blocks
) -> Float[Array, "num_seeds out"]:
    """`model.apply` on blocks of a joined graph, whose ids go beyond the feature table; for jit and export.

    >>> import jax
    >>> from jsage import GraphSAGE
    >>> from jsage.data import digits
    >>> graph, features, *_ = digits()
    >>> joined = overlay(graph, NewNodes(features[:1], src=[5], dst=[-1]))
    >>> blocks = sample_blocks_by_node(jax.random.key(0), joined, jnp.array([1797]), fanouts=(3,))
    >>> model = GraphSAGE(hidden=8, out=4, num_layers=1)
    >>> params = model.init(jax.random.key(0), features, blocks)
    >>> apply_blocks(model, params, features, joined, blocks).shape
    (1, 4)
    """
    first, *rest = blocks
    if isinstance(first, StreamedBlock):
        return apply_exact(model, params, features, blocks, joined.features)
    if (ids := block_ids(first)) is None:
        return model.apply(params, features, blocks)
    _, tree = read_tables((), first)
    return model.apply(params, table_rows(features, joined.features, ids), (tree, *rest))


@partial(jax.jit, static_argnums=(0, 1))
def _sampled(model, fanouts, params, joined, features, seeds):
    blocks = sample_blocks_by_node(jax.random.key(0), joined, seeds, fanouts)
    return apply_blocks(model, params, features, joined, blocks)


@partial(jax.jit, static_argnums=(0, 1))
def _whole(model, rooms, params, joined, features, seeds):
    blocks, _ = exact_blocks(joined, seeds, rooms)
    return apply_blocks(model, params, features, joined, blocks)


def _rooms(model: Any, joined: GraphOverlay, new: NewNodes, seeds: np.ndarray) -> tuple[HopSize, ...]:
    """The rooms of a batch; the first hop holds new edges alone, counted here."""
    layers, dst = model.num_layers, np.asarray(joined.dst)
    if layers == 1:
        return ()
    if new.capacity:
        room = HopSize(dst.size, seeds.size + dst.size)
    else:
        near = np.asarray(joined.src)[slice(*np.searchsorted(dst, (seeds[0], seeds[-1] + 1)))]
        room = HopSize(round_up(near.size), round_up(np.unique(np.concatenate([seeds, near])).size))
    return measure_hop_sizes(joined, jnp.asarray(seeds), layers, (room,))


def _as_wide(model: Any, new: NewNodes, features: Any) -> NewNodes:
    """Rows of as many columns as the model reads, padded to those of the table."""
    if is_sparse(features):
        return new._replace(features=sparse_rows(new.features, "new.features"))
    if np.ndim(new.features) != 2 or new.features.shape[1] != getattr(model, "in_features", None):
        return new
    missing = max(features.shape[1] - new.features.shape[1], 0)
    return new._replace(features=np.pad(np.asarray(new.features), ((0, 0), (0, missing))))


def _check_model(model: Any, graph: KnownNodes, features: Any, new: NewNodes) -> None:
    if features.shape[0] != graph.id_limit:
        raise ValueError(
            f"features must have one row an id, {graph.id_limit}, got shape {features.shape}: "
            "pass the table that belongs to the graph"
        )
    if check_model(model).identity:
        raise ValueError(
            "this model has identity=..., an embedding learned for each known node: new nodes have none; "
            "train one on features alone"
        )
    if getattr(new.features, "ndim", 0) != 2 or new.features.shape[1] != features.shape[1]:
        raise ValueError(
            f"new.features must be [num_new, {features.shape[1]}] as the table is, "
            f"got {np.shape(new.features)}"
        )
