"""Placements told node by node, and what is split over eight devices by them, for the tests of `parallel`."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jsage.parallel import Location, make_mesh, split

DEVICES = 8


class Listed(NamedTuple):
    """Each node's shard; a shard's nodes are in the order of their ids. `rows` are as many as are told."""

    owner: np.ndarray
    rows: int
    shards: int = DEVICES

    def globals(self, shard: int) -> np.ndarray:
        return np.flatnonzero(self.owner == shard)

    def locate(self, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        local = np.zeros(len(self.owner), np.int32)
        for shard in range(self.shards):
            local[self.globals(shard)] = np.arange((self.owner == shard).sum())
        return self.owner.astype(np.int32)[ids], local[ids]

    def nodes(self, place: Location) -> np.ndarray:
        """The ids at places."""
        owner, local = self.locate(np.arange(len(self.owner)))
        table = np.full((self.shards, self.rows), -1)
        table[owner, local] = np.arange(len(self.owner))
        return table[np.asarray(place.owner), np.asarray(place.local)]


def placements(num_nodes: int) -> dict[str, Listed]:
    """Placements of as many rows, so that one compiled program serves all of them."""
    rows = -(-num_nodes // 5)
    owners = {
        "contiguous": np.arange(num_nodes) // -(-num_nodes // DEVICES),
        "permuted": np.random.default_rng(0).permutation(num_nodes) % DEVICES,
        "three shards empty": np.arange(num_nodes) % 5 + 2,
    }
    return {name: Listed(owner, rows) for name, owner in owners.items()}


def places(placement: Listed, ids: np.ndarray, dim: int = 0) -> Location:
    """Where nodes are, the ids split over the devices."""
    return split(Location(*(jnp.asarray(x) for x in placement.locate(np.asarray(ids)))), make_mesh(), dim)


def stretched(tree, lengths: dict[int, int]):
    """Split arrays with each device's part padded from one length to another."""

    def pad(array: jax.Array) -> jax.Array:
        parts = np.asarray(array).reshape(DEVICES, -1, *array.shape[1:])
        more = lengths.get(parts.shape[1], parts.shape[1]) - parts.shape[1]
        parts = np.pad(parts, ((0, 0), (0, more), *((0, 0),) * (array.ndim - 1)))
        return split(jnp.asarray(parts.reshape(-1, *array.shape[1:])), make_mesh())

    return jax.tree.map(pad, tree)
