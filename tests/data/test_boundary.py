"""Every door by every kind of bad value: what comes in is kept exactly, or refused with the array's name.

A door takes arrays and gives the data set that jsage keeps of them. No cell of the tables is silent.
"""

from typing import Any

import jax
import numpy as np
import pytest
import scipy.sparse

from jsage.data import (
    Dataset,
    Tables,
    edge_arrays,
    load_npz,
    open_shard,
    read_edge_list,
    save,
    shard_dataset,
    shard_edges,
    validate_dataset,
)
from jsage.data import open as open_directory
from jsage.data.formats import directory
from jsage.graph import (
    Graph,
    GrowingGraph,
    NewNodes,
    bipartite_graph,
    contiguous,
    from_edges,
    overlay,
    symmetric_weights,
)
from jsage.recipes.tasks import make_task

SRC, DST = np.array([1, 2, 3, 0]), np.array([0, 1, 2, 3])
X, Y = np.eye(4, 2, dtype=np.float32), np.array([0, 1, 0, 1], np.int32)
IDS = [np.array([i], np.int32) for i in range(3)]
ONE = contiguous(4, 1)


def whole(features: Any = X, labels: Any = Y, **edge_data: Any) -> Dataset:
    """As others may have made it: nothing was checked."""
    return Dataset(from_edges(SRC, DST, 4)._replace(edge_data=edge_data), features, labels, *IDS)


def placed(dataset: Dataset) -> Dataset:
    """What the experiments do with a data set."""
    validate_dataset(dataset)
    return jax.device_put(dataset)


def by_from_edges(folder, src=SRC, **edge_data):
    return whole()._replace(graph=from_edges(src, DST, 4, **edge_data))


def by_bipartite(folder, src=SRC, **edge_data):
    graph = bipartite_graph(DST, src, 4, 4, edge_data=edge_data)  # the first four edges are into users
    return whole(**{name: rows[:4] for name, rows in graph.edge_data.items()})


def by_validate(folder, **change):
    return placed(whole(**change))


def by_npz(folder, features=X, labels=Y, src=SRC, **edge_data):
    edge_index = np.stack([src, DST.astype(src.dtype)])
    edges = {f"edge_{name}": values for name, values in edge_data.items()}
    np.savez(folder / "graph.npz", edge_index=edge_index, x=features, y=labels, **edges)
    return load_npz(folder / "graph.npz")


def by_directory(folder, **change):
    save(folder / "graph", whole(**change))
    return placed(open_directory(folder / "graph"))


def by_files_of_others(folder, **change):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(directory, "validate", lambda *_: None)
        patch.setattr(directory, "check_labels", np.asarray)
        save(path := folder / str(len(list(folder.iterdir()))), whole(**change))
    return placed(open_directory(path))


def by_shards(folder, **change):
    shard_dataset(folder / "shards", whole(**change), ONE)
    return read_shard(folder)


def by_shard_edges(folder, src=SRC, **tables):
    shard_edges(folder / "shards", edge_arrays([(src, DST)]), ONE, Tables(**tables))
    return read_shard(folder)


def read_shard(folder):
    shard = jax.device_put(open_shard(folder / "shards", 0))
    return Dataset(Graph(shard.indptr, shard.indices, shard.edge_data), shard.features, shard.labels, *IDS)


def by_edge_list(folder, src=SRC, **edge_data):
    columns = [src, DST, *edge_data.values()]
    rows = [",".join(str(column[i]) for column in columns) for i in range(4)]
    (folder / "edges.csv").write_text("\n".join([",".join(["src", "dst", *edge_data]), *rows]))
    return whole()._replace(graph=read_edge_list(folder / "edges.csv", num_nodes=4)[0])


def there(edge_data: dict[str, Any]) -> dict[str, Any]:
    """What the edges before have: the same if that may be, else zeros."""
    try:
        from_edges(SRC, DST, 4, **edge_data)
    except ValueError:
        return {name: np.zeros(4, np.float32) for name in edge_data}
    return edge_data


def by_growing(folder, features=X, **edge_data):
    growing = GrowingGraph(whole(**edge_data).graph, features)
    return whole()._replace(graph=growing.graph(), features=growing.features())


