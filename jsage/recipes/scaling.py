"""How features are scaled before training: each row, each column, or not at all."""

from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from jsage._internal.arrays import dense
from jsage.typing import HostArray, HostTable

SCALES = ("auto", "rows", "sums", "columns", "none")


class Scaling(NamedTuple):
    """What is done to a row of features, at training and at prediction alike. Make one with `fit_scaling`."""

    kind: str
    """"rows": each is scaled to length 1; "sums": each is divided by the sum of its numbers' sizes (Kipf and
    Welling, 2017, for bags of words); "columns": each is centered and divided by its spread; "none"."""
    center: Float[np.ndarray, " num_features"] | None = None
    spread: Float[np.ndarray, " num_features"] | None = None
    why: str = "asked for"

    def __call__(self, rows: Float[HostTable, "n num_features"]) -> Float[np.ndarray, "n num_features"]:
        """The rows, scaled; on the host, in float32. ValueError for what that does not hold."""
        wide = np.asarray(dense(rows), np.float64)
        if self.center is not None and self.spread is not None:
            wide = (wide - self.center) / self.spread
        elif self.kind in ("rows", "sums"):
            size = np.abs(wide).sum(1) if self.kind == "sums" else np.sqrt((wide**2).sum(1))
            length = size[:, None]
            wide = wide / np.where(length > 0, length, 1)
        if np.abs(wide).max(initial=0) > np.finfo(np.float32).max:
            raise ValueError(
                f"features are up to {np.abs(wide).max()} times the spread that they were scaled by, beyond "
                "float32: give them in the unit of those that the scaling was fitted on"
            )
        return wide.astype(np.float32)

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
            center, spread = np.array(center, np.float64), np.array(spread, np.float64)
        except (KeyError, TypeError, ValueError):
            raise fault from None
        if kind != "columns" or center.ndim != 1 or center.shape != spread.shape:
            raise fault
        if not (np.isfinite(center).all() and np.isfinite(spread).all() and (spread > 0).all()):
            raise fault
        return cls(kind, center, spread, why)


def fit_scaling(
    features: Float[HostTable, "num_nodes num_features"],
    nodes: Int[HostArray, " n"] | None = None,
    kind: str = "auto",
) -> Scaling:
    """The scaling of a table, columns by the mean and standard deviation of `nodes` (None: of all).

    With "auto", columns where more than half of the numbers are not 0 and one column is much larger than most
    (its root mean square more than 10 times the median of all that are not 0 throughout): a table of unlike
    measurements, whose rows scaled to one length would say nothing but the largest. Else rows: counts, words,
    pixels. Raises ValueError for another kind.

    >>> table = np.array([[1.0, 2e5], [2.0, 2e5], [3.0, 1e5], [2.0, 3e5]])
    >>> scaling = fit_scaling(table)
    >>> scaling.kind, scaling(table)[:, 0].round(1)
    ('columns', array([-1.4,  0. ,  1.4,  0. ], dtype=float32))
    """
    if kind not in SCALES:
        raise ValueError(f"features are scaled by one of {', '.join(SCALES)}, got {kind!r}")
    table, why = np.asarray(dense(features)), "asked for"
    if kind == "auto":
        kind, why = _choose(table)
    if kind != "columns":
        return Scaling(kind, why=why)
    known = np.asarray(table if nodes is None else table[np.asarray(nodes)], np.float64)
    spread = known.std(0)
    return Scaling(kind, known.mean(0), np.where(spread > 0, spread, 1), why)


def _choose(table: np.ndarray) -> tuple[str, str]:
    """The kind, and why."""
    share = np.count_nonzero(table) / max(table.size, 1)
    if share <= 0.5:
        return "rows", f"{share:.0%} of the numbers are not 0"
    size = np.sqrt(np.square(table, dtype=np.float64).mean(0))
    ratio = size.max(initial=0) / np.quantile(size[size > 0], 0.5, method="lower") if size.any() else 1
    if ratio > 10:
        return "columns", f"the largest column is {ratio:,.0f} times as large as the median one"
    return "rows", "all columns are of like size"
