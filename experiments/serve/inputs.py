"""What is done to features and edges before the programs read them: what training did."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from experiments.common.learners import unit_weights, weight_unit
from jsage.data import Dataset
from jsage.graph import symmetric_weights
from jsage.recipes.scaling import Scaling

SYMMETRIC = "symmetric"
"""`meta["about"]["weights"]` where edges are weighed by `jsage.graph.symmetric_weights`."""


class Weigher(NamedTuple):
    """The weights of edges that join new nodes: those of `symmetric_weights`, where degrees count them too.

    Edges between known nodes keep the weights that they have.
    """

    into: np.ndarray
    """Edges into each known node."""
    out: np.ndarray
    unit: float | None
    """The mean size of the graph's own weights; None: it has none."""

    def __call__(self, src: np.ndarray, dst: np.ndarray, given: np.ndarray | None) -> np.ndarray:
        """float32, one an edge; new node `i` is -1 - i; `given` are weights as the graph has them."""
        num = len(self.into)
        src, dst = (np.where(ends < 0, num - 1 - ends, ends) for ends in (src, dst))
        most = max(num, 1 + max(src.max(initial=0), dst.max(initial=0)))
        into, out = (
            1 + np.pad(degree, (0, most - num)) + np.bincount(ends, minlength=most)
            for degree, ends in ((self.into, dst), (self.out, src))
        )
        weight = 1.0 if given is None or self.unit is None else given.astype(np.float64) / self.unit
        found = np.sqrt(into[dst] / out[src]) * weight
        if np.abs(found).max(initial=0) > np.finfo(np.float32).max:
            raise ValueError(f"weights of edges are beyond float32, up to {np.abs(found).max()}")
        return found.astype(np.float32)


class Inputs(NamedTuple):
    """Raw features and edges of a request to what the model was trained on."""

    scaling: Scaling | None = None
    weigher: Weigher | None = None

    def asked(self, meta: dict) -> list[str]:
        """The edge data that a request gives, as `edge_NAME`: all that the programs read and nobody makes."""
        made = self.weigher is not None and self.weigher.unit is None
        return [name for name in meta["tables"] if name.startswith("edge_") and not (made and name == WEIGHT)]

    def __call__(self, new: dict[str, np.ndarray], given: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """Checked arrays of new nodes, with features scaled and edges weighed; `given` is what was asked."""
        made = dict(new)
        if self.scaling is not None:
            made["features"] = self.scaling(new["features"])
        if self.weigher is not None:
            own = new[WEIGHT] if WEIGHT in given else None
            made[WEIGHT] = self.weigher(new["src"], new["dst"], own)
        return made


WEIGHT = "edge_weight"


def prepare(about: Mapping[str, Any], dataset: Dataset) -> tuple[Dataset, Inputs]:
    """A raw graph directory as the model was trained on one, and what does the same to new nodes.

    Raises ValueError for a scaling that is none, or is of another width.
    """
    scaling, weigher = None, None
    if "scaling" in about:
        scaling = Scaling.from_json(about["scaling"])
        width = 0 if dataset.features is None else dataset.features.shape[1]
        if scaling.center is not None and len(scaling.center) != width:
            raise ValueError(f"the artefact scales {len(scaling.center)} features, and the graph has {width}")
        if dataset.features is not None:
            dataset = dataset._replace(features=scaling(dataset.features))
    if about.get("weights") == SYMMETRIC:
        graph = dataset.graph
        out = np.bincount(np.asarray(graph.indices), minlength=graph.num_nodes)
        weigher = Weigher(np.diff(np.asarray(graph.indptr)), out, weight_unit(graph))
        dataset = dataset._replace(graph=symmetric_weights(unit_weights(graph)))
    return dataset, Inputs(scaling, weigher)
