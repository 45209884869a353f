"""The HTTP service under abuse for a while, and when told to stop under load: every answer is counted.

    python -m benchmarks.soak --graph graphs/arxiv --json soak.json

`abuse`: 300 idle connections, slow headers and bodies, bodies without an end, answers that nobody reads and
headers of all kinds (`benchmarks/abuse.py`), and beside them bodies that no endpoint takes (broken JSON,
wrong shapes, NaN, huge ids, 100 MB). All that is answered must get 4xx (`other` is 0; `closed` got no
answer), good clients their rows in between (`wrong` and `lost` are 0), and the service's memory must stay:
its resident set after the first tenth of the time, at the end, and at most in between. `log_bytes` is what it
wrote.

`stop` sends SIGTERM while the same clients are still there and good ones ask: `wrong` and `lost` are 0 where
every request that was sent got its rows; `refused` were not sent, for nobody listened any more.
"""

import argparse
import http.client
import json
import signal
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np

from benchmarks.abuse import abused
from benchmarks.common import parser, run
from benchmarks.peers.process import status_bytes
from benchmarks.serve import JSON, Request, encoded, requests, right, server, write
from jsage import data

BIG = 100_000_000
"""Bytes of the largest bodies."""


def main(options: argparse.Namespace) -> list[dict]:
    """A row for each trial."""
    dataset = data.open(options.graph)
    model = argparse.Namespace(fanouts=(10, 10), hidden=64, sizes=(1, 16, 128))
    with tempfile.TemporaryDirectory() as folder, Path(folder, "log").open("wb") as log:
        write(Path(folder, "artefact"), dataset, model)
        asked = requests(Path(folder, "artefact"), dataset, 1)
        served = server(Path(folder), options.graph, log)
        with served as (address, process), abused(address) as counts:
            row = abuse(address, process.pid, asked, options)
            row |= verdict(counts, row.pop("statuses"))
            row["log_bytes"] = Path(log.name).stat().st_size
            return [row, stop(address, process, asked, options.clients, 5.0)]


def abuse(address: str, pid: int, asked: dict[str, list[Request]], options: argparse.Namespace) -> dict:
    """Malformed bodies, spread over the time, and good requests beside them."""
    over, counts = Event(), Counter()
    with ThreadPoolExecutor(options.good) as pool:
        good = [pool.submit(steady, address, asked["embed"], seed, over) for seed in range(options.good)]
        try:
            row = malformed(address, pid, asked, options.requests, options.seconds)
        finally:
            over.set()
        counts = sum((one.result() for one in good), Counter())
    named = {name: counts[name] for name in ("right", "late", "wrong", "lost")}
    row["answers"] = {name: number for name, number in counts.items() if name not in named}
    return {**row, "trial": "abuse", "seconds": options.seconds, **named}


def verdict(counts: Counter[str], statuses: dict[str, int]) -> dict:
    """Answers by what they are: 4xx, none, and others; and all of them by name."""
    everything = Counter(counts) + Counter({f"malformed {status}": n for status, n in statuses.items()})
    found = dict.fromkeys(("refused", "closed", "other"), 0)
    for name, number in everything.items():
        status = name.split()[1]
        kind = "closed" if status == "closed" else "refused" if status.startswith("4") else "other"
        found[kind] += number
    return {**found, "statuses": dict(sorted(everything.items()))}


def judged(status: int, text: bytes, request: Request) -> str:
    """An answer holds the rows, says that it had no time for them (504), or is wrong."""
    if status == 504:
        return "late"
    return "right" if status == 200 and right(text, request.rows) else "wrong"


def steady(address: str, asked: list[Request], seed: int, over: Event) -> Counter[str]:
    """Ask over one connection, some times a second, until it is over."""
    counts: Counter[str] = Counter()
    random = np.random.default_rng(seed)
    connection = http.client.HTTPConnection(address, timeout=30)
    while not over.wait(random.uniform(0, 0.2)):
        request = asked[random.integers(len(asked))]
        try:
            connection.request("POST", request.path, request.body, JSON)
            answer = connection.getresponse()
            text = answer.read()
            counts.update([judged(answer.status, text, request), f"good {answer.status}"])
        except (OSError, http.client.HTTPException):
            counts["lost"] += 1
            connection.close()
    connection.close()
    return counts


