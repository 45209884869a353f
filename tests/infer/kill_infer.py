"""Inference to kill: `kill_infer.py TARGET [slow]` prints each part of the result once it is written."""

import sys
import time

import jax
import jax.numpy as jnp
import numpy as np

from jsage import GraphSAGE, from_edges, full_block
from jsage.infer import Progress, StreamOptions, embed_to_file

NODES = 400


def main(target: str, slow: bool) -> None:
    random = np.random.default_rng(0)
    graph = from_edges(*random.integers(0, NODES, (2, 6_000)), NODES)
    features = random.normal(size=(NODES, 12)).astype(np.float32)
    model = GraphSAGE(hidden=16, out=6)
    params = model.init(jax.random.key(0), jnp.asarray(features), (full_block(graph),) * 2)

    def progress(done: Progress) -> None:
        print(done.stage, done.done, flush=True)
        time.sleep(0.05 * slow)

    embed_to_file(
        target, model, params, graph, features, StreamOptions(rows=40, seconds=0.0, progress=progress)
    )


if __name__ == "__main__":
    main(sys.argv[1], "slow" in sys.argv)
