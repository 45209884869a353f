"""Seconds of training steps on pairs of nodes, and of their parts, beside the step on labels.

    python -m benchmarks.unsupervised --graph graphs/arxiv --json unsupervised.json

All steps embed as many nodes with the same model, on trees; `labels` has a second row, of as many nodes as
there are pairs. Under `skip_gram` pairs come from walks, and a batch shares 20 negatives by degree; under
`info_nce` the negatives are the other pairs' partners. `links` are edges of the graph, each with a negative
by degree that is no edge, and are out of every neighborhood of their step; under `links_kept` they are in.
A step draws all of it itself. All calls take turns; parts are programs of their own that scan as the step
does. `positives` are the walks; `traces` counts how often the step was traced.
"""

import argparse
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks import pairs, parts, train
from benchmarks.common import alternate, integers, parser, peak_rss_bytes, run, summary, temp_bytes
from benchmarks.pairs import KINDS, PairTables, Sizes, make_pair_step
from benchmarks.step import Tables, num_classes
from jsage import data
from jsage.sampling import LinkBatch, fast_key
from jsage.typing import PRNGKey

Call = Callable[[], Any]


def main(options: argparse.Namespace) -> list[dict]:
    """A row for each kind of step."""
    dataset = data.open(options.graph)
    if dataset.labels is None:
        raise ValueError("the step beside needs labels: make a graph with benchmarks.make_graph")
    tables = pairs.place(dataset)
    sizes = Sizes(options.fanouts, options.seeds, options.hidden)
    trials: dict[tuple[str, int], Trial | train.Trial] = {}
    labeled = Tables(tables.graph, tables.features, jnp.asarray(dataset.labels))
    for seeds in sorted({sizes.seeds // 2, sizes.seeds}):
        much = (seeds, options.hidden, options.steps, "mean", "float32")
        given = train.Setting(labeled, jnp.asarray(dataset.train), num_classes(dataset), *much)
        trials["labels", seeds] = train.Trial(given, options.fanouts, None)
    for kind in options.kinds:
        trials[kind, sizes.seeds] = Trial(kind, tables, sizes, options.steps)
    return measure(trials, options)


def measure(trials: "dict[tuple[str, int], Trial | train.Trial]", options: argparse.Namespace) -> list[dict]:
    """The rows; a ratio compares with the step on labels that embeds as many nodes."""
    calls = {(*of, name): call for of, trial in trials.items() for name, call in trial.calls().items()}
    times = alternate(calls, options.repetitions)
    base, rows = min(times["labels", options.seeds, "step"]), []
    for (kind, seeds), trial in trials.items():
        figures = {
            of[2]: summary(found, options.steps) for of, found in times.items() if of[:2] == (kind, seeds)
        }
        row: dict[str, Any] = {"kind": kind, "pairs": None, "seeds": seeds, "fanouts": list(options.fanouts)}
        row |= {"hidden": options.hidden, **figures.pop("step"), **figures}
        row |= {"ratio_to_labels": min(times[kind, seeds, "step"]) / base, **trial.seen}
        rows.append(row | {"peak_rss_bytes": peak_rss_bytes()})
    return rows


class Trial:
    """One kind of step: its programs, and what was seen while they were made."""

    def __init__(self, kind: str, tables: PairTables, sizes: Sizes, steps: int):
        self.step, self.tables = make_pair_step(kind, sizes), tables
        self.batches = jnp.arange(steps)
        if kind.startswith("links"):
            self.batches = pairs.some_edges(tables.graph, sizes.seeds, steps)
        self.state = jax.jit(self.step.start)(fast_key(0), tables)
        self.drawn, self.blocks = jax.jit(partial(all_drawn, self.step))(fast_key(2), tables, self.batches)
        traces: list[str] = []

        def epoch(*arguments):
            traces.append(kind)
            return self.step.epoch(*arguments)

        compiled = jax.jit(epoch, donate_argnums=0).lower(self.state, tables, self.batches).compile()
        self.epoch, count = compiled, KINDS[kind].count(sizes.seeds)
        valid = float(self.drawn[0].mask.mean(dtype=jnp.float32))
        self.seen = {
            "pairs": count,
            "valid": valid,
            "traces": len(traces),
            "temp_bytes": temp_bytes(compiled),
        }

    def calls(self) -> dict[str, Call]:
        """The scanned step and each of its parts."""
        step, tables, states = (
            self.step,
            self.tables,
            jax.tree.map(jnp.copy, {"a": self.state, "b": self.state}),
        )
        last = jax.tree.map(lambda x: x[-1], self.blocks)
        gather = self.jit(parts.gathering)
        given = last, gather(self.state.params, tables, self.blocks)
        compute = self.jit(parts.compute, donate_argnums=0)
        draw = {
            "positives": (step.positives, self.batches),
            "negatives": (step.negatives, self.drawn[0].src),
            "sampling": (lambda key, tables, pairs: step.sample(key, tables.graph, pairs), self.drawn[0]),
        }

        def whole():
            states["a"], sums = self.epoch(states["a"], tables, self.batches)
            return sums

        def update():
            states["b"] = compute(states["b"], tables, given, self.drawn)
            return states["b"]

        calls = {
            name: partial(jax.jit(partial(drawing, part)), fast_key(2), tables, batches)
            for name, (part, batches) in draw.items()
        }
        gathering = partial(gather, self.state.params, tables, self.blocks)
        return {"step": whole, **calls, "gathering": gathering, "compute": update}

    def jit(self, part: Callable, **how: Any) -> Callable:
        return jax.jit(partial(part, self.step), **how)


def all_drawn(step: pairs.PairStep, key: PRNGKey, tables: PairTables, batches: Any) -> Any:
    """The pairs, their negatives' masks and the blocks of every batch, along a new first axis."""

    def one(numbered):
        number, batch = numbered
        first, second, third = jax.random.split(jax.random.fold_in(key, number), 3)
        src, dst, mask = step.positives(first, tables, batch)
        nodes, valid = step.negatives(second, tables, src)
        drawn = LinkBatch(src, dst, nodes, mask)
        return (drawn, valid), step.sample(third, tables.graph, drawn)

    return jax.lax.map(one, (jnp.arange(len(jax.tree.leaves(batches)[0])), batches))


def drawing(part: Callable, key: PRNGKey, tables: PairTables, batches: Any) -> Any:
    """What `part(key, tables, batch)` draws for the last batch; all of it is carried, so none is left out."""

    def body(_, numbered):
        number, batch = numbered
        return part(jax.random.fold_in(key, number), tables, batch), None

    one = jax.tree.map(lambda x: x[0], batches)
    shapes = jax.eval_shape(part, key, tables, one)
    start = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    numbers = jnp.arange(len(jax.tree.leaves(batches)[0]))
    return jax.lax.scan(body, start, (numbers, batches))[0]


def options() -> argparse.ArgumentParser:
    made = parser("unsupervised", __doc__)
    made.add_argument("--kinds", nargs="+", choices=list(KINDS), default=list(KINDS), help="what pairs are")
    made.add_argument("--fanouts", type=integers, default=(25, 10), help="neighbors a hop (default: 25,10)")
    made.add_argument("--seeds", type=int, default=1024, help="nodes that a step embeds (default: 1024)")
    made.add_argument("--hidden", type=int, default=256, help="width of the layers (default: 256)")
    made.add_argument("--steps", type=int, default=16, help="steps a scan (default: 16)")
    made.add_argument("--repetitions", type=int, default=5, help="rounds that are timed (default: 5)")
    return made


if __name__ == "__main__":
    sys.exit(run(options(), main))