def malformed(
    address: str, pid: int, asked: dict[str, list[Request]], count: int, seconds: float = 0.0
) -> dict:
    """So many malformed bodies, one after another over this time, and good requests at the end."""
    random, began = np.random.default_rng(0), time.perf_counter()
    width = len(json.loads(asked["embed_new"][0].body)["features"][0])
    statuses: Counter[int] = Counter()
    sizes = []
    for turn in range(count):
        if turn >= count // 10:
            sizes.append(status_bytes("VmRSS", process=pid))
        path, body = nonsense(random, turn, width)
        statuses[post(address, path, body)[0]] += 1
        time.sleep(max(0.0, began + seconds * turn / count - time.perf_counter()))
    good = [post(address, request.path, request.body) for request in asked["embed"][:64]]
    judgments = {judged(*answer, request) for answer, request in zip(good, asked["embed"], strict=False)}
    alive = "right" in judgments and judgments <= {"right", "late"}
    refused = sum(number for status, number in statuses.items() if 400 <= status < 500)
    return {
        "trial": "malformed",
        "requests": count,
        "refused": refused,
        "other": count - refused,
        "statuses": {str(status): number for status, number in sorted(statuses.items())},
        "alive": alive,
        "rss_bytes_before": sizes[0],
        "rss_bytes_after": sizes[-1],
        "rss_bytes_most": max(sizes),
    }


def nonsense(random: np.random.Generator, turn: int, width: int) -> tuple[str, bytes]:
    """A path and a body that it must refuse."""
    path = ("/embed", "/predict", "/embed_new")[turn % 3]
    row, new = [0.5] * width, turn % 3 == 2
    good: Any = {"features": [row], "src": [0], "dst": [-1]} if new else {"nodes": [0, 1, 2]}
    text = encoded(good)
    if turn % 1000 == 999:
        return path, b"x" * BIG
    match turn // 3 % 6:
        case 0:  # cut short
            return path, text[: random.integers(0, len(text) - 1)]
        case 1:  # a byte that JSON has nowhere
            at = random.integers(0, len(text))
            return path, text[:at] + bytes([random.integers(128, 256)]) + text[at + 1 :]
        case 2:  # wrong shapes
            wrong = [[[row]], [row[1:]], [row, row[1:]], "x", None, {}, 3][random.integers(0, 7)]
            return path, encoded({**good, "features": wrong} if new else {"nodes": wrong})
        case 3:  # no numbers
            word = ("NaN", "Infinity", "-Infinity", "1e999")[random.integers(0, 4)]
            features = f'{{"features": [[{", ".join([word] * width)}]], "src": [], "dst": []}}'
            return path, (features if new else f'{{"nodes": [{word}]}}').encode()
        case 4:  # ids beyond every table
            huge = int(random.integers(2**31, 2**62)) * (10 ** int(random.integers(0, 20)))
            return path, encoded({**good, "src": [huge]} if new else {"nodes": [0, -huge]})
        case _:  # another object
            keys = {str(key): [1] for key in random.integers(0, 100, 3)}
            return path, encoded(keys)


def stop(address: str, process: Any, asked: dict[str, list[Request]], clients: int, seconds: float) -> dict:
    """SIGTERM while clients ask and go on asking until nobody listens."""
    with ThreadPoolExecutor(clients) as pool:
        found = [pool.submit(until_refused, address, asked["embed"], seed) for seed in range(clients)]
        time.sleep(seconds)
        process.send_signal(signal.SIGTERM)
        began = time.perf_counter()
        status = process.wait(timeout=60)
        took = time.perf_counter() - began
        counts = sum((one.result() for one in found), Counter())
    named = {name: counts[name] for name in ("right", "late", "wrong", "lost", "refused")}
    return {"trial": "stop", "clients": clients, **named, "status": status, "seconds_to_stop": took}


def until_refused(address: str, asked: list[Request], seed: int) -> Counter[str]:
    """Ask over one connection, made again where the service closed it, until it takes none."""
    counts: Counter[str] = Counter()
    random = np.random.default_rng(seed)
    connection = http.client.HTTPConnection(address, timeout=30)
    while True:
        request = asked[random.integers(len(asked))]
        try:
            if connection.sock is None:
                connection.connect()
        except OSError:
            counts["refused"] += 1
            return counts
        try:
            connection.request("POST", request.path, request.body, JSON)
            answer = connection.getresponse()
            counts[judged(answer.status, answer.read(), request)] += 1
        except (OSError, http.client.HTTPException):
            counts["lost"] += 1
            connection.close()


def post(address: str, path: str, body: bytes) -> tuple[int, bytes]:
    """Status and body of an answer; 0 where there was none."""
    connection = http.client.HTTPConnection(address, timeout=60)
    try:
        with suppress(OSError):  # the service need not read all of a body that is too large
            connection.request("POST", path, body, JSON)
        answer = connection.getresponse()
        return answer.status, answer.read()
    except (OSError, http.client.HTTPException):
        return 0, b""
    finally:
        connection.close()


def options() -> argparse.ArgumentParser:
    """The command line."""
    made = parser("soak", __doc__)
    made.add_argument("--requests", type=int, default=20_000, help="malformed requests (20000)")
    made.add_argument("--seconds", type=float, default=600.0, help="time over which they come (600)")
    made.add_argument("--good", type=int, default=4, help="good clients beside them (4)")
    made.add_argument("--clients", type=int, default=16, help="clients at the end (16)")
    return made


if __name__ == "__main__":
    sys.exit(run(options(), main))
