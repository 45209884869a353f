"""A model on the blocks of whole neighborhoods, its first layer streamed from the feature table."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
from jaxtyping import Array, Float, PyTree

from jsage.blocks.reductions import Asked, State
from jsage.graph.sparse import Features, is_sparse, joined_rows
from jsage.infer.embed_all import layer_of
from jsage.infer.tracing import Apply, TracingBlock, apply_reduced, trace_levels, trace_reductions
from jsage.sampling.exact import PIECE, StreamedBlock, edges_into, table_rows
from jsage.typing import EdgeData


def apply_exact(
    model: Any,
    params: PyTree,
    features: Features,
    blocks: Sequence[Any],
    more: Any = None,
) -> Float[Array, "num_seeds out"]:
    """A model on the blocks of `exact_blocks`; ids beyond `features` are rows of `more`, nodes in no table.

    The first layer is run as in `embed_all`: what it sends is made of each piece's rows as they are read, so
    neither a transformed table nor a row for every edge exists, whatever the layer does before it aggregates.

    >>> import jax.numpy as jnp
    >>> from jsage import GraphSAGE, from_edges
    >>> from jsage.sampling import measure_hop_sizes, exact_blocks
    >>> graph, seeds = from_edges(src=[1, 2, 0], dst=[0, 0, 1], num_nodes=3), jnp.array([1])
    >>> blocks, _ = exact_blocks(graph, seeds, measure_hop_sizes(graph, seeds, 2))
    >>> model = GraphSAGE(hidden=8, out=2)
    >>> params = model.init(jax.random.key(0), jnp.eye(3), blocks)
    >>> apply_exact(model, params, jnp.eye(3), blocks).shape
    (1, 2)
    """
    first, *rest = blocks
    if is_sparse(features) and more is not None:
        features, more = joined_rows(features, more), None  # once, not with every piece

    def read(ids: Array) -> Any:
        return model.apply(params, table_rows(features, more, ids), ids, method="inputs")

    h = _first_layer(layer_of(model, params, 0), first, read)
    kept = [h]
    for k, block in enumerate(rest, 1):
        h = layer_of(model, params, k)(h, block)
        kept = [*(block.own(rows) for rows in kept), h]
    return model.apply(params, kept, method="finish") if model.jump else h


def _first_layer(apply: Apply, block: StreamedBlock, read: Callable[[Array], Any]) -> Array:
    own, data = read(block.dst), dict(jax.eval_shape(partial(_edge_rows, block)))

    def sent(which: list[int], ids: Array) -> list[Any]:
        asked = trace_reductions(apply, read(ids), data, again=False)
        return [asked[i].src for i in which]

    states: list[State] = []
    levels, asked = _listen(apply, own, TracingBlock(block.degree, data, again=False))
    for level in range(1 + max(levels, default=0)):
        if level:
            _, asked = _listen(apply, own, TracingBlock(block.degree, data, states, again=False))
        which = [i for i, here in enumerate(levels) if here == level]
        found, _ = block.states([asked[i] for i in which], partial(sent, which))
        known = dict(zip(which, found, strict=True))
        states = [known.get(i, states[i] if states else None) for i in range(len(levels))]
    return apply_reduced(apply, own, TracingBlock(block.degree, data, states, again=False))


def _listen(apply: Apply, own: Any, block: TracingBlock) -> tuple[list[int], list[Asked]]:
    return trace_levels(apply, own, block), block.asked


def _edge_rows(block: StreamedBlock) -> EdgeData:
    return edges_into(block.graph, block.dst, block.degree, PIECE).edge_data
