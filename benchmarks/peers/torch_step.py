"""The training step in PyTorch by hand, for `benchmarks.accelerator`: run by an interpreter that has torch.

Forms, on a GPU if torch sees one:

* `eager`: neighbors drawn on the device (with replacement: the cheapest draw), rows gathered, two mean layers
  that read a row for every slot, cross-entropy, Adam;
* `compiled`: the same, sampling and loss by `torch.compile`;
* `full_batch`: a step of PyG's SAGEConv over the whole graph, which needs torch_geometric;
* `loader`: PyG's NeighborLoader, each layer on a hop's sources (`benchmarks/peers/pyg_step.py`), batches
  copied to the device.
"""

import itertools
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from benchmarks.peers.process import serve

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


class Tables:
    """The graph on the device, once."""

    def __init__(self, folder: Path):
        self.indptr, self.indices, self.features, self.labels, self.train = (
            torch.from_numpy(np.load(folder / f"{name}.npy")).to(DEVICE)
            for name in ("indptr", "indices", "features", "labels", "train")
        )
        self.labels, self.train = self.labels.long(), self.train.long()
        self.num_classes = int(self.labels.max()) + 1


class Net(torch.nn.Module):
    """`h_v' = W_self h_v + W_neigh mean(h_u)`, hop after hop from the outermost."""

    def __init__(self, widths: Sequence[int]):
        super().__init__()
        pairs = list(itertools.pairwise(widths))
        self.own = torch.nn.ModuleList(torch.nn.Linear(a, b) for a, b in pairs)
        self.neighbors = torch.nn.ModuleList(torch.nn.Linear(a, b, bias=False) for a, b in pairs)

    def forward(self, features: torch.Tensor, hops: list[tuple[torch.Tensor, ...]]) -> torch.Tensor:
        own, drawn, mask = hops[-1]
        h = self.layer(0, features[own], features[drawn], mask)
        for k, (before, _, mask) in enumerate(reversed(hops[:-1]), 1):
            h = h.relu()
            num, fanout = mask.shape
            h = self.layer(k, h[: len(before)], h[num:].view(num, fanout, -1), mask)
        return h

    def layer(self, k: int, own: torch.Tensor, rows: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        total = (rows * mask[..., None]).sum(1) / mask.sum(1).clamp(min=1)[:, None]
        return self.own[k](own) + self.neighbors[k](total)


def sample(tables: Tables, seeds: torch.Tensor, fanouts: Sequence[int]) -> list[tuple[torch.Tensor, ...]]:
    """`(frontier, drawn[frontier, fanout], mask)` a hop, the seeds' first."""
    hops, frontier = [], seeds
    for fanout in fanouts:
        start = tables.indptr[frontier].long()
        degree = tables.indptr[frontier + 1].long() - start
        offset = (torch.rand(len(frontier), fanout, device=DEVICE) * degree[:, None]).long()
        mask = (degree[:, None] > 0).expand(-1, fanout)
        at = torch.where(mask, start[:, None] + offset, 0)
        drawn = torch.where(mask, tables.indices[at].long(), frontier[:, None])
        hops.append((frontier, drawn, mask))
        frontier = torch.cat([frontier, drawn.reshape(-1)])
    return hops


class Trainer:
    """Trains each form; it goes on where its last request left it."""

    def __init__(self, folder: Path):
        self.folder, self.tables = folder, Tables(folder)
        self._steps: dict[str, Any] = {}

    def __call__(self, request: dict) -> dict:
        if "form" not in request:
            name = torch.cuda.get_device_name() if DEVICE.type == "cuda" else "cpu"
            return {"device": name, "versions": {"torch": torch.__version__}}
        form = request["form"]
        if form not in self._steps:
            self._steps[form] = FORMS[form](self, request)
        count = 1 if form == "full_batch" else request["steps"]
        wait()
        start = time.perf_counter()
        losses = [self._steps[form]().detach() for _ in range(count)]
        wait()
        return {"seconds": time.perf_counter() - start, "loss": float(losses[-1])}

    def by_hand(self, request: dict) -> Any:
        tables, fanouts, size = self.tables, tuple(request["fanouts"]), request["batch_size"]
        hidden = [request["hidden"]] * (len(fanouts) - 1)
        net = Net([tables.features.shape[1], *hidden, tables.num_classes]).to(DEVICE)
        optimizer = torch.optim.Adam(net.parameters(), 0.003, fused=DEVICE.type == "cuda")

        def loss_of(seeds: torch.Tensor) -> torch.Tensor:
            return F.cross_entropy(net(tables.features, sample(tables, seeds, fanouts)), tables.labels[seeds])

        call = torch.compile(loss_of) if request["form"] == "compiled" else loss_of

        def step() -> torch.Tensor:
            seeds = tables.train[torch.randint(len(tables.train), (size,), device=DEVICE)]
            return update(call(seeds), optimizer)

        return step

    def full_batch(self, request: dict) -> Any:
        from torch_geometric.nn import SAGEConv

        tables = self.tables
        degree = tables.indptr.diff().long()
        dst = torch.repeat_interleave(torch.arange(len(degree), device=DEVICE), degree)
        edges = torch.stack([tables.indices.long(), dst])
        widths = [tables.features.shape[1], request["hidden"], tables.num_classes]
        convs = torch.nn.ModuleList(SAGEConv(a, b) for a, b in itertools.pairwise(widths)).to(DEVICE)
        optimizer = torch.optim.Adam(convs.parameters(), 0.003)

        def step() -> torch.Tensor:
            logits = convs[1](convs[0](tables.features, edges).relu(), edges)[tables.train]
            return update(F.cross_entropy(logits, tables.labels[tables.train]), optimizer)

        return step

    def loader(self, request: dict) -> Any:
        from benchmarks.peers import pyg_step

        trainer = pyg_step.Trainer(self.folder)
        batches = trainer.endless(tuple(request["fanouts"]), request["batch_size"])
        net, optimizer = trainer.net("bipartite", len(request["fanouts"]), request["hidden"])
        net = net.to(DEVICE)

        def step() -> torch.Tensor:
            batch = next(batches).to(DEVICE)
            logits = pyg_step.bipartite(net, batch)[: batch.batch_size]
            return update(F.cross_entropy(logits, batch.y[: batch.batch_size]), optimizer)

        return step


FORMS = {
    "compiled": Trainer.by_hand,
    "eager": Trainer.by_hand,
    "full_batch": Trainer.full_batch,
    "loader": Trainer.loader,
}


def update(loss: torch.Tensor, optimizer: torch.optim.Optimizer) -> torch.Tensor:
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss


def wait() -> None:
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()


if __name__ == "__main__":
    serve(Trainer(Path(sys.argv[1])))
