"""Edge weights made from the graph itself."""

import jax.numpy as jnp
import numpy as np

from jsage._internal.checks import check_edge_rows
from jsage.graph.graph import Graph, edges, in_degrees, out_degrees


def symmetric_weights(graph: Graph) -> Graph:
    """The graph with each weight times `sqrt((1 + in_degree(dst)) / (1 + out_degree(src)))`.

    A mean over whole neighborhoods then divides each message by the degrees of both ends, so that a hub
    says less to each of its many neighbors: `aggregate.gcn` is `D^-1/2 (A + I) D^-1/2` of an undirected
    graph (Kipf and Welling, 2017, equation 2). Sampled neighbors stand for all, as in any other mean.
    `edge_data["weight"]`, float32 `[num_edges]`, is set on the host; where there is none it counts as 1.
    Raises ValueError for weights that are not finite or of another shape.

    >>> from jsage.graph import from_edges
    >>> star = from_edges([1, 2, 3, 0, 0, 0], [0, 0, 0, 1, 2, 3], num_nodes=4)
    >>> symmetric_weights(star).edge_data["weight"].round(2).tolist()
    [1.4..., 1.4..., 1.4..., 0.7..., 0.7..., 0.7...]
    """
    src, dst = map(np.asarray, edges(graph))
    into, out = (np.sqrt(1 + np.asarray(degrees(graph), np.float32)) for degrees in (in_degrees, out_degrees))
    given = graph.edge_data.get("weight", np.ones(graph.num_edges, np.float32))
    weight = into[dst] / out[src] * check_edge_rows("weight", given, graph.num_edges).astype(np.float32)
    return graph._replace(edge_data={**graph.edge_data, "weight": jnp.asarray(weight)})