def by_appending(folder, features=X, src=SRC, **edge_data):
    growing = GrowingGraph(from_edges(SRC, DST, 4, **there(edge_data)), X)
    growing.remove_edges(SRC, DST)
    growing.append_edges(src, DST, edge_data)
    growing.append_nodes(features, edge_data={name: rows[:0] for name, rows in there(edge_data).items()})
    graph = growing.graph()
    return whole(growing.features()[4:])._replace(graph=graph._replace(indptr=graph.indptr[:5]))


def by_new_nodes(folder, features=X, src=SRC, **edge_data):
    graph = from_edges(SRC, DST, 4, **there(edge_data))
    found = overlay(graph, NewNodes(features, src, DST, edge_data))
    return whole(found.features[:4], **found.edge_data)


def by_task(folder, labels):
    return whole(labels=make_task(whole(labels=labels)).labels)


DATA_SETS = (by_validate, by_npz, by_directory, by_files_of_others, by_shards)
LISTS = (by_from_edges, by_bipartite, by_npz, by_edge_list, by_appending, by_new_nodes)
EDGE_DOORS = dict.fromkeys((*DATA_SETS, *LISTS, by_growing))
FEATURE_DOORS = (*DATA_SETS, by_shard_edges, by_growing, by_appending, by_new_nodes)
LABEL_DOORS = (*DATA_SETS, by_shard_edges, by_task)
OBJECTS = np.array([1, None, {}, 2], object)
MASKED = np.ma.array([1.0, 2.0, 3.0, 4.0], mask=[False, True, False, False])
DATES = np.array(["2020-01-01"] * 4, "datetime64[s]")

