"""Batch normalization over the valid rows of all devices."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float


class BatchNorm(nn.BatchNorm):
    """`(h - mean) / sqrt(var + epsilon) · scale + bias` over the valid rows (Ioffe & Szegedy, 2015).

    With `axis_name` the rows are those of all devices of that mesh axis, so a batch split over devices is
    normalized as a whole. Parameters, running averages and options are those of `flax.linen.BatchNorm`, which
    averages the devices' own means: the same only where all devices have as many valid rows, and NaN where
    one has none.

    >>> h, mask = jnp.array([[1.0], [3.0], [9.0]]), jnp.array([[True], [True], [False]])
    >>> norm = BatchNorm(use_running_average=False)
    >>> norm.init_with_output(jax.random.key(0), h, mask=mask)[0].ravel().round(2)
    Array([-1.,  1.,  7.], dtype=float32)
    """

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "rows d"],
        use_running_average: bool | None = None,
        *,
        mask: Bool[Array, "rows 1"] | None = None,
    ) -> Float[Array, "rows d"]:
        """Normalize rows; `mask` tells those that count."""
        width = (x.shape[1],)
        mean = self.variable("batch_stats", "mean", jnp.zeros, width, jnp.float32)
        var = self.variable("batch_stats", "var", jnp.ones, width, jnp.float32)
        if nn.merge_param("use_running_average", self.use_running_average, use_running_average):
            return self._scaled(x, mean.value, var.value)
        now = self._moments(x, jnp.ones((x.shape[0], 1), bool) if mask is None else mask)
        if not self.is_initializing():
            keep = self.momentum
            mean.value, var.value = (
                keep * old.value + (1 - keep) * new for old, new in zip((mean, var), now, strict=True)
            )
        return self._scaled(x, *now)

    def _moments(self, x: Array, mask: Array) -> tuple[Array, Array]:
        rows = jnp.where(mask, x.astype(jnp.float32), 0)
        sums = jnp.stack(
            [rows.sum(0), jnp.square(rows).sum(0), jnp.full(x.shape[1], mask.sum(), jnp.float32)]
        )
        if self.axis_name is not None and not self.is_initializing():
            sums = jax.lax.psum(sums, self.axis_name)
        mean, square = sums[:2] / jnp.maximum(sums[2:], 1)
        return mean, jnp.maximum(square - jnp.square(mean), 0)

    def _scaled(self, x: Array, mean: Array, var: Array) -> Array:
        factor = jax.lax.rsqrt(var + self.epsilon)
        if self.use_scale:
            factor = factor * self.param("scale", self.scale_init, var.shape, self.param_dtype)
        out = (x - mean[None]) * factor[None]
        if self.use_bias:
            out = out + self.param("bias", self.bias_init, var.shape, self.param_dtype)[None]
        return out.astype(x.dtype if self.dtype is None else self.dtype)
