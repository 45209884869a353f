"""Settings for the whole suite: strict shapes, runtime type checks, eight virtual devices."""

import os
from pathlib import Path

# Compiling is most of the suite's time, and LLVM's passes are most of that. `XLA_FLAGS= pytest` compiles as
# users do; .ci/run does so once. Both are read when JAX starts; child processes inherit them.
QUICK = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
os.environ.setdefault("XLA_FLAGS", f"{QUICK} --xla_cpu_parallel_codegen_split_count=1")
# A program is compiled once, whichever workers, child processes and later runs need it.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path(__file__).parents[1] / ".pytest_cache/programs"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")

import jax  # noqa: E402
import pytest  # noqa: E402
from jaxtyping import install_import_hook  # noqa: E402

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")

if os.environ.get("JSAGE_CHECK_TYPES", "1") != "0":  # they take a seventh of the time
    install_import_hook("jsage", "beartype.beartype")

DATA = Path(os.environ.get("JSAGE_DATA", Path(__file__).parents[2] / "shared" / "data"))


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """The folder of real graphs; tests that need it skip where it is absent."""
    if not DATA.is_dir():
        pytest.skip(f"no real graphs at {DATA}: set JSAGE_DATA to their folder")
    return DATA


@pytest.fixture
def strict_dtypes():
    """No implicit dtype promotion: for the floors that hold no optimiser."""
    with jax.numpy_dtype_promotion("strict"):
        yield