BAD_EDGE_DATA = {
    "weights as a column": ("weight", np.ones((4, 1), np.float32)),
    "times as a column": ("time", np.ones((4, 1), np.int32)),
    "too few": ("weight", np.ones(3, np.float32)),
    "one number": ("weight", np.array(1, np.float32)),
    "NaN": ("weight", np.array([1, np.nan, 1, 1], np.float32)),
    "infinite": ("weight", np.array([1, np.inf, 1, 1])),
    "beyond float32": ("weight", np.array([1, 1e300, 1, 1])),
    "milliseconds": ("time", 1_600_000_000_000 + np.arange(4)),
    "milliseconds as floats": ("time", 1.6e12 + np.arange(4)),
    "seconds with fractions": ("time", 1.6e9 + np.arange(4) / 4),
    "seconds with fractions, and a zero": ("time", np.array([0, 1.6e9, 1.6e9 + 0.25, 1.6e9 + 0.5])),
    "close together": ("height", 1.6e9 + np.arange(4) / 4),
    "beyond int32": ("kind", np.array([0, 1, 2**32, 3])),
    "beyond int32, unsigned": ("kind", np.array([0, 1, 2**31, 3], np.uint32)),
    "dates": ("time", DATES),
    "spans of time": ("time", np.arange(4).astype("timedelta64[s]")),
    "text": ("kind", np.array(["cites", "likes", "cites", "likes"])),
    "numbers as text": ("weight", np.array(["0.5", "x", "1", "2"])),
    "complex": ("weight", np.array([1j, 1, 1, 1])),
    "objects": ("weight", OBJECTS),
    "masked": ("weight", MASKED),
}
GOOD_EDGE_DATA = {
    "seconds as floats": ("time", 1.4e9 + np.arange(4.0)),
    "seconds": ("time", 1_400_000_000 + np.arange(4)),
    "the ends of int32": ("time", np.array([-(2**31), -1, 0, 2**31 - 1])),
    "times in fractions": ("time", np.array([0.5, 0.25, 1.75, 3.0])),
    "weights": ("weight", np.array([-2.5, 0.0, 1e-30, 3e38], np.float32)),
    "half": ("weight", np.array([0.5, 1, 2, 3], np.float16)),
    "whole floats beyond 2^24": ("kind", 2.0**24 + np.arange(4)),
    "mask": ("train_mask", np.array([True, False, True, True])),
    "codes": ("kind", np.array([0, 5, 200, 3], np.uint8)),
    "rows": ("vector", np.arange(12.0).reshape(4, 3)),
}
BAD_FEATURES = {
    "NaN": np.full((4, 2), np.nan, np.float32),
    "infinite": np.array([[0.0, np.inf]] * 4, np.float32),
    "beyond float32": np.full((4, 2), 1e39),
    "one axis": np.ones(4, np.float32),
    "three axes": np.ones((4, 2, 2), np.float32),
    "no columns": np.ones((4, 0), np.float32),
    "too few": np.ones((3, 2), np.float32),
    "text": np.full((4, 2), "1"),
    "dates": np.stack([DATES, DATES], 1),
    "complex": np.full((4, 2), 1j),
    "objects": np.stack([OBJECTS, OBJECTS], 1),
    "masked": np.ma.array(np.ones((4, 2)), mask=np.eye(4, 2, dtype=bool)),
}
SPARSE = scipy.sparse.coo_array((np.float32([1, 2, 0.5]), ([0, 0, 3], [1, 1, 0])), (4, 2))
BAD_LABELS = {
    "beyond int32": np.array([0, 1, 2**32, 2**32 + 1]),
    "unsigned": np.array([0, 1, 2**32, 2**63], np.uint64),
    "below -1": np.array([0, 1, -2, 0]),
    "rows of 256": np.eye(4, dtype=np.int64) * 256,
    "rows of -255": np.eye(4, dtype=np.int64) * -255,
    "a column": Y[:, None],
    "a column of floats": Y[:, None].astype(np.float32),
    "a column of 0 and 1": Y[:, None].astype(bool),
    "no columns": np.ones((4, 0), bool),
    "three axes": np.ones((4, 2, 2), np.float32),
    "a mask": Y.astype(bool),
    "infinite": np.array([0, 1, np.inf, 0], np.float32),
    "beyond float32": np.array([0, 1, 1e39, 0]),
    "close together": 1.6e12 + np.arange(4),
    "too few": Y[:3],
    "text": np.array(["a", "b", "a", "b"]),
    "dates": DATES,
    "complex": np.array([1j, 0, 1, 0]),
    "objects": OBJECTS,
    "masked": MASKED,
}
BAD_IDS = {
    "a mask": np.array([True, False, True, False]),
    "floats": SRC.astype(float),
    "at the end": np.array([0, 1, 2, 4]),
    "negative": np.array([0, 1, 2, -9]),
    "beyond int32": np.array([0, 1, 2, 2**32]),
    "unsigned": np.array([0, 1, 2, 2**63], np.uint64),
    "text": np.array(["a", "b", "a", "b"]),
    "spans of time": SRC.astype("timedelta64[s]"),
    "dates": DATES,
    "objects": OBJECTS,
    "two axes": SRC[:, None],
    "too few": SRC[:3],
}


def cells(doors, kinds, without: dict[Any, tuple[str, ...]]) -> Any:
    """The cells of a table, without those that cannot be: a file has no masked entries, say."""
    found = [(door, kind) for door in doors for kind in kinds if kind not in without.get(door, ())]
    ids = [f"{door.__name__.removeprefix('by_')}-{kind}" for door, kind in found]
    return pytest.mark.parametrize(("door", "kind"), found, ids=ids)


FILES = {by_npz: ("masked",), by_files_of_others: ("masked", "objects")}


@cells(EDGE_DOORS, BAD_EDGE_DATA, {**FILES, by_edge_list: ("too few", "one number")})
def test_data_of_edges_that_would_not_be_kept_are_refused(door, kind, tmp_path):
    name, values = BAD_EDGE_DATA[kind]
    with pytest.raises(ValueError, match=name):
        door(tmp_path, **{name: values})


