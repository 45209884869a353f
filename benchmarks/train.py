"""Seconds of a training step in a scanned epoch, of its parts and first run, and the least there could be.

    python -m benchmarks.train --graph graphs/arxiv --json train.json

All that shares fanouts takes turns: the step on trees and compacted, and the parts of `benchmarks.parts`.
The floor is the sum of the step's matmuls, each at the rate of one of that shape alone, or of a piece of it
that caches hold, whichever is faster; the rows that its first layer reads, at the rate of reading random rows
of the same table; and its random bits. All rates are measured in the same run, best of several, and
`ratio_to_floor` compares `seconds_min` to them.
"""

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from benchmarks import parts
from benchmarks.common import (
    alternate,
    gather_rate,
    integers,
    matmul_rate,
    parser,
    peak_rss_bytes,
    random_rate,
    run,
    summary,
    temp_bytes,
)
from benchmarks.step import Step, Tables, make_step, num_classes, place
from jsage import aggregate, data
from jsage.nn import LSTM, Pool, SAGEConv
from jsage.sampling import Capacities, epoch, fast_key, measure_capacities
from jsage.typing import AggregateFn

AGGREGATORS: dict[str, AggregateFn] = {
    "mean": aggregate.mean,
    "sum": aggregate.sum,
    "max": aggregate.max,
    "gcn": aggregate.gcn,
    "pool": Pool(),
    "lstm": LSTM(),
}
FORMS = ("trees", "compacted")
PARTS = ("sampling", "gathering", "compute")


class Setting(NamedTuple):
    """What is trained on, and how."""

    tables: Tables
    train: Array
    num_classes: int
    batch_size: int
    hidden: int
    steps: int
    aggregate: str
    dtype: str

    def make(self, fanouts: Sequence[int], capacities: Capacities | None) -> Step:
        dtype = None if self.dtype == "float32" else self.dtype
        layers = {"conv": partial(SAGEConv, aggregate=AGGREGATORS[self.aggregate], dtype=dtype)}
        return make_step(fanouts, self.num_classes, hidden=self.hidden, layers=layers, capacities=capacities)

    def batches(self) -> tuple[Array, Array]:
        seeds, mask = epoch(fast_key(0), self.train, self.batch_size)
        shape = (self.steps, self.batch_size)
        return jnp.resize(seeds, shape), jnp.resize(mask, shape)


def main(options: argparse.Namespace) -> list[dict]:
    """A row for each dtype, aggregator, fanouts and form."""
    dataset = data.open(options.graph)
    sizes = (options.batch_size, options.hidden, options.steps)
    rows = []
    for dtype in options.dtypes:
        tables = place(dataset, None if dtype == "float32" else dtype)
        rates = Rates(tables)
        for name in options.aggregators:
            train = jnp.asarray(dataset.train)
            setting = Setting(tables, train, num_classes(dataset), *sizes, name, dtype)
            for fanouts in options.fanouts:
                rows += measure(setting, rates, fanouts, options.forms, options.repetitions)
    return rows


def measure(
    setting: Setting, rates: "Rates", fanouts: tuple[int, ...], forms: Sequence[str], repetitions: int
) -> list[dict]:
    """A row for each form; all calls take turns."""
    train, size = setting.train, setting.batch_size
    capacities: dict[str, Capacities | None] = {"trees": None}
    if "compacted" in forms:
        capacities["compacted"] = measure_capacities(fast_key(1), setting.tables.graph, train, size, fanouts)
    trials = {form: Trial(setting, fanouts, capacities[form]) for form in forms}
    calls = {(form, name): call for form, trial in trials.items() for name, call in trial.calls().items()}
    times = alternate(calls, repetitions)
    rows = []
    for form, trial in trials.items():
        figures = {name: summary(times[form, name], setting.steps) for name in ("step", *PARTS)}
        labels = {"fanouts": list(fanouts), "form": form, "capacities": capacities[form]}
        labels |= {name: getattr(setting, name) for name in ("batch_size", "hidden", "aggregate", "dtype")}
        floor = rates.floor(trial.work)
        ratio = figures["step"]["seconds_min"] / floor["floor_seconds"]
        rows.append({**labels, **figures.pop("step"), **figures, **trial.seen, **floor})
        rows[-1] |= {"ratio_to_floor": ratio, "peak_rss_bytes": peak_rss_bytes()}
    return rows


