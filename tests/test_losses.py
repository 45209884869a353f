"""Closed forms in float64, gradients, NaN in invalid rows, extreme logits."""

import sys
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sklearn.metrics
from jax.test_util import check_grads
from scipy.special import log_softmax
from sklearn.utils.class_weight import compute_class_weight

from jsage import losses

pytestmark = pytest.mark.usefixtures("strict_dtypes")

RNG = np.random.default_rng(0)
LOGITS = RNG.normal(size=(7, 4), scale=3).astype(np.float32)
CLASSES = np.array([0, 3, 1, 2, 2, 0, 1], np.int32)
TABLE = (RNG.random((7, 4)) < 0.4).astype(np.int32)
VALUES, TARGETS = (RNG.normal(size=7, scale=2).astype(np.float32) for _ in range(2))
MASK = np.array([1, 1, 1, 1, 1, 0, 0], bool)

LOSSES = [
    (losses.cross_entropy, LOGITS, CLASSES),
    (partial(losses.cross_entropy, smoothing=0.1), LOGITS, CLASSES),
    (losses.binary_cross_entropy, LOGITS, TABLE),
    (losses.squared_error, VALUES, TARGETS),
    (losses.absolute_error, VALUES, TARGETS),
    (losses.huber, VALUES, TARGETS),
]


def on_device(*arrays):
    return [jnp.asarray(array) for array in arrays]


def everything(array):
    return np.ones(len(array), bool)


@pytest.mark.slow
def test_cross_entropy_is_the_log_loss():
    rows = losses.cross_entropy(*on_device(LOGITS, CLASSES, everything(CLASSES)))
    expected = -log_softmax(LOGITS.astype(np.float64), axis=1)[np.arange(7), CLASSES]
    np.testing.assert_allclose(rows, expected, rtol=1e-5, atol=1e-6)
    probabilities = np.exp(log_softmax(LOGITS.astype(np.float64), axis=1))
    assert rows.mean() == pytest.approx(sklearn.metrics.log_loss(CLASSES, probabilities), rel=1e-5)
    weights = np.array([1.0, 2.0, 0.5, 3.0], np.float32)
    weighted = losses.cross_entropy(*on_device(LOGITS, CLASSES, everything(CLASSES), weights))
    np.testing.assert_allclose(weighted, weights[CLASSES] * expected, rtol=1e-5, atol=1e-6)


def test_smoothed_labels_share_out_a_part_over_all_classes():
    weights = np.array([1.0, 2.0, 0.5, 3.0], np.float32)
    targets = 0.7 * np.eye(4)[CLASSES] + 0.3 / 4
    expected = -(targets * log_softmax(LOGITS.astype(np.float64), axis=1)).sum(1)
    given = on_device(LOGITS, CLASSES, everything(CLASSES))
    np.testing.assert_allclose(losses.cross_entropy(*given, smoothing=0.3), expected, rtol=1e-5)
    weighted = losses.cross_entropy(*given, jnp.asarray(weights), 0.3)
    np.testing.assert_allclose(weighted, weights[CLASSES] * expected, rtol=1e-5)
    for smoothing in (-0.1, 1.0):
        with pytest.raises(ValueError, match="smoothing"):
            losses.cross_entropy(*given, smoothing=smoothing)


@pytest.mark.slow
def test_binary_cross_entropy_is_the_mean_over_known_classes():
    chance = 1 / (1 + np.exp(-LOGITS.astype(np.float64)))
    weights = np.array([1.0, 2.0, 0.5, 3.0])
    entries = -(weights * TABLE * np.log(chance) + (1 - TABLE) * np.log1p(-chance))
    mask = everything(TABLE)
    rows = losses.binary_cross_entropy(*on_device(LOGITS, TABLE, mask, weights.astype(np.float32)))
    np.testing.assert_allclose(rows, entries.mean(1), rtol=1e-5)
    unknown = TABLE.copy()
    unknown[0, 1:], unknown[1, 2], unknown[2] = -1, -1, -1
    rows = losses.binary_cross_entropy(*on_device(LOGITS, unknown, mask, weights.astype(np.float32)))
    assert rows[0] == pytest.approx(entries[0, 0], rel=1e-5)
    assert rows[1] == pytest.approx(entries[1, [0, 1, 3]].mean(), rel=1e-5)
    assert rows[2] == 0
    for dtype in (jnp.bool_, jnp.uint8, jnp.float32, jnp.bfloat16):
        same = losses.binary_cross_entropy(jnp.asarray(LOGITS), jnp.asarray(TABLE, dtype), jnp.asarray(mask))
        np.testing.assert_array_equal(same, losses.binary_cross_entropy(*on_device(LOGITS, TABLE, mask)))


def test_regression_losses():
    error = VALUES.astype(np.float64) - TARGETS
    arrays = on_device(VALUES, TARGETS, everything(VALUES))
    np.testing.assert_allclose(losses.squared_error(*arrays), error**2, rtol=1e-5)
    np.testing.assert_allclose(losses.absolute_error(*arrays), np.abs(error), rtol=1e-5)
    for delta in (0.1, 1.0, 3.0):
        inside = np.abs(error) <= delta
        expected = np.where(inside, error**2 / 2, delta * (np.abs(error) - delta / 2))
        np.testing.assert_allclose(losses.huber(*arrays, delta=delta), expected, rtol=1e-5)