@cells(EDGE_DOORS, GOOD_EDGE_DATA, {by_edge_list: ("mask", "rows")})
def test_data_of_edges_are_kept_exactly(door, kind, tmp_path):
    name, values = GOOD_EDGE_DATA[kind]
    if door in (by_validate, by_directory, by_files_of_others, by_shards, by_growing):
        if values.dtype.itemsize == 8:  # of a graph that is made already
            with pytest.raises(ValueError, match=rf"'{name}' must be (int|float)32, got .*: use from_edges"):
                door(tmp_path, **{name: values})
        values = np.asarray(from_edges(SRC, DST, 4, **{name: values}).edge_data[name])
    kept = np.asarray(door(tmp_path, **{name: values}).graph.edge_data[name])
    assert kept.tolist() == values.tolist() == GOOD_EDGE_DATA[kind][1].tolist()


@pytest.mark.parametrize("kind", [kind for kind, (name, _) in BAD_EDGE_DATA.items() if name == "weight"])
def test_symmetric_weights_refuse_them_too(kind):
    with pytest.raises(ValueError, match="weight"):
        symmetric_weights(whole(weight=BAD_EDGE_DATA[kind][1]).graph)


@pytest.mark.parametrize("values", [0.1 * np.arange(1, 5), np.full(4, 0.1), np.array([1e-9, 1, 0.3, 1e9])])
def test_weights_are_rounded_to_float32(values):
    kept = by_from_edges(None, weight=values).graph.edge_data["weight"]
    np.testing.assert_array_equal(kept, values.astype(np.float32))


@pytest.mark.parametrize(
    ("name", "values", "dtype"),
    [
        ("kind", [0.5], np.int32),
        ("kind", [2**24 + 1], np.float32),
        ("time", [0.1], np.float32),
        ("kind", [300], np.uint8),
    ],
)
def test_rows_that_join_others_must_fit_their_dtype(name, values, dtype):
    graph = from_edges([0], [0], 1, **{name: np.ones(1, dtype)})
    with pytest.raises(ValueError, match=f"{name!r} is {np.dtype(dtype)} in this graph, which cannot hold"):
        GrowingGraph(graph, np.ones((1, 1))).append_edges([0], [0], {name: values})
    with pytest.raises(ValueError, match=f"{name!r} is {np.dtype(dtype)} in this graph, which cannot hold"):
        overlay(graph, NewNodes(np.ones((1, 1)), [0], [-1], {name: values}))


OWN = {by_appending: ("too few",), by_new_nodes: ("too few",)}


@cells(FEATURE_DOORS, BAD_FEATURES, {**FILES, **OWN})
def test_features_that_would_not_be_kept_are_refused(door, kind, tmp_path):
    with pytest.raises(ValueError, match=r"features|\bx "):
        door(tmp_path, features=BAD_FEATURES[kind])


@pytest.mark.parametrize("door", [by_directory, *FEATURE_DOORS[-5:]])
@pytest.mark.parametrize("form", ["coo", "csr", "lil"])
def test_features_of_scipy_are_kept_exactly(door, form, tmp_path):
    """Entries of one place are added up, as SciPy does."""
    found = door(tmp_path, features=SPARSE.asformat(form)).features
    np.testing.assert_array_equal(found, [[0, 3], [0, 0], [0, 0], [0.5, 0]])


@cells(LABEL_DOORS, BAD_LABELS, {**FILES, by_task: ("too few",)})
def test_labels_that_would_not_be_kept_are_refused(door, kind, tmp_path):
    with pytest.raises(ValueError, match=r"labels|\by "):
        door(tmp_path, labels=BAD_LABELS[kind])


STACKED = {by_edge_list: ("too few", "objects"), by_npz: ("two axes", "too few", "objects")}


@cells((*LISTS, by_shard_edges), BAD_IDS, STACKED)
def test_ids_that_are_none_are_refused(door, kind, tmp_path):
    with pytest.raises(ValueError, match=r"src|users|items|array 0|nodes"):
        door(tmp_path, src=BAD_IDS[kind])


@pytest.mark.parametrize("kind", BAD_IDS)
def test_splits_that_are_no_ids_are_refused(kind, tmp_path):
    if kind == "too few":
        return
    change = {"train": BAD_IDS[kind]}
    with pytest.raises(ValueError, match="train"):
        validate_dataset(whole()._replace(**change))
    with pytest.raises(ValueError, match="train"):
        shard_dataset(tmp_path / "shards", whole()._replace(**change), ONE)
