"""The report on fanouts: what it says about deviations that are known, and its picture."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jsage.blocks.aggregate import mean
from jsage.graph import from_edges
from jsage.infer import Spread, plot_variance, variance, variance_report

N, DEGREE = 400, 12


class Mean(nn.Module):
    """One layer without parameters: the mean of the neighbors' rows."""

    num_layers: int = 1

    @nn.compact
    def __call__(self, h, blocks):
        return mean(h, blocks[0])


@pytest.fixture(scope="module")
def setting():
    rng = np.random.default_rng(0)
    src, dst = rng.integers(0, N, N * DEGREE), np.repeat(np.arange(N), DEGREE)
    table = rng.normal(size=(N, 3)).astype(np.float32)
    return from_edges(src, dst, N), jnp.asarray(table)


@pytest.fixture(scope="module")
def report(setting):
    graph, table = setting
    return variance_report(Mean(), {}, graph, table, jnp.arange(N), [(2,), (6,), (12,)])


def test_the_deviation_is_that_of_sampling_theory(setting, report):
    """A mean of `k` of `n` rows has variance `(1/k - 1/n) S²` (Cochran, 1977, theorem 2.2)."""
    graph, table = setting
    rows = np.asarray(table, np.float64)[np.asarray(graph.indices)].reshape(N, DEGREE, 3)
    spread, scale = rows.var(1, ddof=1).sum(), np.square(rows.mean(1)).sum()
    for line, k in zip(report, (2, 6), strict=False):
        expected = np.sqrt((1 / k - 1 / DEGREE) * spread / scale)
        assert line.deviation == pytest.approx(expected, rel=0.06)
    assert report[2].deviation < 1e-6
    assert report[0].changed > report[1].changed > report[2].changed == 0


def test_rows_are_those_that_are_read(report):
    assert [line.rows for line in report[:3]] == [3, 7, 13]
    assert report[3].fanouts is None
    assert 12 < report[3].rows <= 13  # whole neighborhoods: every edge and the node itself
    assert all(line.seconds > 0 for line in report)


@pytest.mark.slow
def test_trees_of_two_hops_count_the_rows_of_both():
    from jsage.nn import GraphSAGE
    from jsage.sampling import full_block

    graph = from_edges([1, 2, 3, 4, 5], [0, 0, 1, 1, 2], 6)
    table, model = jnp.eye(6), GraphSAGE(hidden=2, out=1)
    params = model.init(jax.random.key(0), table, (full_block(graph),) * 2)
    two, whole = variance_report(model, params, graph, table, jnp.array([0]), [(5, 1)])
    assert two.rows == (1 + 1) + (1 + 1) + (1 + 1)  # of 0, of 1 and of 2: themselves and one neighbor
    assert whole.rows == 3 + 5  # three nodes, and all edges into them


def test_each_draw_has_a_key_of_its_own():
    """A node reads one of its two neighbors: draws by one key would change all predictions or none."""
    graph, table = from_edges([0, 2], [1, 1], 3), jnp.array([[1.0], [0.0], [-3.0]])
    line, _ = variance_report(Mean(), {}, graph, table, jnp.array([1]), [(1,)])
    assert 0 < line.changed < 1


def test_a_last_batch_that_is_not_full_counts_its_own_nodes_alone(setting, report, monkeypatch):
    """Draws are keyed by node, so the report in two batches is that in one."""
    assert variance.BATCH < N
    monkeypatch.setattr(variance, "BATCH", N)
    line, _ = variance_report(Mean(), {}, *setting, np.arange(N), [(2,)])
    assert report[0][1:4] == pytest.approx(line[1:4], rel=1e-5)


def test_fanouts_must_be_as_many_as_layers(setting):
    with pytest.raises(ValueError, match=r"1 layers need as many fanouts, got \(5, 5\)"):
        variance_report(Mean(), {}, *setting, jnp.arange(3), [(5, 5)])


@pytest.mark.slow
def test_the_picture_is_a_picture(tmp_path):
    lines = [Spread((2, 2), 0.3, 0.1, 7.0, 1e-5), Spread(None, 0.0, 0.0, 100.0, 1e-4)]
    plot_variance(lines, tmp_path / "variance.png")
    assert (tmp_path / "variance.png").read_bytes()[:4] == b"\x89PNG"
