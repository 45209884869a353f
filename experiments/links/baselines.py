"""What predicts links without learning: neighbors in common, degrees, and pairs that were seen before."""

import numpy as np

from experiments.links.scores import Pairs
from jsage.data import TimeSplit
from jsage.graph import Graph, edges


def heuristics(graph: Graph, pairs: np.ndarray) -> dict[str, np.ndarray]:
    """Scores of pairs in an undirected graph, by the degrees `d` and the common neighbors of their ends.

    Common neighbors count 1 each, `1 / log d` (Adamic and Adar, 2003) or `1 / d` (resource allocation: Zhou
    et al., 2009); preferential attachment is `d_u · d_v` (Liben-Nowell and Kleinberg, 2007).
    """
    from scipy.sparse import csr_matrix

    src, dst = (np.asarray(ends) for ends in edges(graph))
    src, dst = src[src != dst], dst[src != dst]
    joined = csr_matrix((np.ones(len(src)), (dst, src)), shape=(graph.num_nodes,) * 2)
    degree = np.asarray(joined.sum(1)).ravel()
    u, v = pairs.T
    common = joined[u].multiply(joined[v]).tocsr()
    busy = np.maximum(degree, 2)  # a common neighbor has two neighbors at least
    return {
        "common neighbors": np.asarray(common.sum(1)).ravel(),
        "Adamic-Adar": common @ (1 / np.log(busy)),
        "resource allocation": common @ (1 / busy),
        "preferential attachment": degree[u] * degree[v],
    }


def edgebank(split: TimeSplit, test: Pairs, num_nodes: int) -> dict[str, np.ndarray]:
    """1 where a pair was seen before the event, else 0 (Poursafaei et al., 2022, with unlimited memory).

    Memory goes on during the test, event by event; the frozen one ends with validation.
    """
    events = np.concatenate([split.train, split.val, split.test])
    numbers, first = np.unique(code(events, num_nodes), return_index=True)
    begin = len(events) - len(split.test)
    now = np.tile(np.arange(begin, len(events)), 2)
    asked = code(test.all, num_nodes)
    place = np.minimum(np.searchsorted(numbers, asked), len(numbers) - 1)
    seen = np.where(numbers[place] == asked, first[place], len(events))
    return {"EdgeBank": (seen < now) * 1.0, "EdgeBank, frozen": (seen < begin) * 1.0}


def code(pairs: np.ndarray, num_nodes: int) -> np.ndarray:
    """One number an ordered pair."""
    return pairs[:, 0].astype(np.int64) * num_nodes + pairs[:, 1]
