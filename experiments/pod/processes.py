"""Several processes that run one experiment together: each on its own machine, or all on one."""

import itertools
import os
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, NoReturn

import jax
from jax._src import distributed  # the service that processes meet at has no public name

LOST = 3
"""The status of a process that stopped because another one did."""
SIGNS = (
    "Gloo",
    "UNAVAILABLE",
    "DEADLINE_EXCEEDED",
    "coordination",
    "barrier",
    "Connection closed",
    "heartbeat",
)
"""What errors say that come of a process that is gone."""
AUTO = "auto"
MEET, POLL = 300, 1.0
"""Seconds to wait for all processes to start, and between signs of life."""
MARGIN = 60
"""Seconds by which jax, which aborts, is to be slower than `watch` on a busy machine."""
DONE, FAILED = "done", "failed"


@contextmanager
def together(address: str | None, process: int, processes: int, timeout: int) -> Iterator[None]:
    """Join the processes that meet at `address` (None: this one is alone), and leave when the job is done.

    With the address `auto`, jax finds the others out, as on Cloud TPU.

    Every process waits for the others in each step, so one that is gone would stop them all for ever. Here
    they end with one line and status 3: at once where a connection breaks, and `timeout` seconds after the
    last sign of its life where a machine vanishes. Where process 0 is gone, jax may end the others before
    that, with lines of its own.
    """
    if address is None:
        yield
        return
    known = (None, None, None) if address == AUTO else (address, processes, process)
    jax.distributed.initialize(
        *known,
        initialization_timeout=MEET,
        heartbeat_timeout_seconds=2 * timeout + MARGIN,
        shutdown_timeout_seconds=2 * timeout,
    )
    process, processes, done = jax.process_index(), jax.process_count(), threading.Event()
    client: Any = distributed.global_state.client
    watcher = threading.Thread(target=watch, args=(client, process, processes, timeout, done), daemon=True)
    watcher.start()
    try:
        yield
    except Exception as error:
        done.set()
        if cause := lost(error):
            leave(client, process, processes, cause)
        known = isinstance(error, OSError | ValueError)
        text = f"{type(error).__name__}: {error}" if known else traceback.format_exc()
        print(text, file=sys.stderr, flush=True)
        exit_after_peers(client, process, 2 if known else 1)
    done.set()
    send_heartbeat(client, process, DONE)
    jax.distributed.shutdown()


def watch(client: Any, process: int, processes: int, timeout: float, done: threading.Event) -> None:
    """Give signs of life, and end this process when another one gives none."""
    seen: dict[str, tuple[str, float]] = {}
    for beat in itertools.count():
        if done.wait(POLL):
            return
        try:
            send_heartbeat(client, process, str(beat))
            told = dict(client.key_value_dir_get("alive/"))
        except Exception as error:
            if done.is_set():
                return
            leave(client, process, processes, lost(error) or str(error))
        now = time.monotonic()
        for name, sign in told.items():
            if seen.get(name, ("",))[0] != sign:
                seen[name] = sign, now
            number = name.removeprefix("alive/")
            if sign == FAILED:
                leave(client, process, processes, f"process {number} stopped")
            if sign != DONE and now - seen[name][1] > timeout:
                leave(client, process, processes, f"no sign of process {number} for {timeout} s")


def send_heartbeat(client: Any, process: int, sign: str) -> None:
    """Tell the others."""
    client.key_value_set(f"alive/{process}", sign, allow_overwrite=True)


def leave(client: Any, process: int, processes: int, cause: str) -> NoReturn:
    """End this process because of another one."""
    print(
        f"process {process} of {processes}: another process of this run is gone, so this one stops too. "
        "Its own output says why. Start all of them again with --resume, to go on from the last checkpoint. "
        f"Cause: {cause}",
        file=sys.stderr,
        flush=True,
    )
    exit_after_peers(client, process, LOST)


def exit_after_peers(client: Any, process: int, status: int) -> NoReturn:
    """Have the others leave, and end: they hear of it from process 0, which goes last."""
    with suppress(Exception):
        send_heartbeat(client, process, FAILED)
    if process == 0:
        time.sleep(3 * POLL)
    os._exit(status)  # a normal exit would wait for the one that is gone


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
