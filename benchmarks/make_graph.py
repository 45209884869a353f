"""Write an artificial graph directory the size of a well-known data set, with heavy-tailed degrees.

    python -m benchmarks.make_graph arxiv OUT       # ogbn-arxiv: seconds, 0.1 GB
    python -m benchmarks.make_graph reddit OUT      # Reddit
    python -m benchmarks.make_graph products OUT    # ogbn-products

Degrees and neighbors are those of `jsage.data.power_law_communities`; exponents are chosen so that a
minibatch meets the same node about as often as it should: see `SIZES`.
"""

import argparse
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jsage import data
from jsage.data import Dataset


class Size(NamedTuple):
    """What is made; `num_edges` are directed, before repeats are dropped."""

    num_nodes: int
    num_edges: int
    num_features: int
    num_classes: int
    exponent: float
    num_train: int
    num_val: int


SIZES = {
    "tiny": Size(2_000, 24_000, 16, 5, 2.4, 1_000, 500),
    "arxiv": Size(169_343, 2_465_000, 128, 40, 2.35, 90_941, 29_799),
    "reddit": Size(232_965, 131_000_000, 602, 41, 2.3, 153_431, 23_831),
    "products": Size(2_449_029, 134_500_000, 100, 47, 2.29, 196_615, 39_323),
}


def make(size: Size, seed: int = 0) -> Dataset:
    """The data set; its nodes are split at random into `num_train`, `num_val` and the rest, to test."""
    dataset = data.power_law_communities(
        size.num_nodes,
        size.num_edges,
        num_classes=size.num_classes,
        num_features=size.num_features,
        mixing=data.Mixing(exponent=size.exponent),
        seed=seed,
    )
    nodes = np.random.default_rng(seed + 1).permutation(size.num_nodes).astype(np.int32)
    train, val, test = np.split(nodes, [size.num_train, size.num_train + size.num_val])
    return dataset._replace(train=train, val=val, test=test)


def main(arguments: list[str] | None = None) -> int:
    """The command: 0, or 2 and one line on standard error."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.make_graph", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("size", choices=list(SIZES), help="which data set's size")
    parser.add_argument("out", type=Path, help="the directory to write; it must not exist")
    parser.add_argument("--seed", type=int, default=0, help="of the random numbers (default: 0)")
    options = parser.parse_args(arguments)
    try:
        dataset = make(SIZES[options.size], options.seed)
        data.save(options.out, dataset)
    except (OSError, ValueError) as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 2
    graph = dataset.graph
    print(
        f"{options.out.name}: {graph.num_nodes:,} nodes, {graph.num_edges:,} directed edges", file=sys.stderr
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
