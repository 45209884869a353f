"""What devices that share a graph send each other, counted on simulated batches: bytes, slots, overflow.

    python -m benchmarks.exchange --json exchange.json

Batches are drawn in NumPy by the law that `jsage.parallel` draws by, on graphs with heavy-tailed degrees;
nothing is sent, and no time is measured. Every device asks for the nodes of two hops and for the features of
all nodes of its batch, with `capacity` slots for each owner: the most ids that any device had for any owner
in the first half of the batches, and 4 %, as `measure_capacities` has it. The other half is counted.

* kind `bytes`: what a device sends a seed, with each id asked for once (`once`) or as often as it comes, with
  and without copies of the `num_cached` nodes of most edges. `ideal_bytes`: each distinct row of another
  device once, nothing for slots that are left over. `efficiency` is the one over the other.
* kind `weak`: seeds a device fixed, more and more devices. `waste` is the share of slots that are left over,
  `overflow` the share of ids that waited for another round, `safe_capacity` the slots that the rule without
  a graph gives.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from benchmarks.ahead import BATCH, FANOUTS, count
from benchmarks.common import integers, run
from benchmarks.make_graph import SIZES
from jsage import data
from jsage.parallel import Workload, exchange_bytes
from jsage.parallel.capacity import SLACK
from jsage.parallel.memory import round_capacity

ID = 4
SHARES = (0.0, 0.01, 0.1)
"""Of the nodes, those with copies on each device."""
EXCHANGES = ("hop 1", "hop 2", "features")


class Rows(NamedTuple):
    """In-neighbors on the host."""

    indptr: np.ndarray
    indices: np.ndarray

    @property
    def degrees(self) -> np.ndarray:
        return np.diff(self.indptr)


def main(options: argparse.Namespace) -> list[dict]:
    """Rows of bytes, then of weak scaling, for each size of the graph."""
    found = []
    for num_nodes in options.nodes:
        graph = made(num_nodes, options.degree * num_nodes)
        batches = [
            drawn(graph, max(options.shards), options.seeds, number) for number in range(options.batches)
        ]
        given = {"num_nodes": num_nodes, "num_edges": len(graph.indices), "seeds": options.seeds}
        load = Workload(num_nodes, len(graph.indices), options.bytes_shards, 256, seeds=options.seeds)
        found += [given | row for row in bytes_rows(graph, batches, load)]
        for shards in options.shards:
            found += [given | row for row in weak(graph, batches, load._replace(shards=shards))]
    return found


def made(num_nodes: int, num_edges: int) -> Rows:
    """Degrees as those of the artificial graph of ogbn-products' size."""
    dataset = data.power_law_communities(
        num_nodes,
        num_edges,
        num_classes=47,
        num_features=1,
        mixing=data.Mixing(exponent=SIZES["products"].exponent),
    )
    return Rows(np.asarray(dataset.graph.indptr), np.asarray(dataset.graph.indices))


def drawn(graph: Rows, shards: int, num_seeds: int, number: int) -> list[list[np.ndarray]]:
    """A batch: the ids that each device has before each hop and at the end, repeated ones too."""
    rng = np.random.default_rng(number)
    num_nodes = len(graph.indptr) - 1
    seeds = rng.choice(num_nodes, (shards, num_seeds), replace=shards * num_seeds > num_nodes)
    return [frontiers(rng, graph, own, FANOUTS) for own in seeds.astype(np.int32)]


def frontiers(
    rng: np.random.Generator, graph: Rows, seeds: np.ndarray, fanouts: Sequence[int]
) -> list[np.ndarray]:
    """The ids before each hop and at the end: each hop adds up to `fanout` neighbors of every id."""
    found = [seeds]
    for fanout in fanouts:
        found.append(np.concatenate([found[-1], neighbors(rng, graph, found[-1], fanout)]))
    return found


def neighbors(rng: np.random.Generator, graph: Rows, ids: np.ndarray, fanout: int) -> np.ndarray:
    """Up to `fanout` distinct edges of each id, every subset as likely: Floyd's algorithm, as the library's.

    An id that comes twice draws once: draws are keyed by the node.
    """
    ids, copy = np.unique(ids, return_inverse=True)
    degree = graph.degrees[ids]
    few = np.broadcast_to(np.arange(fanout), (len(ids), fanout))
    many = degree > fanout
    offset, last = few.copy(), degree[many] - fanout
    chosen = np.full((many.sum(), fanout), -1)
    for slot in range(fanout):
        pick = rng.integers(0, last + slot + 1)
        taken = (chosen[:, :slot] == pick[:, None]).any(1)
        chosen[:, slot] = np.where(taken, last + slot, pick)
    offset[many] = chosen
    valid = few < degree[:, None]
    edge = np.where(valid, graph.indptr[ids, None] + offset, 0)
    return graph.indices[edge[copy]][valid[copy]]


