"""Where nodes are: the device that owns each of them, and its row there."""

from typing import TypeAlias

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from jsage.graph import Location

PackedLocations: TypeAlias = tuple[Array, ...]
"""Places in memory: `(owner * rows + local,)` where that is below 2^31, else `(local, owner)`."""


def unpack(words: PackedLocations, rows: int) -> Location:
    """The places that `words` hold, of shards of `rows` rows.

    >>> unpack((jnp.array([7, 2]),), 5)
    Location(owner=Array([1, 0], dtype=int32), local=Array([2, 2], dtype=int32))
    """
    if len(words) == 2:
        return Location(words[1].astype(jnp.int32), words[0])
    owner = words[0] // rows
    return Location(owner, words[0] - owner * rows)


def pack(
    owner: Int[np.ndarray, " n"], local: Int[np.ndarray, " n"], rows: int, shards: int
) -> tuple[np.ndarray, ...]:
    """Places as arrays on the host: one word each where all of `shards * rows` rows fit int32, else two.

    The second word takes two bytes where they suffice.

    >>> pack(np.array([1]), np.array([2]), rows=5, shards=2)
    (array([7], dtype=int32),)
    >>> pack(np.array([1]), np.array([2]), rows=2**30, shards=4)
    (array([2], dtype=int32), array([1], dtype=int16))
    """
    if shards * rows <= 2**31:
        return ((owner.astype(np.int64) * rows + local).astype(np.int32),)
    return local.astype(np.int32), owner.astype(np.int16 if shards <= 2**15 else np.int32)
