"""Dense layers and dropout for rows of both kinds: the first layer of a model may read sparse features."""

from typing import Any, TypeAlias

import flax.linen as nn
import jax.numpy as jnp
from flax.linen.dtypes import promote_dtype
from jaxtyping import Array, DTypeLike, Float

from jsage.blocks.sparse import sparse_product
from jsage.graph.sparse import SparseRows

Rows: TypeAlias = Any
"""A row a source: `Float[Array, "num_src d"]`, or `SparseRows`."""


class Dense(nn.Module):
    """`W h + b`, with the parameters of flax's, of sparse rows too (`jsage.graph.SparseRows`).

    Of sparse rows it is a sum of the words' rows of `W`, in float32 at least.

    >>> import jax, numpy as np
    >>> from jsage.graph import sparse_rows
    >>> rows = jax.device_put(sparse_rows(np.eye(3)))
    >>> Dense(8).init_with_output(jax.random.key(0), rows)[0].shape
    (3, 8)
    """

    features: int
    """Output width."""
    use_bias: bool = True
    dtype: DTypeLike | None = None
    """Dtype of the computation; None: that of rows and parameters together."""

    @nn.compact
    def __call__(self, inputs: Any) -> Float[Array, "*rows features"]:
        """`[rows, d]` to `[rows, features]`."""
        kernel = self.param("kernel", nn.initializers.lecun_normal(), (inputs.shape[-1], self.features))
        bias = self.param("bias", nn.initializers.zeros, (self.features,)) if self.use_bias else None
        if isinstance(inputs, SparseRows):
            dtype = jnp.promote_types(inputs.dtype, kernel.dtype) if self.dtype is None else self.dtype
            out = sparse_product(inputs, kernel.astype(dtype))
        else:
            inputs, kernel = promote_dtype(inputs, kernel, dtype=self.dtype)
            out = jnp.dot(inputs, kernel)
        return out if bias is None else out + bias.astype(out.dtype).reshape((1,) * (out.ndim - 1) + (-1,))


class Dropout(nn.Module):
    """flax's dropout; of sparse rows it drops values, the same ones for all who read a row.

    >>> Dropout(0.5, deterministic=True).apply({}, jnp.ones((1, 2)))
    Array([[1., 1.]], dtype=float32)
    """

    rate: float = 0.0
    deterministic: bool = True

    @nn.compact
    def __call__(self, inputs: Any) -> Any:
        """Rows, some of their numbers 0 and the others scaled."""
        if self.deterministic or not self.rate:
            return inputs
        if isinstance(inputs, SparseRows):
            return inputs.dropped(self.make_rng("dropout"), self.rate)
        return nn.Dropout(self.rate, deterministic=False, name="dense")(inputs)
