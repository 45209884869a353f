"""Neighborhoods in a graph with types: fanouts a relation and hop, seeds of any types, in the step."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from jsage._internal.arrays import take
from jsage._internal.checks import as_ids, check_fanouts
from jsage.blocks import Tree
from jsage.blocks.typed import TypedEdges, TypedTree
from jsage.graph.typed import TypedGraph
from jsage.sampling.draws import without_replacement
from jsage.sampling.neighbors import Seeds, full_block, sample_neighbors
from jsage.typing import AnyDraw, EdgeType, PRNGKey

Fanout: TypeAlias = int | Mapping[EdgeType, int]
"""A hop's: one for all relations, or one for each; 0 leaves the relation out."""


class TypedBatch(NamedTuple):
    """The nodes that a minibatch reads, a type, seeds first; and its hops in the order layers run."""

    nodes: Mapping[str, Int[Array, " rows"]]
    blocks: tuple[TypedTree, ...]

    def read(self, tables: Mapping[str, Any]) -> dict[str, Array]:
        """The rows of each type's table `[num_nodes, ...]` that the first layer reads.

        Rows of slots that hold nothing are some row of the table, or 0 where it has none; nothing reads them.
        """
        rows = {}
        for name, ids in self.nodes.items():
            if name not in tables:
                raise ValueError(f"the batch reads type {name!r}, got tables of {sorted(tables)}")
            table = tables[name]
            empty = table.shape[0] == 0
            rows[name] = jnp.zeros((*ids.shape, *table.shape[1:]), table.dtype) if empty else take(table, ids)
        return rows


def sample_typed_blocks(
    key: PRNGKey,
    graph: TypedGraph,
    seeds: Mapping[str, Seeds],
    fanouts: Sequence[Fanout],
    *,
    draw: AnyDraw = without_replacement,
) -> TypedBatch:
    """The blocks of a minibatch, one typed hop a layer, in the order layers run.

    `seeds`: ids a type. `fanouts[0]` is the hop next to the seeds: in-neighbors of each destination in each
    relation, an int for all relations or one for each, where 0 leaves the relation out. Rows of a type are
    those before, then the slots of each relation, relations sorted. With one type and one relation the draws
    are those of `sample_blocks`: the relations that a hop draws from are numbered in order, and number `i`
    draws with `fold_in` of the hop's key and `i`, number 0 with that key. Raises ValueError for types and
    relations that the graph does not have, and for fanouts below 0 or that leave out a relation unsaid.

    >>> from jsage.graph import typed_graph
    >>> graph = typed_graph({"user": 2, "item": 3}, {("user", "buys", "item"): ([0, 1], [2, 2])})
    >>> batch = sample_typed_blocks(jax.random.key(0), graph, {"item": jnp.array([2, 0])}, fanouts=(2,))
    >>> batch.nodes["item"], batch.blocks[0].blocks["user", "buys", "item"].mask.sum(1)
    (Array([2, 0], dtype=int32), Array([2, 0], dtype=int32))
    """
    hops = _by_relation(graph, fanouts)
    nodes = {name: as_ids(ids, f"seeds of {name!r}") for name, ids in sorted(seeds.items())}
    _check_types(graph, nodes)
    blocks: list[TypedTree] = []
    for number, fanout in enumerate(hops):
        nodes, hop = _hop(jax.random.fold_in(key, number), graph, nodes, fanout, draw)
        blocks.insert(0, hop)
    return TypedBatch(nodes, tuple(blocks))


def typed_full_block(graph: TypedGraph, *, slots: bool = False) -> TypedEdges:
    """Every edge of a graph as one typed hop: all nodes read their whole neighborhoods (on the host).

    `slots=True` is that of `full_block`. For `L` layers pass it to each of them.

    >>> from jsage.graph import typed_graph
    >>> graph = typed_graph({"user": 2, "item": 3}, {("user", "buys", "item"): ([0, 1], [2, 2])})
    >>> typed_full_block(graph).blocks["user", "buys", "item"].degrees()
    Array([0, 0, 2], dtype=int32)
    """
    blocks = {}
    for relation in graph.relations:
        block = full_block(graph.edges[relation], slots=slots)
        if not graph.edges[relation].num_edges:
            block = _padded(block)
        if relation[0] != relation[2]:  # destinations are no rows of the sources' table
            block = block._replace(position=jax.device_put(np.zeros(block.num_dst, np.int32)))
        blocks[relation] = block
    return TypedEdges(blocks)


