"""Seconds from placed tables to the end of the first step, compiling included, with and without a cache.

python -m benchmarks.first_step --graph graphs/arxiv --json first_step.json

Each figure is that of a fresh process. One of each round starts with an empty cache folder (`cold`), the next
finds its programs there (`warm`); `uncached` uses none. `start_seconds` makes the state; then the scan of
`steps` steps is traced, lowered, compiled (or read back) and run.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median

import jax

from benchmarks.common import integers, parser, run
from benchmarks.peers.process import ROOT
from benchmarks.step import make_step, num_classes, place
from jsage import data
from jsage.sampling import epoch, fast_key
from jsage.train import compilation_cache

STEPS = (1, 16)


def main(options: argparse.Namespace) -> list[dict]:
    """A row for each number of steps and state of the cache."""
    if options.steps:
        print(json.dumps(measure(options)))
        return []
    return [row for steps in STEPS for row in rounds(options, steps)]


def rounds(options: argparse.Namespace, steps: int) -> list[dict]:
    """Fresh processes in turn: no cache, an empty one, a full one."""
    found: dict[str, list[dict]] = {"uncached": [], "cold": [], "warm": []}
    for _ in range(options.repetitions):
        with tempfile.TemporaryDirectory() as folder:
            found["uncached"].append(fresh(options, steps, []))
            for name in ("cold", "warm"):
                found[name].append(fresh(options, steps, [f"--cache={folder}"]))
    labels = {"batch_size": options.batch_size, "fanouts": list(options.fanouts), "steps": steps}
    return [{**labels, "cache": name, **_summary(measured)} for name, measured in found.items()]


def fresh(options: argparse.Namespace, steps: int, more: Sequence[str]) -> dict:
    """`measure` in a process of its own."""
    sizes = {"batch-size": options.batch_size, "hidden": options.hidden, "steps": steps}
    arguments = [*(f"--{name}={value}" for name, value in sizes.items()), *more]
    arguments += [f"--fanouts={','.join(map(str, options.fanouts))}", f"--graph={options.graph.resolve()}"]
    command = [sys.executable, "-m", "benchmarks.first_step", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"a first step failed: {done.stderr.strip()[-500:]}")
    return json.loads(done.stdout.splitlines()[0])


def measure(options: argparse.Namespace) -> dict[str, float]:
    """Seconds of each part, in this process, which has compiled nothing yet but what shuffles the nodes."""
    if options.cache:
        compilation_cache.enable(options.cache)
    dataset = data.open(options.graph)
    tables, classes = place(dataset), num_classes(dataset)
    key = fast_key(0)
    seeds, mask = (part[: options.steps] for part in epoch(key, dataset.train, options.batch_size))
    jax.block_until_ready((tables, seeds, mask))
    clock = [time.perf_counter()]

    def lap() -> None:
        clock.append(time.perf_counter())

    step = make_step(options.fanouts, classes, hidden=options.hidden)
    state = jax.block_until_ready(jax.jit(step.start)(key, tables))
    lap()
    traced = jax.jit(step.epoch, donate_argnums=0).trace(state, tables, seeds, mask)
    lap()
    lowered = traced.lower()
    lap()
    compiled = lowered.compile()
    lap()
    jax.block_until_ready(compiled(state, tables, seeds, mask))
    lap()
    names = ("start_seconds", "trace_seconds", "lower_seconds", "compile_seconds", "run_seconds")
    parts = {name: end - begin for name, begin, end in zip(names, clock[:-1], clock[1:], strict=True)}
    return {"first_step_seconds": clock[-1] - clock[0], **parts}


def _summary(measured: list[dict]) -> dict[str, float]:
    parts = {name: median(each[name] for each in measured) for name in measured[0]}
    return {**parts, "first_step_seconds_min": min(each["first_step_seconds"] for each in measured)}


def options() -> argparse.ArgumentParser:
    made = parser("first_step", __doc__)
    made.add_argument("--batch-size", type=int, default=1024, help="seeds a batch (default: 1024)")
    made.add_argument("--fanouts", type=integers, default=(25, 10), help="the hop next to the seeds first")
    made.add_argument("--hidden", type=int, default=256, help="width of the hidden layers (default: 256)")
    made.add_argument("--repetitions", type=int, default=3, help="rounds (default: 3)")
    made.add_argument("--steps", type=int, help=argparse.SUPPRESS)
    made.add_argument("--cache", type=Path, help=argparse.SUPPRESS)
    return made


if __name__ == "__main__":
    sys.exit(run(options(), main))
