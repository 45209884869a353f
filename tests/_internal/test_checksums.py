"""Checksums of arrays: what changes them, and that parts add up to the whole."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from jsage._internal import checksums as module
from jsage._internal.checksums import checksums

RANDOM = np.random.default_rng(0)
DTYPES = ["float32", "int8", "bool", "float64", "complex128", jnp.bfloat16]


def some(dtype, shape=(37, 16)):
    values = RANDOM.integers(0, 2**62, shape)
    return (values & 1 if dtype == "bool" else values).astype(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_any_bit_and_any_two_places_count(dtype):
    array = some(dtype)
    known = {checksums(array)[""]}
    for at in range(0, array.nbytes, 7):
        for bit in range(8 if dtype != "bool" else 1):
            data = bytearray(array.tobytes())
            data[at] ^= 1 << bit
            known.add(checksums(np.frombuffer(bytes(data), array.dtype).reshape(array.shape))[""])
    for i, j in ((0, 1), (3, 36), (7, 8)):
        swapped = array.copy()
        swapped[[i, j]] = array[[j, i]]
        known.add(checksums(swapped)[""])
    known |= {checksums(array.T)[""], checksums(array[:-1])[""]}
    flips = len(range(0, array.nbytes, 7)) * (8 if dtype != "bool" else 1)
    assert len(known) == 1 + flips + 3 + 2


def test_parts_add_up_to_the_whole(monkeypatch):
    monkeypatch.setattr(module, "_AT_ONCE", 16)
    array = some("float32", (12, 7))
    cut = [(slice(0, 5), slice(0, 7)), (slice(5, 12), slice(0, 3)), (slice(5, 12), slice(3, 7))]
    parts = [module._part(array[spans], [span.start for span in spans], array.shape) for spans in cut]
    assert sum(parts) % 2**64 == module._part(array, [0, 0], array.shape)


def test_neither_devices_nor_jax_count():
    array = np.arange(32, dtype=np.float32).reshape(16, 2)
    mesh = jax.make_mesh((8,), ("x",), axis_types=(AxisType.Auto,))
    split = jax.device_put(array, NamedSharding(mesh, PartitionSpec("x")))
    assert checksums(split) == checksums(jnp.asarray(array)) == checksums(array)
    assert checksums({"none": np.zeros((0, 3)), "one": 1.5, "key": jax.random.key(0)}).keys() == {
        "none",
        "one",
        "key",
    }
