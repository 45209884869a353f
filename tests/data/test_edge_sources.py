"""Edges from files: every way to keep them gives the same ones; bad files are named."""

import sys
import tracemalloc

import numpy as np
import pytest

from jsage.data import edge_arrays, edge_files, open_shard, shard_edges
from jsage.graph import contiguous

EDGES = np.random.default_rng(0).integers(0, 1000, (500, 2)).astype(np.int32)
PARTS = [EDGES[:200], EDGES[200:200], EDGES[200:499], EDGES[499:]]


def rows(folder):
    for number, part in enumerate(PARTS):
        np.save(folder / f"{number}.npy", part)


def columns(folder):
    for number, part in enumerate(PARTS):
        np.save(folder / f"{number}.npy", np.asfortranarray(part))
    assert np.load(folder / "0.npy").flags.f_contiguous


def pairs(folder):
    for number, part in enumerate(PARTS):
        np.save(folder / f"{number}-src.npy", part[:, 0].astype(np.int64))
        np.save(folder / f"{number}-dst.npy", part[:, 1].astype(np.uint32))


def big_endian(folder):
    for number, part in enumerate(PARTS):
        np.save(folder / f"{number}.npy", part.astype(">i8"))


def parquet(folder, names=("src", "dst"), dtype=np.int64):
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    for number, part in enumerate(PARTS):
        columns = {names[0]: part[:, 0].astype(dtype), names[1]: part[:, 1], "weight": np.ones(len(part))}
        pq.write_table(pa.table(columns), folder / f"{number}.parquet", row_group_size=64)


LAYOUTS = {
    "rows": rows,
    "columns": columns,
    "pairs": pairs,
    "big-endian": big_endian,
    "parquet": parquet,
    "parquet by other names": lambda folder: parquet(folder, ("Source", "to")),
}


@pytest.mark.parametrize("piece", [7, 2**20])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_gives_the_edges(tmp_path, monkeypatch, layout, piece):
    monkeypatch.setattr(sys.modules["jsage.data.shards.edge_sources"], "_PIECE", piece)
    LAYOUTS[layout](tmp_path)
    (tmp_path / "README.txt").write_text("not edges")
    source = edge_files(tmp_path)
    assert source.count() == 500
    for _ in range(2):
        pieces = [piece.edges for piece in source.pieces()]
        np.testing.assert_array_equal(np.concatenate(pieces), EDGES)
        assert all(len(edges) <= piece for edges in pieces)


def test_arrays_of_any_kind(monkeypatch):
    monkeypatch.setattr(sys.modules["jsage.data.shards.edge_sources"], "_PIECE", 100)
    arrays = [EDGES[:10], (EDGES[10:20, 0], EDGES[10:20, 1].astype(np.int64)), EDGES[20:].astype(np.uint64)]
    pieces = [piece.edges for piece in edge_arrays(arrays).pieces()]
    np.testing.assert_array_equal(np.concatenate(pieces), EDGES)
    assert max(map(len, pieces)) == 100


def test_files_are_told_apart(tmp_path):
    rows(tmp_path)
    before = edge_files(tmp_path).describe()
    assert before == edge_files(tmp_path).describe()
    (tmp_path / "3.npy").rename(tmp_path / "4.npy")
    assert before != edge_files(tmp_path).describe()


def test_shards_of_files(tmp_path):
    (tmp_path / "edges").mkdir()
    parquet(tmp_path / "edges")
    shard_edges(tmp_path / "files", edge_files(tmp_path / "edges"), contiguous(1000, 2))
    shard_edges(tmp_path / "arrays", (part for part in PARTS), contiguous(1000, 2))
    for name in ("indptr", "indices"):
        arrays = [getattr(open_shard(tmp_path / kind, 1), name) for kind in ("files", "arrays")]
        np.testing.assert_array_equal(*arrays)


def test_a_large_file_is_not_read_whole(tmp_path):
    np.save(tmp_path / "a.npy", np.zeros((5_000_000, 2), np.int32))
    tracemalloc.start()
    for piece in edge_files(tmp_path).pieces():
        assert len(piece.edges) <= 2**18
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20_000_000


def saved(name, array):
    return lambda folder: np.save(folder / name, array)


def half(folder):
    rows(folder)
    (folder / "2.npy").write_bytes((folder / "2.npy").read_bytes()[:-1])


def long(folder):
    rows(folder)
    with (folder / "2.npy").open("ab") as file:
        file.write(b"0")


def ragged(folder):
    np.save(folder / "src.npy", np.zeros(3, int))
    np.save(folder / "dst.npy", np.zeros(4, int))


def both_kinds(folder):
    rows(folder)
    (folder / "a.parquet").write_bytes(b"")


BAD = {
    "no files": (lambda folder: None, FileNotFoundError, r"has no \.npy or \.parquet files"),
    "wide": (saved("a.npy", np.zeros((3, 4), int)), ValueError, r"a\.npy must be edges \[n, 2\], .*\(3, 4\)"),
    "flat": (
        saved("a.npy", np.zeros(4, int)),
        ValueError,
        r"a\.npy must be edges \[n, 2\], .* got shape \(4,\)",
    ),
    "float": (
        saved("a.npy", np.zeros((3, 2))),
        ValueError,
        r"a\.npy must hold integers, got float64: convert",
    ),
    "no partner": (saved("xsrc.npy", np.zeros(3, int)), ValueError, r"xsrc\.npy has no partner xdst\.npy"),
    "no sources": (saved("dst.npy", np.zeros(3, int)), ValueError, r"dst\.npy has no partner src\.npy"),
    "ragged": (ragged, ValueError, r"src\.npy and dst\.npy must hold one axis alike, got \[\(3,\), \(4,\)\]"),
    "half": (half, ValueError, r"2\.npy is no plain \.npy file, or half-written: .*: write it again"),
    "long": (long, ValueError, r"2\.npy is no plain \.npy file, or longer than it says: write it again"),
    "no array": (
        lambda folder: (folder / "a.npy").write_text("x"),
        ValueError,
        r"a\.npy is no plain \.npy file",
    ),
    "both kinds": (both_kinds, ValueError, r"has \.npy and \.parquet files: move one kind away"),
    "column": (
        lambda f: parquet(f, ("a", "b")),
        ValueError,
        r"0\.parquet must have one column of .*\['a', 'b'",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_folders(tmp_path, name):
    make, kind, message = BAD[name]
    make(tmp_path)
    with pytest.raises(kind, match=message):
        edge_files(tmp_path)


def test_bad_parquet_columns(tmp_path):
    parquet(tmp_path, dtype=np.float64)
    with pytest.raises(ValueError, match=r"0\.parquet must hold integers, got float64"):
        list(edge_files(tmp_path).pieces())
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    pq.write_table(pa.table({"src": [1, None], "dst": [0, 0]}), tmp_path / "0.parquet")
    with pytest.raises(ValueError, match=r"0\.parquet: column 'src' has 1 nulls: drop them"):
        list(edge_files(tmp_path).pieces())


def test_bad_arrays():
    with pytest.raises(
        ValueError, match=r"array 1 must have sources and destinations alike, got \(3,\) and \(2,\)"
    ):
        list(edge_arrays([EDGES, (EDGES[:3, 0], EDGES[:2, 1])]).pieces())


def test_without_pyarrow_it_says_what_to_install(tmp_path, monkeypatch):
    parquet(tmp_path)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(
        ImportError, match=r"0\.parquet needs pyarrow: pip install 'jsage\[parquet\]', or give \.npy"
    ):
        edge_files(tmp_path)
