"""The sides of a graph: nodes that an edge never joins are on one side."""

import numpy as np
from jaxtyping import Int

from jsage._internal.checks import INT32, check_ids
from jsage.graph.graph import Graph, edges
from jsage.typing import HostArray


def node_sides(
    graph: Graph, node_type: Int[HostArray, " num_nodes"] | None = None
) -> Int[np.ndarray, " num_nodes"]:
    """The side of each node, int32: an edge could join two nodes if their sides are those of some edge.

    The types of the nodes, where they are given. Else two sides where the edges say so, else one, 0:

    * where no node is both a source and a destination, 0 are the sources, 1 the destinations;
    * where the graph is two-colorable, that is without an odd cycle or self-loop, 0 in each connected
      component is the color of its lowest id (users come before items in `bipartite_graph`), 1 the other.

    Nothing is known of a node without edges, which is then on side 2. A tree and a grid are two-colorable
    too: where any two of their nodes could be joined, pass one type for all. On the host, by SciPy. Raises
    ValueError for types that are not one integer a node, or are negative.

    >>> from jsage.graph import bipartite_graph, from_edges
    >>> node_sides(bipartite_graph([0, 1, 1], [0, 0, 1], num_users=3, num_items=2)).tolist()
    [0, 0, 2, 1, 1]
    >>> node_sides(from_edges([0, 1, 2], [1, 2, 0], num_nodes=4)).tolist()
    [0, 0, 0, 0]
    """
    if node_type is not None:
        types = check_ids(node_type, INT32, "node_type", what="types")
        if len(types) != graph.num_nodes:
            raise ValueError(f"node_type must have one type a node, {graph.num_nodes}, got {len(types)}")
        return types
    src, dst = (np.asarray(ends) for ends in edges(graph))
    reads, read = np.zeros((2, graph.num_nodes), bool)
    reads[dst], read[src] = True, True
    if len(src) and not (reads & read).any():
        return np.where(read, 0, np.where(reads, 1, 2)).astype(np.int32)
    colors = _two_colors(src, dst, graph.num_nodes) if len(src) else None
    if colors is None:
        return np.zeros(graph.num_nodes, np.int32)
    return np.where(reads | read, colors, 2).astype(np.int32)


def _two_colors(src: np.ndarray, dst: np.ndarray, num_nodes: int) -> np.ndarray | None:
    """Colors 0 and 1, 0 for the lowest id of each connected component; None where there is an odd cycle.

    In the graph of two copies of each node, with each edge from a copy to the other, a walk ends at another
    copy after each step: a node meets its own copy just if an odd cycle is near.
    """
    from scipy.sparse import coo_array  # jax brings it
    from scipy.sparse.csgraph import connected_components

    ends = np.concatenate([src, src + num_nodes]), np.concatenate([dst + num_nodes, dst])
    twice = coo_array((np.ones(len(ends[0]), np.int8), ends), shape=(2 * num_nodes,) * 2)
    _, part = connected_components(twice, directed=False)
    own, other = part[:num_nodes], part[num_nodes:]
    if (own[src] == other[src]).any():
        return None
    _, first, component = np.unique(np.minimum(own, other), return_index=True, return_inverse=True)
    return own != own[first][component]
