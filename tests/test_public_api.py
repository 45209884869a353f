"""What a user's `import jsage` gives: names that are typed and explained, and nothing heavy behind them."""

import importlib
import inspect
import json
import os
import pkgutil
import subprocess
import sys
import tomllib
import typing
from importlib import resources
from pathlib import Path
from types import ModuleType

import pytest

import jsage

ROOT = Path(__file__).parents[1]
MODULES = ["jsage", *sorted(found.name for found in pkgutil.walk_packages(jsage.__path__, "jsage."))]
HEAVY = {"torch", "matplotlib", "sklearn", "scipy", "orbax", "tensorstore", "pandas", "beartype"}
EXTRAS = {"torch", "matplotlib", "sklearn", "beartype", "pytest"}


def own_names(module: ModuleType) -> dict[str, object]:
    """The public functions and classes that a module defines itself."""
    names = {name: value for name, value in vars(module).items() if not name.startswith("_")}
    return {
        name: value
        for name, value in names.items()
        if callable(value) and getattr(value, "__module__", None) == module.__name__
    }


def exported() -> dict[str, object]:
    """The names of `jsage` itself, its modules left out."""
    return {
        name: value
        for name, value in vars(jsage).items()
        if not name.startswith("_") and not inspect.ismodule(value)
    }


def run(program: str) -> dict:
    """Run a program in a fresh interpreter that sees one CPU device; the last line it prints is JSON."""
    env = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", program], env=env, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("name", MODULES)
def test_every_public_name_is_explained_and_typed(name: str):
    module = importlib.import_module(name)
    for label, value in own_names(module).items():
        doc = value.__doc__ or ""
        # A NamedTuple or a dataclass without a docstring is given its signature as one.
        explained = bool(doc.strip()) and not doc.startswith(f"{label}(")
        assert explained, f"{name}.{label} has no docstring of its own"
        hints = typing.get_type_hints(value)
        if inspect.isfunction(value):
            missing = (set(inspect.signature(value).parameters) | {"return"}) - set(hints)
            assert not missing, f"{name}.{label} has no annotation for {sorted(missing)}"


def test_the_names_of_jsage_are_those_of_its_modules():
    defined = {
        id(value) for name in MODULES[1:] for value in own_names(importlib.import_module(name)).values()
    }
    strangers = [name for name, value in exported().items() if id(value) not in defined]
    assert not strangers, f"jsage has names that none of its modules defines: {strangers}"
    assert set(getattr(jsage, "__all__", [])) <= vars(jsage).keys()


def test_jsage_has_the_names_of_the_main_job():
    assert {"Graph", "GraphSAGE", "SAGEConv", "from_edges", "sample_blocks"} <= exported().keys()


def test_importing_jsage_imports_nothing_heavy():
    loaded = run(
        "import json, sys, jsage; print(json.dumps(sorted({name.split('.')[0] for name in sys.modules})))"
    )
    assert "jax" in loaded
    assert not HEAVY & set(loaded)


def test_every_module_imports_without_the_extras():
    program = f"""
import importlib, json, sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {EXTRAS!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Absent())
print(json.dumps([importlib.import_module(name).__name__ for name in {MODULES!r}]))
"""
    assert run(program) == MODULES


def test_importing_jsage_starts_no_device():
    """A cluster's processes must be able to call `jax.distributed.initialize` after their imports."""
    program = f"""
import importlib, json, jax
[importlib.import_module(name) for name in {MODULES!r}]
jax.config.update("jax_num_cpu_devices", 3)  # an error once a device has been used
print(json.dumps({{"devices": jax.device_count()}}))
"""
    assert run(program) == {"devices": 3}


def test_the_package_says_that_it_is_typed():
    assert resources.files("jsage").joinpath("py.typed").is_file()


def test_one_version_everywhere():
    with open(ROOT / "pyproject.toml", "rb") as file:
        assert tomllib.load(file)["project"]["version"] == jsage.__version__
    assert f"## {jsage.__version__}" in (ROOT / "CHANGELOG.md").read_text()
