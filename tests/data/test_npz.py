"""Reading .npz files: small ones written here, damaged ones, and the real ones where the folder exists."""

import io
import json
import pickle
import zipfile

import jax.numpy as jnp
import numpy as np
import pytest
import scipy.sparse

from jsage.data import load_npz, save, validate_dataset
from jsage.data import open as open_directory
from jsage.graph import edges

MASKS = {f"{name}_mask": np.arange(4) == i for i, name in enumerate(("train", "val", "test"))}
BASE = {
    "edge_index": np.array([[0, 1, 3], [1, 0, 2]], np.int32),
    "y": np.array([1, 0, 2, -1]),
    "x": np.eye(4, 3, dtype=np.float32),
    "meta": np.array(json.dumps({"nodes": 4})),
    **MASKS,
}
SPARSE = {"x": None, "x_data": [1.0], "x_indices": [0], "x_indptr": [0, 1, 1, 1, 1], "x_shape": [4, 2]}


def write(folder, **change):
    arrays = {name: array for name, array in {**BASE, **change}.items() if array is not None}
    np.savez_compressed(folder / "graph.npz", **arrays)
    return folder / "graph.npz"


def test_reads_what_was_written(tmp_path):
    dataset = load_npz(write(tmp_path))
    src, dst = edges(dataset.graph)
    assert sorted(zip(src.tolist(), dst.tolist(), strict=True)) == [(0, 1), (1, 0), (3, 2)]
    np.testing.assert_array_equal(dataset.features, BASE["x"])
    assert dataset.labels.tolist() == [1, 0, 2, -1]
    assert dataset.labels.dtype == jnp.int32
    assert (dataset.train.tolist(), dataset.val.tolist(), dataset.test.tolist()) == ([0], [1], [2])
    assert dataset.train.dtype == jnp.int32
    assert dataset.graph.edge_data == {}


def test_sparse_features_become_dense(tmp_path):
    rng = np.random.default_rng(0)
    matrix = scipy.sparse.csr_array(rng.random((4, 7)) * (rng.random((4, 7)) < 0.4))
    parts = {"x_data": matrix.data, "x_indices": matrix.indices, "x_indptr": matrix.indptr, "x_shape": [4, 7]}
    dataset = load_npz(write(tmp_path, x=None, **parts))
    assert dataset.features.dtype == jnp.float32
    np.testing.assert_array_equal(dataset.features, matrix.toarray().astype(np.float32))


def test_masks_keep_labeled_nodes_only(tmp_path):
    dataset = load_npz(write(tmp_path, test_mask=np.array([False, False, True, True])))
    assert dataset.test.tolist() == [2]


def test_multi_label_and_regression(tmp_path):
    path = write(tmp_path, y=np.eye(4, 5, dtype=np.uint8), value=np.array([0.5, 1.5, 2.5, np.nan]))
    assert load_npz(path).labels.dtype == bool
    assert load_npz(path).labels.shape == (4, 5)
    values = load_npz(path, labels="value").labels
    assert values.dtype == jnp.float32
    assert values[:3].tolist() == [0.5, 1.5, 2.5]


def test_edge_arrays_follow_their_edges(tmp_path):
    path = write(
        tmp_path,
        edge_index=np.array([[3, 0], [1, 0]]),
        edge_time=np.array([1.4e9 + 1, 5.0]),
        edge_weight=np.array([0.5, 2.0]),
        edge_type=np.array([1, 0], np.int8),
        edge_train_mask=np.array([True, False]),
    )
    data = load_npz(path).graph.edge_data
    assert set(data) == {"time", "weight", "type", "train_mask"}
    assert data["time"].tolist() == [5, 1_400_000_001]
    assert data["weight"].tolist() == [2.0, 0.5]
    assert data["type"].tolist() == [0, 1]


def test_without_labels_masks_and_features(tmp_path):
    dataset = load_npz(write(tmp_path, y=None, x=None, **dict.fromkeys(MASKS)))
    assert (dataset.features, dataset.labels, dataset.graph.num_nodes) == (None, None, 4)
    assert dataset.train.shape == (0,)
    with pytest.raises(ValueError, match="labels must be an array, got None"):
        validate_dataset(dataset)


