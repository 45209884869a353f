"""The training step in PyG, for `benchmarks.peers`: run by an interpreter that has torch and torch_geometric.

Forms, all over the same `NeighborLoader`:

* `default`: every layer on the whole sampled subgraph, as PyG's examples write it;
* `trimmed`: `trim_to_layer` before each layer;
* `bipartite`: each layer reads a hop's sources and writes its destinations only, edges as `edge_index`;
* `bipartite_csr`: the same, edges as a `torch_sparse.SparseTensor`, so that messages are never materialized.
"""

import contextlib
import importlib.metadata
import itertools
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch_geometric import typing as pyg
from torch_geometric.data import Data
from torch_geometric.loader import NeighborLoader
from torch_geometric.nn import SAGEConv
from torch_geometric.utils import trim_to_layer

from benchmarks.peers.process import peak_rss_bytes, serve

PACKAGES = ("torch", "torch_geometric", "pyg_lib", "torch_sparse", "torch_scatter", "numpy")


class Net(torch.nn.Module):
    def __init__(self, widths: Sequence[int]):
        super().__init__()
        self.convs = torch.nn.ModuleList(SAGEConv(a, b) for a, b in itertools.pairwise(widths))


def default(net: Net, batch: Data) -> torch.Tensor:
    h = batch.x
    for k, conv in enumerate(net.convs):
        h = conv(h if k == 0 else h.relu(), batch.edge_index)
    return h


def trimmed(net: Net, batch: Data) -> torch.Tensor:
    nodes, edges = hops(batch, len(net.convs))
    h, edge_index = batch.x, batch.edge_index
    for k, conv in enumerate(net.convs):
        h, edge_index, _ = trim_to_layer(k, nodes, edges, h, edge_index)
        h = conv(h if k == 0 else h.relu(), edge_index)
    return h


def bipartite(net: Net, batch: Data) -> torch.Tensor:
    return by_hop(net, batch, lambda edge_index, num_src, num_dst: edge_index)


def bipartite_csr(net: Net, batch: Data) -> torch.Tensor:
    return by_hop(net, batch, sparse)


def by_hop(net: Net, batch: Data, layout: Any) -> torch.Tensor:
    nodes, edges = hops(batch, len(net.convs))
    h = batch.x
    for k, conv in enumerate(net.convs):
        hop = len(net.convs) - k
        num_dst, num_edges = sum(nodes[:hop]), sum(edges[:hop])
        h = h if k == 0 else h.relu()
        h = conv((h, h[:num_dst]), layout(batch.edge_index[:, :num_edges], len(h), num_dst))
    return h


def sparse(edge_index: torch.Tensor, num_src: int, num_dst: int) -> Any:
    src, dst = edge_index
    sizes = (num_dst, num_src)
    return pyg.SparseTensor(row=dst, col=src, sparse_sizes=sizes, is_sorted=True, trust_data=True)


def hops(batch: Data, num_hops: int) -> tuple[list[int], list[int]]:
    """Nodes and edges met at each hop, the seeds first.

    pyg-lib counts them. torch-sparse does not, but numbers nodes as they are met and sorts edges by
    destination: the edges of a hop are those into nodes of the hops before.
    """
    if "num_sampled_nodes" in batch:
        return batch.num_sampled_nodes, batch.num_sampled_edges
    src, dst = batch.edge_index
    nodes, edges = [batch.batch_size], [0]
    for _ in range(num_hops):
        edges.append(int(torch.searchsorted(dst, nodes[-1])))
        nodes.append(max(nodes[-1], int(src[: edges[-1]].max()) + 1) if edges[-1] else nodes[-1])
    return np.diff(nodes, prepend=0).tolist(), np.diff(edges).tolist()


FORMS = {form.__name__: form for form in (default, trimmed, bipartite, bipartite_csr)}


class Trainer:
    """Trains any form on one graph; a form goes on where its last request left it."""

    def __init__(self, folder: Path):
        indptr, indices, features, labels, self._train = (
            torch.from_numpy(np.load(folder / f"{name}.npy"))
            for name in ("indptr", "indices", "features", "labels", "train")
        )
        num_nodes = len(indptr) - 1
        dst = torch.repeat_interleave(torch.arange(num_nodes), indptr.diff().long())
        edge_index = torch.stack([indices.long(), dst])
        self._data = Data(x=features, y=labels.long(), edge_index=edge_index)
        self._num_classes = int(labels.max()) + 1
        self._batches: dict[tuple, Iterator[Data]] = {}
        self._nets: dict[tuple, tuple[Net, torch.optim.Optimizer]] = {}

    def __call__(self, request: dict) -> dict:
        """Train as `{"form", "fanouts", "batch_size", "hidden", "steps"}` asks, or say what can be run."""
        if "form" not in request:
            return {"forms": self._forms(), "sampler": sampler(), "versions": versions()}
        fanouts, batch_size = tuple(request["fanouts"]), request["batch_size"]
        batches = self._batches.setdefault((fanouts, batch_size), self.endless(fanouts, batch_size))
        form, steps = FORMS[request["form"]], request["steps"]
        net, optimizer = self.net(request["form"], len(fanouts), request["hidden"])
        start = time.perf_counter()
        loss = train(form, net, optimizer, itertools.islice(batches, steps))
        return {
            "seconds": time.perf_counter() - start,
            "loss": loss,
            "peak_rss_bytes": peak_rss_bytes(),
        }

    def _forms(self) -> dict[str, str | None]:
        """Each form, and what it lacks here."""
        if not (pyg.WITH_PYG_LIB or pyg.WITH_TORCH_SPARSE):
            return dict.fromkeys(
                FORMS, "NeighborLoader needs pyg-lib or torch-sparse, and neither is installed"
            )
        lacks = None if pyg.WITH_TORCH_SPARSE else "SparseTensor needs torch-sparse, which is not installed"
        return {name: lacks if name == "bipartite_csr" else None for name in FORMS}

    def endless(self, fanouts: tuple[int, ...], batch_size: int) -> Iterator[Data]:
        loader = NeighborLoader(
            self._data,
            num_neighbors=list(fanouts),
            input_nodes=self._train.long(),
            batch_size=batch_size,
            shuffle=True,
            drop_last=True,
            is_sorted=True,
        )
        while True:
            yield from loader

    def net(self, form: str, num_layers: int, hidden: int) -> tuple[Net, torch.optim.Optimizer]:
        key = (form, num_layers, hidden)
        if key not in self._nets:
            widths = [self._data.num_features, *[hidden] * (num_layers - 1), self._num_classes]
            net = Net(widths)
            self._nets[key] = net, torch.optim.Adam(net.parameters(), 0.003)
        return self._nets[key]


def train(form: Any, net: Net, optimizer: torch.optim.Optimizer, batches: Iterator[Data]) -> float:
    """A step on each batch; the loss of the last."""
    loss = torch.zeros(())
    for batch in batches:
        logits = form(net, batch)[: batch.batch_size]
        loss = F.cross_entropy(logits, batch.y[: batch.batch_size])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return loss.item()


def sampler() -> str:
    """What draws neighbors: NeighborLoader prefers pyg-lib."""
    return "pyg-lib" if pyg.WITH_PYG_LIB else "torch-sparse" if pyg.WITH_TORCH_SPARSE else "none"


def versions() -> dict[str, str]:
    """The peer's packages, as far as they are installed."""
    found = {"python": sys.version.split()[0]}
    for name in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


if __name__ == "__main__":
    warnings.filterwarnings("ignore", message=".*pyg-lib.*", category=UserWarning)
    serve(Trainer(Path(sys.argv[1])))
