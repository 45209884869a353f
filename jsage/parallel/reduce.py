"""Losses, gradients and metrics of a batch whose seeds are split over devices: those of the whole batch."""

from collections.abc import Collection
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from jsage.parallel.mesh import AXIS
from jsage.typing import LossFn, Metrics, PRNGKey


def global_loss(loss_fn: LossFn, axis: str = AXIS, *, sharded: Collection[str] = ()) -> LossFn:
    """The loss of the whole batch, from one that each device computes of its own seeds; for `make_update`.

    `Σ_i w_i loss_i / Σ_i w_i` over devices `i`, with `w_i` the metric `"weight"`, the number that the mean in
    `loss_i` divides by; metrics are summed. So a loss that is a mean over valid seeds is the same number,
    with the same gradient, as on one device. `loss_fn` may meet its like on other devices: `ask`,
    `jsage.nn.BatchNorm`. All devices have the same key: keyed draws need that, dropout takes
    `per_device_key(key)`. A device without valid seeds must compute a finite loss, as `masked_mean` does.

    Parameters are the same on all devices, and so are their gradients, but for the entries of a dictionary
    `params` that `sharded` names: tables whose rows are split, such as identity embeddings. Raises ValueError
    if the metrics have no `"weight"`.

    >>> from jsage.parallel import make_mesh, on_mesh, replicate, split
    >>> def loss_fn(params, stats, batch, key):
    ...     x, mask = batch
    ...     weight = mask.sum().astype(float)
    ...     return jnp.where(mask, params * x, 0).sum() / weight, ({"weight": weight}, stats)
    >>> mesh = make_mesh(jax.devices()[:1])
    >>> params, batch = replicate(jnp.float32(2.0), mesh), split((jnp.ones(8), jnp.arange(8) < 3), mesh)
    >>> def run(params, batch, key=jax.random.key(0)):
    ...     return jax.value_and_grad(global_loss(loss_fn), has_aux=True)(params, {}, batch, key)
    >>> (loss, (metrics, _)), grad = jax.jit(on_mesh(run, mesh, (params, batch)))(params, batch)
    >>> float(loss), float(grad), float(metrics["weight"])
    (2.0, 1.0, 3.0)
    """

    def whole(
        params: PyTree, stats: PyTree, batch: Any, key: PRNGKey
    ) -> tuple[Float[Array, ""], tuple[Metrics, PyTree]]:
        loss, (metrics, stats) = loss_fn(_shared(params, axis, sharded), stats, batch, key)
        if "weight" not in metrics:
            raise ValueError(
                f"metrics must have a 'weight', what the loss's mean divides by, got {sorted(metrics)}: "
                "devices count by it"
            )
        weight = jax.lax.stop_gradient(metrics["weight"]).astype(loss.dtype)
        part = jax.lax.stop_gradient(loss * weight)
        metrics, total = jax.lax.psum((metrics, part), axis)
        share = 1 / jnp.maximum(metrics["weight"].astype(loss.dtype), jnp.finfo(loss.dtype).tiny)
        own = loss * weight * share
        return total * share + (own - jax.lax.stop_gradient(own)), (metrics, stats)

    return whole


def per_device_key(key: PRNGKey, axis: str = AXIS) -> PRNGKey:
    """A key of each device's own, for what must differ among devices, such as dropout.

    `fold_in(key, i)` on device `i`. The masks are not those that one device would draw for the whole batch.

    >>> from jsage.parallel import make_mesh, on_mesh, replicate
    >>> mesh, key = make_mesh(jax.devices()[:1]), jax.random.key(3)
    >>> jax.jit(on_mesh(per_device_key, mesh, (replicate(key, mesh),)))(key) == jax.random.fold_in(key, 0)
    Array(True, dtype=bool)
    """
    return jax.random.fold_in(key, jax.lax.axis_index(axis))


def _shared(params: PyTree, axis: str, sharded: Collection[str]) -> PyTree:
    if not sharded:
        return _same(params, axis)
    rest: Any = _same({name: part for name, part in params.items() if name not in sharded}, axis)
    return {name: rest.get(name, part) for name, part in params.items()}


@partial(jax.custom_vjp, nondiff_argnums=(1,))
def _same(params: Any, axis: str) -> Any:
    """The parameters; their gradients are summed over devices, all at once."""
    return params


def _same_forward(params: PyTree, axis: str) -> tuple[PyTree, None]:
    return params, None


def _same_backward(axis: str, _: None, grads: PyTree) -> tuple[PyTree]:
    return (jax.lax.psum(grads, axis),)


_same.defvjp(_same_forward, _same_backward)
