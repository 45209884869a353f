"""Features are scaled by a stated rule, the same at training and at prediction."""

import json

import numpy as np
import pytest

from experiments.common.learners import unit_weights
from jsage.graph import from_edges
from jsage.recipes import Scaling, fit_scaling

RNG = np.random.default_rng(0)
UNLIKE = RNG.normal(size=(200, 4)) * [1, 2, 1e5, 1] + [0, 5, 1e5, 0]
WORDS = (RNG.random((200, 50)) < 0.2).astype(np.float32) * RNG.integers(1, 100, 50)
PIXELS = RNG.random((200, 10)).astype(np.float32)


@pytest.mark.parametrize(
    ("table", "kind"), [(UNLIKE, "columns"), (WORDS, "rows"), (PIXELS, "rows"), (np.zeros((5, 2)), "rows")]
)
def test_the_kind_follows_from_the_table(table, kind):
    assert fit_scaling(table).kind == kind
    assert fit_scaling(table, kind="none").kind == "none"


def test_columns_are_standardized_by_the_nodes_that_are_given():
    known, others = np.arange(50), np.arange(50, 200)
    scaling = fit_scaling(UNLIKE, known)
    np.testing.assert_allclose(scaling(UNLIKE[known]).mean(0), 0, atol=1e-5)
    np.testing.assert_allclose(scaling(UNLIKE[known]).std(0), 1, rtol=1e-5)
    expected = (UNLIKE[others] - UNLIKE[known].mean(0)) / UNLIKE[known].std(0)
    np.testing.assert_allclose(scaling(UNLIKE[others]), expected, rtol=1e-4, atol=1e-5)
    constant = np.concatenate([UNLIKE, np.full((200, 1), 7.0)], 1)
    assert not fit_scaling(constant, known)(constant)[:, 4].any()


def test_rows_are_scaled_to_length_one_and_zeros_stay():
    found = fit_scaling(WORDS)(np.concatenate([WORDS, np.zeros((1, 50))]))
    assert WORDS.any(1).all()
    np.testing.assert_allclose(np.linalg.norm(found, axis=1)[:-1], 1, rtol=1e-6)
    assert not found[-1].any()
    np.testing.assert_array_equal(fit_scaling(PIXELS, kind="none")(PIXELS), PIXELS)


def test_an_unknown_kind_is_refused():
    with pytest.raises(ValueError, match="one of auto, rows, sums, columns, tfidf, none, got 'unit'"):
        fit_scaling(PIXELS, kind="unit")


@pytest.mark.parametrize("unit", [0.001, 1.0, 1000.0])
def test_the_unit_of_the_weights_says_nothing(unit):
    weight = np.array([1, 2, 3], np.float32)
    graph = unit_weights(from_edges([0, 1, 2], [1, 2, 0], 3, weight=unit * weight))
    expected = unit_weights(from_edges([0, 1, 2], [1, 2, 0], 3, weight=weight)).edge_data["weight"]
    np.testing.assert_allclose(graph.edge_data["weight"], expected, rtol=1e-6)
    assert graph.edge_data["weight"].mean() == pytest.approx(1)


@pytest.mark.parametrize("table", [UNLIKE, WORDS], ids=["columns", "rows"])
def test_a_scaling_comes_back_from_json_to_the_bit(table):
    scaling = fit_scaling(table, np.arange(50))
    again = Scaling.from_json(json.loads(json.dumps(scaling.to_json(), allow_nan=False)))
    assert (again.kind, again.why) == (scaling.kind, scaling.why)
    np.testing.assert_array_equal(again(table), scaling(table))


WHOLE = fit_scaling(UNLIKE).to_json()
WRONG = {"kind": "auto", "center": [0.0], "spread": None}, {"spread": [0.0] * 4, "center": ["a"] * 4}
ONE_WRONG = [{**WHOLE, name: value} for row in WRONG for name, value in row.items()]
OTHERS = {"center": [float("nan")] * 4}, {"kind": "rows"}, {"center": [[0.0]] * 4}


@pytest.mark.parametrize("kept", [None, [], {}, *ONE_WRONG, *({**WHOLE, **other} for other in OTHERS)])
def test_a_scaling_that_is_none_is_refused(kept):
    with pytest.raises(ValueError, match="expected a scaling as to_json writes it"):
        Scaling.from_json(kept)


def test_what_float32_does_not_hold_is_refused():
    with pytest.raises(ValueError, match="times the spread that they were scaled by, beyond float32"):
        fit_scaling(UNLIKE * [1e-3, 1, 1, 1])(np.full((1, 4), 3e38, np.float32))


@pytest.mark.parametrize(("kind", "order"), [("rows", 2), ("sums", 1)])
def test_rows_have_size_1_by_their_norm(kind, order):
    table = np.array([[1.0, -3.0, 0.0], [0.0, 0.0, 0.0], [2e5, 0.0, 1e5]])
    scaling = fit_scaling(table, kind=kind)
    found = scaling(table)
    np.testing.assert_allclose(np.linalg.norm(found, order, axis=1), [1, 0, 1], rtol=1e-6)
    np.testing.assert_allclose(found[0] / found[0, 0], table[0], rtol=1e-6)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(Scaling.from_json(scaling.to_json())(table), found)
