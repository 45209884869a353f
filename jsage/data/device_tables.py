"""Put tables on a device in the form that it reads without copying them."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jsage.graph.sparse import Features, as_rows, is_sparse

LANES = 128
"""Numbers in one row of a TPU's vector registers, whatever their dtype."""


def to_device_table(features: Features, device: Any = None, *, lanes: int | None = None) -> Any:
    """The rows on a device, each padded with zeros to a multiple of `lanes`: 128 on a TPU, 1 elsewhere.

    A TPU keeps a table whose rows are whole lanes row by row, and a gather reads rows. One with rows of
    another width it keeps column by column, to waste no lane; a gather then needs it row by row, so
    **every step copies the whole table**: at 2.4 million rows of 100 float32 that is 1.3 GB, where 128 wide
    rows need no copy. `device` is a device or a sharding, None the default device.

    `GraphSAGE(..., in_features=d)` reads the first `d` columns of a row, so that one script, and one set of
    parameters, serve both widths. Any other model simply sees wider features. The values that it computes do
    not depend on the weights of the zero columns, and these get no gradient: they stay what they were
    initialized to (weight decay shrinks them), and their fan-in makes the initial weights a little smaller;
    its parameters for one width fit no other. Sparse rows (`jsage.graph.SparseRows`, SciPy's) are not padded.
    Raises ValueError for `lanes < 1`.

    >>> import numpy as np
    >>> to_device_table(np.ones((3, 100), np.float32), lanes=128).shape
    (3, 128)
    >>> to_device_table(np.ones((3, 100), np.float32), jax.devices("cpu")[0]).shape
    (3, 100)
    """
    features = as_rows(features)
    if is_sparse(features):
        return jax.device_put(features, device)
    table = features
    if lanes is None:
        lanes = lanes_of(device)
    missing = whole_lanes(table.shape[1], lanes) - table.shape[1]
    if missing:
        pad = jnp.pad if isinstance(table, jax.Array) else np.pad
        table = pad(table, ((0, 0), (0, missing)))
    return jax.device_put(table, device)


def whole_lanes(width: int, lanes: int = LANES) -> int:
    """`width` rounded up to a multiple of `lanes`; ValueError for `lanes < 1`.

    >>> whole_lanes(100), whole_lanes(128), whole_lanes(602)
    (128, 128, 640)
    """
    if lanes < 1:
        raise ValueError(f"lanes must be at least 1, got {lanes}: 128 suits a TPU, 1 pads nothing")
    return -(-width // lanes) * lanes


def lanes_of(device: Any = None) -> int:
    """What rows on a device are padded to a multiple of: 128 on a TPU, 1 elsewhere.

    `device` is a device or a sharding, None the default device.

    >>> lanes_of(jax.devices("cpu")[0])
    1
    """
    return LANES if _platform(device) == "tpu" else 1


def _platform(device: Any) -> str:
    if device is None:
        return jax.default_backend()
    devices = device.device_set if isinstance(device, jax.sharding.Sharding) else {device}
    return next(iter(devices)).platform
