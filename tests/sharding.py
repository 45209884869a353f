"""Placements told node by node, and what is split over eight devices by them, for the tests of `parallel`."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from jsage.graph import Location, Placement
from jsage.parallel import make_mesh, split

DEVICES = 8


@dataclass(frozen=True, eq=False)
class Listed(Placement):
    """Each node's shard; a shard's nodes are in the order of their ids. `rows` are as many as are told."""

    owners: np.ndarray
    most: int

    @property
    def rows(self) -> int:
        return self.most

    def count(self, shard: int) -> int:
        return int((self.owners == shard).sum())

    def locate(self, ids: np.ndarray) -> Location:
        local = np.zeros(self.num_nodes, np.int32)
        for shard in range(self.shards):
            local[self.owners == shard] = np.arange(self.count(shard))
        return Location(self.owners.astype(np.int32)[ids], local[ids])

    def nodes(self, owner: np.ndarray | int, local: np.ndarray) -> np.ndarray:
        places = self.locate(np.arange(self.num_nodes))
        table = np.full((self.shards, self.rows), -1)
        table[places.owner, places.local] = np.arange(self.num_nodes)
        return table[np.asarray(owner), np.asarray(local)]


def placements(num_nodes: int) -> dict[str, Listed]:
    """Placements of as many rows, so that one compiled program serves all of them."""
    rows = -(-num_nodes // 5)
    owners = {
        "contiguous": np.arange(num_nodes) // -(-num_nodes // DEVICES),
        "permuted": np.random.default_rng(0).permutation(num_nodes) % DEVICES,
        "three shards empty": np.arange(num_nodes) % 5 + 2,
    }
    return {name: Listed(num_nodes, DEVICES, owner, rows) for name, owner in owners.items()}


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
