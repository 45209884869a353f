"""Seconds that it takes to sample a minibatch: each draw, kind of key and way to call, beside NumPy.

python -m benchmarks.sample --graph graphs/arxiv --json sample.json
"""

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import count, cycle
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from benchmarks.common import alternate, parser, peak_rss_bytes, run, summary
from jsage import data
from jsage.blocks.layout import Block
from jsage.graph import Graph, alias_tables, cumulate
from jsage.graph.adjacency import Adjacency
from jsage.sampling import (
    Labor,
    Weighted,
    WeightedWithReplacement,
    epoch,
    fast_key,
    sample_blocks,
    with_replacement,
    without_replacement,
)
from jsage.typing import AnyDraw, PRNGKey

DRAWS: dict[str, AnyDraw] = {
    "without_replacement": without_replacement,
    "with_replacement": with_replacement,
    "weighted": Weighted(),
    "weighted_with_replacement": WeightedWithReplacement(),
    "labor": Labor(),
}
PREPARE: dict[str, Callable[[Graph], Adjacency]] = {
    "weighted": cumulate,
    "weighted_with_replacement": alias_tables,
}
FANOUTS = ((25, 10), (15, 10, 5))


def main(options: argparse.Namespace) -> list[dict]:
    """One row for each combination; all that share fanouts take turns."""
    dataset = data.open(options.graph)
    graph = jax.device_put(dataset.graph)
    seeds, _ = epoch(jax.random.key(0), dataset.train, options.batch_size)
    seeds = jnp.resize(seeds, (options.batches, options.batch_size))
    return [row for fanouts in FANOUTS for row in measure(graph, seeds, fanouts, options.repetitions)]


def measure(graph: Graph, seeds: Array, fanouts: tuple[int, ...], repetitions: int) -> list[dict]:
    """All ways to sample with these fanouts, in turn."""
    found = dict(ways(graph, seeds, fanouts))
    times = alternate({str(index): call for index, (_, call) in enumerate(found.values())}, repetitions)
    rows = []
    for (names, (per, _)), seconds in zip(found.items(), times.values(), strict=True):
        figures = summary(seconds, per)
        labels = dict(zip(("sampler", "draw", "key", "calls"), names, strict=True))
        rows.append({"batch_size": seeds.shape[1], "fanouts": list(fanouts), **labels, **figures})
        rows[-1]["seeds_per_second"] = seeds.shape[1] / figures["seconds_min"]
        rows[-1]["peak_rss_bytes"] = peak_rss_bytes()
    return rows


Way = tuple[tuple[str, ...], tuple[int, Callable[[], Any]]]


def keys() -> dict[str, PRNGKey]:
    """The kinds of keys: every jax has Threefry."""
    return {str(jax.random.key_impl(key)): key for key in (jax.random.key(0), fast_key(0))}


def ways(graph: Graph, seeds: Array, fanouts: tuple[int, ...]) -> Iterator[Way]:
    """`(sampler, draw, key, calls)`, how many batches a call makes, and the call."""
    together, alone = cycle([seeds]), cycle(list(seeds))
    weights = np.random.default_rng(0).exponential(size=graph.num_edges).astype(np.float32)
    for name, draw in DRAWS.items():
        read: Adjacency = graph
        if name in PREPARE:
            read = PREPARE[name](graph._replace(edge_data={"weight": jnp.asarray(weights)}))
        single = jax.jit(partial(sample, fanouts=fanouts, draw=draw))
        scanned = jax.jit(partial(scan, fanouts=fanouts, draw=draw))
        for impl, key in keys().items():
            yield ("jsage", name, impl, "single"), (1, turn(single, key, read, alone))
            yield ("jsage", name, impl, "scan"), (len(seeds), turn(scanned, key, read, together))
    host = partial(
        numpy_blocks, np.random.default_rng(0), np.asarray(graph.indptr), np.asarray(graph.indices)
    )
    batch = cycle(np.asarray(seeds))
    yield ("numpy", "with_replacement", "", "single"), (1, lambda: host(next(batch), fanouts))


def turn(call: Callable, key: Array, graph: Adjacency, batch: Iterator[Array]) -> Callable[[], Any]:
    """The next batch, under a number of its own, at each call."""
    number = count()
    return lambda: call(key, next(number), graph, next(batch))


def sample(
    key: Array, number: int, graph: Adjacency, seeds: Array, fanouts: Sequence[int], draw: AnyDraw
) -> tuple[Block, ...]:
    return sample_blocks(jax.random.fold_in(key, number), graph, seeds, fanouts, draw=draw)


def scan(
    key: Array, number: int, graph: Adjacency, seeds: Array, fanouts: Sequence[int], draw: AnyDraw
) -> Array:
    """Sample batch after batch in one program; the sum keeps every id alive."""

    def step(total, batch):
        blocks = sample(key, batch[0], graph, batch[1], fanouts, draw)
        return total + sum(leaf.sum() for leaf in jax.tree.leaves(blocks)), None

    numbers = number * len(seeds) + jnp.arange(len(seeds))
    return jax.lax.scan(step, jnp.int32(0), (numbers, seeds))[0]


def numpy_blocks(
    rng: np.random.Generator,
    indptr: np.ndarray,
    indices: np.ndarray,
    seeds: np.ndarray,
    fanouts: Sequence[int],
) -> list[tuple[np.ndarray, np.ndarray]]:
    """`(src, mask)` a hop: with replacement, as one would write it in NumPy; a lone node reads itself."""
    hops, frontier = [], seeds
    for fanout in fanouts:
        start = indptr[frontier]
        degree = indptr[frontier + 1] - start
        offset = (rng.random((len(frontier), fanout)) * degree[:, None]).astype(np.int32)
        mask = np.broadcast_to(degree[:, None] > 0, offset.shape)
        src = np.where(mask, indices[np.where(mask, start[:, None] + offset, 0)], frontier[:, None])
        hops.append((src, mask))
        frontier = np.concatenate([frontier, src.ravel()])
    return hops


def options() -> argparse.ArgumentParser:
    made = parser("sample", __doc__)
    made.add_argument("--batch-size", type=int, default=1024, help="seeds a batch (default: 1024)")
    made.add_argument("--batches", type=int, default=20, help="batches in one scan (default: 20)")
    made.add_argument("--repetitions", type=int, default=20, help="rounds that are timed (default: 20)")
    return made


if __name__ == "__main__":
    sys.exit(run(options(), main))
