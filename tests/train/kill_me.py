"""A training run to kill: `kill_me.py FOLDER [--resume]` prints each epoch once its checkpoint is written.

Dropout draws from the state's key, Adam has moments, early stopping keeps the best: all of it must come back.
"""

import sys
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jsage.sampling import epoch
from jsage.train import checkpoint, init_state, init_stopping, make_update, observe, train_epoch

EPOCHS = 16


def loss_fn(params, stats, batch, key):
    """A small network with dropout on noisy targets; `stats` is a running mean of the loss."""
    x, y, mask = batch
    h = jnp.tanh(x @ params["hidden"])
    h = jnp.where(jax.random.bernoulli(key, 0.5, h.shape), 2.0 * h, 0.0)
    loss = jnp.where(mask, (h @ params["out"] - y) ** 2, 0.0).sum() / mask.sum()
    return loss, ({"loss": loss}, {"loss": 0.9 * stats["loss"] + 0.1 * loss})


def main(folder: str, resume: bool) -> None:
    rng, key = np.random.default_rng(0), jax.random.key(0, impl="philox4x32")
    x = rng.normal(size=(500, 16)).astype(np.float32)
    y = np.sin(x[:, 0]) + rng.normal(scale=0.1, size=500).astype(np.float32)
    params = {"hidden": np.float32(rng.normal(size=(16, 32)) / 4), "out": np.float32(rng.normal(size=32) / 6)}
    optimizer = optax.adam(1e-2)
    update = make_update(loss_fn, optimizer)

    @partial(jax.jit, donate_argnums=0)
    def run(state, number, x, y):
        seeds, mask = epoch(jax.random.fold_in(state.key, number), jnp.arange(500), 64)
        return train_epoch(update, state, (x[seeds], y[seeds], mask))

    state = init_state(key, params, optimizer, {"loss": jnp.zeros(())})
    saved, first = (state, init_stopping(state)), 0
    if resume:
        first = checkpoint.latest_step(folder)
        saved = checkpoint.restore(folder, saved)
    state, stopping = saved
    for number in range(first, EPOCHS):
        state, metrics = run(state, number, x, y)
        stopping = observe(stopping, -metrics["loss"], state)
        checkpoint.save(folder, number + 1, (state, stopping))
        print("epoch", number + 1, flush=True)
    leaves = jax.tree.leaves((state._replace(key=jax.random.key_data(state.key)), stopping))
    print("final", *(jax.device_get(leaf).tobytes().hex() for leaf in leaves))


if __name__ == "__main__":
    main(sys.argv[1], "--resume" in sys.argv)
