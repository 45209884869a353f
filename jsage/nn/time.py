"""Times and ages as features: encoders, and blocks whose edges carry an encoded age.

Phases `w t` of large ages are noise in float32: beyond 2^24 / w its neighbors are more than a radian apart.
So `unit` divides ages before anything is learned of them, `log` takes `log(1 + age / unit)`, and fixed
frequencies multiply whole ticks in integers, modulo the turn: exact for every int32.
"""

from fractions import Fraction

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Num

from jsage._internal.arrays import below
from jsage._internal.checks import is_floating
from jsage.blocks import Indexed, Segments, Tree
from jsage.blocks.edges import with_edge_data
from jsage.blocks.layout import Block
from jsage.typing import HostArray

TWO_PI = 2 * Fraction(314159265358979323846264338327950288419716939937, 10**47)


class Time2Vec(nn.Module):
    """`[w_0 t + b_0, sin(w_1 t + b_1), ..]` (Kazemi et al., 2019, equation 1), with learned `w` and `b`.

    Times are of any shape, and the encoding is one axis more. Raises ValueError for no features.

    >>> encoded, _ = Time2Vec(4).init_with_output(jax.random.key(0), jnp.array([0, 3]))
    >>> encoded.shape, encoded[0].tolist()
    ((2, 4), [0.0, 0.0, 0.0, 0.0])
    """

    features: int
    unit: float = 1.0
    """Ticks that are 1 to the encoder: an hour, a day, a typical gap."""
    log: bool = False
    """Encode `sign(t) log(1 + |t| / unit)`."""

    @nn.compact
    def __call__(self, time: Num[HostArray, "..."]) -> Float[Array, "... features"]:
        """Encodings of times or ages."""
        _check_features(self.features)
        frequency = self.param("frequency", nn.initializers.normal(1.0), (self.features,))
        shift = self.param("phase", nn.initializers.zeros, (self.features,))
        phase = _phases(_scaled(time, self.unit, self.log), frequency, shift)
        return jnp.concatenate([phase[..., :1], jnp.sin(phase[..., 1:])], -1)


class FourierTime(nn.Module):
    """`cos(w t + b)`: learned (TGAT: Xu et al., 2020, section 3.1), or fixed (GraphMixer: Cong et al., 2023).

    Learned ones begin at TGAT's frequencies `w_i = 10^(-9 i / (d - 1))` with `b = 0`. Fixed ones are
    `w_i = sqrt(d)^(-x_i)` for `x` evenly from 0 to `sqrt(d)`, without parameters: what PyG's
    `TemporalEncoding` computes, and exact for all int32 times where that one's float32 is not.

    >>> encoded, params = FourierTime(4, learned=False).init_with_output(jax.random.key(0), jnp.array([0, 3]))
    >>> encoded.shape, params
    ((2, 4), {})
    """

    features: int
    learned: bool = True
    unit: float = 1.0
    """Ticks that are 1 to the encoder: an hour, a day, a typical gap."""
    log: bool = False
    """Encode `sign(t) log(1 + |t| / unit)`."""

    @nn.compact
    def __call__(self, time: Num[HostArray, "..."]) -> Float[Array, "... features"]:
        """Encodings of times or ages."""
        _check_features(self.features)
        if not self.learned:
            root = np.sqrt(self.features)
            frequency = root ** -np.linspace(0, root, self.features)
            return jnp.cos(_fixed_phases(time, frequency, self.unit, self.log))
        first = lambda key, shape: jnp.asarray(10.0 ** -np.linspace(0, 9, *shape), jnp.float32)  # noqa: E731
        frequency = self.param("frequency", first, (self.features,))
        shift = self.param("phase", nn.initializers.zeros, (self.features,))
        return jnp.cos(_phases(_scaled(time, self.unit, self.log), frequency, shift))


