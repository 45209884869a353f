"""What a data set must satisfy, and hiding the test nodes."""

import jax
import numpy as np
import pytest

from jsage.data import Dataset, has_label, inductive, validate_dataset
from jsage.graph import edges, from_edges

GRAPH = from_edges([0, 1, 2, 3, 4, 5], [1, 2, 3, 4, 5, 0], 6)


def ids(*nodes):
    return np.array(nodes, np.int32)


GOOD = Dataset(
    GRAPH, np.ones((6, 2), np.float32), ids(0, 1, 2, 0, 1, -1), train=ids(0, 1), val=ids(2), test=ids(3, 4)
)


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"features": None},
        {"labels": np.ones((6, 3), bool)},
        {"labels": np.ones((6, 3), np.uint8)},
        {"labels": np.linspace(0, 1, 6, dtype=np.float32)},
        {"labels": np.ones((6, 2), np.float32)},
    ],
)
def test_validate_dataset_accepts_every_kind(change):
    validate_dataset(GOOD._replace(**change))
    validate_dataset(jax.device_put(GOOD._replace(**change)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"train": ids()}, "train must hold at least one node, got an empty split"),
        ({"test": ids()}, "test must hold at least one node, got an empty split"),
        ({"val": ids(1)}, "train and val share 1 nodes, the first 1"),
        ({"test": ids(4, 0)}, "train and test share 1 nodes, the first 0"),
        ({"test": ids(2, 3)}, "val and test share 1 nodes, the first 2"),
        ({"val": ids(6)}, r"val must be node ids in 0 \.\. 5, got 6"),
        ({"val": ids(-1)}, r"val must be node ids in 0 \.\. 5, got -1"),
        ({"train": ids(1, 1)}, "train must hold distinct nodes, got 1 repeats"),
        ({"train": np.array([1.0])}, "train must hold integers, got float64: convert"),
        (
            {"train": np.ones(6, bool)},
            r"integers, got bool: the ids of a mask are",
        ),
        ({"test": ids(5)}, "test must hold labeled nodes only, but 1 of its nodes have none, the first 5"),
        ({"labels": np.array([0, 0, 0, np.nan, 0, 0], np.float32)}, "test must hold labeled .* the first 3"),
        ({"labels": ids(0, 1)}, r"labels must have one row a node, 6, got shape \(2,\)"),
        ({"labels": ids(0, 1, 2, 3, 4, -2)}, "classes 0, 1, ..., or -1 for none, got -2"),
        ({"labels": np.full((6, 2), 2, np.uint8)}, "multi-label rows must hold 0 and 1, got 2"),
        (
            {"labels": np.ones((6, 2), np.int32)},
            "rows of labels must be bool, got int32: pass",
        ),
        ({"labels": None}, "labels must be an array, got None"),
        (
            {"features": np.ones((5, 2), np.float32)},
            r"features must have one row a node, 6, got shape \(5, 2\)",
        ),
        ({"features": np.full((6, 2), np.nan, np.float32)}, "got NaN, infinity or a larger number in row 0"),
        ({"features": np.ones((6, 2), np.int32)}, "features must be float .* got int32"),
        ({"features": np.ones(6, np.float32)}, r"features must be \[num_nodes, d\], .* got shape \(6,\)"),
        ({"graph": GRAPH._replace(indices=GRAPH.indices + 1)}, "indices must be node ids"),
    ],
)
def test_validate_dataset_refuses(change, message):
    with pytest.raises(ValueError, match=message):
        validate_dataset(GOOD._replace(**change))


def test_has_label_of_several_targets_needs_all():
    assert has_label(np.array([[1.0, np.nan], [1.0, 2.0]])).tolist() == [False, True]


def test_inductive_drops_exactly_the_edges_of_test_nodes():
    src, dst = edges(inductive(GOOD))
    assert list(zip(src.tolist(), dst.tolist(), strict=True)) == [(5, 0), (0, 1), (1, 2)]
    assert inductive(GOOD).num_nodes == 6
