"""Edge weights made from the graph itself."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import core

from jsage._internal.checks import check_edge_rows
from jsage.graph.graph import Graph, edges, in_degrees, out_degrees, remove_self_loops, without_data


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
    weight = into[dst] / out[src] * _checked_weights(graph, positive=False).astype(np.float32)
    return graph._replace(edge_data={**graph.edge_data, "weight": jnp.asarray(weight)})


def gcn_weights(graph: Graph, *, self_loop: float = 1.0, normalize: bool = True, both: bool = False) -> Graph:
    """The graph with the weights of a graph convolution (Kipf and Welling, 2017, equation 9), for `GCNConv`.

    With `e` the edges' weights (1 where there are none), `d_v` the sum of those into `v`, its self-loop's
    included, and `n_v` the number of edges into `v`:

        weight_uv = n_v e_uv / sqrt(d_u d_v),   own_weight_v = e_vv / d_v.

    The mean over a neighborhood, whole or drawn uniformly, times `n_v` is its sum: so `GCNConv` is exact on
    whole neighborhoods and unbiased on drawn ones. Each node has one self-loop, of weight `self_loop`, or of
    its last edge `v -> v` in the graph (all of which are taken out); `self_loop=0` adds and takes none. With
    `both`, `d_u` counts the edges out of `u`, as DGL's `norm="both"`; else those into it, as PyG does.
    `normalize=False` leaves `e` as it is. On the host; it may be differentiated with respect to `"weight"`.

    Raises ValueError for weights that are not finite, of another shape, or below 0 where they are normalized.

    >>> from jsage.graph import from_edges
    >>> graph = gcn_weights(from_edges([1, 0], [0, 1], num_nodes=3))
    >>> graph.edge_data["weight"], graph.edge_data["own_weight"]
    (Array([0.5, 0.5], dtype=float32), Array([0.5, 0.5], dtype=float32))
    """
    weight, graph = _checked_weights(graph, normalize), without_data(graph, "weight")
    src, dst = map(np.asarray, edges(graph))
    own = np.full(graph.num_nodes, self_loop)
    if self_loop:
        loops = np.flatnonzero(src == dst)
        nodes, last = np.unique(src[loops][::-1], return_index=True)
        own = _put(own, nodes, weight[loops[::-1][last]])
        keep = np.flatnonzero(src != dst)
        src, dst, weight, graph = src[keep], dst[keep], weight[keep], remove_self_loops(graph)
    count = np.bincount(dst, minlength=graph.num_nodes)[dst]
    if normalize:
        ends = (own + _total(weight, at, graph.num_nodes) for at in (dst, src if both else dst))
        into, out = map(_inverse_root, ends)
        weight, own = weight * out[src] * into[dst], own * out * into
    data = {"weight": count * weight} | ({"own_weight": own[dst]} if self_loop else {})
    data = {name: jnp.asarray(x, jnp.float32) for name, x in data.items()}
    return graph._replace(edge_data={**graph.edge_data, **data})


def _checked_weights(graph: Graph, positive: bool) -> Any:
    """The graph's weights in float64, 1 where there are none; as they are while they are differentiated."""
    weight = graph.edge_data.get("weight", np.ones(graph.num_edges))
    if isinstance(weight, core.Tracer):
        return weight
    weight = check_edge_rows("weight", weight, graph.num_edges)
    if positive and (weight < 0).any():
        raise ValueError(
            f"weights must be 0 or more to be divided by the root of their sums, got {weight.min()}: pass "
            "normalize=False, or other weights"
        )
    return weight.astype(np.float64)


def _put(values: Any, at: np.ndarray, new: Any) -> Any:
    if isinstance(new, np.ndarray):
        values[at] = new
        return values
    return jnp.asarray(values, new.dtype).at[at].set(new)


def _total(values: Any, at: np.ndarray, size: int) -> Any:
    if isinstance(values, np.ndarray):
        return np.bincount(at, values, size)
    return jax.ops.segment_sum(values, at, size)


def _inverse_root(degree: Any) -> Any:
    xp = np if isinstance(degree, np.ndarray) else jnp
    return xp.where(degree > 0, 1 / xp.sqrt(xp.where(degree > 0, degree, 1)), 0)
