"""Ticks are whole, exact and int32, or refused; nodes are known from a time on."""

from datetime import UTC, datetime, timedelta

import numpy as np
import pytest

from jsage.graph import ALWAYS, TimeSortedGraph, from_edges, known_from, ticks

RNG = np.random.default_rng(0)
MINUTES = RNG.integers(-(10**6), 10**6, 200)
DATES = np.datetime64("2024-03-01", "m") + MINUTES.astype("timedelta64[m]")


@pytest.mark.parametrize("resolution", ["m", "s", "ms", "us", "ns"])
def test_dates_of_any_resolution_have_the_same_ticks(resolution: str):
    found = ticks(DATES.astype(f"datetime64[{resolution}]"), "s", "2024-03-01")
    assert found.dtype == np.int32
    start = datetime(2024, 3, 1, tzinfo=UTC)
    stamps = [datetime.fromisoformat(f"{date}:00+00:00") for date in DATES.astype(str)]
    np.testing.assert_array_equal(found, [(stamp - start) // timedelta(seconds=1) for stamp in stamps])


def test_units_may_be_several_and_calendars_are_days():
    even = DATES[MINUTES % 15 == 0]
    np.testing.assert_array_equal(
        ticks(even, np.timedelta64(15, "m"), "2024-03-01"), MINUTES[MINUTES % 15 == 0] // 15
    )
    months = np.array(["2023-12", "2024-01", "2024-03"], "datetime64[M]")
    assert ticks(months, "D", "2024-01-01").tolist() == [-31, 0, 60]
    assert ticks(np.array([3, -2], "timedelta64[h]"), "m").tolist() == [180, -120]
    assert ticks(np.array([3, -2], "timedelta64[h]")).tolist() == [3, -2]
    assert ticks(np.array([3, -3], "timedelta64[h]"), timedelta(hours=2), 1).tolist() == [1, -2]
    assert ticks(np.array([], "datetime64[s]"), "s", "2024-01-01").shape == (0,)


def test_numbers_are_ticks_where_they_are_whole():
    assert ticks([1.4e9 + 60, 1.4e9], 60, 1_400_000_000).tolist() == [1, 0]
    assert ticks(np.array([2**40 + 1, 2**40], np.uint64), origin=2**40).tolist() == [1, 0]
    assert ticks(np.array(7, np.int8)).tolist() == 7


@pytest.mark.parametrize(
    ("values", "unit", "origin", "said"),
    [
        (np.array(["NaT", "2024-01-01"], "datetime64[s]"), "s", "2024-01-01", "must have no NaT"),
        (DATES, "h", "2024-03-01", "must be whole numbers of units, got 20"),
        (DATES, "ms", "2024-03-01", "must fit int32, got -"),
        ([0.5], 1, 0, "must be whole numbers below 2.62, got 0.5"),
        ([np.nan], 1, 0, "must be whole numbers below 2.62, got nan"),
        ([3], 2, 0, "whole numbers of units, got 3 of 2 since 0"),
        ([2**31], 1, 0, "must fit int32, got 2147483648 .. 2147483648"),
        ([-(2**31)], 1, 0, "must fit int32, got -2147483648"),
        (DATES, "h", 0, "dates are counted from a date, got origin 0"),
        (np.array([3], "timedelta64[h]"), 1.5, 0, "must be a duration or a whole number, got 1.5"),
        (DATES, "M", "2024-03-01", "of one length, got months or years"),
        ([3], 0, 0, "a unit is a positive time, got 0"),
        (["2024-01-01"], "s", "2024-01-01", "datetime64, timedelta64 or whole numbers, got <U10"),
        (np.array(["1500-01-01"], "datetime64[s]"), np.timedelta64(1, "ns"), "2024-01-01", "too far apart"),
    ],
)
def test_what_is_not_exact_is_refused(values, unit, origin, said):
    with pytest.raises(ValueError, match=said):
        ticks(values, unit, origin)


def test_an_edge_is_known_when_it_happened_and_its_source_was_known():
    src, dst, time = RNG.integers(0, 9, 60), RNG.integers(0, 9, 60), RNG.integers(0, 50, 60)
    known = RNG.integers(0, 50, 9).astype(np.int32)
    known[3] = ALWAYS
    graph = from_edges(src, dst, 9, time=time, number=np.arange(60))
    found = known_from(graph, known)
    assert type(found) is TimeSortedGraph
    number = np.asarray(found.edge_data["number"])
    np.testing.assert_array_equal(found.edge_data["time"], np.maximum(time, known[src])[number])
    np.testing.assert_array_equal(found.indices, src[number])
    untimed = known_from(from_edges(src, dst, 9, number=np.arange(60)), known)
    np.testing.assert_array_equal(untimed.edge_data["time"], known[src][untimed.edge_data["number"]])


def test_times_of_nodes_that_are_not_are_refused():
    graph = from_edges([1], [0], 2, time=[3])
    with pytest.raises(ValueError, match=r"one time a node, 2, got shape \(3,\)"):
        known_from(graph, np.zeros(3, np.int32))
    with pytest.raises(ValueError, match="of the kind of the edges' times, int32, got float64"):
        known_from(graph, np.zeros(2))
