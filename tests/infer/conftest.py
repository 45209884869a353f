"""What tests of exact inference share: programs that compile quickly, and loops that run more than once."""

import jax
import pytest

from jsage.infer import layer


@pytest.fixture(scope="module")
def quick_compiles():
    """Programs run once here: compiled quickly rather than well."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture
def small_parts(monkeypatch):
    """Every loop runs more than once, and the hub is wider than a piece."""
    for size, value in (("ROWS", 32), ("GROUP", 8), ("PIECE", 16), ("SPLIT", 2)):
        monkeypatch.setattr(layer, size, value)
