"""The rows of a table nearest to each query, without a `[queries, table]` matrix; and files of them."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jsage._internal.files import replaced
from jsage.typing import HostArray

Queries: TypeAlias = Float[Array, "num_queries d"]
AllowFn: TypeAlias = Callable[[Int[Array, " chunk"]], Bool[Array, "#num_queries chunk"]]
"""`(ids) -> allowed`: which of these rows of the table each query may get."""

_ROWS = 2**16  # a Parquet row group


class Neighbors(NamedTuple):
    """The nearest rows of each query, the best first; id -1 and score -inf where there are no more."""

    id: Int[HostArray, "num_queries k"]
    score: Float[HostArray, "num_queries k"]


def nearest(
    queries: Queries,
    table: Float[Array, "num_rows width"],
    k: int,
    *,
    chunk: int = 2**14,
    allow: AllowFn | None = None,
    recall_target: float | None = None,
) -> Neighbors:
    """The `k` rows with the largest dot product with each query; ties go to the lower id.

    `score[i, j] = <queries[i], table[id[i, j]]>`, summed in float32, by a matmul with each `chunk` of rows:
    the memory is `num_queries * chunk`, never `num_queries * num_rows`. For cosines, pass rows of length 1
    (`jsage.nn.conv.l2_normalize`). `allow` leaves rows out, as `not_these` does; NaN scores are left out too.

    `recall_target` has `jax.lax.approx_max_k` (Chern et al., 2022) choose within each chunk: faster on a TPU,
    and at least that share of the true neighbors is expected; None is exact.

    >>> import jax.numpy as jnp
    >>> table = jnp.array([[1.0, 0.0], [0.0, 2.0], [3.0, 0.0]])
    >>> nearest(table[:1], table, 2, chunk=2).id
    Array([[2, 0]], dtype=int32)
    """
    num_rows = table.shape[0]
    chunk = _check(queries, table, k, chunk, recall_target)

    def step(best: Neighbors, first: Array) -> tuple[Neighbors, None]:
        start = jnp.minimum(first, num_rows - chunk)  # the last chunk reaches back, and reads again
        rows = jax.lax.dynamic_slice_in_dim(table, start, chunk)
        ids = start + jnp.arange(chunk, dtype=jnp.int32)
        return _merge(best, queries, rows, (ids, ids >= first), (allow, recall_target)), None

    firsts = jnp.arange(0, num_rows, chunk, dtype=jnp.int32)
    return jax.lax.scan(step, _none(queries, k), firsts)[0]


def nearest_streamed(
    queries: Queries,
    table: Float[HostArray, "num_rows width"],
    k: int,
    *,
    chunk: int = 2**14,
    allow: AllowFn | None = None,
    recall_target: float | None = None,
) -> Neighbors:
    """`nearest` for a table on the host, such as a memory-mapped `.npy`: one chunk of it at a time is moved.

    Jits its own step, and so is called outside jit.

    >>> import jax.numpy as jnp, numpy as np
    >>> nearest_streamed(jnp.array([[1.0]]), np.array([[1.0], [3.0], [2.0]], np.float32), 2, chunk=2).id
    Array([[1, 2]], dtype=int32)
    """
    num_rows = table.shape[0]
    chunk = _check(queries, table, k, chunk, recall_target)

    @jax.jit
    def step(best: Neighbors, queries: Queries, rows: Array, start: Array, first: Array) -> Neighbors:
        ids = start + jnp.arange(chunk, dtype=jnp.int32)
        return _merge(best, queries, rows, (ids, ids >= first), (allow, recall_target))

    best = _none(queries, k)
    for first in range(0, num_rows, chunk):
        start = min(first, num_rows - chunk)
        rows = jnp.asarray(np.asarray(table[start : start + chunk]))
        best = step(best, queries, rows, np.int32(start), np.int32(first))
    return best


def not_these(ids: Int[Array, "num_queries m"]) -> AllowFn:
    """Allows every row but those that are listed beside the query; -1 lists none.

    >>> import jax.numpy as jnp
    >>> table = jnp.array([[1.0], [2.0], [3.0]])
    >>> nearest(table, table, 1, allow=not_these(jnp.arange(3)[:, None])).id.ravel()  # itself left out
    Array([2, 2, 1], dtype=int32)
    """

    def allow(rows: Int[Array, " chunk"]) -> Bool[Array, "num_queries chunk"]:
        def leave_out(i: Array, kept: Array) -> Array:
            return kept & (ids[:, i, None] != rows[None])

        return jax.lax.fori_loop(0, ids.shape[1], leave_out, jnp.ones((ids.shape[0], rows.shape[0]), bool))

    return allow


def save_neighbors(
    path: str | os.PathLike[str], neighbors: Neighbors, *, nodes: HostArray | None = None
) -> None:
    """Write neighbors to `.npy` or `.parquet`, by the ending; the file appears whole, or the old one stays.

    A `.npy` holds one structured array `[num_queries, k]` with the fields `id` and `score`. A `.parquet` has
    a row a query: `node` (`nodes`, or 0, 1, ...), `id` and `score`, the last two fixed-size lists. Raises
    ValueError for another ending, ImportError where pyarrow is missing.

    >>> import tempfile
    >>> found = Neighbors(np.array([[1, 2]], np.int32), np.array([[0.5, 0.25]], np.float32))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_neighbors(f"{folder}/found.npy", found)
    ...     np.load(f"{folder}/found.npy")["id"]
    array([[1, 2]], dtype=int32)
    """
    ids, score = np.asarray(neighbors.id), np.asarray(neighbors.score)
    if ids.ndim != 2 or ids.shape != score.shape:
        raise ValueError(f"ids and scores must be [num_queries, k], got {ids.shape} and {score.shape}")
    fields = np.dtype([("id", ids.dtype), ("score", score.dtype)])

    def joined() -> np.ndarray:
        both = np.empty(ids.shape, fields)
        both["id"], both["score"] = ids, score
        return both

    _save(Path(path), joined, {"id": ids, "score": score}, nodes)


def save_embeddings(path: str | os.PathLike[str], rows: HostArray, *, nodes: HostArray | None = None) -> None:
    """Write rows to `.npy` or `.parquet`, by the ending; the file appears whole, or the old one stays.

    A `.parquet` has the columns `node` (`nodes`, or 0, 1, ...) and `embedding`, a fixed-size list. bfloat16,
    which neither format has, is written as float32. Raises as `save_neighbors` does.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_embeddings(f"{folder}/rows.npy", np.ones((1, 2), np.float32))
    ...     np.load(f"{folder}/rows.npy")
    array([[1., 1.]], dtype=float32)
    """
    host = np.asarray(rows)
    if host.ndim != 2:
        raise ValueError(f"embeddings are rows [num_rows, d], got shape {host.shape}")
    host = host.astype(np.float32) if host.dtype == jnp.bfloat16 else host
    _save(Path(path), lambda: host, {"embedding": host}, nodes)


def _check(queries: Array, table: HostArray, k: int, chunk: int, recall_target: float | None) -> int:
    """The rows of a chunk, at most those of the table."""
    if queries.shape[1] != table.shape[1]:
        raise ValueError(
            f"queries and table must have rows of one width, got {queries.shape[1]} and {table.shape[1]}"
        )
    if not 1 <= k <= table.shape[0]:
        raise ValueError(f"k must be in 1 .. {table.shape[0]}, the rows of the table, got {k}")
    if chunk < 1:
        raise ValueError(f"chunk is a number of rows, at least 1, got {chunk}")
    if recall_target is not None and not 0 < recall_target <= 1:
        raise ValueError(f"recall_target must be in (0, 1], or None for exact neighbors, got {recall_target}")
    return min(chunk, table.shape[0])


def _none(queries: Array, k: int) -> Neighbors:
    shape = queries.shape[0], k
    return Neighbors(jnp.full(shape, -1, jnp.int32), jnp.full(shape, -jnp.inf, jnp.float32))


def _merge(
    best: Neighbors,
    queries: Queries,
    rows: Float[Array, "chunk d"],
    read: tuple[Int[Array, " chunk"], Bool[Array, " chunk"]],
    choose: tuple[AllowFn | None, float | None],
) -> Neighbors:
    """The best of those so far and of a chunk's rows; `top_k` prefers what comes first, so the lower id."""
    (ids, new), (allow, recall_target) = read, choose
    score = jnp.matmul(
        queries, rows.T, precision=jax.lax.Precision.HIGHEST, preferred_element_type=jnp.float32
    )
    valid = new[None] & ~jnp.isnan(score)
    valid = valid if allow is None else valid & allow(ids)
    score = jnp.where(valid, jnp.where(score == 0, 0, score), -jnp.inf)  # `top_k` holds -0 to be below 0
    k = min(best.id.shape[1], rows.shape[0])
    if recall_target is None:
        score, at = jax.lax.top_k(score, k)
    else:
        score, at = jax.lax.approx_max_k(score, k, recall_target=recall_target)
    found = jnp.where(score == -jnp.inf, -1, ids[at])
    score, at = jax.lax.top_k(jnp.concatenate([best.score, score], 1), best.id.shape[1])
    return Neighbors(jnp.take_along_axis(jnp.concatenate([best.id, found], 1), at, 1), score)


