"""The streamed writer: the bytes of the writer in memory, whatever the memory, the files and the kills."""

import contextlib
import itertools
import os
import shutil
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import kills
import numpy as np
import pytest
from helpers import AWKWARD

from jsage.data import (
    Dataset,
    Tables,
    edge_arrays,
    edge_files,
    open_shard,
    open_shards,
    shard_dataset,
    shard_edges,
)
from jsage.data.shards import from_edges as external
from jsage.data.shards.edge_sort import open_edges
from jsage.data.shards.from_edges import Balanced, Progress, Sorting
from jsage.data.shards.writer import ShardWriter
from jsage.graph import balanced, contiguous, from_edges, hashed

LEAST = Sorting(memory_bytes=2**27)
NODES = 50
RANDOM = np.random.default_rng(0)
HEAVY = np.stack([RANDOM.integers(0, NODES, 600), (NODES * RANDOM.random(600) ** 4).astype(int)], 1)
EDGES = {
    "random": HEAVY,
    "one hub": np.stack([np.arange(300) % NODES, np.full(300, 7)], 1),
    "no edges": np.empty((0, 2), int),
    "self-loops and parallel edges": np.repeat([[3, 3], [3, 4], [49, 49], [0, 49]], 40, axis=0),
}
PLACEMENTS = {
    "contiguous": lambda dst: (contiguous(NODES, 3),) * 2,
    "hashed": lambda dst: (hashed(NODES, 3),) * 2,
    "balanced": lambda dst: (Balanced(NODES, 3), balanced(np.bincount(dst, minlength=NODES), 3)),
    "more shards than nodes": lambda dst: (contiguous(NODES, 60),) * 2,
}
SPLITS = (np.array([40, 1, 2]), np.array([0], np.int32), np.array([3, 49, 30]))
TABLES = Tables(RANDOM.normal(size=(NODES, 5)).astype(np.float16), np.arange(NODES, dtype=np.int32), *SPLITS)


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch):
    """64 edges are read at a time; and no test pulls the plug."""
    monkeypatch.setattr(sys.modules["jsage.data.shards.edge_sources"], "_PIECE", 64)
    monkeypatch.setattr(sys.modules["jsage.data.shards.edge_sort"], "_READ", 64)
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def in_memory(path, edges, placement, num_nodes=NODES, tables=TABLES):
    splits = [np.empty(0, np.int32) if split is None else split for split in tables[2:]]
    shard_dataset(path, Dataset(from_edges(*edges.T, num_nodes), *tables[:2], *splits), placement)
    return content(path)


@pytest.mark.parametrize(
    ("name", "kind"),
    [*itertools.product(EDGES, ["contiguous", "hashed", "balanced"]), ("random", "more shards than nodes")],
)
def test_streamed_is_in_memory_bit_for_bit(tmp_path, name, kind):
    edges = EDGES[name]
    asked, placement = PLACEMENTS[kind](edges[:, 1])
    expected = in_memory(tmp_path / "whole", edges, placement)
    shard_edges(tmp_path / "streamed", edge_arrays([edges]), asked, TABLES, sorting=LEAST)
    assert content(tmp_path / "streamed") == expected
    assert sorted(path.name for path in tmp_path.iterdir()) == ["streamed", "whole"]


@pytest.mark.parametrize("memory", [2**27, 10**9])
@pytest.mark.parametrize("chunk", [1, 63, 64, 600])
def test_neither_memory_nor_chunks_matter(tmp_path, memory, chunk):
    expected = in_memory(tmp_path / "whole", HEAVY, hashed(NODES, 2))
    arrays = [HEAVY[first : first + chunk] for first in range(0, 600, chunk)]
    sorting = Sorting(memory_bytes=memory)
    shard_edges(tmp_path / "streamed", arrays, hashed(NODES, 2), TABLES, sorting=sorting)
    assert content(tmp_path / "streamed") == expected


def test_symmetrized(tmp_path):
    both = []
    for u, v in HEAVY.tolist():
        both += [(u, v)] if u == v else [(u, v), (v, u)]
    expected = in_memory(tmp_path / "whole", np.array(both), contiguous(NODES, 4))
    for memory in (2**27, 10**9):
        target = tmp_path / f"streamed{memory}"
        sorting = Sorting(memory_bytes=memory)
        shard_edges(target, [HEAVY], contiguous(NODES, 4), TABLES, symmetrize=True, sorting=sorting)
        assert content(target) == expected