@pytest.mark.parametrize(
    ("change", "num_nodes"), [({"meta": None}, 4), ({"edge_index": np.zeros((2, 0), int)}, 4)]
)
def test_number_of_nodes_without_labels(tmp_path, change, num_nodes):
    bare = {"y": None, "x": None, **dict.fromkeys(MASKS)}
    assert load_npz(write(tmp_path, **bare, **change)).graph.num_nodes == num_nodes


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"edge_index": None}, "no array 'edge_index': the file has"),
        ({"edge_index": np.zeros((3, 2), int)}, r"edge_index must have shape \[2, num_edges\], got \(3, 2\)"),
        ({"edge_index": np.array([[0, 4], [1, 1]])}, r"src must be node ids in 0 \.\. 3, got 4"),
        ({"edge_index": np.array([[0.0], [1.0]])}, "src must hold integers"),
        ({"edge_weight": np.ones(2)}, "'weight' must have 3 rows"),
        ({"x": np.ones((3, 2))}, "features must have one row a node, 4"),
        ({"x": np.full((4, 2), np.nan)}, "features must be finite"),
        ({"x": None, "x_data": np.ones(1), "x_indices": [0], "x_indptr": [0, 1]}, "no array 'x_shape'"),
        (
            {
                "x": None,
                "x_data": np.ones(1),
                "x_indices": [9],
                "x_indptr": [0, 1, 1, 1, 1],
                "x_shape": [4, 2],
            },
            "x_indptr, x_shape are no CSR matrix: .*must be < 2",
        ),
        (
            {"x": None, "x_data": np.ones(1), "x_indices": [0], "x_indptr": [0, 1, 1], "x_shape": [4, 2]},
            "x_indptr, x_shape are no CSR matrix: index pointer size .*3.* should be .*5",
        ),
        ({"train_mask": np.ones(4, int)}, r"train_mask must be bool \[4\], got int64"),
        ({"train_mask": None}, "train must hold at least one node"),
        ({"val_mask": np.ones(4, bool)}, "train and val share"),
        ({"y": np.array([[0, 2], [1, 0], [0, 0], [0, 0]])}, "multi-label rows must hold 0 and 1, got 2"),
        ({"y": np.array(["a", "b", "c", "d"])}, "labels must be int32"),
        ({**SPARSE, "x_indices": [0.5]}, "x_indices must hold integers, got float64"),
        ({**SPARSE, "x_shape": [3, 2]}, r"x_shape must be \[4, F\], .* got \[3 2\]"),
        ({**SPARSE, "x_data": [1e39]}, "features must be finite in float32"),
        ({"edge_src": np.zeros(3)}, "data of edges must have names of their own, got 'src'"),
        ({"x": np.float32(1)}, "features must have one row a node"),
        ({"y": np.int32(1)}, "labels must be int32"),
        ({"meta": np.array("{broken")}, "Expecting property name"),
    ],
)
def test_refuses_bad_contents_and_names_the_file(tmp_path, change, message):
    with pytest.raises(ValueError, match=rf"graph\.npz: .*{message}"):
        load_npz(write(tmp_path, **change))


def test_refuses_unknown_labels(tmp_path):
    with pytest.raises(
        ValueError, match=r"no array 'traffic' to use as labels: the file has edge_index, .*, y"
    ):
        load_npz(write(tmp_path), labels="traffic")


def plain_npy():
    file = io.BytesIO()
    np.save(file, np.arange(3))
    return file.getvalue()


@pytest.mark.parametrize("content", [b"", pickle.dumps({"y": 1}), plain_npy(), b"PK\x03\x04 not really"])
def test_refuses_what_is_no_npz(tmp_path, content):
    path = tmp_path / "bad.npz"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"bad\.npz: not a complete \.npz file"):
        load_npz(path)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.99])
def test_refuses_a_truncated_file(tmp_path, share):
    path = write(tmp_path)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(ValueError, match=r"graph\.npz: not a complete \.npz file"):
        load_npz(path)


def test_refuses_flipped_bytes(tmp_path):
    path = write(tmp_path)
    content = bytearray(path.read_bytes())
    content[60:90] = bytes(30)
    path.write_bytes(bytes(content))
    with pytest.raises(ValueError, match=r"graph\.npz: cannot be read"):
        load_npz(path)