def owners(graph: Rows, shards: int) -> dict[str, np.ndarray]:
    """Every node's device, under each placement."""
    num_nodes = len(graph.indptr) - 1
    nodes, cost = np.arange(num_nodes), np.cumsum(graph.degrees + 1)
    return {
        "hashed": np.random.default_rng(7).permutation(num_nodes) % shards,
        "contiguous": nodes // -(-num_nodes // shards),
        "balanced": np.minimum((cost - 1) * shards // cost[-1], shards - 1),
    }


def hot_nodes(graph: Rows, share: float) -> np.ndarray:
    """Which nodes have copies on each device: those of most edges out of them."""
    out = np.bincount(graph.indices, minlength=len(graph.indptr) - 1)
    hot = np.zeros(len(out), bool)
    hot[np.argsort(-out, kind="stable")[: round(share * len(out))]] = True
    return hot


def tally(
    batch: Sequence[Sequence[np.ndarray]], owner: np.ndarray, hot: np.ndarray, once: bool
) -> np.ndarray:
    """`[exchange, asker, owner]`: how many ids each device asks each owner for; copies are of features."""
    shards = len(batch)
    found = np.zeros((len(batch[0]), shards, shards), np.int64)
    for asker, device in enumerate(batch):
        for exchange, ids in enumerate(device):
            ids = np.unique(ids) if once else ids
            if exchange == len(device) - 1:
                ids = ids[~hot[ids]]
            found[exchange, asker] = np.bincount(owner[ids], minlength=shards)
    return found


def capacities_of(counts: np.ndarray, sizes: Sequence[int]) -> tuple[int, ...]:
    """One for each exchange, as `measure_capacities` has them."""
    return tuple(
        round_capacity(SLACK * most, size) for most, size in zip(counts.max((1, 2)), sizes, strict=True)
    )


def ideal(
    batch: Sequence[Sequence[np.ndarray]], graph: Rows, owner: np.ndarray, hot: np.ndarray, load: Workload
) -> int:
    """Bytes for every distinct row that another device owns: its id out, its answer back."""
    total = 0
    for asker, device in enumerate(batch):
        for exchange, ids in enumerate(device):
            away = np.unique(ids)
            away = away[owner[away] != asker]
            if exchange < len(load.fanouts):
                answers = load.word_bytes * np.minimum(graph.degrees[away], load.fanouts[exchange])
            else:
                away = away[~hot[away]]
                answers = np.full(len(away), load.width * load.itemsize)
            total += ID * len(away) + int(answers.sum())
    return total


def bytes_rows(graph: Rows, batches: Sequence[list[list[np.ndarray]]], load: Workload) -> Iterator[dict]:
    """A row for each size of the cache, with ids asked for once or as often as they come."""
    shards = load.shards
    owner, batches = owners(graph, shards)["hashed"], [batch[:shards] for batch in batches]
    half = len(batches) // 2
    for share in SHARES:
        hot = hot_nodes(graph, share)
        exact = [ideal(batch, graph, owner, hot, load) for batch in batches[half:]]
        for once in (True, False):
            counts = [tally(batch, owner, hot, once) for batch in batches]
            slots = capacities_of(np.max(counts[:half], 0), load.frontiers)
            sent = sum(exchange_bytes(load._replace(capacities=slots))) * (shards - 1) / shards
            yield {
                "kind": "bytes",
                "shards": shards,
                "num_cached": int(hot.sum()),
                "once": once,
                "capacities": list(slots),
                "asked": float(np.mean(counts, 0)[-1].sum(1).mean() / load.seeds),
                "bytes": sent / load.seeds,
                "ideal_bytes": float(np.mean(exact)) / shards / load.seeds,
                "efficiency": float(np.mean(exact)) / shards / sent,
            }


def weak(graph: Rows, batches: Sequence[list[list[np.ndarray]]], load: Workload) -> Iterator[dict]:
    """A row for each placement and exchange, without copies."""
    shards, half = load.shards, len(batches) // 2
    for placement, owner in owners(graph, shards).items():
        counts = np.stack(
            [tally(batch[:shards], owner, np.zeros(len(owner), bool), True) for batch in batches]
        )
        slots = capacities_of(counts[:half].max(0), load.frontiers)
        for at, (name, capacity, safe) in enumerate(zip(EXCHANGES, slots, load.slots, strict=True)):
            asked = counts[half:, at]
            yield {
                "kind": "weak",
                "shards": shards,
                "placement": placement,
                "exchange": name,
                "mean": float(asked.mean()),
                "most": int(asked.max()),
                "capacity": capacity,
                "safe_capacity": safe,
                "overflow": float(np.maximum(asked - capacity, 0).sum() / asked.sum()),
                "rounds": float(np.maximum(-(-asked.max((1, 2)) // capacity), 1).mean()),
                "waste": float(1 - np.minimum(asked, capacity).sum() / (asked.size * capacity)),
            }


def command() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="python -m benchmarks.exchange", description=(__doc__ or "").split("\n")[0]
    )
    made.add_argument("--nodes", type=count, nargs="+", default=[1_000_000], help="sizes of the graphs")
    made.add_argument("--degree", type=int, default=12, help="edges a node (default: 12)")
    made.add_argument("--seeds", type=int, default=BATCH, help="of each device (default: 1024)")
    made.add_argument("--shards", type=integers, default=(8, 16, 32, 64, 128, 256), help="8,16,...")
    made.add_argument("--bytes-shards", type=int, default=64, help="devices of the rows of bytes (64)")
    made.add_argument("--batches", type=int, default=2, help="half to measure by, half to count (default: 2)")
    made.add_argument("--json", metavar="FILE", help="write the result there; - is standard output")
    made.set_defaults(graph=Path("power_law"))
    return made


if __name__ == "__main__":
    sys.exit(run(command(), main))
