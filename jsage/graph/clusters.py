"""A graph cut into clusters, on the host, laid out so that a cluster is one slice of each array.

`jsage.sampling.cluster_batch` reads some of them inside the jitted step.
"""

from collections.abc import Callable
from importlib.util import find_spec
from typing import NamedTuple, TypeAlias

import jax
import numpy as np
from jaxtyping import Array, Int

from jsage._internal.arrays import pad_rows, run_positions
from jsage.graph.graph import Graph, edges, remove_self_loops, symmetrize
from jsage.typing import EdgeData

PartitionFn: TypeAlias = Callable[[Graph, int], Int[np.ndarray, " num_nodes"]]
"""`(graph, num) -> part`: which of the parts `0 .. num - 1` each node belongs to; a part may be empty."""

_SLACK, _ROUNDS = 1.05, 20


class Clusters(NamedTuple):
    """The nodes of a graph cluster after cluster, and the edges into each: made by `cluster`.

    Cluster `c` has the nodes `order[node_ptr[c]:node_ptr[c + 1]]`, and the edges into them are those from
    `edge_ptr[c]` on. Edge `e` leads from row `src[e] % rows` of cluster `src[e] // rows` to row `dst[e]` of
    its own, where `rows` is the length of `row`. So a slice as long as `row`, or `slot`, holds any cluster;
    the arrays go on after their end so that it is one of them.

    >>> from jsage.graph import from_edges
    >>> found = cluster(from_edges([0, 1, 2], [1, 0, 0], num_nodes=3), 2, partition=lambda *_: [1, 0, 1])
    >>> found.order[:3].tolist(), found.node_ptr.tolist(), found.edge_ptr.tolist()
    ([1, 0, 2], [0, 1, 3], [0, 1, 3])
    """

    order: Int[Array, " num_nodes+rows"]
    """The graph's nodes, cluster after cluster, and the first ones again."""
    node_ptr: Int[Array, " num_clusters+1"]
    edge_ptr: Int[Array, " num_clusters+1"]
    src: Int[Array, " num_edges+slots"]
    dst: Int[Array, " num_edges+slots"]
    edge_data: EdgeData
    row: Int[Array, " rows"]
    """`0, 1, ..`: as many as the largest cluster has nodes."""
    slot: Int[Array, " slots"]
    """`0, 1, ..`: as many as there are edges into the cluster that has most."""

    @property
    def num(self) -> int:
        """The number of clusters."""
        return self.node_ptr.shape[0] - 1


def cluster(graph: Graph, num: int, *, partition: PartitionFn | None = None) -> Clusters:
    """The graph in `num` clusters, for batches of whole clusters (Chiang et al., 2019, Cluster-GCN).

    `partition` says which cluster a node is in: `multilevel` cuts fewest edges and needs pymetis (the extra
    `cluster`), `propagated` needs nothing; None: the first one where it is installed. Nodes and edges of a
    cluster keep their order. On the host. Raises ValueError for `num` below 1 or above the number of nodes,
    and for a partition into other parts.

    >>> from jsage.graph import from_edges
    >>> found = cluster(from_edges([0, 1, 2, 3], [1, 0, 3, 2], num_nodes=4), 2)
    >>> found.num, sorted(found.order[:4].tolist()), len(found.row), len(found.slot)
    (2, [0, 1, 2, 3], 2, 2)
    """
    if not 1 <= num <= graph.num_nodes:
        raise ValueError(f"num must be in 1 .. {graph.num_nodes}, the number of nodes, got {num}")
    chosen = (multilevel if find_spec("pymetis") else propagated) if partition is None else partition
    part = np.asarray(chosen(graph, num))
    if part.shape != (graph.num_nodes,) or part.dtype.kind not in "iu" or part.min() < 0 or part.max() >= num:
        raise ValueError(
            f"a partition gives each of {graph.num_nodes} nodes one of the parts 0 .. {num - 1}, got "
            f"{part.dtype} of shape {part.shape}, {part.min()} to {part.max()}"
        )
    return _laid_out(graph, part, num)


def multilevel(graph: Graph, num: int) -> Int[np.ndarray, " num_nodes"]:
    """Parts of nearly equal size with few edges between them, by METIS (Karypis and Kumar, 1998).

    Edges count in both directions, once each. Raises ImportError without pymetis, the extra `cluster`.

    >>> from jsage.graph import from_edges
    >>> graph = from_edges([0, 1, 2, 3], [1, 0, 3, 2], num_nodes=4)
    >>> part = multilevel(graph, 2) if find_spec("pymetis") else np.array([1, 1, 0, 0])
    >>> bool(part[0] == part[1] != part[2] == part[3])
    True
    """
    import pymetis  # pyright: ignore[reportMissingImports]

    both = symmetrize(remove_self_loops(graph._replace(edge_data={})))
    if num == 1 or both.num_edges == 0:
        return np.arange(graph.num_nodes) % num
    adjacency = pymetis.CSRAdjacency(np.asarray(both.indptr), np.asarray(both.indices))
    return np.asarray(pymetis.part_graph(num, adjacency=adjacency).vertex_part).astype(np.int64)


