"""Settings for the whole suite: strict shapes, runtime type checks, eight virtual devices."""

import gc
import inspect
import os
from functools import partial
from importlib.metadata import version
from pathlib import Path

import budgets
import lanes

# Compiling is most of the suite's time, and LLVM's passes and the fusion emitters' are most of that.
# `XLA_FLAGS= pytest` compiles as users do; .ci/run does so once. Child processes read these too.
QUICK = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
MORE = "--xla_cpu_parallel_codegen_split_count=1"
# A flag that XLA does not know ends the process.
NEWER = tuple(map(int, version("jaxlib").split(".")[:2])) >= (0, 12)
EMITTERS = f"--xla_cpu_use_{'new_xtile_lowering' if NEWER else 'fusion_emitters'}=false"
os.environ.setdefault("XLA_FLAGS", f"{QUICK} {MORE} {EMITTERS}")
# A program is compiled once, whichever workers, child processes and later runs need it.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path(__file__).parents[1] / ".pytest_cache/programs"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")

import jax  # noqa: E402
import jaxtyping  # noqa: E402
import pytest  # noqa: E402

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")
gc.set_threshold(100_000, 20, 20)  # at the default, a quarter of tracing is collecting

checked = jaxtyping.jaxtyped


def check_once(function, *, typechecker):
    """jaxtyped that checks arguments once a call, not twice, and no inner function: each call makes those."""
    if "<locals>" in function.__qualname__:
        return function
    if inspect.isclass(function):
        return checked(function, typechecker=typechecker)
    return checked(typechecker(function), typechecker=None)


if os.environ.get("JSAGE_CHECK_TYPES", "1") != "0":
    jaxtyping.jaxtyped = lambda typechecker: partial(check_once, typechecker=typechecker)
    jaxtyping.install_import_hook("jsage", "beartype.beartype")

DATA = Path(os.environ.get("JSAGE_DATA", Path(__file__).parents[2] / "shared" / "data"))


jax.monitoring.register_event_duration_secs_listener(budgets.count)


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector):
    budgets.running.append(collector.path)
    try:
        return (yield)
    finally:
        budgets.running.pop()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item):
    budgets.running.append(item.path)
    try:
        return (yield)
    finally:
        budgets.running.pop()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item, nextitem):
    """After a file's last test: too many programs are its error."""
    result = yield
    if nextitem is None or nextitem.path != item.path:
        item.user_properties.append(("programs", budgets.report(item.path)))
        if excess := budgets.excess(item.path):
            pytest.fail(excess, pytrace=False)
    return result


def pytest_terminal_summary(terminalreporter):
    if os.environ.get("JSAGE_PROGRAMS"):
        terminalreporter.section("programs")
        reports = [report for reports in terminalreporter.stats.values() for report in reports]
        for report in reports:
            if getattr(report, "when", None) == "teardown":
                for line in (line for name, line in report.user_properties if name == "programs"):
                    terminalreporter.write_line(line)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    for item in items:
        if lanes.is_slow(item):
            item.add_marker(pytest.mark.slow)


@pytest.fixture(autouse=True, scope="module")
def few_programs():
    """Drops programs: many slow compiling down, and Linux ends a process that has 65,530 maps."""
    yield
    maps = Path("/proc/self/maps")
    if maps.exists() and maps.read_bytes().count(b"\n") > 3_000:
        jax.clear_caches()
        gc.collect()


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """The folder of real graphs; tests that need it skip where it is absent."""
    if not DATA.is_dir():
        pytest.skip(f"no real graphs at {DATA}: set JSAGE_DATA to their folder")
    return DATA


@pytest.fixture
def strict_dtypes():
    """No implicit dtype promotion: for the floors that hold no optimizer."""
    with jax.numpy_dtype_promotion("strict"):
        yield
