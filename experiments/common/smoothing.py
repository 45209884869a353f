"""Linear smoothing: features averaged over two hops, and a linear classifier on them (SGC)."""

from typing import Any, NamedTuple

import numpy as np
from scipy import sparse

from experiments.common.learners import unit_weights
from jsage.data import Dataset
from jsage.graph import Graph, edges, gcn_weights
from jsage.graph.sparse import is_sparse
from jsage.recipes.tasks import Task


def smoothed(graph: Graph, features: Any, hops: int) -> Any:
    """`S^hops X` with `S = D^-1/2 (A + I) D^-1/2` (Wu et al., 2019, equation 8); SciPy's of sparse ones."""
    weighted = gcn_weights(unit_weights(graph))
    src, dst = map(np.asarray, edges(weighted))
    count = np.bincount(dst, minlength=graph.num_nodes)
    weight, own = np.asarray(weighted.edge_data["weight"]) / count[dst], np.ones(graph.num_nodes)
    own[dst] = np.asarray(weighted.edge_data["own_weight"])
    matrix = sparse.csr_array((weight, (dst, src)), shape=(graph.num_nodes,) * 2) + sparse.diags_array(own)
    rows = features.to_scipy() if is_sparse(features) else np.asarray(features, np.float32)
    for _ in range(hops):
        rows = matrix.astype(np.float32) @ rows
    return rows


class Linear(NamedTuple):
    """A fitted SGC."""

    validated: float
    """Its score on the validation nodes."""
    threshold: float
    outputs: np.ndarray
    """At the test nodes."""
    scores: dict[str, float]
    """On them."""


def linear_smoothing(task: Task, dataset: Dataset, training_graph: Graph, hops: int) -> Linear | None:
    """SGC, its penalty chosen by validation; None where scikit-learn is not installed.

    It is fitted on the training graph, and tested on the whole one.
    """
    try:
        from experiments.common.probe import fit_probe
    except ImportError:
        return None
    rows: Any = smoothed(training_graph, dataset.features, hops)
    probe, test = fit_probe(task, dataset, rows), np.asarray(dataset.test)
    if training_graph is not dataset.graph:
        rows = smoothed(dataset.graph, dataset.features, hops)
    outputs = probe.outputs(rows[test])
    scores = task.scores(outputs, test, probe.threshold)
    return Linear(probe.score, probe.threshold, outputs, scores)