class SinusoidalTime(nn.Module):
    """`[sin(w t), cos(w t)]` for `w` from 1 down to `least` in equal ratios: PyG's `PositionalEncoding`.

    Without parameters, and exact for all int32 times. Raises ValueError for an odd number of features.

    >>> SinusoidalTime(4).apply({}, jnp.array(0)).tolist()
    [0.0, 0.0, 1.0, 1.0]
    """

    features: int
    least: float = 1e-4
    """The lowest frequency."""
    unit: float = 1.0
    """Ticks that are 1 to the encoder: PyG's `granularity`."""
    log: bool = False
    """Encode `sign(t) log(1 + |t| / unit)`."""

    def __call__(self, time: Num[HostArray, "..."]) -> Float[Array, "... features"]:
        """Encodings of times or ages."""
        _check_features(self.features)
        if self.features % 2:
            raise ValueError(f"features must be even, sines and cosines, got {self.features}")
        frequency = self.least ** np.linspace(0, 1, self.features // 2)
        phase = _fixed_phases(time, frequency, self.unit, self.log)
        return jnp.concatenate([jnp.sin(phase), jnp.cos(phase)], -1)


class EventFeatures(nn.Module):
    """A block whose `edge_data["event"]` is each edge's encoded age, with other data of the edge behind it.

    Any convolution reads it as its `edge="event"`. Ages are `edge_data["age"]`, from a sampler in time; those
    of padded slots are not read. Raises ValueError for an array that the block does not have.

    >>> from jsage.nn import GATv2Conv
    >>> mask = jnp.array([[True, True]])
    >>> block = Tree(mask, {"age": jnp.array([[3, 50]]), "sign": jnp.array([[1.0, -1.0]])})
    >>> seen = EventFeatures(SinusoidalTime(6), beside=("sign",)).apply({}, block)
    >>> seen.edge_data["event"].shape
    (1, 2, 7)
    >>> GATv2Conv(8, edge="event").init_with_output(jax.random.key(0), jnp.ones((3, 4)), seen)[0].shape
    (1, 8)
    """

    encoder: nn.Module
    """Such as `Time2Vec(16, log=True)`."""
    beside: tuple[str, ...] = ()
    """Other arrays of `edge_data`, as they are."""

    @nn.compact
    def __call__(self, block: Block) -> Block:
        """The block with `edge_data["event"]`, float32."""
        if missing := [name for name in ("age", *self.beside) if name not in block.edge_data]:
            raise ValueError(
                f"the block has no edge_data[{missing[0]!r}], only {sorted(block.edge_data)}: sample it in "
                "time, from a graph that has the array"
            )
        mask = _valid(block)
        encoder = self.encoder
        parts = [encoder(jnp.where(mask, block.edge_data["age"], 0))]
        for name in self.beside:
            rows = block.edge_data[name]
            rows = rows.reshape(*mask.shape, -1).astype(jnp.float32)
            parts.append(jnp.where(mask[..., None], rows, 0))
        return with_edge_data(block, {"event": jnp.concatenate(parts, -1)})


def _valid(block: Block) -> Bool[Array, "..."]:
    if isinstance(block, Tree | Indexed):
        return block.mask
    if isinstance(block, Segments):
        return block.dst < block.num_dst
    raise TypeError(
        f"a {type(block).__name__} has no row for each edge to put an encoded age into: use a sampled block, "
        "or full_block(graph)"
    )


def _check_features(features: int) -> None:
    if features < 1:
        raise ValueError(f"an encoding has at least one feature, got features={features}")


def _scaled(time: Num[HostArray, "..."], unit: float, log: bool) -> Float[Array, "..."]:
    """Times in units as float32, or their logarithms."""
    time = jnp.asarray(time)
    scaled = (time if is_floating(time.dtype) else time.astype(jnp.float32)) / unit
    return jnp.sign(scaled) * jnp.log1p(abs(scaled)) if log else scaled


def _phases(time: Float[Array, "..."], frequency: Array, shift: Array) -> Float[Array, "... d"]:
    """`w t + b` of each time, one axis more."""
    frequency, shift = (row.reshape((1,) * time.ndim + (-1,)) for row in (frequency, shift))
    return time[..., None] * frequency + shift


def _fixed_phases(
    time: Num[HostArray, "..."], frequency: np.ndarray, unit: float, log: bool
) -> Float[Array, "... d"]:
    """`w t / unit`, whole ticks modulo the turn.

    A tick is `w / (2 pi unit)` turns, which 64 bits hold to 2^-64, so `t` of them are known to 2^-33 of a
    turn, from the high word of a product of 32 bits by 64.
    """
    time = jnp.asarray(time)
    if log or is_floating(time.dtype):
        return _phases(_scaled(time, unit, log), jnp.asarray(frequency, jnp.float32), jnp.zeros(1))
    if time.dtype.itemsize > 4:
        raise TypeError(f"times are whole ticks of 32 bits, or floats, got {time.dtype}")
    turns = [int(Fraction(w) / Fraction(unit) / TWO_PI * 2**64) % 2**64 for w in frequency.tolist()]
    words = np.array([[turn >> 32, turn % 2**32] for turn in turns], np.uint32).view(np.int32)
    high, low = jnp.asarray(words.T.reshape(2, *(1,) * time.ndim, -1))
    size = abs(time).astype(jnp.uint32)[..., None]
    turned = size * high.astype(jnp.uint32) + below(size, low).astype(jnp.uint32)
    angle = jax.lax.bitcast_convert_type(turned, jnp.int32).astype(jnp.float32) * (2 * np.pi / 2**32)
    return jnp.where((time < 0)[..., None], -angle, angle)
