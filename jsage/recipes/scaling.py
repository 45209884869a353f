"""How features are scaled before training: each row, each column, or not at all."""

from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Float, Int

from jsage.graph.sparse import Features, SparseRows, as_rows, is_sparse, sparse_rows
from jsage.typing import HostArray

SCALES = ("auto", "rows", "sums", "columns", "tfidf", "none")


class Scaling(NamedTuple):
    """What is done to a row of features, at training and at prediction alike. Make one with `fit_scaling`."""

    kind: str
    """"rows": each is scaled to length 1; "sums": each is divided by the sum of its numbers' sizes (Kipf and
    Welling, 2017, for bags of words); "columns": each is centered and divided by its spread; "tfidf": each is
    divided by its spread, the inverse of its idf, then rows are scaled to length 1; "none"."""
    center: Float[np.ndarray, " num_features"] | None = None
    spread: Float[np.ndarray, " num_features"] | None = None
    why: str = "asked for"

    def __call__(self, rows: Features) -> Any:
        """The rows, scaled; on the host, in float32. ValueError for what that does not hold.

        Sparse rows stay sparse; a ValueError for columns, which centering would fill.
        """
        given = as_rows(rows)
        if is_sparse(given):
            return self._sparse(given)
        wide = np.asarray(given, np.float64)
        if self.spread is not None:
            wide = (wide - (0 if self.center is None else self.center)) / self.spread
        if self.kind in ("rows", "sums", "tfidf"):
            size = np.abs(wide).sum(1) if self.kind == "sums" else np.sqrt((wide**2).sum(1))
            length = size[:, None]
            wide = wide / np.where(length > 0, length, 1)
        if np.abs(wide).max(initial=0) > np.finfo(np.float32).max:
            raise ValueError(
                f"features are up to {np.abs(wide).max()} times the spread that they were scaled by, beyond "
                "float32: give them in the unit of those that the scaling was fitted on"
            )
        return wide.astype(np.float32)

    def _sparse(self, rows: SparseRows) -> SparseRows:
        if self.kind == "columns":
            raise ValueError(
                "columns of sparse features cannot be centered and stay sparse, expected rows, tfidf or none,"
                " got columns: scale them otherwise, or make the features dense, features.toarray()"
            )
        if self.kind == "none":
            return rows
        matrix = rows.to_scipy().astype(np.float64)
        if self.spread is not None:
            matrix.data /= self.spread[matrix.indices]
        size = abs(matrix) if self.kind == "sums" else matrix.multiply(matrix)
        length = np.asarray(size.sum(1)).ravel()
        length = length if self.kind == "sums" else np.sqrt(length)
        matrix.data /= np.repeat(np.where(length > 0, length, 1), np.diff(matrix.indptr))
        return sparse_rows(matrix)

    def to_json(self) -> dict[str, Any]:
        """The numbers, as JSON has them without loss: kept beside a model, for `from_json`."""
        numbers = {"center": self.center, "spread": self.spread}
        lists = {name: None if row is None else row.tolist() for name, row in numbers.items()}
        return {"kind": self.kind, **lists, "why": self.why}

    @classmethod
    def from_json(cls, kept: Any) -> "Scaling":
        """What `to_json` wrote; ValueError for anything else.

        >>> scaling = fit_scaling(np.array([[1.0, 2.0], [2.0, 4.0]]), kind="columns")
        >>> Scaling.from_json(scaling.to_json())(np.array([[2.0, 2.0]]))
        array([[ 1., -1.]], dtype=float32)
        """
        fault = ValueError(f"expected a scaling as to_json writes it, got {str(kept)[:200]}")
        try:
            kind, why = kept["kind"], str(kept["why"])
            center, spread = kept["center"], kept["spread"]
            if kind in ("rows", "sums", "none") and center is None and spread is None:
                return cls(kind, why=why)
            spread = np.array(spread, np.float64)
            center = (
                np.zeros_like(spread) if kind == "tfidf" and center is None else np.array(center, np.float64)
            )
        except (KeyError, TypeError, ValueError):
            raise fault from None
        if kind not in ("columns", "tfidf") or center.ndim != 1 or center.shape != spread.shape:
            raise fault
        if not (np.isfinite(center).all() and np.isfinite(spread).all() and (spread > 0).all()):
            raise fault
        return cls(kind, center if kind == "columns" else None, spread, why)


def fit_scaling(
    features: Features,
    nodes: Int[HostArray, " n"] | None = None,
    kind: str = "auto",
) -> Scaling:
    """The scaling of a table, columns by the mean and standard deviation of `nodes` (None: of all).

    With "auto", columns where more than half of the numbers are not 0 and one column is much larger than most
    (its root mean square more than 10 times the median of all that are not 0 throughout): a table of unlike
    measurements, whose rows scaled to one length would say nothing but the largest. Else rows: counts, words,
    pixels. "tfidf" multiplies a column by `log((1 + n) / (1 + n_c)) + 1`, where `n_c` of the `n` nodes are
    not 0 in it, before rows are scaled (Salton and Buckley, 1988; as scikit-learn has it). Raises ValueError
    for another kind.

    >>> table = np.array([[1.0, 2e5], [2.0, 2e5], [3.0, 1e5], [2.0, 3e5]])
    >>> scaling = fit_scaling(table)
    >>> scaling.kind, scaling(table)[:, 0].round(1)
    ('columns', array([-1.4,  0. ,  1.4,  0. ], dtype=float32))
    """
    if kind not in SCALES:
        raise ValueError(f"features are scaled by one of {', '.join(SCALES)}, got {kind!r}")
    table, why = as_rows(features), "asked for"
    table = table if is_sparse(table) else np.asarray(table)
    if kind == "auto":
        kind, why = _choose(table)
    if kind in ("rows", "sums", "none"):
        return Scaling(kind, why=why)
    known = table if nodes is None else _some(table, np.asarray(nodes))
    if kind == "tfidf":
        there: Any = known.to_scipy() if is_sparse(known) else known
        count = np.asarray((there != 0).sum(0)).ravel()
        return Scaling(kind, None, 1 / (np.log((1 + known.shape[0]) / (1 + count)) + 1), why)
    if is_sparse(known):
        return Scaling(kind)(known)  # which says why not
    known = np.asarray(known, np.float64)
    spread = known.std(0)
    return Scaling(kind, known.mean(0), np.where(spread > 0, spread, 1), why)


def _some(table: Any, nodes: np.ndarray) -> Any:
    """These rows, on the host."""
    return jax.tree.map(np.asarray, table).rows(nodes) if is_sparse(table) else table[nodes]


def _choose(table: Any) -> tuple[str, str]:
    """The kind, and why."""
    sparse = is_sparse(table)
    share = table.density if sparse else np.count_nonzero(table) / max(table.size, 1)
    if sparse or share <= 0.5:
        return "rows", f"{share:.0%} of the numbers are not 0"
    size = np.sqrt(np.square(table, dtype=np.float64).mean(0))
    ratio = size.max(initial=0) / np.quantile(size[size > 0], 0.5, method="lower") if size.any() else 1
    if ratio > 10:
        return "columns", f"the largest column is {ratio:,.0f} times as large as the median one"
    return "rows", "all columns are of like size"
