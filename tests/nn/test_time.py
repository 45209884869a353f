"""Encoders of times against their formulas in float64 and PyG's values; blocks whose edges carry ages."""

from fractions import Fraction
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jsage.blocks import Indexed, Segments, Tree, as_segments
from jsage.graph import from_edges
from jsage.nn import EventFeatures, FourierTime, GATv2Conv, SAGEConv, SinusoidalTime, Time2Vec
from jsage.nn.time import TWO_PI
from jsage.sampling import full_block

D = 6


def encode(encoder: Any, times: np.ndarray, params: Any = None) -> np.ndarray:
    """An encoder's result, in one program."""
    return np.asarray(jax.jit(encoder.apply)(params or {}, jax.device_put(times)))


LARGE = np.array([-(2**31), -(10**9) - 7, -3, 0, 1, 123_456_789, 2**31 - 1], np.int32)
ROOT = np.sqrt(D)
FIXED = {
    "fourier": (partial(FourierTime, D, learned=False), ROOT ** -np.linspace(0, ROOT, D), False),
    "sinusoidal": (partial(SinusoidalTime, D), 1e-4 ** np.linspace(0, 1, D // 2), True),
}


def exactly(frequency: np.ndarray, times: np.ndarray, unit: float) -> np.ndarray:
    """Phases modulo the turn, in fractions."""
    turn = lambda w, t: Fraction(w) * int(t) / Fraction(unit) % TWO_PI  # noqa: E731
    return np.array([[float(turn(w, t)) for w in frequency.tolist()] for t in times])


@pytest.mark.parametrize("unit", [1.0, 3600.0, 0.25])
@pytest.mark.parametrize("name", FIXED)
def test_fixed_frequencies_are_exact_for_every_whole_tick(name: str, unit: float):
    make, frequency, sines = FIXED[name]
    phase = exactly(frequency, LARGE, unit)
    expected = np.concatenate([np.sin(phase), np.cos(phase)], 1) if sines else np.cos(phase)
    found = encode(make(unit=unit), LARGE)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)
    rough = encode(make(unit=unit), LARGE.astype(np.float32))
    assert abs(rough - expected).max() > 0.01  # as floats their phases are noise


@pytest.mark.parametrize("log", [False, True])
@pytest.mark.parametrize("name", FIXED)
def test_fixed_frequencies_of_floats_are_the_formula(name: str, log: bool):
    make, frequency, sines = FIXED[name]
    times = np.array([[0.5, -2.0], [30.25, 7.0]])
    scaled = times / 2
    scaled = np.sign(scaled) * np.log1p(abs(scaled)) if log else scaled
    phase = scaled[..., None] * frequency
    expected = np.concatenate([np.sin(phase), np.cos(phase)], -1) if sines else np.cos(phase)
    found = encode(make(unit=2.0, log=log), times.astype(np.float32))
    np.testing.assert_allclose(found, expected, atol=3e-6)


@pytest.mark.parametrize("log", [False, True])
@pytest.mark.parametrize("kind", [Time2Vec, FourierTime])
def test_learned_encodings_and_their_gradients_are_the_formula(kind: Any, log: bool):
    rng = np.random.default_rng(0)
    w, b, cotangent = rng.normal(size=D), rng.normal(size=D), rng.normal(size=(4, D))
    times = np.array([0, 3, 700, 12], np.int32)
    scaled = np.log1p(times / 4) if log else times / 4
    phase = scaled[:, None] * w + b
    if kind is Time2Vec:
        expected = np.concatenate([phase[:, :1], np.sin(phase[:, 1:])], 1)
        slope = np.concatenate([np.ones((4, 1)), np.cos(phase[:, 1:])], 1)
    else:
        expected, slope = np.cos(phase), -np.sin(phase)
    encoder = kind(D, unit=4.0, log=log)

    def run(params, cotangent):
        found, back = jax.vjp(lambda params: encoder.apply(params, times), params)
        return found, *back(cotangent)

    params = {"params": {"frequency": w.astype(np.float32), "phase": b.astype(np.float32)}}
    found, grads = jax.jit(run)(params, cotangent.astype(np.float32))
    np.testing.assert_allclose(found, expected, atol=2e-4)
    grads = grads["params"]
    np.testing.assert_allclose(grads["phase"], (cotangent * slope).sum(0), atol=2e-3)
    expected = (cotangent * slope * scaled[:, None]).sum(0)
    np.testing.assert_allclose(grads["frequency"], expected, rtol=1e-3, atol=2e-3)


def test_learned_frequencies_begin_as_tgats():
    params = jax.jit(FourierTime(10).init)(jax.random.key(0), np.zeros(1, np.float32))["params"]
    np.testing.assert_allclose(params["frequency"], 10.0 ** -np.arange(10), rtol=1e-6)
    assert not np.any(params["phase"])


def test_pygs_encodings_are_met(data_folder):
    path = data_folder.parent / "golden" / "pyg_layers.npz"
    if not path.is_file():
        pytest.skip(f"no golden values at {path}")
    with np.load(path) as file:
        for name, encoder in (("positional", SinusoidalTime(8)), ("temporal", FourierTime(8, learned=False))):
            np.testing.assert_allclose(encode(encoder, file["time"]), file[f"{name}/out"], atol=2e-5)


def block_of(kind: str) -> Any:
    """Two destinations of three slots, the last one padded, with ages and a sign; NaN in the padding."""
    mask = np.array([[True, True, True], [True, True, False]])
    age = np.where(mask, [[5.0, 1.0, 700.0], [9.0, 30.0, 0.0]], np.nan).astype(np.float32)
    data = jax.device_put({"age": age, "sign": np.where(mask, 1.0, np.nan).astype(np.float32)})
    if kind == "tree":
        return Tree(jax.device_put(mask), data)
    src = np.where(mask, [[2, 3, 4], [5, 6, 1]], [[0], [1]]).astype(np.int32)
    dst, src, mask = jax.device_put((np.arange(2, dtype=np.int32), src, mask))
    indexed = Indexed(dst, src, mask, data)
    return indexed if kind == "indexed" else jax.jit(as_segments)(indexed)


@pytest.mark.parametrize("kind", ["tree", "indexed", "segments"])
@pytest.mark.parametrize("conv", [SAGEConv, GATv2Conv])
def test_convolutions_read_ages_and_padding_reaches_nothing(conv: Any, kind: str):
    h = jax.device_put(np.random.default_rng(0).normal(size=(8, 4)).astype(np.float32))
    block, events = block_of(kind), EventFeatures(Time2Vec(3, log=True), beside=("sign",))
    layer = conv(4, edge="event")

    def init(key, block):
        seen: Any
        seen, encoder = events.init_with_output(key, block)
        return encoder, layer.init(key, h, seen), seen.edge_data["event"]

    encoder, params, seen = jax.jit(init)(jax.random.key(0), block)
    assert seen.shape == (*block.edge_data["age"].shape, 4)

    def loss(encoder, params, block):
        return jnp.square(layer.apply(params, h, events.apply(encoder, block))).sum()

    value = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))
    found, grads = value(encoder, params, block)
    zeroed = {name: jax.device_put(np.nan_to_num(x)) for name, x in block.edge_data.items()}
    expected, plain = value(encoder, params, block._replace(edge_data=zeroed))
    assert np.isfinite(found)
    assert found == expected
    jax.tree.map(np.testing.assert_array_equal, grads, plain)
    assert all(np.abs(x).max() > 0 for x in jax.tree.leaves(grads[0]))  # ages are read


