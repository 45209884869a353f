"""How many programs each test file may compile: compiling is most of what the suite costs.

A program taken from the compilation cache counts too, for it was traced and lowered. Every operation on
device arrays outside `jit` is one, for each shape and dtype; so is `jnp.asarray` of a NumPy array, which
`jax.device_put` is not. `JSAGE_PROGRAMS=1 pytest tests/test_X.py` lists a file's programs by line.
"""

import sys
from collections import Counter, defaultdict
from pathlib import Path

MOST = 60
"""Programs of a file that has no line below."""

EXCEPTIONS: dict[str, int] = {
    "test_accelerator": 200,
    "test_aggregate": 250,
    "test_benchmark_train": 290,
    "test_benchmark_unsupervised": 90,
    "test_benchmarks": 80,
    "test_bits": 260,
    "test_block": 300,
    "test_checkpoint": 110,
    "test_chunked": 70,
    "test_full": 290,
    "test_compact": 110,
    "test_contrastive": 270,
    "test_conv": 90,
    "test_synthetic": 90,
    "test_sparse": 800,
    "test_draws": 70,
    "test_sliced": 110,
    "test_convolutions": 400,
    "test_experiments": 740,
    "test_export": 390,
    "test_export_at": 90,
    "test_gather": 290,
    "test_graph": 70,
    "test_growing": 330,
    "test_stream": 80,
    "test_benchmark_stream": 70,
    "test_infer_as_of": 200,
    "test_inductive": 290,
    "test_infer": 310,
    "test_labor": 120,
    "test_events": 400,
    "test_links": 270,
    "test_losses": 310,
    "test_negatives": 80,
    "test_neighbors": 120,
    "test_weighted": 130,
    "test_new_nodes": 470,
    "test_benchmark_new_nodes": 160,
    "test_aggregators": 200,
    "test_attention": 260,
    "test_golden": 600,
    "test_parallel_links": 70,
    "test_partition": 100,
    "test_device_tables": 160,
    "test_pod": 160,
    "test_ranking": 120,
    "test_messages": 90,
    "test_serve_inputs": 170,
    "test_compose": 100,
    "test_reduce": 410,
    "test_recommend": 220,
    "test_search": 90,
    "test_subgraph": 140,
    "test_saint": 80,
    "test_models": 90,
    "test_temporal_laws": 300,
    "test_unsupervised": 540,
    "test_variance": 120,
    "test_weights": 120,
    "test_exact": 70,
    "test_tracing": 80,
}
"""name of a test file -> its own most"""

ADVICE = """build inputs with NumPy and index host arrays (`np.asarray(x)[i]`) outside `jit`, and share
jitted functions between cases. `JSAGE_PROGRAMS=1 pytest {path}` shows which lines compile how many.
What a file cannot do without is a line in tests/budgets.py"""

programs: defaultdict[Path, Counter[int]] = defaultdict(Counter)
"""test file -> its line -> programs compiled, or taken from the cache, while the file was imported or run"""
running: list[Path] = []
"""The test file that is being imported or run, the last of these."""


def count(event: str, _: float, **__: object) -> None:
    """Listens to jax's durations."""
    if event == "/jax/core/compile/backend_compile_duration" and running:
        programs[running[-1]][line_of(running[-1])] += 1


def line_of(path: Path) -> int:
    """The line of a file that is being run; 0 where a thread of its own runs."""
    frame = sys._getframe()
    while frame is not None and frame.f_code.co_filename != str(path):
        frame = frame.f_back
    return 0 if frame is None else frame.f_lineno


def most(path: Path) -> int:
    return EXCEPTIONS.get(path.stem, MOST)


def excess(path: Path) -> str | None:
    """What to say of a file that compiled too many programs."""
    found = programs[path].total()
    if found > most(path):
        return (
            f"{path.name} compiled {found} programs, its budget is {most(path)}: {ADVICE.format(path=path)}"
        )
    return None


def report(path: Path) -> str:
    """A file's programs, the lines with most of them first."""
    lines = ", ".join(f"{count} in line {line}" for line, count in programs[path].most_common())
    return f"{path.name}: {programs[path].total()} of {most(path)}: {lines}"