def propagated(graph: Graph, num: int) -> Int[np.ndarray, " num_nodes"]:
    """Parts of at most 1.05 times the mean size, by label propagation that refuses what is full.

    First each node is a part of its own, and parts grow. These, in breadth-first order, are cut into `num`
    parts of one size, between which nodes move again. A node that has more neighbors in another part asks to
    move there; those that gain most are let in while there is room (after Ugander and Backstrom, 2013,
    Balanced label propagation). Edges count in both directions. METIS cuts fewer: on `pubmed`, in 50 parts,
    26 % of the edges, and this 41 %.

    >>> from jsage.graph import from_edges
    >>> propagated(from_edges([0, 1, 2, 3], [2, 3, 0, 1], num_nodes=4), 2)
    array([0, 1, 0, 1])
    """
    both, nodes = symmetrize(remove_self_loops(graph._replace(edge_data={}))), graph.num_nodes
    limit = max(-(-nodes // num), int(_SLACK * nodes / num))
    grown = _settled(both, np.arange(nodes), limit)
    place = np.empty(nodes, np.int64)
    place[_breadth_first(np.asarray(both.indptr), np.asarray(both.indices))] = np.arange(nodes)
    first = np.full(nodes, nodes)
    np.minimum.at(first, grown, place)
    part = np.empty(nodes, np.int64)
    part[np.lexsort((place, first[grown]))] = np.arange(nodes) * num // nodes
    return _settled(both, part, limit)


def _settled(graph: Graph, part: np.ndarray, limit: int) -> np.ndarray:
    """Some rounds in which half of the nodes may move to the part where they have most neighbors."""
    src, dst = map(np.asarray, edges(graph))
    random = np.random.default_rng(0)
    num, part = int(part.max()) + 1, part.copy()
    for _ in range(_ROUNDS):
        pair, count = np.unique(dst.astype(np.int64) * num + part[src], return_counts=True)
        node, there = np.divmod(pair, num)
        gain = count - np.bincount(dst, part[src] == part[dst], graph.num_nodes)[node]
        asks = np.flatnonzero((gain > 0) & (random.random(graph.num_nodes) < 0.5)[node])
        asks = asks[np.lexsort((-gain[asks], node[asks]))]
        asks = asks[np.diff(node[asks], prepend=-1) > 0]  # each node's best
        asks = asks[np.lexsort((-gain[asks], there[asks]))]
        wanted = np.bincount(there[asks], minlength=num)
        place = np.arange(len(asks)) - (np.cumsum(wanted) - wanted)[there[asks]]
        asks = asks[place < (limit - np.bincount(part, minlength=num))[there[asks]]]
        part[node[asks]] = there[asks]
    return part


def _laid_out(graph: Graph, part: np.ndarray, num: int) -> Clusters:
    src, dst = map(np.asarray, edges(graph))
    order, by_part = np.argsort(part, kind="stable"), np.argsort(part[dst], kind="stable")
    counts = np.bincount(part, minlength=num), np.bincount(part[dst], minlength=num)
    node_ptr, edge_ptr = (np.concatenate([[0], np.cumsum(count)]) for count in counts)
    rows, slots = (max(int(count.max()), 1) for count in counts)
    if num * rows >= 2**31:
        raise ValueError(f"{num} clusters of up to {rows} nodes have 2^31 rows or more: balance the parts")
    place = np.empty(graph.num_nodes, np.int64)
    place[order] = part[order] * rows + np.arange(graph.num_nodes) - node_ptr[part[order]]
    order = np.concatenate([order, order[:rows]])
    source, row = (pad_rows(ends[by_part], len(src) + slots) for ends in (place[src], place[dst] % rows))
    data = {name: pad_rows(np.asarray(x)[by_part], len(src) + slots) for name, x in graph.edge_data.items()}
    ids = order, node_ptr, edge_ptr, source, row, np.arange(rows), np.arange(slots)
    order, node_ptr, edge_ptr, source, row, rows, slots = (jax.device_put(x.astype(np.int32)) for x in ids)
    return Clusters(order, node_ptr, edge_ptr, source, row, jax.device_put(data), rows, slots)


def _breadth_first(indptr: np.ndarray, indices: np.ndarray) -> np.ndarray:
    """All nodes, component after component, by their distance from its first node; those alone at the end."""
    degree = np.diff(indptr)
    met, found = degree == 0, []
    for root in np.flatnonzero(degree):
        if met[root]:
            continue
        met[root], frontier = True, np.array([root])
        while len(frontier):
            found.append(frontier)
            frontier = np.unique(indices[run_positions(indptr[frontier], degree[frontier])])
            frontier = frontier[~met[frontier]]
            met[frontier] = True
    return np.concatenate([*found, np.flatnonzero(degree == 0)])
