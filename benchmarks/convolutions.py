"""Seconds of a training step with each convolution, all taking turns, and how often `mean`'s that is.

    python -m benchmarks.convolutions --graph graphs/arxiv --json convolutions.json

The step is that of `benchmarks.train`: (25, 10) neighbors of 1,024 seeds, 256 hidden columns; attention has
8 heads of 32. `temp_bytes` is what the compiled scan holds beside its arguments.
"""

import argparse
import sys
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.ahead import AGGREGATORS, CONVOLUTIONS, layers
from benchmarks.common import alternate, integers, parser, run, summary, temp_bytes
from benchmarks.step import make_step, num_classes, place
from jsage import data
from jsage.sampling import epoch, measure_capacities

FORMS = ("trees", "compacted")
NAMES = (*AGGREGATORS, *CONVOLUTIONS)


def main(options: argparse.Namespace) -> list[dict]:
    """A row for each form and convolution, `mean` among them."""
    dataset = data.open(options.graph)
    tables, train = place(dataset), jnp.asarray(dataset.train)
    size, key = options.batch_size, jax.random.key(0)
    seeds, mask = epoch(key, train, size)
    shape = (options.steps, size)
    batches = jnp.resize(seeds, shape), jnp.resize(mask, shape)
    capacities: dict[str, Any] = {"trees": None}
    if "compacted" in options.forms:
        capacities["compacted"] = measure_capacities(key, tables.graph, train, size, options.fanouts)
    names = dict.fromkeys(["mean", *options.convolutions])
    calls, temporaries = {}, {}
    for form in options.forms:
        for name in names:
            step = make_step(
                options.fanouts,
                num_classes(dataset),
                hidden=options.hidden,
                layers=layers(name, options.dtype),
                capacities=capacities[form],
            )
            state = jax.jit(step.start)(key, tables)
            compiled = jax.jit(step.epoch).lower(state, tables, *batches).compile()
            temporaries[form, name] = temp_bytes(compiled)
            calls[form, name] = lambda run=compiled, state=state: run(state, tables, *batches)[1]
    times = alternate(calls, options.repetitions)
    rows = []
    for (form, name), found in times.items():
        row = {"form": form, "convolution": name, "dtype": options.dtype, "fanouts": list(options.fanouts)}
        row |= {"batch_size": size, "hidden": options.hidden, **summary(found, options.steps)}
        ratios = sorted(one / other for one, other in zip(found, times[form, "mean"], strict=True))
        row |= {"ratio_to_mean_min": min(found) / min(times[form, "mean"])}
        row |= {"ratio_to_mean_median": ratios[len(ratios) // 2], "temp_bytes": temporaries[form, name]}
        rows.append(row)
    return rows


def options() -> argparse.ArgumentParser:
    made = parser("convolutions", __doc__)
    made.add_argument("--convolutions", nargs="+", choices=NAMES, default=list(CONVOLUTIONS))
    made.add_argument("--forms", nargs="+", choices=FORMS, default=list(FORMS))
    made.add_argument("--fanouts", type=integers, default=(25, 10), help="25,10 unless given")
    made.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    made.add_argument("--batch-size", type=int, default=1024, help="seeds a step (default: 1024)")
    made.add_argument("--hidden", type=int, default=256, help="width of the hidden layers (default: 256)")
    made.add_argument("--steps", type=int, default=4, help="steps a scan (default: 4)")
    made.add_argument("--repetitions", type=int, default=5, help="rounds that are timed (default: 5)")
    return made


if __name__ == "__main__":
    sys.exit(run(options(), main))
