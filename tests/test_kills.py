"""Every writer killed a few times: `tests/kills.py` with its table in short."""

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
def test_what_is_killed_goes_on_to_the_same_bytes_and_a_second_writer_is_refused():
    command = [sys.executable, str(Path(__file__).with_name("kills.py")), "--count", "14", "--pairs", "1"]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stdout + found.stderr
    assert found.stdout.splitlines()[-1].startswith("| together | 14 |")
