"""Our side of `benchmarks.peers`: the step of `benchmarks.step`, in a process told what to do over pipes.

Forms, of which the first two are all the steps of a request in one program, as an epoch is:

* `scan`: frontiers compacted, at capacities measured on this graph, with trees where a batch does not fit;
* `trees`: a row for every slot;
* `calls`: compacted, one program a step.
"""

import sys
import time
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from benchmarks.common import versions
from benchmarks.peers.process import peak_rss_bytes, serve
from benchmarks.step import Step, Tables, make_step, num_classes, place
from jsage import data
from jsage.sampling import epoch, fast_key, measure_capacities

FORMS = ("scan", "trees", "calls")


class Trainer:
    """Trains either form on one graph; a form goes on where its last request left it."""

    def __init__(self, folder: Path):
        dataset = data.open(folder)
        self._num_classes, self._train = num_classes(dataset), jnp.asarray(dataset.train)
        self._tables = place(dataset)
        self._runs: dict[tuple, Run] = {}

    def __call__(self, request: dict) -> dict:
        """Train as `{"form", "fanouts", "batch_size", "hidden", "steps"}` asks, or say what can be run."""
        if "form" not in request:
            return {"forms": dict.fromkeys(FORMS), "sampler": "jsage", "versions": versions()}
        key = (request["form"], *request["fanouts"], request["batch_size"], request["hidden"])
        if key not in self._runs:
            self._runs[key] = self._run(request)
        start = time.perf_counter()
        loss = self._runs[key].steps(request["steps"], 1 if request["form"] == "calls" else request["steps"])
        return {"seconds": time.perf_counter() - start, "loss": loss, "peak_rss_bytes": peak_rss_bytes()}

    def _run(self, request: dict) -> "Run":
        fanouts, batch_size = request["fanouts"], request["batch_size"]
        capacities = None
        if request["form"] != "trees":
            key = fast_key(0)
            capacities = measure_capacities(key, self._tables.graph, self._train, batch_size, fanouts)
        step = make_step(fanouts, self._num_classes, hidden=request["hidden"], capacities=capacities)
        return Run(step, self._tables, self._train, batch_size)


class Run:
    """One training run: its state, and the batches of the epoch that it is in."""

    def __init__(self, step: Step, tables: Tables, train: Array, batch_size: int):
        self._key = fast_key(0)
        self._tables, self._train = tables, train
        self._state = jax.jit(step.start)(self._key, tables)
        self._epoch = jax.jit(step.epoch, donate_argnums=0)
        self._shuffle = jax.jit(partial(epoch, batch_size=batch_size))
        self._seeds = self._mask = np.empty((0, batch_size))

    def steps(self, count: int, at_once: int) -> float:
        """Train `count` steps, `at_once` of them a call; their mean loss, once all is done."""
        seeds, mask = self._next(count)
        sums = []
        for at in range(0, count, at_once):
            part = slice(at, at + at_once)
            self._state, found = self._epoch(self._state, self._tables, seeds[part], mask[part])
            sums.append(found)
        return float(sum(s["loss"] for s in sums)) / float(sum(s["weight"] for s in sums))

    def _next(self, count: int) -> tuple[np.ndarray, np.ndarray]:
        """The next `count` batches; shuffles again, as an epoch does, whenever there are too few."""
        while len(self._seeds) < count:
            self._key, key = jax.random.split(self._key)
            more = self._shuffle(key, self._train)
            kept = (self._seeds, self._mask)
            self._seeds, self._mask = (
                np.concatenate([a, b]) if len(a) else np.asarray(b) for a, b in zip(kept, more, strict=True)
            )
        taken = self._seeds[:count], self._mask[:count]
        self._seeds, self._mask = self._seeds[count:], self._mask[count:]
        return taken


if __name__ == "__main__":
    serve(Trainer(Path(sys.argv[1])))
