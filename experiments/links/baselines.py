"""What predicts links without a network: neighbors in common, degrees, pairs seen before, trees of counts."""

import jax
import jax.numpy as jnp
import numpy as np

from experiments.links.history import History
from experiments.links.scores import EventPairs
from jsage.data import TimeSplit, edge_bank
from jsage.graph import Graph, edges, node_past, pair_past


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


def edgebank(split: TimeSplit, asked: EventPairs) -> dict[str, np.ndarray]:
    """1 where a pair had an event before, else 0 (Poursafaei et al., 2022, with unlimited memory).

    Memory goes on during the test, event by event; the frozen one ends with validation.
    """
    events = np.concatenate([split.train, split.val, split.test])
    time = np.concatenate([split.train_time, split.val_time, split.test_time])
    times = {"EdgeBank": asked.when, "EdgeBank, frozen": np.full_like(asked.when, asked.time.min())}
    return {name: edge_bank(events, time, asked.all, when) * 1.0 for name, when in times.items()}


TABLE = "as-of table"


def table_rows(history: History, pairs: np.ndarray, time: np.ndarray) -> np.ndarray:
    """12 numbers of each pair before its time: counts of both ways and of events into and out of both ends,
    and how long ago the last ones were, `log(1 + age / unit)`, -1 without any."""

    @jax.jit
    def count(history: History, pairs: jax.Array, time: jax.Array) -> jax.Array:
        src, dst = pairs.T
        pasts = [pair_past(history.pairs, ends, time) for ends in ((src, dst), (dst, src))]
        pasts += [node_past(g, node, time) for node in (dst, src) for g in (history.into, history.out_of)]
        age = jnp.stack([past.ages[:, 0] for past in pasts], 1)
        age = jnp.where(age < 0, -1.0, jnp.log1p(jnp.maximum(age, 0) / history.unit))
        return jnp.concatenate([age, jnp.stack([past.counts for past in pasts], 1)], 1)

    return np.asarray(count(history, pairs, time))


def table_scores(history: History, split: TimeSplit, others: np.ndarray, asked: EventPairs) -> np.ndarray:
    """The probabilities of a boosted tree over `table_rows`, trained on events and one of `others` each."""
    train = np.concatenate([split.train, others])
    return boosted(
        table_rows(history, train, np.tile(split.train_time, 2)),
        np.repeat([1, 0], len(others)),
        table_rows(history, asked.all, asked.when),
    )


def boosted(rows: np.ndarray, labels: np.ndarray, asked: np.ndarray) -> np.ndarray:
    """Probabilities of the second of two classes: 80 trees, each on the last ones' errors."""
    from sklearn.ensemble import HistGradientBoostingClassifier

    trees = HistGradientBoostingClassifier(max_iter=80, random_state=0).fit(rows, labels)
    return trees.predict_proba(asked)[:, 1]
