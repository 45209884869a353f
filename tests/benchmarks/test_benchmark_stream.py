"""The benchmark of a stream on a small one: nothing compiles again, all moments are exact, flaws are seen."""

import json

import pytest

from benchmarks import stream
from benchmarks.common import run

SMALL = ["--events", "900", "--nodes", "60", "--moments", "12", "--seeds", "16"]


def measured(folder, arguments: list[str]) -> dict:
    path = folder / "out.json"
    assert run(stream.options(), stream.main, [*arguments, "--json", str(path)]) == 0
    report = json.loads(path.read_text())
    assert report["benchmark"] == "stream"
    (row,) = report["rows"]
    return row


@pytest.mark.parametrize(
    "arguments",
    [
        SMALL,
        pytest.param(["--events", "40000", "--nodes", "3000", "--moments", "150"], marks=pytest.mark.slow),
    ],
    ids=["small", "larger"],
)
def test_a_stream_is_read_as_the_rebuilt_graph_and_nothing_compiles_again(tmp_path, arguments: list[str]):
    row = measured(tmp_path, arguments)
    assert row["moments_equal"] == row["moments"] == int(arguments[5])
    assert row["largest_difference"] == 0
    assert row["traces"] == 1
    assert row["compilations_second_half"] <= 6
    assert row["compilations"] > 0
    assert row["appends"] == 2 * row["moments"]
    assert 0 < row["append_seconds_p50"] <= row["append_seconds_p99"]
    assert row["events_per_second"] > 0


def test_another_graph_is_seen(tmp_path, monkeypatch: pytest.MonkeyPatch):
    whole = stream.Events.graph
    turned = lambda events, count, nodes: whole(events._replace(dst=nodes - 1 - events.dst), count, nodes)  # noqa: E731
    monkeypatch.setattr(stream.Events, "graph", turned)
    row = measured(tmp_path, SMALL)
    assert row["moments_equal"] == 0
    assert row["largest_difference"] > 0


def test_more_moments_than_events_are_refused(capsys):
    assert run(stream.options(), stream.main, ["--events", "10", "--moments", "6"]) == 2
    assert "6 moments need 12 events at least, got 10" in capsys.readouterr().err
