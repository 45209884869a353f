"""Several processes that run one experiment together: each on its own machine, or all on one."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import jax

LOST = 3
"""The status of a process that stopped because another one did."""
SIGNS = ("Gloo", "UNAVAILABLE", "DEADLINE_EXCEEDED", "coordination", "barrier", "Connection closed", "heartbeat")
"""What errors say that come of a process that is gone."""


@contextmanager
def together(address: str | None, process: int | None, processes: int | None, timeout: int) -> Iterator[None]:
    """Join the processes that meet at `address` (None: there is this one alone), and leave when the job is done.

    Each waits for the others in every step, so one that is killed would stop them all for ever. Here they end:
    at once where the connection breaks, and `timeout` seconds after its last sign of life where a machine
    vanishes; then jax itself ends them. The first says so in one line and exits with status 3.
    """
    if address is None:
        yield
        return
    jax.distributed.initialize(
        address,
        processes,
        process,
        initialization_timeout=timeout,
        heartbeat_timeout_seconds=timeout,
        shutdown_timeout_seconds=timeout,
    )
    try:
        yield
    except Exception as error:
        if (cause := lost(error)) is None:
            raise
        print(
            f"process {process} of {processes}: another process of this run is gone, so this one stops too. Its "
            "own output says why. Start all of them again with --resume: they go on from the last checkpoint. "
            f"Cause: {cause}",
            file=sys.stderr,
            flush=True,
        )
        os._exit(LOST)  # what runs at a normal exit waits for the process that is gone
    jax.distributed.shutdown()


def lost(error: BaseException | None) -> str | None:
    """The first line of an error, or of what caused it, that means that another process is gone.

    >>> lost(ValueError("UNKNOWN: Gloo all-reduce failed: Connection closed by peer"))
    'UNKNOWN: Gloo all-reduce failed: Connection closed by peer'
    >>> lost(ValueError("no such file")) is None
    True
    """
    while error is not None:
        if any(sign in str(error) for sign in SIGNS):
            return str(error).splitlines()[0]
        error = error.__cause__ or error.__context__
    return None