@pytest.mark.parametrize(("function", "scores", "labels"), LOSSES)
def test_dead_rows_cost_nothing_whatever_they_hold(function, scores, labels):
    """NaN, infinity and labels out of range under mask False: same values, same gradients."""
    poisoned = scores.copy()
    poisoned[5], poisoned[6] = np.nan, np.inf
    nonsense = labels.copy()
    nonsense[5:] = 99 if labels.dtype == np.int32 else np.nan

    def total(scores, labels, mask):
        rows = function(scores, labels, mask)
        return losses.masked_mean(rows, mask), rows

    (clean, rows), gradient = jax.value_and_grad(total, has_aux=True)(*on_device(scores, labels, MASK))
    (dirty, _), dirty_gradient = jax.value_and_grad(total, has_aux=True)(*on_device(poisoned, nonsense, MASK))
    assert clean == dirty
    assert clean == pytest.approx(float(rows[:5].mean()), rel=1e-6)
    assert rows[5:].tolist() == [0, 0]
    np.testing.assert_array_equal(gradient, dirty_gradient)
    assert not gradient[5:].any()
    assert gradient[:5].any(axis=None)


@pytest.mark.parametrize(("function", "scores", "labels"), LOSSES)
def test_an_empty_mask_gives_zero_and_no_gradient(function, scores, labels):
    nothing = jnp.zeros(7, bool)
    value, gradient = jax.value_and_grad(
        lambda scores: losses.masked_mean(function(scores, jnp.asarray(labels), nothing), nothing)
    )(jnp.full_like(scores, jnp.nan))
    assert value == 0
    assert not gradient.any()


@pytest.mark.parametrize(("function", "scores", "labels"), LOSSES)
def test_gradients_by_finite_differences(function, scores, labels):
    scores, labels, mask = on_device(scores, labels, MASK)
    check_grads(
        lambda s: function(jnp.asarray(s), labels, mask).sum(), (scores,), 1, ["rev"], 0.02, 0.02, 1e-2
    )


@pytest.mark.parametrize(
    ("function", "labels"), [(losses.cross_entropy, CLASSES), (losses.binary_cross_entropy, TABLE)]
)
def test_unknown_labels_are_dead_rows(function, labels):
    unknown = labels.copy()
    unknown[MASK == 0] = -1
    got = function(*on_device(LOGITS, unknown, everything(labels)))
    np.testing.assert_array_equal(got, function(*on_device(LOGITS, labels, MASK)))
    valid = losses.labeled(*on_device(unknown, everything(labels)))
    np.testing.assert_array_equal(valid, MASK)
    np.testing.assert_array_equal(losses.labeled(*on_device(labels, MASK)), MASK)


@pytest.mark.parametrize("size", [1e4, 1e30])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_extreme_logits_stay_finite(size, dtype):
    logits = jnp.array([[size, -size], [-size, size], [size, size]], dtype)
    mask = jnp.ones(3, bool)
    for function, labels in (
        (losses.cross_entropy, jnp.zeros(3, int)),
        (losses.binary_cross_entropy, jnp.eye(3, 2)),
    ):
        rows, vjp = jax.vjp(lambda z, f=function, y=labels: f(z, y, mask), logits)
        assert rows.dtype == jnp.float32
        assert jnp.isfinite(rows).all()
        assert jnp.isfinite(vjp(jnp.ones(3))[0]).all()
    assert losses.cross_entropy(logits, jnp.zeros(3, int), mask)[0] == 0


def test_class_weights_are_the_balanced_ones_of_scikit_learn():
    labels = RNG.integers(0, 4, 60) ** 2
    present = np.unique(labels)
    expected = compute_class_weight("balanced", classes=present, y=labels)
    got = losses.class_weights(np.append(labels, -1), 11)
    np.testing.assert_allclose(got[present], expected, rtol=1e-6)
    assert (np.delete(got, present) == 1).all()
    assert got[labels].mean() == pytest.approx(1.0)
    with pytest.raises(ValueError, match=r"expected known labels in \[0, 5\), got 9"):
        losses.class_weights(labels, 5)
    with pytest.raises(ValueError, match=r"expected known labels in \[0, 5\), got none"):
        losses.class_weights(np.array([-1, -1]), 5)


def test_class_weights_say_what_they_need(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.utils.class_weight", None)
    with pytest.raises(ImportError, match=r"needs scikit-learn: pip install 'jsage\[metrics\]'"):
        losses.class_weights(np.array([0, 1]), 2)


def test_a_class_that_is_ruled_out_costs_nothing():
    """A logit of minus infinity, at another class than the label's: the loss is that of the others."""
    barred = jnp.asarray(LOGITS).at[:, 3].set(jnp.where(CLASSES == 3, LOGITS[:, 3], -jnp.inf))
    args = jnp.asarray(CLASSES), jnp.asarray(CLASSES != 3)
    rows, vjp = jax.vjp(lambda z: losses.cross_entropy(z, *args), barred)
    np.testing.assert_allclose(rows, losses.cross_entropy(barred[:, :3], *args), rtol=1e-6)
    assert jnp.isfinite(vjp(jnp.ones(7))[0]).all()


def test_positive_weights_balance_each_class():
    labels = np.array([[1, 0, 1], [0, 0, 1], [0, -1, 1], [0, 0, 1]])
    weights = losses.positive_weights(labels)
    assert weights.tolist() == [3.0, 1.0, 1.0]
    assert weights.dtype == np.float32
    zeros, mask = jnp.zeros((4, 1)), jnp.ones(4, bool)
    pulls = jax.vjp(
        lambda z: losses.binary_cross_entropy(z, jnp.asarray(labels[:, :1]), mask, weights[:1]), zeros
    )[1](jnp.ones(4))[0]
    assert pulls.sum() == pytest.approx(0.0, abs=1e-6)


def test_masked_mean_by_hand():
    values = jnp.array([1.0, jnp.nan, 3.0, jnp.inf])
    mask = jnp.array([True, False, True, False])
    mean, gradient = jax.value_and_grad(losses.masked_mean)(values, mask)
    assert mean == 2.0
    assert gradient.tolist() == [0.5, 0.0, 0.5, 0.0]
