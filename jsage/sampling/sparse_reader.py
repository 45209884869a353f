"""Sparse rows of a table on the host, in arrays whose sizes no batch changes."""

import jax
import numpy as np
from jaxtyping import Int

from jsage._internal.arrays import run_positions
from jsage.graph import SparseRows


class SparseReader:
    """`SparseRows` on the host, in memory or in mapped files, of which some rows are read at a time.

    >>> from jsage.graph import sparse_rows
    >>> reader = SparseReader(sparse_rows(np.array([[0.0, 2.0], [1.0, 3.0], [0.0, 0.0]])))
    >>> rows = reader.read(np.array([2, 0, 0]), 4)
    >>> rows.toarray()[:3].tolist(), rows.values.shape
    ([[0.0, 0.0], [0.0, 2.0], [0.0, 2.0]], (3,))
    """

    def __init__(self, table: SparseRows) -> None:
        self._table = jax.tree.map(np.asarray, table)
        self._most = np.cumsum(np.sort(self._table.length)[::-1], dtype=np.int64)

    def read(self, ids: Int[np.ndarray, " num_ids"], size: int) -> SparseRows:
        """The rows at `ids` as the first of `size`, the others empty; the words of a row once, however often.

        There is room for the words of the `size` longest rows of the table, so every batch fits.
        """
        table, words = self._table, int(self._most[min(size, len(self._most)) - 1]) if len(self._most) else 0
        rows, place = np.unique(ids, return_inverse=True)
        length = table.length[rows].astype(np.int64)
        at = run_positions(table.start[rows], length)
        found = {name: np.zeros(max(words, 1), getattr(table, name).dtype) for name in ("indices", "values")}
        for name, array in found.items():
            array[: len(at)] = getattr(table, name)[at]
        ends = {"start": np.cumsum(length) - length, "length": length}
        padded = {name: np.zeros(size, np.int32) for name in ends}
        for name, array in padded.items():
            array[: len(ids)] = ends[name][place]
        return table._replace(**padded, **found)
