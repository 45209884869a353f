"""A linear classifier on rows that stay as they are: what embeddings made without labels are worth."""

from collections.abc import Callable
from typing import NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array

from experiments.tasks import Task
from jsage.data import Dataset
from jsage.nn import l2_normalize

PENALTIES = np.float32(10.0) ** -np.arange(1, 7)
"""Weights of the L2 penalty beside the mean loss; the first of those that validate best is kept."""
STEPS = 100
"""Steps of L-BFGS."""

Fit = Callable[[Array, Array, Array], tuple[Array, Array]]
"""`(rows [n, d], labels [n, …], penalties [k]) -> (kernels [k, d, width], biases [k, width])`"""


class Probe(NamedTuple):
    """A fitted classifier, and how it did on the validation nodes."""

    kernel: np.ndarray
    bias: np.ndarray
    threshold: float
    score: float

    def outputs(self, rows: Array) -> np.ndarray:
        """What it says of rows, which are scaled to length 1."""
        return np.asarray(l2_normalize(rows)) @ self.kernel + self.bias


def make_fit(task: Task) -> Fit:
    """Logistic regression (ridge regression where targets are real), for all penalties at once, jitted."""

    def fit_one(rows: Array, labels: Array, penalty: Array) -> tuple[Array, Array]:
        live, solver = jnp.ones(rows.shape[0], bool), optax.lbfgs()

        def loss(params):
            kernel, bias = params
            return (
                task.loss(rows @ kernel + bias[None], labels, live).mean() + penalty / 2 * (kernel**2).sum()
            )

        def step(state, _):
            params, memory = state
            value, grads = optax.value_and_grad_from_state(loss)(params, state=memory)
            updates, memory = solver.update(grads, memory, params, value=value, grad=grads, value_fn=loss)
            return (optax.apply_updates(params, updates), memory), None

        zeros = jnp.zeros((rows.shape[1], task.width)), jnp.zeros(task.width)
        (params, _), _ = jax.lax.scan(step, (zeros, solver.init(zeros)), length=STEPS)
        return cast(tuple[Array, Array], params)

    return jax.jit(jax.vmap(fit_one, in_axes=(None, None, 0)))


def fit_probe(fit: Fit, task: Task, dataset: Dataset, rows: Array) -> Probe:
    """Fit on the training nodes' rows, with the penalty whose score on the validation nodes is best."""
    train, val = np.asarray(dataset.train), np.asarray(dataset.val)
    given = l2_normalize(rows[train]), jnp.asarray(task.labels[train]), jnp.asarray(PENALTIES)
    probes = []
    for kernel, bias in zip(*map(np.asarray, fit(*given)), strict=True):
        outputs = Probe(kernel, bias, 0.0, 0.0).outputs(rows[val])
        threshold = task.threshold(outputs, val)
        score = task.scores(outputs, val, threshold)[task.metric]
        probes.append(Probe(kernel, bias, threshold, float(score)))
    return max(probes, key=lambda probe: probe.score)
