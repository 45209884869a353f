"""Decoders: a score for each pair of embeddings, in float32.

All take a pair `(x, y)` and broadcast over the leading axes, which are aligned at the left: `[b, d]` with
`[b, q, d]` gives `[b, q]`, each row against `q` others of its own. All against all are `x[:, None]` and
`y[None]`; no `[b, n, d]` copy is made of them where the score is a product of matrices (all but `MLP`).
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, DTypeLike, Float, Int

from jsage._internal.arrays import take
from jsage.nn.activation import relu

Embeddings = Float[Array, "..."]
"""`[..., d]`."""
Scores = Float[Array, "..."]


def dot(x: Embeddings, y: Embeddings) -> Scores:
    """`x · y`. Raises ValueError where the shapes do not make pairs.

    >>> dot(jnp.array([[1.0, 2.0]]), jnp.array([[[3.0, 4.0], [0.0, 1.0]]]))
    Array([[11.,  2.]], dtype=float32)
    """
    _check_widths(x, y)
    x, y = _paired(x, y)
    return jnp.einsum("...d,...d->...", x, y, preferred_element_type=jnp.float32)


def cosine(x: Embeddings, y: Embeddings) -> Scores:
    """`x · y / (|x| |y|)`, 0 with a zero gradient where one of them is zero.

    >>> cosine(jnp.array([[3.0, 4.0], [0.0, 0.0]]), jnp.array([[6.0, 8.0], [1.0, 0.0]]))
    Array([1., 0.], dtype=float32)
    """
    return dot(_unit(x), _unit(y))


class Bilinear(nn.Module):
    """`xᵀ W y`, for embeddings of one width or of two. `x` is the side that is transformed: the smaller one.

    >>> x, y = jnp.ones((2, 3)), jnp.ones((2, 5, 4))
    >>> Bilinear().init_with_output(jax.random.key(0), x, y)[0].shape
    (2, 5)
    """

    dtype: DTypeLike | None = None
    """Dtype of the product with `W`; parameters and scores are float32."""

    @nn.compact
    def __call__(self, x: Embeddings, y: Embeddings) -> Scores:
        """Scores of the pairs."""
        return dot(nn.Dense(y.shape[-1], use_bias=False, dtype=self.dtype, name="dense")(x), y)


class DistMult(nn.Module):
    """`Σ_i x_i r_i y_i`, with a learned `r` for each relation (Yang et al., 2015, equation 3).

    `relation` are ids, one for each row of `x` or one for each of `y`: what has fewer rows is the cheaper.
    The score is the same for `(y, x)`: it does not tell a relation from its inverse.

    >>> x, y, relation = jnp.ones((2, 4)), jnp.ones((2, 5, 4)), jnp.array([0, 2])
    >>> DistMult(num_relations=3).init_with_output(jax.random.key(0), x, y, relation)[0].shape
    (2, 5)
    """

    num_relations: int

    @nn.compact
    def __call__(self, x: Embeddings, y: Embeddings, relation: Int[Array, "..."]) -> Scores:
        """Scores of the pairs. Raises ValueError where `relation` has neither shape."""
        _check_widths(x, y)
        init = nn.initializers.variance_scaling(1.0, "fan_out", "normal")
        table = self.param("relations", init, (self.num_relations, x.shape[-1]))
        factors = take(table, relation)
        if relation.shape == x.shape[:-1]:
            return dot(x * factors.astype(x.dtype), y)
        if relation.shape == y.shape[:-1]:
            return dot(x, y * factors.astype(y.dtype))
        raise ValueError(
            f"expected a relation for each row of x {x.shape[:-1]} or of y {y.shape[:-1]}, "
            f"got shape {relation.shape}"
        )


class MLP(nn.Module):
    """A perceptron on the pair: `W_L act(… act(W_x x + W_y y + b))`, or on `x ∘ y` where `symmetric`.

    `W [x ; y]` is written as two matrices, so rows that meet many others are transformed once. The symmetric
    one, whose score is the same for `(y, x)`, is the link predictor of OGB's examples (Hu et al., 2020).

    >>> x, y = jnp.ones((2, 3)), jnp.ones((2, 5, 3))
    >>> MLP(hidden=8).init_with_output(jax.random.key(0), x, y)[0].shape
    (2, 5)
    """

    hidden: int
    """Width of the hidden layers."""
    num_layers: int = 2
    """How many dense layers, the last of width 1."""
    symmetric: bool = False
    dropout: float = 0.0
    """Rate on the hidden layers; draws from the rng stream `"dropout"`."""
    dtype: DTypeLike | None = None
    """Dtype of the computation; parameters and scores are float32."""

    @nn.compact
    def __call__(self, x: Embeddings, y: Embeddings, *, deterministic: bool = True) -> Scores:
        """Scores of the pairs."""
        if self.num_layers < 1:
            raise ValueError(f"expected at least one layer, got num_layers={self.num_layers}")
        widths = [self.hidden] * (self.num_layers - 1) + [1]
        if self.symmetric:
            _check_widths(x, y)
            x, y = _paired(x, y)
            h = self._dense(widths[0], "pair")(x * y)
        else:
            x, y = _paired(
                self._dense(widths[0], "left")(x), self._dense(widths[0], "right", use_bias=False)(y)
            )
            h = x + y
        for k, width in enumerate(widths[1:], 1):
            h = nn.Dropout(self.dropout, deterministic=deterministic)(relu(h))
            h = self._dense(width, f"dense_{k}")(h)
        return h[..., 0].astype(jnp.float32)

    def _dense(self, width: int, name: str, use_bias: bool = True) -> nn.Dense:
        return nn.Dense(width, use_bias=use_bias, dtype=self.dtype, name=name)


def _check_widths(x: Array, y: Array) -> None:
    if x.shape[-1] != y.shape[-1]:
        raise ValueError(
            f"expected embeddings of one width, got {x.shape} and {y.shape}: use Bilinear or MLP"
        )


def _paired(x: Array, y: Array) -> tuple[Array, Array]:
    """Both with as many axes: axes of 1 go before the last one of what has fewer."""
    axes = max(x.ndim, y.ndim)
    left, right = (jnp.expand_dims(v, tuple(range(v.ndim - 1, axes - 1))) for v in (x, y))
    if any(a != b and 1 not in (a, b) for a, b in zip(left.shape[:-1], right.shape[:-1], strict=True)):
        raise ValueError(
            f"embeddings of shapes {x.shape} and {y.shape} make no pairs: leading axes must agree from the "
            "left, or be 1; for all against all pass x[:, None] and y[None]"
        )
    return left, right


def _unit(rows: Array) -> Array:
    """Rows of length 1, or 0, in float32. The largest entry is divided out first: no square overflows."""
    rows = rows.astype(jnp.float32)
    top = jax.lax.stop_gradient(jnp.abs(rows).max(-1, keepdims=True))
    valid = top > 0
    scaled = jnp.where(valid, rows / jnp.where(valid, top, 1.0), 0.0)
    square = jnp.square(scaled).sum(-1, keepdims=True)
    return scaled * jax.lax.rsqrt(jnp.where(valid, square, 1.0))
