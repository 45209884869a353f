"""The service under abuse for twenty seconds; `python -m benchmarks.soak` does it for ten minutes."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("starlette")
pytest.importorskip("uvicorn")
pytest.importorskip("prometheus_client")

from jsage import data

ABUSES = {"deep", "endless_body", "garbage", "idle", "malformed", "slow_body", "slow_headers", "tiny_chunks"}


@pytest.mark.slow
def test_abuse_hurts_nobody(tmp_path):
    data.save(tmp_path / "digits", data.digits())
    options = ["--graph", str(tmp_path / "digits"), "--json", str(tmp_path / "found.json")]
    options += ["--requests", "400", "--seconds", "20", "--good", "2", "--clients", "4"]
    command = [sys.executable, "-m", "benchmarks.soak", *options]
    subprocess.run(command, check=True, timeout=300, cwd=Path(__file__).parents[2])
    abuse, stop = json.loads((tmp_path / "found.json").read_text())["rows"]
    assert (abuse["other"], abuse["alive"]) == (0, True)
    assert abuse["refused"] > 400
    assert {name.split()[0] for name in abuse["statuses"]} >= ABUSES
    assert abuse["right"] > 50
    assert abuse["rss_bytes_most"] < 1.25 * abuse["rss_bytes_before"]  # the first two seconds warm it up
    assert abuse["log_bytes"] < 10_000
    assert stop["right"] > 0
    for row in (abuse, stop):
        assert (row["wrong"], row["lost"]) == (0, 0)
        assert row["late"] < row["right"]  # on a machine that does other work, too
    assert stop["status"] == 0
