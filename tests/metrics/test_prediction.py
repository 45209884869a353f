"""Against scikit-learn on scores with ties, against brute force, and summed over batches."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sklearn.metrics as sk

from jsage import metrics

SEEDS = range(4)


def single_label(seed, n=97, c=5, absent=()):
    rng = np.random.default_rng(seed)
    scores = rng.integers(0, 6, (n, c)).astype(np.float32)
    labels = np.where(rng.random(n) < 0.5, scores.argmax(1), rng.integers(0, c, n)).astype(np.int32)
    for k in absent:
        scores[:, k], labels[labels == k] = -1.0, 0
    return scores, labels


def multi_label(seed, n=97, c=6):
    """Few distinct scores, so many ties; classes from rare to common."""
    rng = np.random.default_rng(seed)
    labels = (rng.random((n, c)) < np.linspace(0.05, 0.9, c)).astype(np.int32)
    labels[0], labels[1] = 1, 0
    return (rng.integers(-3, 4, (n, c)) + labels).astype(np.float32), labels


@pytest.mark.parametrize("absent", [(), (2,), (0, 4)])
@pytest.mark.parametrize("seed", SEEDS)
def test_single_label_scores_are_those_of_scikit_learn(seed, absent):
    scores, labels = single_label(seed, absent=absent)
    predicted, counts = scores.argmax(1), metrics.confusion(scores, labels)
    np.testing.assert_array_equal(counts, sk.confusion_matrix(labels, predicted, labels=range(5)))
    assert metrics.accuracy(counts) == pytest.approx(sk.accuracy_score(labels, predicted), abs=1e-15)
    assert metrics.micro_f1(counts) == pytest.approx(
        sk.f1_score(labels, predicted, average="micro"), abs=1e-15
    )
    assert metrics.macro_f1(counts) == pytest.approx(
        sk.f1_score(labels, predicted, average="macro"), abs=1e-15
    )
    expected = sk.precision_recall_fscore_support(labels, predicted, labels=range(5), zero_division=0)
    for got, reference in zip(metrics.per_class(counts), expected, strict=True):
        np.testing.assert_allclose(got, reference, rtol=1e-14)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_class_predicted_but_never_true_lowers_macro_f1_as_in_scikit_learn(seed):
    scores, labels = single_label(seed)
    labels[labels == 3] = 0
    expected = sk.f1_score(labels, scores.argmax(1), average="macro")
    assert metrics.macro_f1(metrics.confusion(scores, labels)) == pytest.approx(expected, abs=1e-15)


@pytest.mark.parametrize("seed", SEEDS)
def test_multi_label_scores_are_those_of_scikit_learn(seed):
    scores, labels = multi_label(seed)
    labels[:, 0] = 0 if seed == 0 else labels[:, 0]
    scores[:, 0] = -1.0 if seed == 0 else scores[:, 0]
    predicted, counts = (scores > 0).astype(int), metrics.multilabel_confusion(scores, labels)
    np.testing.assert_array_equal(counts, sk.multilabel_confusion_matrix(labels, predicted))
    assert metrics.accuracy(counts) == pytest.approx(1 - sk.hamming_loss(labels, predicted), abs=1e-15)
    for ours, average in ((metrics.micro_f1, "micro"), (metrics.macro_f1, "macro")):
        expected = sk.f1_score(labels, predicted, average=average, zero_division=0)
        assert ours(counts) == pytest.approx(expected, abs=1e-15)
    expected = sk.precision_recall_fscore_support(labels, predicted, zero_division=0)
    for got, reference in zip(metrics.per_class(counts), expected, strict=True):
        np.testing.assert_allclose(got, reference, rtol=1e-14)


@pytest.mark.parametrize("seed", SEEDS)
def test_rank_metrics_are_those_of_scikit_learn(seed):
    scores, labels = multi_label(seed)
    assert metrics.auroc(scores, labels) == pytest.approx(sk.roc_auc_score(labels, scores), abs=1e-14)
    expected = sk.average_precision_score(labels, scores)
    assert metrics.average_precision(scores, labels) == pytest.approx(expected, abs=1e-14)
    one = sk.roc_auc_score(labels[:, 2], scores[:, 2])
    assert metrics.auroc(scores[:, 2], labels[:, 2]) == pytest.approx(one, abs=1e-14)


@pytest.mark.parametrize("seed", SEEDS)
def test_rank_metrics_by_brute_force(seed):
    scores, labels = (table[:, 3] for table in multi_label(seed))
    difference = scores[labels == 1][:, None] - scores[labels == 0][None, :]
    chance = ((difference > 0) + 0.5 * (difference == 0)).mean()
    assert metrics.auroc(scores, labels) == pytest.approx(chance, abs=1e-14)
    total, recall = 0.0, 0.0
    for threshold in sorted(set(scores), reverse=True):
        caught = labels[scores >= threshold]
        total += (caught.sum() / labels.sum() - recall) * caught.mean()
        recall = caught.sum() / labels.sum()
    assert metrics.average_precision(scores, labels) == pytest.approx(total, abs=1e-14)


def test_rank_metrics_at_their_ends():
    labels = np.array([0, 0, 1, 1, 1])
    assert metrics.auroc(labels, labels) == metrics.average_precision(labels, labels) == 1.0
    assert metrics.auroc(-labels, labels) == 0.0
    assert metrics.auroc(np.zeros(5), labels) == 0.5
    assert metrics.average_precision(np.zeros(5), labels) == pytest.approx(0.6)
    assert metrics.average_precision(np.zeros(2), np.ones(2)) == 1.0


def test_unknown_labels_are_left_out_of_every_score():
    scores, labels = multi_label(0)
    rng = np.random.default_rng(9)
    unknown = np.where(rng.random(labels.shape) < 0.3, -1, labels)
    unknown[:2] = labels[:2]
    kept = [(scores[unknown[:, k] >= 0, k], unknown[unknown[:, k] >= 0, k]) for k in range(6)]
    expected = np.mean([sk.roc_auc_score(y, s) for s, y in kept])
    assert metrics.auroc(scores, unknown) == pytest.approx(expected, abs=1e-14)
    counts = metrics.multilabel_confusion(scores, unknown)
    assert counts[4].tolist() == sk.confusion_matrix(kept[4][1], kept[4][0] > 0).tolist()
    scores, labels = single_label(0)
    half = np.where(np.arange(97) % 2, labels, -1)
    np.testing.assert_array_equal(
        metrics.confusion(scores, half), metrics.confusion(scores[1::2], labels[1::2])
    )


@pytest.mark.parametrize("shape", [(50,), (50, 3)])
@pytest.mark.parametrize("seed", SEEDS)
def test_regression_metrics_are_those_of_scikit_learn(seed, shape):
    rng = np.random.default_rng(seed)
    targets = 1e4 + rng.normal(size=shape) * np.arange(1, shape[-1] + 1)
    predictions = targets + rng.normal(size=shape)
    assert metrics.mae(predictions, targets) == pytest.approx(sk.mean_absolute_error(targets, predictions))
    assert metrics.rmse(predictions, targets) == pytest.approx(
        sk.root_mean_squared_error(targets, predictions)
    )
    assert metrics.r2(predictions, targets) == pytest.approx(sk.r2_score(targets, predictions))


def test_r2_of_constant_targets():
    for predictions in (np.ones(3), np.array([1.0, 1.0, 2.0])):
        assert metrics.r2(predictions, np.ones(3)) == sk.r2_score(np.ones(3), predictions)
        targets, both = np.stack([np.ones(3), np.arange(3.0)], 1), np.stack([predictions, np.ones(3)], 1)
        assert metrics.r2(both, targets) == sk.r2_score(targets, both)


@pytest.mark.parametrize(
    ("count", "table"), [(metrics.confusion, single_label), (metrics.multilabel_confusion, multi_label)]
)
def test_counts_summed_in_a_scan_are_those_of_all_rows(count, table):
    """Nine padded batches, NaN and nonsense in the padding, one trace."""
    scores, labels = table(0)
    mask = (np.arange(99) < 97).reshape(9, 11)
    filler = ((0, 2),) + ((0, 0),) * (labels.ndim - 1)
    padded = np.pad(scores, ((0, 2), (0, 0)), constant_values=np.nan).reshape(9, 11, -1)
    padded_labels = np.pad(labels, filler, constant_values=1).reshape(9, 11, *labels.shape[1:])
    traces = []

    @jax.jit
    def run(*batches):
        traces.append(1)
        start = jnp.zeros_like(count(scores, labels))
        return jax.lax.scan(lambda total, batch: (total + count(*batch), None), start, batches)[0]

    for _ in range(2):
        np.testing.assert_array_equal(run(padded, padded_labels, mask), count(scores, labels))
    assert len(traces) == 1


def test_jax_and_bfloat16_arrays_are_taken():
    scores, labels = multi_label(1)
    low = jnp.asarray(scores, jnp.bfloat16)
    assert metrics.auroc(low, jnp.asarray(labels)) == metrics.auroc(scores, labels.astype(bool))
    assert metrics.mae(low[:, 0], jnp.asarray(labels[:, 0])) == metrics.mae(scores[:, 0], labels[:, 0])


def test_mean_divides_by_the_weights_once():
    sums = {"loss": jnp.float32(3.0), "correct": jnp.int32(2), "weight": jnp.float32(4.0)}
    assert metrics.mean(sums) == {"loss": 0.75, "correct": 0.5}
    with pytest.raises(ValueError, match=r"positive sum of weights, got 0.0: no row was valid"):
        metrics.mean({"loss": np.float32(0), "weight": np.float32(0)})


@pytest.mark.parametrize(
    "metric", [metrics.auroc, metrics.average_precision, metrics.mae, metrics.rmse, metrics.r2]
)
def test_bad_arrays_are_refused(metric):
    with pytest.raises(ValueError, match=r"expected at least one row, got shape \(0,\)"):
        metric(np.zeros(0), np.zeros(0))
    with pytest.raises(ValueError, match="scores hold 1 NaN or infinite values"):
        metric(np.array([1.0, np.nan]), np.array([0.0, 1.0]))
    with pytest.raises(ValueError, match=r"differ in shape: \(3,\) and \(2,\)"):
        metric(np.zeros(3), np.zeros(2))
    with pytest.raises(ValueError, match=r"differ in shape: \(3, 1\) and \(3,\)"):
        metric(np.zeros((3, 1)), np.zeros(3))


def test_undefined_scores_are_refused():
    with pytest.raises(
        ValueError, match="class 1 has no positive among 3 labels, so the metric is undefined"
    ):
        metrics.auroc(np.zeros((3, 2)), np.array([[1, 0], [0, 0], [0, -1]]))
    with pytest.raises(ValueError, match="class 0 has no negative among 3 labels"):
        metrics.auroc(np.zeros(3), np.ones(3))
    with pytest.raises(ValueError, match="class 0 has no positive among 2 labels"):
        metrics.average_precision(np.zeros(2), np.zeros(2))
    with pytest.raises(ValueError, match=r"expected labels 0, 1 or -1 \(unknown\), got \[0.0, 1.0, 2.0\]"):
        metrics.auroc(np.zeros(3), np.arange(3))
    with pytest.raises(ValueError, match="R² needs at least two rows, got 1"):
        metrics.r2(np.zeros(1), np.zeros(1))


@pytest.mark.parametrize("metric", [metrics.accuracy, metrics.micro_f1, metrics.macro_f1, metrics.per_class])
def test_bad_counts_are_refused(metric):
    with pytest.raises(ValueError, match="expected counts of at least one row, got all zeros"):
        metric(np.zeros((3, 3), int))
    with pytest.raises(ValueError, match=r"expected counts of shape \[c, c\] or \[c, 2, 2\], got \[3, 4\]"):
        metric(np.ones((3, 4), int))


@pytest.mark.parametrize("metric", [metrics.auroc, metrics.average_precision, metrics.rmse, metrics.r2])
def test_a_metric_says_what_it_needs(metric, monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.metrics", None)
    with pytest.raises(ImportError, match=r"need scikit-learn: pip install 'jsage\[metrics\]'"):
        metric(np.array([0.0, 1.0]), np.array([0.0, 1.0]))
