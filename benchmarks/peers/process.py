"""A worker process told what to do over pipes, and how much memory a process held. Standard library only:
the interpreter of a peer, which has no jsage and no jax, runs it too.
"""

import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).parents[2]
_STATUS = Path("/proc/self/status")


class Worker:
    """`python -m MODULE ARGUMENTS` in a process of its own, that answers one request at a time.

    Requests and answers are JSON objects, one a line. What it prints otherwise goes to standard error.
    `environment` is all of its environment.
    """

    def __init__(self, python: str, module: str, arguments: Sequence[str], environment: Mapping[str, str]):
        command = [python, "-m", module, *arguments]
        self.name = module
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(
            command, stdin=pipe, stdout=pipe, text=True, cwd=ROOT, env=dict(environment)
        )

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *error: object) -> None:
        self._process.kill()
        self._process.communicate()

    def request(self, request: dict) -> dict:
        """The answer; `{"error": ...}` where the worker failed. RuntimeError if it is gone."""
        process = self._process
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write(json.dumps(request) + "\n")
            process.stdin.flush()
        except BrokenPipeError:
            pass
        line = process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self.name} ended with status {process.wait()}: see what it printed above")
        return json.loads(line)


def serve(answer: Callable[[dict], dict]) -> None:
    """Answer the requests on standard input until it is closed."""
    replies = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    for line in sys.stdin:
        try:
            reply = answer(json.loads(line))
        except Exception as error:
            reply = {"error": f"{type(error).__name__}: {error}".split("\n")[0]}
        replies.write(json.dumps(reply) + "\n")
        replies.flush()


def status_bytes(*fields: str, process: int | str = "self") -> int:
    """The sum of these fields of a process's status, such as `VmRSS` (Linux)."""
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith(fields))


def peak_rss_bytes() -> int:
    """The most memory that this process has held at once, since it started or since `reset_peak_rss`."""
    if _STATUS.exists() and (peak := status_bytes("VmHWM")):
        return peak
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def reset_peak_rss() -> None:
    """Start `peak_rss_bytes` again from what is held now (Linux; elsewhere nothing happens)."""
    if _STATUS.exists():
        Path("/proc/self/clear_refs").write_text("5")


def memory_bytes() -> int:
    """The memory of this machine."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
