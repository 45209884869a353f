"""What messages pass along: interactions, the items that walks visit most, or items that share users.

Where an edge has a weight, those of a node are 1 on average: a layer that divides by the number of neighbors
takes their weighted mean.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from experiments.links.learners import link_blocks
from experiments.recommend.config import Config
from jsage.blocks import Block
from jsage.graph import Graph, edges, from_edges, in_degrees, item_item, item_nodes, sort_rows
from jsage.graph.adjacency import Adjacency
from jsage.sampling import (
    LinkBatch,
    Ranking,
    full_block,
    importance_blocks,
    importance_graph,
    importance_neighbors,
    rank_neighbors,
    restart_visits,
    without_pairs,
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
        return tuple(scaled(block) for block in found), False
    nodes = jnp.arange(graph.num_nodes, dtype=jnp.int32)
    return (scaled(importance_neighbors(key, left, nodes, max(tops), **options)),) * len(tops), True


def scaled(block: Block) -> Block:
    """A block whose shares are weights of 1 on average."""
    found: Any = block
    weight = found.edge_data["weight"] * found.mask.sum(1, keepdims=True)
    return found._replace(edge_data={"weight": weight})


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
        degree = np.asarray(in_degrees(found))
        weight = np.asarray(found.edge_data["weight"]) * np.repeat(degree, degree)
        return graph, full_block(found._replace(edge_data={"weight": jax.device_put(weight)}))
    return graph, full_block(graph)


def with_items(graph: Graph, num_users: int, top: int) -> Graph:
    """Users read their items; an item reads the `top` that share most users with it, weighted by how many."""
    common = item_item(graph, num_users, top=top)
    src, dst = (np.asarray(ends) for ends in edges(graph))
    mine = dst < num_users
    near, item = (np.asarray(item_nodes(ends, num_users)) for ends in edges(common))
    weight = np.asarray(common.edge_data["weight"])
    total = np.bincount(item, weight, graph.num_nodes)
    weight = weight * np.bincount(item, minlength=graph.num_nodes)[item] / total[item]
    weights = np.concatenate([np.ones(mine.sum()), weight]).astype(np.float32)
    ends = np.concatenate([src[mine], near]), np.concatenate([dst[mine], item])
    return sort_rows(from_edges(*ends, graph.num_nodes, weight=weights))
