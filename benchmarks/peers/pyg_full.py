"""PyG over a whole graph, for `benchmarks.full_batch`: run by an interpreter with torch and torch_geometric.

Forms:

* `edge_index`: `SimpleConv` (`SAGEConv` without its matrices) gathers and scatters messages;
* `edge_index_csr`: the same on an `EdgeIndex` that is sorted and has its CSR and CSC cached;
* `sparse_tensor`: the same on a `SparseTensor`: PyG calls `torch.sparse.mm`, which never holds the messages;
* `torch_sparse`: `torch_sparse.matmul` on it.
"""

import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch_geometric import EdgeIndex
from torch_geometric import typing as pyg
from torch_geometric.nn import SimpleConv

from benchmarks.peers.process import memory_bytes, peak_rss_bytes, reset_peak_rss, serve
from benchmarks.peers.pyg_step import versions

FORMS = ("edge_index", "edge_index_csr", "sparse_tensor", "torch_sparse")


class Aggregator:
    """Runs any form on one graph; the edges of the last form are kept."""

    def __init__(self, folder: Path):
        indptr, indices, features = (
            torch.from_numpy(np.load(folder / f"{name}.npy")) for name in ("indptr", "indices", "features")
        )
        self._indptr, self._indices, self._features = indptr.long(), indices.long(), features.float()
        self._kept: tuple[str, Any] = "", None

    def __call__(self, request: dict) -> dict:
        """Run `{"op", "form", "pass"}` once, or say what can be run."""
        if "form" not in request:
            return {"forms": FORMS, "versions": versions()}
        edges = self._edges(request["form"])
        call = self._call(request["form"], request["op"])
        both = request["pass"] == "forward_backward"
        x = self._features.clone().requires_grad_(both)
        reset_peak_rss()
        start = time.perf_counter()
        out = call(x, edges)
        if both:
            out.backward(self._features)
        seconds = time.perf_counter() - start
        peak = peak_rss_bytes()
        found = x.grad if both else out
        assert found is not None
        return {"seconds": seconds, "peak_rss_bytes": peak, "checksum": found.abs().mean().item()}

    def _call(self, form: str, op: str) -> Callable[[torch.Tensor, Any], torch.Tensor]:
        if form == "torch_sparse":
            import torch_sparse

            return lambda x, edges: torch_sparse.matmul(edges, x, reduce=op)
        return SimpleConv(aggr=op)

    def _edges(self, form: str) -> Any:
        family = "tensor" if "sparse" in form else form
        if self._kept[0] != family:
            self._kept = "", None
            self._kept = family, self._sparse() if family == "tensor" else self._pairs(form)
        return self._kept[1]

    def _sparse(self) -> Any:
        if not pyg.WITH_TORCH_SPARSE:
            raise ImportError("SparseTensor needs torch-sparse, which is not installed")
        size = (len(self._features),) * 2
        made = pyg.SparseTensor(
            rowptr=self._indptr, col=self._indices, sparse_sizes=size, is_sorted=True, trust_data=True
        )
        return made.fill_cache_()

    def _pairs(self, form: str) -> torch.Tensor:
        held = 2 * len(self._indices) * self._features[:1].nbytes
        if held > memory_bytes() / 2:
            raise MemoryError(
                f"messages and their gradient take {held / 1e9:.0f} GB of {memory_bytes() / 1e9:.0f}"
            )
        size = (len(self._features),) * 2
        dst = torch.repeat_interleave(torch.arange(size[0]), self._indptr.diff())
        pairs = torch.stack([self._indices, dst])
        if form == "edge_index":
            return pairs
        return EdgeIndex(pairs, sparse_size=size, sort_order="col").fill_cache_()


if __name__ == "__main__":
    warnings.filterwarnings("ignore", message=".*[Ss]parse.*", category=UserWarning)
    serve(Aggregator(Path(sys.argv[1])))
