"""Install a wheel by this Python's pip: nothing that is installed may change.

    python .ci/keeps.py dist/jsage-0.1.0-py3-none-any.whl

pip says beforehand what it would install (`--dry-run --report`); then versions before and after are compared.
"""

import json
import re
import subprocess
import sys
from importlib.metadata import Distribution, distributions
from pathlib import Path


def pip(*arguments: str) -> str:
    """What pip writes."""
    command = [sys.executable, "-m", "pip", "install", "--quiet", *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def name(given: str) -> str:
    """A package's name as pip compares it."""
    return re.sub(r"[-_.]+", "-", given).lower()


def installed() -> dict[str, str]:
    """The version of each package."""
    found: list[Distribution] = [*distributions()]
    return {name(one.metadata["Name"]): one.version for one in found}


def main(wheel: str) -> None:
    """Compare, install, and compare again."""
    before = installed()
    report = json.loads(pip("--dry-run", "--report", "-", wheel))
    new = {name(one["metadata"]["name"]): one["metadata"]["version"] for one in report["install"]}
    changed = {one: f"{before[one]} -> {new[one]}" for one in sorted(before.keys() & new)}
    if changed:
        sys.exit(f"pip install {Path(wheel).name} would change what is installed: {changed}")
    pip(wheel)
    after = installed()
    lost = {one: f"{was} -> {after.get(one)}" for one, was in before.items() if after.get(one) != was}
    if lost or after != {**before, **new}:
        sys.exit(f"pip install {Path(wheel).name} changed {lost}, installed {after.keys() - before.keys()}")
    print(f"{len(before)} packages stay as they are; new: {new}")


main(*sys.argv[1:])
