"""Features with few numbers a row, as words with counts are: a bipartite graph of nodes and columns."""

from typing import Any, NamedTuple, TypeAlias, TypeGuard

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PyTree, UInt32

from jsage._internal.arrays import dense, run_positions, take
from jsage._internal.checks import INT32, check_features, check_finite, check_ids, check_numeric, is_floating
from jsage.typing import HostArray

SPARSE = 0.1
"""The share of numbers that are not 0 up to which a table is better off sparse."""


class SparseRows(NamedTuple):
    """A table `[num_rows, num_columns]` that is 0 but for `length[r]` numbers in row `r`; CSR is one.

    Row `r` has `values[start[r] + i]` in column `indices[start[r] + i]`, for `i < length[r]`. Some rows of a
    table, in any order, are other `start` and `length` beside the same words: `rows` copies none. Every size
    is a shape, that of `columns` too, which holds nothing. Make one by `sparse_rows`.

    >>> table = sparse_rows(np.array([[0.0, 2.0, 0.0], [1.0, 0.0, 3.0]]))
    >>> table.shape, table.rows(jnp.array([1, 1])).length, table.toarray()[1]
    ((2, 3), Array([2, 2], dtype=int32), array([1., 0., 3.], dtype=float32))
    """

    start: Int[HostArray, " num_rows"]
    length: Int[HostArray, " num_rows"]
    indices: Int[HostArray, " num_words"]
    values: Float[HostArray, " num_words"]
    columns: Float[HostArray, "num_columns 0"]
    """No numbers, but as many rows as the table has columns."""
    dropout: UInt32[Array, "3"] | None = None
    """Two words of a key, and the random numbers below which values are dropped; None: no dropout."""

    @property
    def shape(self) -> tuple[Any, int]:
        """`(num_rows, num_columns)`."""
        return self.start.shape[0], self.columns.shape[0]

    @property
    def ndim(self) -> int:
        """2."""
        return 2

    @property
    def dtype(self) -> np.dtype:
        """That of the values."""
        return np.dtype(self.values.dtype)

    @property
    def density(self) -> float:
        """The share of numbers that are stored."""
        return float(np.asarray(self.length).sum(dtype=np.int64) / max(self.shape[0] * self.shape[1], 1))

    def rows(self, ids: Int[HostArray, " n"]) -> "SparseRows":
        """The rows at these positions, which are known to be legal: no word is copied."""
        if isinstance(self.start, np.ndarray) and isinstance(ids, np.ndarray):
            return self._replace(start=self.start[ids], length=self.length[ids])
        return self._replace(start=take(self.start, ids), length=take(self.length, ids))

    def dropped(self, key: Array, rate: float) -> "SparseRows":
        """Dropout on the values: each is 0 at this rate, else divided by `1 - rate`; one choice a value.

        A row that is read twice drops the same values both times.
        """
        words = jax.random.bits(key, (2,), jnp.uint32)
        below = jnp.uint32(min(round(rate * 2**32), 2**32 - 1))
        return self._replace(dropout=jnp.concatenate([words, below[None]]))

    def toarray(self) -> np.ndarray:
        """The table with its zeros, on the host."""
        return self.to_scipy().toarray()

    def to_scipy(self) -> Any:
        """A SciPy `csr_array` of the rows, on the host."""
        from scipy.sparse import csr_array  # jax brings it

        start, length, indices, values = map(np.asarray, self[:4])
        indptr = np.concatenate([[0], np.cumsum(length, dtype=np.int64)])
        at = run_positions(start, length)
        return csr_array((values[at], indices[at], indptr), shape=self.shape)


Features: TypeAlias = Any
"""`Float[HostArray, "num_nodes d"]`, `SparseRows`, or SciPy's where a host function takes it: made dense."""


def sparse_rows(table: Any, name: str = "features") -> SparseRows:
    """A SciPy sparse matrix, of any format, or a dense table as `SparseRows` on the host, values in float32.

    Entries of the same place are added, zeros left out. Raises ValueError for what float32 does not hold, for
    columns that are not there and for 2^31 numbers or more.

    >>> from scipy.sparse import coo_array
    >>> sparse_rows(coo_array(([1.0, 2.0], ([0, 0], [4, 4])), shape=(2, 5)))[1:4]
    (array([1, 0], dtype=int32), array([4], dtype=int32), array([3.], dtype=float32))
    """
    from scipy.sparse import csr_array

    if isinstance(table, SparseRows):
        return check_sparse(table, name=name)
    if not hasattr(table, "toarray"):
        table = check_features(table, name=name)
        table = np.asarray(table, np.float32)
    check_numeric(np.dtype(table.dtype), name)
    try:
        with np.errstate(over="ignore"):
            matrix: Any = csr_array(table, dtype=np.float32, copy=True)
        matrix.check_format()
        matrix.sum_duplicates()
    except (ValueError, IndexError, MemoryError) as error:
        raise ValueError(f"{name} are no CSR matrix: {error}") from error
    matrix.eliminate_zeros()
    if matrix.nnz >= INT32:
        raise ValueError(f"{name} have {matrix.nnz} numbers, but offsets are int32: split them by rows")
    indices, values = matrix.indices.astype(np.int32), matrix.data
    if not matrix.nnz:
        indices, values = np.zeros(1, np.int32), np.zeros(1, np.float32)  # something to read, if for nothing
    indptr, columns = matrix.indptr.astype(np.int32), np.zeros((matrix.shape[1], 0), np.float32)
    return check_sparse(SparseRows(indptr[:-1], np.diff(indptr), indices, values, columns), name=name)


