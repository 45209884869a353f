"""What messages pass along: interactions, the items that walks visit most, or items that share users.

Where edges have weights, a node has as many edges as any, so that all splits have one shape: those that are
missing come from itself with weight 0. The others' are scaled to 1 on average over all, and so a layer that
divides by the number of neighbors takes their weighted mean.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from experiments.links.learners import link_blocks
from experiments.recommend.config import Config
from jsage.blocks import Block
from jsage.graph import (
    Adjacency,
    Graph,
    edges,
    from_edges,
    in_degrees,
    item_item,
    item_nodes,
    sort_rows,
    without_pairs,
)
from jsage.sampling import (
    LinkBatch,
    Ranking,
    full_block,
    importance_blocks,
    importance_graph,
    importance_neighbors,
    rank_neighbors,
    restart_visits,
)

SampleFn = Callable[[Array, Graph, LinkBatch], tuple[tuple[Block, ...], bool]]
"""`(key, graph, batch) -> (blocks, everyone)`: blocks of the seeds or, True, of all nodes."""

few_visits = partial(restart_visits, walks=10, length=10)
"""What a node's neighborhood is drawn from in a step."""
many_visits = partial(restart_visits, walks=100, length=20)
"""What it is at inference, and what hard negatives are ranked by."""


def link_blocks_of(config: Config, num_users: int) -> SampleFn:
    """How a step reads its neighborhoods; the pairs asked for are out of them."""
    if config.neighborhoods == "walks":
        return partial(walk_blocks, tops=config.fanouts, num_users=num_users)
    return partial(link_blocks, fanouts=config.fanouts)


def walk_blocks(
    key: Array, graph: Graph, batch: LinkBatch, *, tops: tuple[int, ...], num_users: int
) -> tuple[tuple[Block, ...], bool]:
    """Items that walks from the seeds visit most, or (True) from all nodes where that is less work.

    From all nodes walks set out once, and all layers read the same neighborhoods.
    """
    left = without_pairs(graph, batch.src, batch.dst, batch.mask)
    options = {"visit": few_visits, "keep": partial(is_item, num_users=num_users)}
    if len(batch.seeds) * int(np.prod([1 + top for top in tops[:-1]])) < graph.num_nodes:
        found = importance_blocks(key, left, batch.seeds, tops, **options)
        return tuple(filled(block) for block in found), False
    nodes = jnp.arange(graph.num_nodes, dtype=jnp.int32)
    return (filled(importance_neighbors(key, left, nodes, max(tops), **options)),) * len(tops), True


def filled(block: Any) -> Block:
    """A block of shares with all of its slots valid: padding points at its own destination already."""
    weight = block.edge_data["weight"] * block.mask.shape[1]
    return block._replace(mask=jnp.ones_like(block.mask), edge_data={"weight": weight})


def filled_rows(graph: Graph, top: int) -> Graph:
    """A graph with weights, `top` edges in every row: `filled` for whole graphs."""
    src, dst = (np.asarray(ends) for ends in edges(graph))
    weight, nodes = np.asarray(graph.edge_data["weight"]), np.arange(graph.num_nodes)
    share = weight / np.bincount(dst, weight, graph.num_nodes)[dst]
    own = np.repeat(nodes, top - np.asarray(in_degrees(graph)))
    weights = np.concatenate([share * top, np.zeros(len(own))]).astype(np.float32)
    return from_edges(np.concatenate([src, own]), np.concatenate([dst, own]), graph.num_nodes, weight=weights)


def items_by_walks(key: Array, graph: Adjacency, nodes: Array, num_users: int, top: int) -> Ranking:
    """The `top` items that walks from each node visit most."""
    return rank_neighbors(
        key, graph, nodes, top, visit=many_visits, keep=partial(is_item, num_users=num_users)
    )


def is_item(nodes: Array, *, num_users: int) -> Array:
    """Which nodes are items."""
    return nodes >= num_users


def read_along(key: Array, graph: Graph, num_users: int, config: Config) -> tuple[Graph, Block]:
    """The graph that is sampled from in training, and the block that is read at inference."""
    top = max(config.fanouts)
    if config.neighborhoods == "items":
        messages = with_items(graph, num_users, top)
        return messages, full_block(messages)
    if config.neighborhoods == "walks":
        keep = partial(is_item, num_users=num_users)
        found = importance_graph(key, graph, top, visit=many_visits, keep=keep, chunk=1024)
        return graph, full_block(filled_rows(found, top))
    return graph, full_block(graph)


def with_items(graph: Graph, num_users: int, top: int) -> Graph:
    """Users read their items; an item reads the `top` that share most users with it, weighted by how many."""
    common = filled_rows(item_item(graph, num_users, top=top), top)
    src, dst = (np.asarray(ends) for ends in edges(graph))
    mine = dst < num_users
    near, item = (np.asarray(item_nodes(ends, num_users)) for ends in edges(common))
    weights = np.concatenate([np.ones(mine.sum()), np.asarray(common.edge_data["weight"])])
    ends = np.concatenate([src[mine], near]), np.concatenate([dst[mine], item])
    return sort_rows(from_edges(*ends, graph.num_nodes, weight=weights.astype(np.float32)))
