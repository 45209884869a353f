"""What every benchmark shares: command line, JSON, timing, memory, and the machine's measured peaks."""

import argparse
import os
import platform
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Array

from benchmarks.peers.process import memory_bytes as memory_bytes
from benchmarks.peers.process import peak_rss_bytes as peak_rss_bytes
from benchmarks.peers.process import reset_peak_rss as reset_peak_rss
from experiments.common.output import write_json
from jsage._internal.arrays import take
from jsage.typing import PRNGKey

Name = TypeVar("Name")
PACKAGES = ("jsage", "jax", "jaxlib", "flax", "optax", "numpy", "scipy", "libtpu", "jax-cuda12-plugin")


def parser(name: str, description: str | None) -> argparse.ArgumentParser:
    """The options that every benchmark has; `description` is the module's docstring."""
    made = argparse.ArgumentParser(
        prog=f"python -m benchmarks.{name}", description=(description or "").split("\n")[0]
    )
    made.add_argument("--graph", type=Path, required=True, help="a graph directory (benchmarks.make_graph)")
    made.add_argument("--json", metavar="FILE", help="write the result there; - is standard output")
    return made


def integers(text: str) -> tuple[int, ...]:
    """`25,10` as a tuple."""
    return tuple(int(part) for part in text.split(","))


def run(
    options: argparse.ArgumentParser,
    main: Callable[[argparse.Namespace], list[dict]],
    arguments: list[str] | None = None,
) -> int:
    """Parse, measure, write: 0, or 2 and one line on standard error for bad input."""
    arguments = sys.argv[1:] if arguments is None else arguments
    parsed = options.parse_args(arguments)
    try:
        rows = main(parsed)
        write_json(report(options.prog, parsed.graph, arguments, rows), parsed.json)
    except (OSError, RuntimeError, ValueError) as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 2
    return 0


def report(program: str, graph: Path, arguments: Sequence[str], rows: list[dict]) -> dict:
    """The one object that a benchmark writes."""
    return {
        "benchmark": program.rpartition(".")[2],
        "graph": graph.resolve().name,
        "command": " ".join([program, *(_without_folder(part) for part in arguments)]),
        "machine": machine(),
        "versions": versions(),
        "rows": rows,
    }


def machine() -> dict:
    """What the figures were measured on."""
    return {
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_bytes": memory_bytes(),
        "platform": f"{platform.system()} {platform.machine()}",
        "device": jax.devices()[0].device_kind,
    }


def versions() -> dict[str, str]:
    """Python and the packages that matter, as far as they are installed."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def alternate(
    calls: Mapping[Name, Callable[[], Any]], repetitions: int, warmup: int = 1
) -> dict[Name, list[float]]:
    """Seconds of every call, `repetitions` rounds: one after the other, so that drift meets all alike.

    Each call is waited for. The first `warmup` rounds compile and are not counted.
    """
    times: dict[Name, list[float]] = {name: [] for name in calls}
    for round_ in range(warmup + repetitions):
        for name, call in calls.items():
            seconds = timed(call)
            if round_ >= warmup:
                times[name].append(seconds)
    return times


def timed(call: Callable[[], Any]) -> float:
    """Seconds until the call's result is there."""
    start = time.perf_counter()
    jax.block_until_ready(call())
    return time.perf_counter() - start


def summary(times: Sequence[float], per: int = 1) -> dict[str, float]:
    """`seconds_min` and `seconds_median`, each divided by the `per` steps that one call makes."""
    return {"seconds_min": min(times) / per, "seconds_median": median(times) / per}


def matmul_rate(m: int, k: int, n: int, dtype: Any = jnp.float32, repetitions: int = 5) -> float:
    """FLOP/s of `[m, k] @ [k, n]` in reused buffers: the machine's peak at this shape."""
    repeats = max(2, round(4e9 / (2 * m * k * n)))
    left, right = jnp.ones((m, k), dtype), jnp.ones((k, n), dtype)

    @jax.jit
    def loop(left, right):
        def multiply(i, carry):  # a number is written in place, so that no turn can be left out
            left = carry[0].at[0, 0].set(i.astype(dtype))
            return left, jnp.dot(left, right, preferred_element_type=jnp.float32)

        return jax.lax.fori_loop(0, repeats, multiply, (left, jnp.zeros((m, n), jnp.float32)))[1]

    times = alternate({"matmul": lambda: loop(left, right)}, repetitions)
    return 2 * m * k * n * repeats / min(times["matmul"])


def gather_rate(table: Array, repetitions: int = 5) -> float:
    """Bytes/s of reading random rows of this very table into a reused buffer, of the best of three sizes."""
    return max(_gather_rate(table, chunk, repetitions) for chunk in (1024, 8192, 32768))


def _gather_rate(table: Array, chunk: int, repetitions: int) -> float:
    read, rows = random_reads(table, chunk)
    return rows * table[:1].nbytes / min(alternate({"gather": read}, repetitions)["gather"])


def random_reads(table: Array, chunk: int = 8192) -> tuple[Callable[[], Array], int]:
    """A call that reads random rows, `chunk` at a time, into a reused buffer; and how many it reads."""
    chunks = max(2, round(min(2e8 / table[:1].nbytes, 4e6) / chunk))
    ids = jax.random.randint(jax.random.key(0), (chunks, chunk), 0, len(table))

    @jax.jit
    def loop(table, ids):
        return jax.lax.fori_loop(
            0, chunks, lambda i, _: take(table, ids[i]), jnp.zeros((chunk, *table.shape[1:]), table.dtype)
        )

    return lambda: loop(table, ids), chunks * chunk


def random_rate(key: PRNGKey, size: int = 2**18, repetitions: int = 5) -> float:
    """32-bit random words/s of a key's kind, drawn `size` at a time."""

    @jax.jit
    def loop(key):
        def draw(i, _):
            return jax.random.bits(jax.random.fold_in(key, i), (size,), jnp.uint32)

        return jax.lax.fori_loop(0, 20, draw, jnp.zeros(size, jnp.uint32))

    return 20 * size / min(alternate({"bits": lambda: loop(key)}, repetitions)["bits"])


def temp_bytes(compiled: jax.stages.Compiled) -> int:
    """What a compiled program needs beside its arguments and results."""
    analysis: Any = compiled.memory_analysis()
    return analysis.temp_size_in_bytes


def _cpu_model() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor()


def _without_folder(part: str) -> str:
    """An argument with any path in it cut to its last name: what a reader can use."""
    option, equals, value = part.partition("=") if part.startswith("--") else ("", "", part)
    return option + equals + (value if value == "-" else os.path.basename(value.rstrip(os.sep)))