@pytest.mark.parametrize("name", AWKWARD)
def test_awkward_graphs(tmp_path, name):
    src, dst, num_nodes = AWKWARD[name]
    edges, tables = np.stack([src, dst], 1), Tables()
    expected = in_memory(tmp_path / "whole", edges, hashed(num_nodes, 3), num_nodes, tables)
    shard_edges(tmp_path / "streamed", [(src, dst)], hashed(num_nodes, 3), sorting=LEAST)
    assert content(tmp_path / "streamed") == expected


@pytest.mark.parametrize("place", [contiguous, hashed])
def test_ids_above_int32(tmp_path, place):
    """One shard of many: the rows of all would fill the disk."""
    num_nodes = 2**33
    placement = place(num_nodes, 2**15)
    first, owned = placement.globals(0)[0], placement.globals(5)
    src, dst = RANDOM.integers(0, num_nodes, 2000), owned[RANDOM.integers(0, 40, 2000)]
    dst[::3], dst[7] = num_nodes - 1, first
    with pytest.raises(Crash):  # in the first shard
        shard_edges(tmp_path / "graph", [(src, dst)], placement, sorting=stop_at("write"))
    file = tmp_path / ".graph.part" / "edges.duckdb"
    with open_edges(file, 2**27, read_only=True) as edges, ShardWriter(tmp_path, 5) as writer:
        list(external._write_edges(writer, edges, placement))
        writer.finish({})
    arrays = {path.stem: np.load(path) for path in (tmp_path / "shard-00005").glob("*.npy")}
    ids = placement.nodes(arrays["owners"], arrays["indices"])
    assert ids.max() > 2**32
    for row in range(50):
        span = slice(arrays["indptr"][row], arrays["indptr"][row + 1])
        np.testing.assert_array_equal(ids[span], src[dst == owned[row]])


@pytest.mark.slow
def test_memory_is_bounded():
    """What 5 million edges take beside a quarter of a million, in the peak of a process: not their sort."""
    script = """
        import resource, tempfile
        import numpy as np
        from jsage.data import Sorting, shard_edges
        from jsage.graph import contiguous

        def arrays(number):
            random = np.random.default_rng(0)
            return (random.integers(0, 10**5, (2**18, 2), np.int32) for _ in range(number))

        with tempfile.TemporaryDirectory() as folder:
            for number in (1, 20):
                target, sorting = f"{folder}/{number}", Sorting(memory_bytes=2**27)
                shard_edges(target, arrays(number), contiguous(10**5, 2), sorting=sorting)
                print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
    """
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", textwrap.dedent(script)]
    few, many = map(int, subprocess.check_output(command, text=True, env=environment).split())
    assert many - few < 2**27


class Crash(BaseException):
    """What no code expects."""


def crashing(monkeypatch, number: int) -> Callable[[], int]:
    """From flush number `number` on, every flush and every rename fails; gives how many there were."""
    calls = 0

    def count(*_: object) -> None:
        nonlocal calls
        calls += 1
        if calls >= number:
            raise Crash

    for target, name in ((os, "fsync"), (Path, "replace"), (Path, "rename")):
        real = getattr(target, name)
        monkeypatch.setattr(target, name, lambda *given, real=real: (count(), real(*given))[1])
    return lambda: calls


def test_a_crash_at_every_flush_and_rename(tmp_path, monkeypatch):
    """Each call crashes a little later than the one before, and goes on with what that one left."""
    edges = np.stack([np.arange(200) % 30, np.arange(200) ** 2 % 30], 1)
    tables = Tables(np.ones((30, 9)), train=np.arange(5))
    given = Balanced(30, 2), tables

    def write(name):
        shard_edges(tmp_path / name, [edges], *given, sorting=LEAST)

    write("whole")
    number = 0
    while not (tmp_path / "graph").exists():
        number += 1
        with monkeypatch.context() as patch:
            crashing(patch, number)
            with contextlib.suppress(Crash):
                write("graph")
    assert number > 8
    if len(list(tmp_path.iterdir())) == 3:
        write("graph")  # what is left is to tidy up
    assert content(tmp_path / "graph") == content(tmp_path / "whole")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["graph", "whole"]


