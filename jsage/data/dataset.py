"""A graph with features, labels and splits; the checks that no jitted code can make."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Int, Shaped

from jsage._internal.checks import check_ids, check_labels, is_floating
from jsage.graph import Graph, hide_nodes, node_sides, validate
from jsage.graph.sparse import Features, as_rows
from jsage.typing import HostArray


class Dataset(NamedTuple):
    """A node-prediction task: a graph, its features and labels, and three sets of node ids.

    * `features`: float, dense or `jsage.graph.SparseRows`, or None for a graph without features.
    * `labels`: one class a node (int32 `[num_nodes]`, -1 for none), any number of classes (bool `[num_nodes,
      num_classes]`), or real values (float32 `[num_nodes]` or `[num_nodes, num_targets]`, NaN for none); None
      for a graph without labels. One column `[num_nodes, 1]` is refused: pass `labels[:, 0]`.
    * `train`, `val`, `test`: distinct int32 node ids; empty where the source has no splits.
    * `node_type`: one type a node, from 0, int32; None where all are of one type, or the types are not known.

    The arrays are jax arrays, except those of `jsage.data.open`, which are memory maps:
    `jax.device_put(dataset)`, or of one of its fields, places them.

    >>> from jsage.data import digits
    >>> dataset = digits()
    >>> dataset.features.shape, dataset.labels.shape, dataset.train.shape
    ((1797, 64), (1797,), (100,))
    """

    graph: Graph
    features: Features | None
    labels: Shaped[HostArray, " num_nodes *targets"] | None
    train: Int[HostArray, " num_train"]
    val: Int[HostArray, " num_val"]
    test: Int[HostArray, " num_test"]
    node_type: Int[HostArray, " num_nodes"] | None = None


def inductive(dataset: Dataset) -> Graph:
    """The graph to train on when test nodes must not be seen: without their edges, every id unchanged.

    Train on `inductive(dataset)` and test on `dataset.graph` (Hamilton et al., 2017, section 4).

    >>> from jsage.data import digits
    >>> from jsage.graph import in_degrees
    >>> dataset = digits()
    >>> int(in_degrees(inductive(dataset))[dataset.test].sum())
    0
    """
    return hide_nodes(dataset.graph, dataset.test)


def validate_dataset(dataset: Dataset) -> None:
    """Check that a data set can be trained and tested on: raises ValueError that says what is wrong.

    The graph and the features by `jsage.graph.validate`; labels of a known kind, one row a node; splits that
    are not empty, do not overlap, hold distinct ids in range, and whose nodes all have labels; one type a
    node, where there are types.

    >>> from jsage.data import digits
    >>> dataset = digits()
    >>> validate_dataset(dataset._replace(val=dataset.test[:5]))
    Traceback (most recent call last):
    ValueError: splits must not overlap: val and test share 5 nodes, the first ...
    """
    graph, features, labels, *_ = dataset
    features = as_rows(features)
    validate(graph, features, labels)
    if dataset.node_type is not None:
        node_sides(graph, dataset.node_type)
    if features is not None and not is_floating(features.dtype):
        raise ValueError(
            "features must be float [num_nodes, num_features] or None, "
            f"got {features.dtype} of shape {features.shape}: convert them with astype(np.float32)"
        )
    if labels is None:
        raise ValueError("labels must be an array, got None: this graph has no labels to train or test on")
    if labels.ndim == 2 and labels.dtype.kind in "iu" and labels.dtype != np.uint8:
        raise ValueError(f"0/1 rows of labels must be bool, got {labels.dtype}: pass labels.astype(bool)")
    labeled, splits = has_label(labels), {}
    for name in ("train", "val", "test"):
        splits[name] = check_ids(getattr(dataset, name), graph.num_nodes, name)
        _check_split(name, splits[name], labeled)
    for one, other in (("train", "val"), ("train", "test"), ("val", "test")):
        if len(both := np.intersect1d(splits[one], splits[other])):
            raise ValueError(
                f"splits must not overlap: {one} and {other} share {len(both)} nodes, the first {both[0]}"
            )


def has_label(labels: HostArray) -> np.ndarray:
    """Which nodes have a label: `labels >= 0` of classes, all of multi-label rows, all-finite real values.

    Raises ValueError for an array that is none of the three.

    >>> has_label(np.array([0, -1, 2])).tolist()
    [True, False, True]
    """
    array = check_labels(labels)
    if is_floating(array.dtype):
        return np.asarray(np.isfinite(array.reshape(len(array), -1)).all(axis=1))
    return array >= 0 if array.ndim == 1 else np.ones(len(array), bool)


def _check_split(name: str, nodes: np.ndarray, labeled: np.ndarray) -> None:
    if len(nodes) == 0:
        raise ValueError(f"{name} must hold at least one node, got an empty split")
    if len(nodes) != len(np.unique(nodes)):
        raise ValueError(f"{name} must hold distinct nodes, got {len(nodes) - len(np.unique(nodes))} repeats")
    if len(without := nodes[~labeled[nodes]]):
        raise ValueError(
            f"{name} must hold labeled nodes only, but {len(without)} of its nodes have none, the first "
            f"{without[0]}: drop them from the split"
        )