def test_what_cannot_be_encoded_is_refused():
    for encoder in (Time2Vec(0), FourierTime(0), SinusoidalTime(0)):
        with pytest.raises(ValueError, match="at least one feature"):
            jax.eval_shape(encoder.init, jax.random.key(0), np.zeros(1))
    with pytest.raises(ValueError, match="must be even"):
        SinusoidalTime(5).apply({}, np.zeros(1))
    block = block_of("tree")
    for missing, beside in (("age", ()), ("kind", ("kind",))):
        data = {"time": block.edge_data["age"]} if missing == "age" else block.edge_data
        with pytest.raises(ValueError, match=f"no edge_data\\['{missing}'\\]"):
            EventFeatures(SinusoidalTime(4), beside).apply({}, block._replace(edge_data=data))
    with jax.enable_x64(True), pytest.raises(TypeError, match="32 bits"):
        SinusoidalTime(4).apply({}, np.zeros(1, np.int64))


def test_a_whole_graph_is_encoded_edge_by_edge():
    block = full_block(from_edges([1, 2, 0], [0, 0, 1], num_nodes=3, age=[4, 60, 9]))
    assert isinstance(block, Segments)
    seen = jax.jit(EventFeatures(SinusoidalTime(4)).apply)({}, block).edge_data["event"]
    np.testing.assert_allclose(seen, encode(SinusoidalTime(4), np.array([4, 60, 9])), atol=1e-6)
