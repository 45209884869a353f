"""Names of nodes, kept with a graph: what is read is what was written, or it is refused."""

import numpy as np
import pytest

from jsage.data import Dataset, load_npz, read_edge_list, read_names, save
from jsage.data import open as open_directory
from jsage.graph import Graph

GRAPH = Graph(np.array([0, 1, 1, 2], np.int32), np.array([2, 0], np.int32), {})
NONE = np.zeros(0, np.int32)
DATASET = Dataset(GRAPH, None, None, NONE, NONE, NONE)
NAMES = ["", "007", "zoë \n\x01𝔘"]
BAD = {
    "two alike": (["a", "b", "a"], "names must differ, got 'a' 2 times"),
    "too few": (["a", "b"], r"one a node, \[3\], got \[2\]"),
    "a table": ([["a", "b", "c"]], r"one a node, \[3\], got \[1, 3\]"),
    "one": (np.array("a"), r"one a node, \[3\], got \[\]"),
    "fractions": ([1.0, 2.0, 3.0], "text or integers, got float64"),
    "truth": ([True, False, True], "text or integers, got bool"),
    "bytes": ([b"a", b"b", b"c"], r"text or integers, got \|S1"),
    "half a letter": (["a", "b", "\ud800"], "UTF-8 can hold"),
}
OBJECTS = {
    "objects": (np.array(["a", None, "b"], object), "text or integers, got object"),
    "a zero at the end": (np.array(["a", "b\0", "b"], object), "text or integers, got object"),
}


def npz(path, **more):
    np.savez(path, edge_index=[[2, 0], [0, 2]], **more)
    return path


@pytest.mark.parametrize("names", [NAMES, np.array(NAMES, object), np.array([3, 1, 2**63], np.uint64)])
def test_names_are_those_that_were_written(tmp_path, names):
    save(tmp_path / "graph", DATASET, names)
    found = read_names(tmp_path / "graph")
    assert found is not None
    assert found.tolist() == [str(name) for name in names]
    assert open_directory(tmp_path / "graph").graph.num_nodes == 3
    path = npz(tmp_path / "one.npz", node_name=np.array([str(name) for name in names]))
    assert np.array_equal(read_names(path), found)
    assert load_npz(path).graph.num_nodes == 3  # nothing else says how many there are


def test_integers_of_an_npz_and_names_of_an_edge_list(tmp_path):
    assert read_names(npz(tmp_path / "one.npz", node_name=[30, 10, 20])).tolist() == ["30", "10", "20"]
    (tmp_path / "edges.csv").write_text("src,dst\nbob,ann\nann,bob\n")
    graph, names = read_edge_list(tmp_path / "edges.csv")
    save(tmp_path / "graph", DATASET._replace(graph=graph), names)
    assert read_names(tmp_path / "graph").tolist() == ["ann", "bob"]


def test_none(tmp_path):
    save(tmp_path / "graph", DATASET)
    assert read_names(tmp_path / "graph") is None
    assert read_names(npz(tmp_path / "one.npz")) is None
    with pytest.raises(FileNotFoundError, match="nowhere: no such file"):
        read_names(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="not a graph directory"):
        read_names(tmp_path / "empty")


@pytest.mark.parametrize("case", [*BAD, *OBJECTS])
def test_odd_names_are_refused(tmp_path, case):
    names, message = {**BAD, **OBJECTS}[case]
    with pytest.raises(ValueError, match=message):
        save(tmp_path / "graph", DATASET, np.asarray(names))
    assert [*tmp_path.iterdir()] == []
    if case in BAD:
        path = npz(tmp_path / "one.npz", node_name=names, y=[0, 1, 0])
        with pytest.raises(ValueError, match=f"one.npz: .*{message}"):
            load_npz(path)


def test_damage_is_named(tmp_path):
    save(tmp_path / "graph", DATASET, NAMES)
    path = tmp_path / "graph" / "node_name.npy"
    data = bytearray(path.read_bytes())
    data[-12] ^= 1
    path.write_bytes(data)
    for read in (read_names, open_directory):
        with pytest.raises(ValueError, match=r"node_name.npy is damaged"):
            read(tmp_path / "graph")