def test_a_crash_at_any_one_flush(tmp_path, monkeypatch):
    edges = np.stack([np.arange(100) % 30, np.arange(100) ** 2 % 30], 1)

    def write(name):
        shard_edges(tmp_path / name, [edges], hashed(30, 2), TABLES_30, sorting=LEAST)

    with monkeypatch.context() as patch:
        total = crashing(patch, 10**9)
        write("whole")
    for number in range(1, total() + 1, 4):
        with monkeypatch.context() as patch:
            crashing(patch, number)
            with pytest.raises(Crash):
                write(f"graph{number}")
        write(f"graph{number}")
        assert content(tmp_path / f"graph{number}") == content(tmp_path / "whole")


TABLES_30 = Tables(np.ones((30, 9)), train=np.arange(5))


@pytest.mark.slow
def test_killed_in_both_passes(tmp_path):
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}

    def run(stage: str | None, number: int = 0) -> dict[str, list[int]]:
        command = [sys.executable, kills.__file__, "--write", "shard_edges", str(tmp_path / "graph")]
        command += ["--slow"] if stage else []
        told: dict[str, list[int]] = {"read": [], "sort": [], "write": [], "tables": []}
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
            assert process.stdout is not None
            for line in process.stdout:
                told[line.split()[0]].append(int(line.split()[1]))
                if stage and len(told[stage]) == number:
                    process.send_signal(signal.SIGKILL)
                    break
            assert process.wait() == (-signal.SIGKILL if stage else 0)
        assert (tmp_path / "graph").exists() == (stage is None)
        return told

    arrays, tables = np.concatenate(kills.edge_pieces()), kills.node_tables()
    placement = balanced(np.bincount(arrays[:, 1], minlength=kills.NODES), 3)
    edges = np.bincount(placement.owner(arrays[:, 1]), minlength=3)
    first, second = run("read", 4), run("write", -(-edges[0] // 64) + 2)
    assert (len(first["read"]), first["sort"]) == (4, [])
    assert (second["read"][-1], second["sort"]) == (900, [0, 900])
    last = run(None)
    assert last["read"] == last["sort"] == []
    assert last["write"][0] > edges[0], "the first shard is not written again"
    expected = in_memory(tmp_path / "whole", arrays, placement, kills.NODES, tables)
    assert content(tmp_path / "graph") == expected


def stop_at(stage: str, number: int = 1) -> Sorting:
    told = []

    def progress(done):
        told.append(done.stage)
        if told.count(stage) == number:
            raise Crash

    return LEAST._replace(progress=progress)


@pytest.fixture
def left(tmp_path):
    """What a call left that crashed in the second pass, as `graph`."""
    with pytest.raises(Crash):
        shard_edges(tmp_path / "graph", [HEAVY], hashed(NODES, 3), TABLES, sorting=stop_at("write", 2))
    assert not (tmp_path / "graph").exists()
    return tmp_path / ".graph.part"


OTHER = {
    "placement": {"placement": hashed(NODES, 4)},
    "placement, by its seed": {"placement": hashed(NODES, 3, seed=1)},
    "symmetrize": {"symmetrize": True},
    "tables": {"tables": TABLES._replace(features=TABLES.features + 1)},
    "tables, without labels": {"tables": TABLES._replace(labels=None)},
    "600 edges are others than these 600": {"edges": [HEAVY[::-1]]},
    "600 edges are others than these 599": {"edges": [HEAVY[:-1]]},
    "600 edges are others than these 601": {"edges": [HEAVY, HEAVY[:1]]},
    "600 edges are others than these 0": {"edges": []},
    "edges is": {"edges": "files"},
}


@pytest.mark.parametrize("what", OTHER)
def test_another_call_does_not_go_on(left, tmp_path, what):
    given = {
        "edges": [HEAVY],
        "placement": hashed(NODES, 3),
        "tables": TABLES,
        "sorting": LEAST,
        **OTHER[what],
    }
    if given["edges"] == "files":
        (tmp_path / "edges").mkdir()
        np.save(tmp_path / "edges" / "a.npy", HEAVY)
        given["edges"] = edge_files(tmp_path / "edges")
    before = content(left)
    with pytest.raises(
        ValueError, match=rf"graph\.part was left by another run: its {what.split(',')[0]}.*; delete it"
    ):
        shard_edges(tmp_path / "graph", **given)
    assert content(left) == before
    shard_edges(tmp_path / "graph", [HEAVY], hashed(NODES, 3), TABLES, sorting=LEAST)
    shard_edges(tmp_path / "once", [HEAVY], hashed(NODES, 3), TABLES, sorting=LEAST)
    assert content(tmp_path / "graph") == content(tmp_path / "once")


def test_another_memory_goes_on(left, tmp_path):
    told = []
    sorting = Sorting(memory_bytes=10**9, progress=lambda progress: told.append(progress.stage))
    shard_edges(tmp_path / "graph", [HEAVY], hashed(NODES, 3), TABLES, sorting=sorting)
    assert set(told) == {"write", "tables"}


def test_a_second_call_at_once_is_refused(left, tmp_path):
    def progress(done):
        with pytest.raises(BlockingIOError, match="graph is being written already"):
            shard_edges(tmp_path / "graph", [HEAVY], hashed(NODES, 3), TABLES, sorting=LEAST)

    sorting = LEAST._replace(progress=progress)
    shard_edges(tmp_path / "graph", [HEAVY], hashed(NODES, 3), TABLES, sorting=sorting)
    shard_edges(tmp_path / "once", [HEAVY], hashed(NODES, 3), TABLES, sorting=LEAST)
    assert content(tmp_path / "graph") == content(tmp_path / "once")


def test_a_folder_left_beside_a_whole_directory_is_removed(left, tmp_path):
    (left / "progress.json").unlink()
    (tmp_path / "graph").mkdir()
    (tmp_path / "graph" / "meta.json").write_text("")
    with pytest.raises(FileExistsError, match="graph exists already"):
        shard_edges(tmp_path / "graph", [HEAVY], hashed(NODES, 3), TABLES, sorting=LEAST)
    assert [path.name for path in tmp_path.iterdir()] == ["graph"]


DAMAGE = {
    "cut": ("edges.duckdb", lambda whole: whole[:-4]),
    "changed": ("edges.duckdb", lambda whole: whole[:12288] + bytes(255 - byte for byte in whole[12288:])),
    "gone": ("edges.duckdb", None),
    "cut progress": ("progress.json", lambda whole: whole[:-1]),
}


@pytest.mark.parametrize("how", DAMAGE)
def test_damage_to_what_was_left(left, tmp_path, how):
    name, change = DAMAGE[how]
    whole = (left / name).read_bytes()
    (left / name).unlink()
    if change:
        (left / name).write_bytes(change(whole))

    def read_more():
        shard_edges(tmp_path / "graph", [HEAVY], hashed(NODES, 3), TABLES, sorting=LEAST)

    with pytest.raises(ValueError, match=rf"{name} is damaged: .*to start again"):
        read_more()
    (left / name).write_bytes(whole)
    read_more()
    open_shard(tmp_path / "graph", 0, verify=True)


def test_too_little_memory_to_sort(tmp_path):
    def sort():
        with open_edges(tmp_path / "edges.duckdb", 2**20, read_only=False) as edges:
            edges.create(np.dtype(np.int64))
            edges.append(*RANDOM.integers(0, 10**9, (2, 10**6)))
            edges.sort()

    with pytest.raises(ValueError, match="memory_bytes is too little to sort these edges in: give more"):
        sort()


def test_a_file_that_cannot_be_written(tmp_path):
    with (
        pytest.raises(OSError, match=r"edges\.duckdb cannot be written: "),
        open_edges(tmp_path / "nowhere" / "edges.duckdb", 2**27, read_only=False),
    ):
        pass


def test_without_duckdb_it_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "duckdb", None)
    with pytest.raises(ImportError, match=r"needs DuckDB: pip install 'jsage\[shards\]'"):
        shard_edges(tmp_path / "graph", [HEAVY], contiguous(NODES, 3))
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_changed_is_another(tmp_path):
    (tmp_path / "edges").mkdir()
    np.save(tmp_path / "edges" / "a.npy", HEAVY)
    with pytest.raises(Crash):
        shard_edges(
            tmp_path / "graph", edge_files(tmp_path / "edges"), hashed(NODES, 3), sorting=stop_at("write")
        )
    os.utime(tmp_path / "edges" / "a.npy", (1, 1))
    with pytest.raises(ValueError, match="was left by another run: its edges is"):
        shard_edges(tmp_path / "graph", edge_files(tmp_path / "edges"), hashed(NODES, 3), sorting=LEAST)


BAD = {
    "above": ([[0, NODES]], rf"array 0 must be node ids in 0 \.\. 49, got {NODES}"),
    "negative": ([[-1, 0]], r"array 0 must be node ids in 0 \.\. 49, got -1"),
    "float": ([[0.0, 1.0]], "array 0 must hold integers, got float64"),
    "wide": ([[0, 1, 2]], r"array 0 must be edges \[n, 2\], .* got shape \(1, 3\)"),
    "flat": ([0, 1], r"array 0 must be edges \[n, 2\], .* got shape \(2,\)"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_edges_leave_nothing(tmp_path, name):
    array, message = BAD[name]
    with pytest.raises(ValueError, match=message):
        shard_edges(tmp_path / "graph", [np.array(array)], contiguous(NODES, 3))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("placement", "given", "message"),
    [
        (Balanced(NODES, 0), {}, "shards must be in 1"),
        (Balanced(0, 3), {}, "num_nodes must be in 1"),
        (Balanced(NODES, 3, node_cost=-1), {}, "node_cost must be at least 0, got -1"),
        (
            Balanced(10**7, 3),
            {"sorting": LEAST},
            "to balance 10000000 nodes takes 240000000 bytes, but memory_bytes",
        ),
        (contiguous(NODES, 3), {"sorting": Sorting(100)}, "memory_bytes must be at least 134217728, got 100"),
        (
            contiguous(NODES, 3),
            {"tables": Tables(train=np.array([NODES]))},
            "train: ids must be node ids in 0",
        ),
        (
            contiguous(NODES, 3),
            {"tables": Tables(labels=np.zeros(3))},
            "labels must have one row a node, 50, got",
        ),
    ],
)
def test_bad_arguments_leave_nothing(tmp_path, placement, given, message):
    with pytest.raises(ValueError, match=message):
        shard_edges(tmp_path / "graph", [HEAVY], placement, **given)
    assert list(tmp_path.iterdir()) == []


def test_an_existing_target(tmp_path):
    (tmp_path / "graph").mkdir()
    shard_edges(tmp_path / "graph", [HEAVY], contiguous(NODES, 3))
    before = content(tmp_path)
    with pytest.raises(FileExistsError, match="graph exists already: remove it first"):
        shard_edges(tmp_path / "graph", [HEAVY], contiguous(NODES, 3))
    assert content(tmp_path) == before


def test_what_was_whole_and_removed_since_is_written_again(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(external, "flush_directory", lambda folder: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            shard_edges(tmp_path / "graph", [HEAVY], hashed(NODES, 3), sorting=LEAST)
    expected = content(tmp_path / "graph")
    shutil.rmtree(tmp_path / "graph")
    shard_edges(tmp_path / "graph", [HEAVY], hashed(NODES, 3), sorting=LEAST)
    assert content(tmp_path / "graph") == expected
    assert [path.name for path in tmp_path.iterdir()] == ["graph"]


def test_progress_goes_up_to_the_total(tmp_path):
    told: list[Progress] = []
    np.save(tmp_path / "edges.npy", HEAVY)
    sorting = LEAST._replace(progress=told.append)
    shard_edges(tmp_path / "graph", edge_files(tmp_path), hashed(NODES, 3), TABLES, sorting=sorting)
    for stage, total in (("read", 600), ("sort", 600), ("write", 600), ("tables", 2 * NODES)):
        done = [one.done for one in told if one.stage == stage]
        assert done == sorted(done)
        assert done[-1] == total
        assert {one.total for one in told if one.stage == stage} == {total}


def test_features_in_a_mapped_file(tmp_path):
    np.save(tmp_path / "features.npy", TABLES.features)
    mapped = TABLES._replace(features=np.load(tmp_path / "features.npy", mmap_mode="r"))
    for name, tables in (("mapped", mapped), ("memory", TABLES)):
        shard_edges(tmp_path / name, [HEAVY], hashed(NODES, 3), tables, sorting=LEAST)
    assert content(tmp_path / "mapped") == content(tmp_path / "memory")
    assert open_shards(tmp_path / "mapped").features == ("float16", (5,))