class Trial:
    """One form of the step: its programs, and what was seen while they were made."""

    def __init__(self, setting: Setting, fanouts: tuple[int, ...], capacities: Capacities | None):
        self.setting, self.step = setting, setting.make(fanouts, capacities)
        self.batches = setting.batches()
        self.state = jax.jit(self.step.start)(fast_key(0), setting.tables)
        seeds, mask = self.batches
        first = self.first_step(seeds[:1], mask[:1])
        blocks, fits = self.jit(parts.all_blocks)(fast_key(2), setting.tables, seeds)
        widths = [setting.tables.features.shape[1]] + [setting.hidden] * (len(fanouts) - 1)
        widths.append(setting.num_classes)
        way = AGGREGATORS[setting.aggregate]
        self.blocks, self.work = blocks, parts.work(blocks, setting.tables.features, widths, way)
        self.epoch = jax.jit(self.step.epoch, donate_argnums=0)
        self.epoch = self.epoch.lower(self.state, setting.tables, *self.batches).compile()
        self.seen = {"first_step_seconds": first, "temp_bytes": temp_bytes(self.epoch)}
        self.seen["fits"] = float(jnp.mean(fits.astype(jnp.float32)))

    def first_step(self, seeds: Array, mask: Array) -> float:
        """Seconds of tracing, compiling and running one step, with nothing of it compiled before."""
        jax.clear_caches()
        state = jax.tree.map(jnp.copy, self.state)
        start = time.perf_counter()
        found = jax.jit(self.step.epoch, donate_argnums=0)(state, self.setting.tables, seeds, mask)
        jax.block_until_ready(found)
        return time.perf_counter() - start

    def calls(self) -> dict[str, Callable[[], Any]]:
        """The scanned step and each of its parts."""
        tables, (seeds, mask) = self.setting.tables, self.batches
        sample, gather = self.jit(parts.sampling), self.jit(parts.gathering)
        compute = self.jit(parts.compute, donate_argnums=0)
        params, states = jax.tree.map(
            jnp.copy, (self.state.params, {"compute": self.state, "step": self.state})
        )

        last = jax.tree.map(lambda x: x[-1], self.blocks)
        given = last, gather(params, tables, self.blocks)

        def step():
            states["step"], sums = self.epoch(states["step"], tables, seeds, mask)
            return sums

        def update():
            states["compute"] = compute(states["compute"], tables, given, (seeds, mask))
            return states["compute"]

        return {
            "step": step,
            "sampling": lambda: sample(fast_key(2), tables, seeds),
            "gathering": lambda: gather(params, tables, self.blocks),
            "compute": update,
        }

    def jit(self, part: Callable, **how: Any) -> Callable:
        return jax.jit(partial(part, self.step), **how)


class Rates:
    """The machine's peaks, each measured when it is first asked for."""

    def __init__(self, tables: Tables):
        self.dtype = tables.features.dtype
        self.bytes, self.words = gather_rate(tables.features), random_rate(fast_key(0))
        self.flops: dict[parts.Shape, float] = {}

    def floor(self, work: parts.Work) -> dict[str, Any]:
        """`floor_seconds` and what it is made of."""
        for shape in work.matmuls:
            if shape not in self.flops:
                ways = {shape, piece(shape)}
                self.flops[shape] = max(matmul_rate(*way, dtype=self.dtype) for way in ways)
        matmuls = sum(
            2 * m * k * n * times / self.flops[m, k, n] for (m, k, n), times in work.matmuls.items()
        )
        seconds = {
            "matmul_seconds": matmuls,
            "gather_seconds": work.gathered_bytes / self.bytes,
            "random_seconds": work.random_words / self.words,
        }
        amounts = {
            "flops": work.flops,
            "flops_per_second": work.flops / matmuls,
            "gathered_bytes": work.gathered_bytes,
            "gathered_bytes_per_second": self.bytes,
            "random_words": work.random_words,
            "random_words_per_second": self.words,
        }
        return {"floor_seconds": sum(seconds.values()), "floor": seconds | amounts}


def piece(shape: parts.Shape, most: int = 4096) -> parts.Shape:
    """The product with its long side cut: a large one can always be computed in such pieces."""
    m, k, n = (min(size, most) for size in shape)
    return m, k, n


def options() -> argparse.ArgumentParser:
    made = parser("train", __doc__)
    made.add_argument(
        "--fanouts", type=integers, nargs="+", default=[(25, 10), (15, 10, 5)], help="one list a row: 25,10"
    )
    made.add_argument("--forms", nargs="+", choices=FORMS, default=list(FORMS))
    made.add_argument("--aggregators", nargs="+", choices=list(AGGREGATORS), default=["mean"])
    made.add_argument("--dtypes", nargs="+", choices=["float32", "bfloat16"], default=["float32"])
    made.add_argument("--batch-size", type=int, default=1024, help="seeds a step (default: 1024)")
    made.add_argument("--hidden", type=int, default=256, help="width of the hidden layers (default: 256)")
    made.add_argument("--steps", type=int, default=16, help="steps a scan (default: 16)")
    made.add_argument("--repetitions", type=int, default=5, help="rounds that are timed (default: 5)")
    return made


if __name__ == "__main__":
    sys.exit(run(options(), main))
