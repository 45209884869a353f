"""Settings for the whole suite: strict shapes, runtime type checks, eight virtual devices."""

import os
from pathlib import Path

import jax
import pytest
from jaxtyping import install_import_hook

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")

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
