"""Whole-graph inference in PyG, for `benchmarks.infer`: run by an interpreter with torch and torch_geometric.

Forms, all of two `SAGEConv` layers with mean aggregation, on every node's whole neighborhood:

* `sparse`: the transposed adjacency as a `torch.sparse` CSR tensor, so that each layer is a sparse product;
* `sparse_projected`: the same by hand, with the second layer's matrix put before its product where that
  makes the rows shorter: what a user who knows the algebra would write;
* `torch_sparse`: the adjacency as a `torch_sparse.SparseTensor`;
* `segments`: the edges as a sorted `EdgeIndex`;
* `loader`: `NeighborLoader` over every node with all its neighbors, layer by layer, as PyG's examples write
  `inference()`.
"""

import sys
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch_geometric import typing as pyg
from torch_geometric.data import Data
from torch_geometric.loader import NeighborLoader
from torch_geometric.nn import SAGEConv

from benchmarks.peers.process import peak_rss_bytes, reset_peak_rss, serve
from benchmarks.peers.pyg_step import versions


class Tables:
    """One graph directory, and the forms of its edges, each made when it is first asked for."""

    def __init__(self, folder: Path):
        arrays = (np.load(folder / f"{name}.npy") for name in ("indptr", "indices", "features"))
        self.indptr, self.indices, self.features = map(torch.from_numpy, arrays)
        self.num_nodes = len(self.indptr) - 1

    def sparse(self) -> torch.Tensor:
        ones = torch.ones(len(self.indices))
        size = (self.num_nodes, self.num_nodes)
        return torch.sparse_csr_tensor(self.indptr.long(), self.indices.long(), ones, size)

    def torch_sparse(self) -> Any:
        size = (self.num_nodes, self.num_nodes)
        return pyg.SparseTensor(
            rowptr=self.indptr.long(),
            col=self.indices.long(),
            sparse_sizes=size,
            is_sorted=True,
            trust_data=True,
        )

    def segments(self) -> Any:
        from torch_geometric import EdgeIndex

        size = (self.num_nodes, self.num_nodes)
        return EdgeIndex(self.edges(), sparse_size=size, sort_order="col").fill_cache_()

    def edges(self) -> torch.Tensor:
        dst = torch.repeat_interleave(torch.arange(self.num_nodes), self.indptr.diff().long())
        return torch.stack([self.indices.long(), dst])

    def loader(self) -> NeighborLoader:
        data = Data(edge_index=self.edges(), num_nodes=self.num_nodes)
        data.n_id = torch.arange(self.num_nodes)
        return NeighborLoader(data, num_neighbors=[-1], batch_size=4096, shuffle=False, is_sorted=True)


def layers(convs: list[SAGEConv], h: torch.Tensor, edges: Any) -> torch.Tensor:
    for k, conv in enumerate(convs):
        h = conv(h, edges)
        h = h.relu_() if k < len(convs) - 1 else h
    return h


def projected(convs: list[SAGEConv], h: torch.Tensor, edges: torch.Tensor) -> torch.Tensor:
    for k, conv in enumerate(convs):
        weight = conv.lin_l.weight
        if weight.shape[0] < weight.shape[1]:
            near = torch.sparse.mm(edges, h @ weight.T, "mean").add_(conv.lin_l.bias)
        else:
            near = conv.lin_l(torch.sparse.mm(edges, h, "mean"))
        h = near.add_(conv.lin_r(h))
        h = h.relu_() if k < len(convs) - 1 else h
    return h


def by_loader(convs: list[SAGEConv], h: torch.Tensor, loader: NeighborLoader) -> torch.Tensor:
    for k, conv in enumerate(convs):
        rows = []
        for batch in loader:
            own = batch.batch_size
            x = h[batch.n_id]
            out = conv((x, x[:own]), batch.edge_index)
            rows.append(out.relu_() if k < len(convs) - 1 else out)
        h = torch.cat(rows)
    return h


FORMS = {
    "sparse": (Tables.sparse, layers),
    "sparse_projected": (Tables.sparse, projected),
    "torch_sparse": (Tables.torch_sparse, layers),
    "segments": (Tables.segments, layers),
    "loader": (Tables.loader, by_loader),
}


class Inference:
    """Embeds every node in any form, with the parameters that it is given."""

    def __init__(self, folder: Path):
        self._tables = Tables(folder)
        self._edges: tuple[str, Any] = ("", None)

    def __call__(self, request: dict) -> dict:
        """Infer as `{"form", "parameters"}` asks (a `.npz` file), or say what can be run."""
        if "form" not in request:
            return {"forms": lacking(), "versions": versions()}
        make, run = FORMS[request["form"]]
        if self._edges[0] != request["form"]:
            self._edges = ("", None)
            self._edges = (request["form"], make(self._tables))
        convs = read_layers(request["parameters"])
        reset_peak_rss()
        start = time.perf_counter()
        with torch.no_grad():
            out = run(convs, self._tables.features, self._edges[1])
        answer = {"seconds": time.perf_counter() - start, "peak_rss_bytes": peak_rss_bytes()}
        rows = torch.as_tensor(request["check"])
        return {**answer, "rows": out[rows].tolist()}


def read_layers(path: str) -> list[SAGEConv]:
    """`SAGEConv` layers with the matrices of a file: `self_k`, `neigh_k` and `bias_k` of layer `k`."""
    with np.load(path) as arrays:
        found = {name: torch.from_numpy(arrays[name]) for name in arrays.files}
    convs = []
    for k in range(sum(name.startswith("self_") for name in found)):
        conv = SAGEConv(*found[f"self_{k}"].shape)
        matrices = {"lin_l.weight": found[f"neigh_{k}"].T, "lin_r.weight": found[f"self_{k}"].T}
        conv.load_state_dict({**matrices, "lin_l.bias": found[f"bias_{k}"]})
        convs.append(conv)
    return convs


def lacking() -> dict[str, str | None]:
    """Each form, and what it lacks here."""
    sampler = None if pyg.WITH_PYG_LIB or pyg.WITH_TORCH_SPARSE else "needs pyg-lib or torch-sparse"
    sparse = None if pyg.WITH_TORCH_SPARSE else "SparseTensor needs torch-sparse, which is not installed"
    return {name: {"torch_sparse": sparse, "loader": sampler}.get(name) for name in FORMS}


if __name__ == "__main__":
    warnings.filterwarnings("ignore", category=UserWarning)  # torch's sparse tensors are in beta, it says
    serve(Inference(Path(sys.argv[1])))