def _save(
    path: Path, array: Callable[[], np.ndarray], columns: dict[str, np.ndarray], nodes: HostArray | None
) -> None:
    size = len(next(iter(columns.values())))
    if path.suffix not in (".npy", ".parquet"):
        raise ValueError(f"the path must end in .npy or .parquet, got {str(path)!r}")
    if path.suffix == ".npy" and nodes is not None:
        raise ValueError(
            "a .npy has no column for nodes: write .parquet, or keep nodes in a file of their own"
        )
    if nodes is not None and np.shape(nodes) != (size,):
        raise ValueError(f"nodes must hold one id a row, {size}, got shape {np.shape(nodes)}")
    if path.suffix == ".npy":
        with replaced(path) as file:
            np.save(file, array(), allow_pickle=False)
    else:
        ids = np.arange(size, dtype=np.int32) if nodes is None else np.asarray(nodes)
        _write_parquet(path, ids, columns)


def _write_parquet(path: Path, nodes: np.ndarray, columns: dict[str, np.ndarray]) -> None:
    """One row group after another, so a memory-mapped array is never read whole."""
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise ImportError(
            f"{path} needs pyarrow: pip install 'jsage[parquet]', or give a path that ends in .npy"
        ) from error
    types = {name: pa.list_(pa.from_numpy_dtype(c.dtype), c.shape[1]) for name, c in columns.items()}
    schema = pa.schema({"node": pa.from_numpy_dtype(nodes.dtype), **types})
    with replaced(path) as file, pq.ParquetWriter(file, schema) as writer:
        for first in range(0, len(nodes), _ROWS):
            span = slice(first, first + _ROWS)
            lists = [
                pa.FixedSizeListArray.from_arrays(np.ascontiguousarray(c[span]).ravel(), type=types[name])
                for name, c in columns.items()
            ]
            writer.write_table(pa.Table.from_arrays([pa.array(nodes[span]), *lists], schema=schema))
