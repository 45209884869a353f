"""The persistent compilation cache: a second process finds what the first one compiled."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from jsage.train import compilation_cache

ROOT = Path(__file__).parents[2]
LIMITS = {  # that no program reaches: nothing is kept unless they are lifted
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "1000",
    "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "1000000000",
}
PROGRAM = """
import json, sys
import jax, jax.numpy as jnp
from jsage.train import compilation_cache
events = []
jax.monitoring.register_event_listener(lambda name, **more: events.append(name.rpartition("/")[2]))
folder = compilation_cache.enable(*sys.argv[1:])
result = jax.jit(lambda x: jnp.sin(x) @ jnp.cos(x))(jnp.ones((4, 4)))
hits, misses = events.count("cache_hits"), events.count("cache_misses")
print(json.dumps([str(folder), hits, misses, float(result[0, 0])]))
"""


@pytest.fixture(autouse=True)
def _settings():
    """The suite's own settings, afterwards."""
    names = (
        "jax_compilation_cache_dir",
        "jax_persistent_cache_min_compile_time_secs",
        "jax_persistent_cache_min_entry_size_bytes",
    )
    before = {name: jax.config.values[name] for name in names}
    yield
    compilation_cache.disable()
    for name, value in before.items():
        jax.config.update(name, value)


def fresh(*arguments: str, **environment: str) -> tuple[str, int, int, float]:
    """Folder, hits, misses and result in a new process."""
    env = {**os.environ, **LIMITS, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT), **environment}
    command = [sys.executable, "-c", PROGRAM, *arguments]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return tuple(json.loads(done.stdout))


@pytest.mark.slow
def test_a_second_process_compiles_nothing(tmp_path):
    first = fresh(str(tmp_path / "programs"))
    second = fresh(str(tmp_path / "programs"))
    assert first[0] == second[0] == str(tmp_path / "programs")
    assert first[1] == 0 < first[2] == second[1]
    assert second[2] == 0
    assert first[3] == second[3] == pytest.approx(4 * 0.8414710 * 0.5403023, rel=1e-5)
    assert (tmp_path / "programs").stat().st_mode & 0o777 == 0o700


def test_the_users_cache_folder_is_the_default(tmp_path, monkeypatch):
    jax.config.update("jax_compilation_cache_dir", None)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert compilation_cache.enable() == tmp_path / "jsage" / "programs"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    compilation_cache.disable()
    assert compilation_cache.enable() == tmp_path / "home" / ".cache" / "jsage" / "programs"


def test_a_folder_that_jax_has_already_is_kept(tmp_path):
    jax.config.update("jax_compilation_cache_dir", str(tmp_path / "set"))
    assert compilation_cache.enable() == tmp_path / "set"
    assert compilation_cache.enable(tmp_path / "given") == tmp_path / "given"


def test_programs_after_others_are_kept_too(tmp_path):
    """JAX decides once, at its first program, whether there is a cache."""
    jax.jit(lambda x: x * 3 - 1)(2.0)
    compilation_cache.enable(tmp_path)
    jax.jit(lambda x: x * 5 - 2)(2.0)
    kept = sorted(path.name for path in tmp_path.glob("*-cache"))
    assert kept
    compilation_cache.disable()
    jax.jit(lambda x: x * 7 - 3)(2.0)
    assert sorted(path.name for path in tmp_path.glob("*-cache")) == kept


def test_a_folder_that_cannot_be_made_is_an_error(tmp_path):
    before = jax.config.values["jax_compilation_cache_dir"]
    (tmp_path / "file").write_text("")
    for bad in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(OSError, match=r"file\S* cannot hold compiled programs .*: pass a folder"):
            compilation_cache.enable(bad)
    assert jax.config.values["jax_compilation_cache_dir"] == before
