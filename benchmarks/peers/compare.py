"""Our training step beside PyG's, on the CPU, taking turns, with two settings of the allocator.

    python -m benchmarks.peers --graph graphs/arxiv --peer-python PYTHON --json peers.json

PYTHON is an interpreter with torch and torch_geometric, and pyg-lib or torch-sparse. Each side has a process
of its own, and only one works at a time. A round is a few steps of ours, then as many of every form of
theirs; a ratio compares the two in one round. `benchmarks/peers/pyg_step.py` says what the forms are.
"""

import argparse
import os
import sys
from statistics import median
from typing import Any

from benchmarks.common import integers, parser, summary
from benchmarks.peers.process import Worker

ALLOCATORS: dict[str, dict[str, str]] = {
    "system": {},
    "raised": {
        "MALLOC_TRIM_THRESHOLD_": str(2**34),
        "MALLOC_MMAP_THRESHOLD_": str(2**34),
        "MALLOC_TOP_PAD_": str(2**28),
    },
}
"""Unless its thresholds are raised, glibc maps large arrays again, and gives their pages back once freed."""
OURS = ("jsage", "scan")

Side = tuple[Worker, dict]
"""A process and what it said that it can run."""
Form = tuple[str, str]
"""A side's name and one of its forms."""


def main(options: argparse.Namespace) -> list[dict]:
    """Rows of every allocator, fanouts and form; a form that cannot be run here has a row that says why."""
    return [row for allocator in options.allocators for row in under(allocator, options)]


def under(allocator: str, options: argparse.Namespace) -> list[dict]:
    """The rows of fresh processes under one setting of the allocator."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    environment |= {"JAX_PLATFORMS": "cpu", "CUDA_VISIBLE_DEVICES": ""} | ALLOCATORS[allocator]
    folder = [str(options.graph.resolve())]
    with (
        Worker(sys.executable, "benchmarks.peers.jsage_step", folder, environment) as ours,
        Worker(options.peer_python, "benchmarks.peers.pyg_step", folder, environment) as theirs,
    ):
        sides = {"jsage": (ours, ours.request({})), "pyg": (theirs, theirs.request({}))}
        rows = [row for fanouts in options.fanouts for row in measure(sides, fanouts, options)]
    return [{"allocator": allocator, **row} for row in rows]


def measure(sides: dict[str, Side], fanouts: tuple[int, ...], options: argparse.Namespace) -> list[dict]:
    """Every form in turn, round after round."""
    request = {"fanouts": fanouts, "batch_size": options.batch_size, "hidden": options.hidden}
    request["steps"] = options.steps
    answers: dict[Form, list[dict]] = {(side, form): [] for side in sides for form in sides[side][1]["forms"]}
    lacking = {(side, form): why for side, (_, said) in sides.items() for form, why in said["forms"].items()}
    for _ in range(1 + options.rounds):
        for side, form in answers:
            if lacking[side, form] is None:
                answer = sides[side][0].request({"form": form, **request})
                lacking[side, form] = answer.get("error")
                answers[side, form].append(answer)
    versions = {"pyg": {"versions": sides["pyg"][1]["versions"]}}
    return [
        {
            "side": side,
            "form": form,
            "sampler": sides[side][1]["sampler"],
            **request,
            **figures,
            **versions.get(side, {}),
        }
        for (side, form), figures in compare(answers, lacking, options.steps).items()
    ]


def compare(
    answers: dict[Form, list[dict]], lacking: dict[Form, str | None], steps: int
) -> dict[Form, dict[str, Any]]:
    """The figures of each form; the first round compiles and warms up, and is left out."""
    if lacking[OURS]:
        raise RuntimeError(f"our own step failed: {lacking[OURS]}")
    seconds = {
        form: [answer["seconds"] for answer in found[1:]]
        for form, found in answers.items()
        if lacking[form] is None
    }
    figures: dict[Form, dict[str, Any]] = {form: {"not_run": why} for form, why in lacking.items()}
    for form, times in seconds.items():
        ratios = [time / ours for time, ours in zip(times, seconds[OURS], strict=True)]
        last = answers[form][-1]
        figures[form] = {
            **summary(times, steps),
            "rounds": len(times),
            "ratios_to_jsage": ratios,
            "ratio_to_jsage": median(ratios),
            "peak_rss_bytes": last["peak_rss_bytes"],
            "loss": last["loss"],
        }
    return figures


def options() -> argparse.ArgumentParser:
    made = parser("peers", __doc__)
    made.add_argument(
        "--peer-python", required=True, help="an interpreter that has torch and torch_geometric"
    )
    made.add_argument(
        "--fanouts", type=integers, nargs="+", default=[(25, 10), (15, 10, 5)], help="one list a run: 25,10"
    )
    made.add_argument("--allocators", nargs="+", choices=list(ALLOCATORS), default=list(ALLOCATORS))
    made.add_argument("--batch-size", type=int, default=1024, help="seeds a step (default: 1024)")
    made.add_argument("--hidden", type=int, default=256, help="width of the hidden layers (default: 256)")
    made.add_argument("--steps", type=int, default=16, help="steps a turn (default: 16)")
    made.add_argument("--rounds", type=int, default=5, help="rounds that are timed (default: 5)")
    return made
