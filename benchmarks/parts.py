"""The parts of a training step, each alone, and what a step needs at the least: for `benchmarks.train`.

* sampling: the blocks, with compaction where there is any, of batch after batch;
* gathering: what the first layer reads of the feature table through those blocks, reduced over the slots
  where the aggregator is; its own rows too;
* compute: forward, backward and update, given one batch's blocks and what was read through the first.

Each scans as an epoch does. They need not add up to the step: XLA fuses across their borders, rows that
compute reads may still be in a cache, and `lax.cond` has its price.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
from jaxtyping import Array

from benchmarks.step import Blocks, Step, Tables
from jsage import aggregate
from jsage.blocks import Indexed
from jsage.nn import LSTM, Pool
from jsage.train import TrainState
from jsage.typing import AggregateFn, PRNGKey

Shape = tuple[int, int, int]
"""`m, k, n` of a product `[m, k] @ [k, n]`."""


class Once(Indexed):
    """The first block of a step, that keeps what is read through it, or gives what was read before."""

    results: dict[str, Any]

    def own(self, h):
        return self._once("own", super().own, h)

    def sum(self, h):
        return self._once("sum", super().sum, h)

    def max(self, h):
        return self._once("max", super().max, h)

    def slot_rows(self, h):
        return self._once("slot_rows", super().slot_rows, h)

    def sources(self, h):
        return self._once("sources", super().sources, h)

    def _once(self, name: str, read: Callable[[Array], Any], h: Any) -> Any:
        if name not in self.results:
            self.results[name] = read(h)
        return self.results[name]


def once(blocks: Blocks, results: dict[str, Any]) -> Blocks:
    """The same blocks; what is read through the first is put in `results`, unless it is there."""
    first, *others = blocks
    assert isinstance(first, Indexed)
    block = Once(*first)
    block.results = results
    return block, *others


def sampling(step: Step, key: PRNGKey, tables: Tables, seeds: Array) -> tuple[Blocks, Array]:
    """What the last batch drew. All that a batch draws is carried, so none of it can be left out."""

    def body(_, batch):
        number, nodes = batch
        return step.sample(jax.random.fold_in(key, number), tables.graph, nodes), None

    start = _zeros(jax.eval_shape(step.sample, key, tables.graph, seeds[0]))
    return jax.lax.scan(body, start, (jnp.arange(len(seeds)), seeds))[0]


def all_blocks(step: Step, key: PRNGKey, tables: Tables, seeds: Array) -> tuple[Blocks, Array]:
    """The blocks of every batch, along a new first axis, and whether each batch fitted."""

    def one(batch):
        number, nodes = batch
        return step.sample(jax.random.fold_in(key, number), tables.graph, nodes)

    return jax.lax.map(one, (jnp.arange(len(seeds)), seeds))


def read(step: Step, params: Any, tables: Tables, blocks: Blocks) -> dict[str, Any]:
    """What the first layer reads of the feature table. Under jit nothing else is left of the model."""
    results: dict[str, Any] = {}
    step.apply(params, tables, once(blocks, results))
    return results


def gathering(step: Step, params: Any, tables: Tables, blocks: Blocks) -> dict[str, Any]:
    """What is read in the last of the batches."""

    def body(_, one):
        return read(step, params, tables, one), None

    one = jax.tree.map(lambda x: x[0], blocks)
    start = _zeros(jax.eval_shape(lambda *args: read(step, *args), params, tables, one))
    return jax.lax.scan(body, start, blocks)[0]


def compute(
    step: Step, state: TrainState, tables: Tables, given: tuple[Blocks, dict[str, Any]], batches: Any
) -> TrainState:
    """Update on the same blocks and rows at every step; no step can tell that they are the same."""

    def body(state, batch):
        state, (blocks, results) = jax.lax.optimization_barrier((state, given))
        return step.update(state, tables, once(blocks, results), batch)[0], None

    return jax.lax.scan(body, state, batches)[0]


class Work(NamedTuple):
    """What a step cannot do without."""

    matmuls: Counter[Shape]
    gathered_bytes: float
    random_words: int

    @property
    def flops(self) -> int:
        return sum(2 * m * k * n * times for (m, k, n), times in self.matmuls.items())


def work(blocks: Blocks, features: Array, widths: Sequence[int], aggregate: AggregateFn) -> Work:
    """Of a step on such blocks; they may hold many batches, and bytes are their average.

    Rows of the matmuls and random words follow from shapes. Read are the first block's own rows and valid
    slots: a padded slot needs no row. Rows that later layers gather are not counted.
    """
    masks: list[Array] = [cast(Any, block).mask for block in blocks]
    slots = [(mask.shape[-2], mask.shape[-1]) for mask in masks]
    valid = float(jnp.mean(jnp.sum(masks[0], axis=(-2, -1), dtype=jnp.float32)))
    return Work(
        matmuls(slots, widths, aggregate),
        (slots[0][0] + valid) * features.shape[1] * features.dtype.itemsize,
        sum(rows * fanout for rows, fanout in slots),
    )


def matmuls(slots: Sequence[tuple[int, int]], widths: Sequence[int], pooled: AggregateFn) -> Counter[Shape]:
    """How often each product occurs: forward, gradients of weights, and of inputs but for the features.

    `slots` are `(rows, fanout)` of each layer, `widths` those of the features and of each layer's output.
    Aggregation comes before `W_neigh`.
    """
    found: Counter[Shape] = Counter()
    for layer, (rows, fanout) in enumerate(slots):
        d, out = widths[layer : layer + 2]
        count = 1 if pooled is aggregate.gcn else 2
        found += _dense(rows, d, out, count, count if layer else 0)
        if isinstance(pooled, Pool):
            sources = rows * fanout if layer == 0 else min(rows * fanout, slots[layer - 1][0])
            found += _dense(sources, d, pooled.features or d, 1, 1 if layer else 0)
        if isinstance(pooled, LSTM):
            width = pooled.features or d
            found += _dense(rows * fanout, d, 4 * width, 1, 1 if layer else 0)
            found += _dense(rows * fanout, width, 4 * width, 1, 1)
    return found


def _dense(rows: int, d: int, out: int, count: int, inputs: int) -> Counter[Shape]:
    found = Counter({(rows, d, out): count})
    found[d, rows, out] += count
    found[rows, out, d] += inputs
    return +found


def _zeros(shapes: Any) -> Any:
    return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