def check_sparse(table: SparseRows, num_nodes: int | None = None, name: str = "features") -> SparseRows:
    """The table, or a ValueError for one that is none: a place outside of it, a number float32 does not hold.

    >>> table = sparse_rows(np.eye(2))
    >>> check_sparse(table._replace(indices=np.array([0, 2], np.int32)))
    Traceback (most recent call last):
    ValueError: the indices of features must be columns in 0 .. 1, got 2
    """
    start, length, indices, values = map(np.asarray, table[:4])
    if num_nodes is not None and table.shape[0] != num_nodes:
        raise ValueError(f"{name} must have one row a node, {num_nodes}, got shape {table.shape}")
    if np.ndim(table.columns) != 2 or not table.shape[1]:
        raise ValueError(f"{name} must be [num_nodes, d], d at least 1, got shape {table.shape}")
    if start.ndim != 1 or length.shape != start.shape or values.ndim != 1 or indices.shape != values.shape:
        raise ValueError(
            f"{name} must have a start and a length a row, an index and a value a word, got shapes "
            f"{', '.join(str(x.shape) for x in (start, length, indices, values))}: make them by sparse_rows"
        )
    if not is_floating(values.dtype):
        raise ValueError(f"{name} must hold floats, got {values.dtype}: make them by sparse_rows")
    check_finite(values, f"the values of {name}")
    check_ids(indices, table.shape[1], f"the indices of {name}", what="columns")
    check_ids(length, len(values) + 1, f"the lengths of {name}", what="numbers of words")
    ends = check_ids(start, len(values) + 1, f"the starts of {name}", what="words").astype(np.int64) + length
    if not len(values) or (ends > len(values)).any():
        raise ValueError(
            f"{name} have {len(values)} words, but a row ends at word {ends.max(initial=0)}: make them by "
            "sparse_rows, which keeps one word at least"
        )
    return table


def check_rows(values: Any, num_nodes: int | None = None, name: str = "features") -> Any:
    """Features, dense or sparse, as `check_features` has them, SciPy's as a table.

    >>> check_rows(np.ones((2, 3)), 4)
    Traceback (most recent call last):
    ValueError: features must have one row a node, 4, got shape (2, 3)
    """
    if isinstance(values, SparseRows):
        return check_sparse(values, num_nodes, name)
    return check_features(values, num_nodes, name)


def as_rows(features: Any) -> Any:
    """Features as they are, `SparseRows` too, but a SciPy matrix as a table: `sparse_rows` keeps one sparse.

    >>> as_rows(np.eye(2)).shape
    (2, 2)
    """
    return features if isinstance(features, SparseRows) else dense(features)


def is_sparse(x: Any) -> TypeGuard[SparseRows]:
    """Whether these are `SparseRows`: for `jax.tree.map(..., is_leaf=is_sparse)`.

    >>> is_sparse(np.eye(2))
    False
    """
    return isinstance(x, SparseRows)


def refuse_sparse(features: Any, who: str, instead: str) -> None:
    """TypeError for `SparseRows`, which `who` does not read, with what to do instead.

    >>> refuse_sparse(sparse_rows(np.eye(2)), "an export", "serve them from Python")
    Traceback (most recent call last):
    TypeError: an export reads dense features alone, expected an array [num_nodes, d], got SparseRows of ...
    """
    if isinstance(features, SparseRows):
        raise TypeError(
            f"{who} reads dense features alone, expected an array [num_nodes, d], got "
            f"SparseRows of shape {features.shape}: {instead}, or pass features.toarray()"
        )


def rows_at(table: Features, ids: Int[HostArray, " n"]) -> Any:
    """Rows of a table, dense or sparse, at positions that are known to be legal.

    >>> rows_at(jnp.array([[1.0], [2.0]]), jnp.array([1])), rows_at(sparse_rows(np.eye(2)), np.array([1]))[0]
    (Array([[2.]], dtype=float32), array([1], dtype=int32))
    """
    return table.rows(ids) if isinstance(table, SparseRows) else take(table, ids)


def joined_rows(table: SparseRows, more: SparseRows) -> SparseRows:
    """The rows of two tables, one after the other; all words are copied.

    >>> joined_rows(sparse_rows(np.eye(2)), sparse_rows(np.ones((1, 2)))).start
    Array([0, 1, 2], dtype=int32)
    """
    table, more = jax.tree.map(jnp.asarray, (table, more))
    return table._replace(
        start=jnp.concatenate([table.start, more.start + table.values.shape[0]]),
        length=jnp.concatenate([table.length, more.length]),
        indices=jnp.concatenate([table.indices, more.indices]),
        values=jnp.concatenate([table.values, more.values.astype(table.dtype)]),
    )


def only_rows(valid: Any, table: Features) -> Any:
    """A table with 0 in the rows that are not valid, or past the first so many.

    >>> only_rows(jnp.array([True, False]), jnp.array([[1.0], [2.0]])).ravel()
    Array([1., 0.], dtype=float32)
    """
    if isinstance(table, SparseRows):
        return table._replace(length=jnp.where(valid, table.length, 0))
    return jnp.where(valid[:, None], table, 0)


def map_rows(function: Any, table: PyTree) -> PyTree:
    """A function of arrays on each array of a tree; of sparse rows on `start` and `length` alone.

    >>> map_rows(lambda x: x[:1], sparse_rows(np.eye(2))).shape
    (1, 2)
    """

    def one(x: Any) -> Any:
        if isinstance(x, SparseRows):
            return x._replace(start=function(x.start), length=function(x.length))
        return function(x)

    return jax.tree.map(one, table, is_leaf=is_sparse)