def test_refuses_a_pickle_inside(tmp_path):
    class Trap:
        def __reduce__(self):
            return (pytest.fail, ("the pickle was run",))

    path = write(tmp_path, y=np.array([Trap(), None, None, None], object))
    with pytest.raises(ValueError, match=r"cannot be read as an \.npz of plain arrays: y has Python objects"):
        load_npz(path)


def test_arrays_that_are_not_used_are_not_read(tmp_path):
    path = write(tmp_path, huge=np.zeros(3), y_value=np.array([object()] * 4))
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive, archive.open("bomb.npy", "w") as file:
        np.lib.format.write_array_header_1_0(
            file, {"descr": "|u1", "fortran_order": False, "shape": (10**13,)}
        )
    np.testing.assert_array_equal(load_npz(path).features, BASE["x"])


def test_refuses_an_array_that_says_that_it_is_larger_than_it_is(tmp_path):
    path = write(tmp_path, x=None)
    with zipfile.ZipFile(path, "a") as archive, archive.open("x.npy", "w") as file:
        header = {"descr": "<f4", "fortran_order": False, "shape": (4, 10**13)}
        np.lib.format.write_array_header_1_0(file, header)
    with pytest.raises(ValueError, match=r"graph\.npz: .*x should have 160000000000000 bytes, .* but has 0"):
        load_npz(path)


def test_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"absent\.npz: no such file"):
        load_npz(tmp_path / "absent.npz")


@pytest.mark.parametrize(
    ("name", "nodes", "directed", "features", "labels", "splits"),
    [
        ("cora", 2708, 10556, 1433, (2708,), (140, 500, 1000)),
        ("citeseer", 3327, 9104, 3703, (3327,), (120, 500, 1000)),
        ("fraud_books", 1418, 7390, 21, (1418,), (850, 284, 284)),
        ("ppi_node2vec", 3890, 75690, None, (3890, 50), (1945, 389, 1556)),
        ("collegemsg", 1899, 59835, None, None, (0, 0, 0)),
    ],
)
def test_real_files(data_folder, name, nodes, directed, features, labels, splits):
    dataset = load_npz(data_folder / f"{name}.npz")
    assert (dataset.graph.num_nodes, dataset.graph.num_edges) == (nodes, directed)
    assert dataset.features is None if features is None else dataset.features.shape == (nodes, features)
    assert dataset.labels is None if labels is None else dataset.labels.shape == labels
    assert tuple(len(split) for split in dataset[3:6]) == splits


def test_real_sparse_features_agree_with_scipy(data_folder):
    z = np.load(data_folder / "cora.npz")
    expected = scipy.sparse.csr_matrix(
        (z["x_data"], z["x_indices"], z["x_indptr"]), shape=tuple(z["x_shape"])
    )
    np.testing.assert_array_equal(load_npz(data_folder / "cora.npz").features, expected.toarray())


def test_real_regression_and_times(data_folder):
    traffic = load_npz(data_folder / "chameleon.npz", labels="y_value").labels
    assert (traffic.dtype, float(traffic.max())) == (jnp.float32, 508957.0)
    times = load_npz(data_folder / "bitcoin_alpha.npz").graph.edge_data["time"]
    assert (times.dtype, int(times.max())) == (jnp.int32, 1453438800)


def test_types_of_nodes_come_along(tmp_path):
    """From a file, which needs nothing else that says how many nodes there are, and through a directory."""
    np.savez(tmp_path / "typed.npz", edge_index=[[0, 1], [1, 0]], node_type=np.array([1, 0, 0, 2], np.int8))
    dataset = load_npz(tmp_path / "typed.npz")
    assert (dataset.graph.num_nodes, dataset.node_type.dtype) == (4, np.int32)
    save(tmp_path / "kept", dataset)
    assert np.asarray(open_directory(tmp_path / "kept").node_type).tolist() == [1, 0, 0, 2]
    np.savez(tmp_path / "wrong.npz", edge_index=[[0], [1]], y=[0, 1], node_type=[0, 1, 1])
    with pytest.raises(ValueError, match="node_type must have one type a node, 2, got 3"):
        load_npz(tmp_path / "wrong.npz")
    np.savez(tmp_path / "text.npz", edge_index=[[0], [1]], node_type=["a", "b"])
    with pytest.raises(ValueError, match="node_type"):
        load_npz(tmp_path / "text.npz")
