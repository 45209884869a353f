"""A streamed writer to kill: `kill_shards.py TARGET [slow]` prints how far it is."""

import sys
import time

import numpy as np

from jsage.data import Tables, edge_arrays, shard_edges
from jsage.data.shards.from_edges import Balanced, Progress, Sorting

NODES = 300


def arrays() -> list[np.ndarray]:
    random = np.random.default_rng(0)
    dst = (NODES * random.random(900) ** 4).astype(np.int32)
    return np.split(np.stack([random.integers(0, NODES, 900, np.int32), dst], 1), [7, 300, 301, 700])


def tables() -> Tables:
    features = np.random.default_rng(1).normal(size=(NODES, 2)).astype(np.float32)
    return Tables(features, np.arange(NODES, dtype=np.int32) % 7, np.arange(0, NODES, 3))


def main(target: str, slow: bool) -> None:
    for module, name in (("edge_sources", "_PIECE"), ("edge_sort", "_READ")):
        setattr(sys.modules[f"jsage.data.shards.{module}"], name, 64)

    def progress(done: Progress) -> None:
        print(done.stage, done.done, flush=True)
        time.sleep(0.02 * slow)

    sorting = Sorting(memory_bytes=2**27, progress=progress)
    shard_edges(target, edge_arrays(arrays()), Balanced(NODES, 3), tables(), sorting=sorting)


if __name__ == "__main__":
    main(sys.argv[1], "slow" in sys.argv)