def typed_sizes(graph: TypedGraph, seeds: Mapping[str, int], fanouts: Sequence[Fanout]) -> dict[str, int]:
    """How many rows of each type `sample_typed_blocks` reads, from the numbers of seeds: nothing is compiled.

    >>> from jsage.graph import typed_graph
    >>> graph = typed_graph({"user": 2, "item": 3}, {("user", "buys", "item"): ([0, 1], [2, 2])})
    >>> typed_sizes(graph, {"item": 100}, fanouts=(5,))
    {'item': 100, 'user': 500}
    """
    _check_types(graph, seeds)
    rows = dict(sorted(seeds.items()))
    for hop in _by_relation(graph, fanouts):
        before = dict(rows)
        for (source, _, target), fanout in hop.items():
            if target in before:
                rows[source] = rows.get(source, 0) + before[target] * fanout
    return rows


def clip_fanouts(graph: TypedGraph, fanouts: Sequence[Fanout]) -> list[dict[EdgeType, int]]:
    """The fanouts, none above the largest in-degree of its relation, on the host; 1 at least where it was.

    >>> from jsage.graph import typed_graph
    >>> graph = typed_graph({"user": 2, "item": 3}, {("user", "buys", "item"): ([0, 1], [2, 2])})
    >>> clip_fanouts(graph, (5, 1))
    [{('user', 'buys', 'item'): 2}, {('user', 'buys', 'item'): 1}]
    """
    most = {
        relation: max(int(np.diff(np.asarray(one.indptr)).max(initial=0)), 1)
        for relation, one in graph.edges.items()
    }
    named = [_named(graph, fanout) for fanout in fanouts]
    return [{relation: min(k, most[relation]) for relation, k in hop.items()} for hop in named]


def _padded(block: Any) -> Any:
    """A block without edges, with one of padding: no array of it is empty."""
    row = lambda x: jax.device_put(np.zeros((1, *x.shape[1:]), x.dtype))  # noqa: E731
    data = {name: row(x) for name, x in block.edge_data.items()}
    return block._replace(src=row(block.src), dst=row(block.dst) + block.num_dst, edge_data=data)


def _hop(
    key: PRNGKey, graph: TypedGraph, nodes: dict[str, Any], fanouts: dict[EdgeType, int], draw: AnyDraw
) -> tuple[dict[str, Any], TypedTree]:
    """The nodes after a hop, and its block."""
    after, trees = {name: [ids] for name, ids in nodes.items()}, {}
    for number, (relation, fanout) in enumerate(fanouts.items()):
        source, _, target = relation
        if target not in nodes:
            continue
        own = jax.random.fold_in(key, number) if number else key
        block = sample_neighbors(own, _readable(graph, relation), nodes[target], fanout, draw=draw)
        src = block.src if source == target else jnp.where(block.mask, block.src, 0)
        after.setdefault(source, []).append(src.ravel())
        trees[relation] = Tree(block.mask, block.edge_data)
    joined = {name: jnp.concatenate(ids) if len(ids) > 1 else ids[0] for name, ids in sorted(after.items())}
    return joined, TypedTree(nodes, trees)


def _readable(graph: TypedGraph, relation: EdgeType) -> Any:
    """A relation's edges; into a type without nodes, whose padding is read all the same, of one node."""
    one = graph.edges[relation]
    return one if graph.num_nodes(relation[2]) else one._replace(indptr=jnp.zeros(2, jnp.int32))


def _named(graph: TypedGraph, fanout: Fanout) -> dict[EdgeType, int]:
    """A hop's fanout for each relation, sorted."""
    if not isinstance(fanout, Mapping):
        fanout = dict.fromkeys(graph.relations, fanout)
    if unknown := sorted(fanout.keys() - graph.edges.keys()):
        raise ValueError(f"fanouts name relation {unknown[0]}, expected relations of {graph.relations}")
    for relation in graph.relations:
        if relation not in fanout:
            raise ValueError(f"fanouts must name every relation, got none for {relation}: 0 leaves it out")
        if fanout[relation] < 0:
            raise ValueError(f"the fanout of relation {relation} must be 0 or more, got {fanout[relation]}")
    return {relation: fanout[relation] for relation in graph.relations}


def _by_relation(graph: TypedGraph, fanouts: Sequence[Fanout]) -> list[dict[EdgeType, int]]:
    """The fanouts above 0, a hop."""
    check_fanouts(fanouts)
    return [{name: k for name, k in _named(graph, hop).items() if k} for hop in fanouts]


def _check_types(graph: TypedGraph, seeds: Mapping[str, Any]) -> None:
    if unknown := sorted(seeds.keys() - graph.nodes.keys()):
        raise ValueError(f"seeds are of type {unknown[0]!r}, expected types of {sorted(graph.nodes)}")
    if not seeds:
        raise ValueError(f"expected seeds of one type at least, got none: pass ids of {sorted(graph.nodes)}")
