"""Rows of a table on the host: the right ones, in memory that is lent again, from a map with a bound."""

import gc
import mmap
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.host import mapped_bytes
from jsage._internal.row_reader import RowReader

ROWS, WIDTH = 3000, 5


@pytest.fixture(scope="module")
def table():
    return np.random.default_rng(0).normal(size=(ROWS, WIDTH)).astype(np.float32)


@pytest.fixture(scope="module")
def ids():
    """More than one part of a bounded read, in no order, some of them again."""
    return np.random.default_rng(1).integers(0, ROWS, 2000).astype(np.int32)


@pytest.fixture(scope="module")
def path(table, tmp_path_factory):
    file = tmp_path_factory.mktemp("tables") / "table.npy"
    np.save(file, table)
    return file


@pytest.mark.parametrize("bound", [None, 0, 2**30])
def test_rows_are_those_of_the_table(table, ids, path, bound):
    rows = RowReader(np.load(path, mmap_mode="r"), bound).read(ids, 2048)
    assert rows.shape == (2048, WIDTH)
    np.testing.assert_array_equal(rows[:2000], table[ids])


def test_tables_of_any_kind(table, ids):
    narrow = jnp.asarray(table, jnp.bfloat16)
    for kind in (narrow, np.asarray(narrow), np.asfortranarray(table), table[:, ::2], table.astype(int)):
        rows = RowReader(kind).read(ids, 2000)
        assert rows.dtype == kind.dtype
        np.testing.assert_array_equal(rows, np.asarray(kind)[ids])


def test_no_rows_and_no_columns(table):
    none = np.empty(0, np.int32)
    assert RowReader(table).read(none, 0).shape == (0, WIDTH)
    assert RowReader(table[:, :0]).read(none, 4).shape == (4, 0)


class TestMemory:
    def test_is_lent_to_one_at_a_time(self, table, ids):
        source = RowReader(table)
        first, second = source.read(ids, 2000), source.read(ids[::-1], 2000)
        assert not np.shares_memory(first, second)
        np.testing.assert_array_equal(first, table[ids])

    def test_is_lent_again_when_let_go(self, table, ids):
        source = RowReader(table)
        address = source.read(ids, 2000).ctypes.data
        assert source.read(ids, 2000).ctypes.data == address

    def test_a_view_holds_it(self, table, ids):
        source = RowReader(table)
        view = source.read(ids, 2000)[:7, 1:].T
        gc.collect()
        assert not np.shares_memory(view, source.read(ids[::-1], 2000))

    def test_an_array_on_the_device_holds_it(self, table, ids):
        """On a CPU the device's array is that memory: writing to it would change results."""
        source = RowReader(table)
        kept = jax.device_put(source.read(ids, 2000))
        slow = jax.jit(lambda rows: jax.lax.fori_loop(0, 500, lambda i, x: x + 0.001 * rows, rows))
        results = [slow(jax.device_put(source.read(ids, 2000))) for _ in range(8)]
        for _ in range(8):
            source.read(ids[::-1], 2000)
        np.testing.assert_array_equal(kept, table[ids])
        for result in results:
            np.testing.assert_allclose(result, 1.5 * table[ids], rtol=1e-3)


class Watched:
    """A memory map that notes how much of its file is mapped before pages are let go, and after."""

    def __init__(self, mapping: mmap.mmap, path: Path):
        self.mapping, self.path, self.seen = mapping, path, []

    def madvise(self, advice: int) -> None:
        before = mapped_bytes(self.path)
        self.mapping.madvise(advice)
        self.seen.append((before, mapped_bytes(self.path)))


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_bound_is_kept(tmp_path):
    path = tmp_path / "large.npy"
    np.lib.format.open_memmap(path, "w+", np.float32, (16_000, 1024))  # 66 MB, sparse
    ids = np.random.default_rng(0).integers(0, 16_000, 4000)
    unbounded = RowReader(np.load(path, mmap_mode="r"))
    unbounded.read(ids, 4000)
    assert mapped_bytes(path) > 53e6
    del unbounded
    bounded = RowReader(np.load(path, mmap_mode="r"), 32 * 2**20)
    bounded._mapping = watched = Watched(bounded._mapping, path)
    bounded.read(ids, 4000)
    assert len(watched.seen) >= 3
    assert 0 < max(before for before, _ in watched.seen) <= 32 * 2**20
    assert {after for _, after in watched.seen} == {0}


def test_a_bound_needs_a_map_that_loses_nothing(table, path):
    with pytest.raises(ValueError, match=r"memory map of mode 'r', got ndarray: open a graph directory"):
        RowReader(table, 2**26)
    with pytest.raises(ValueError, match="memory map of mode 'r'"):
        RowReader(np.load(path, mmap_mode="c"), 2**26)
