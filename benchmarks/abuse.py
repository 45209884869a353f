"""Clients that mean no good, for `benchmarks.soak`: each goes on until it is told that it is over."""

import json
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from threading import Event
from typing import NamedTuple

KIND = b"Host: 127.0.0.1\r\nContent-Type: application/json\r\n"
POST = b"POST /embed HTTP/1.1\r\n" + KIND
CHUNKED = POST + b"Transfer-Encoding: chunked\r\n\r\n"


class Victim(NamedTuple):
    """Whom to call, until when, and what came of it."""

    address: str
    over: Event
    counts: Counter[str]

    def call(self) -> socket.socket:
        host, port = self.address.split(":")
        made = socket.create_connection((host, int(port)), timeout=30)
        made.settimeout(0.05)
        return made

    def end(self, name: str, open_: socket.socket, wait: float = 30.0) -> None:
        """Count the status of the answer, or that there is none."""
        with open_:
            open_.settimeout(wait)
            try:
                line = open_.recv(100)
            except OSError:
                line = b""
        self.counts[f"{name} {line.split()[1].decode() if line else 'closed'}"] += 1


def idle(victim: Victim, number: int = 300) -> None:
    """So many connections that say nothing, made again where the service has closed them."""
    held: list[socket.socket] = []
    try:
        while not victim.over.wait(0.5):
            for one in [one for one in held if said(one) == b""]:
                held.remove(one)
                victim.end("idle", one)
            while len(held) < number:
                held.append(victim.call())
    finally:
        for one in held:
            one.close()


def slow_headers(victim: Victim) -> None:
    """Headers without an end."""
    dribble(victim, "slow_headers", POST, lambda: b"x: y\r\n")


def slow_body(victim: Victim) -> None:
    """A body that comes by the byte."""
    dribble(victim, "slow_body", POST + b"Content-Length: 9999\r\n\r\n", lambda: b" ")


def endless_body(victim: Victim) -> None:
    """Chunks without an end."""
    chunk = b"10000\r\n" + b" " * 65536 + b"\r\n"
    dribble(victim, "endless_body", CHUNKED, lambda: chunk, 0.05)


def tiny_chunks(victim: Victim) -> None:
    """Chunks of one byte, some hundred thousand at once."""
    dribble(victim, "tiny_chunks", CHUNKED, lambda: b"1\r\n \r\n" * 20_000, 0.01)
    victim.over.wait(5)


def unread(victim: Victim) -> None:
    """An answer of many rows that is not read."""
    body = json.dumps({"nodes": [1] * 4096}).encode()
    with victim.call() as one:
        one.sendall(POST + b"Content-Length: %d\r\n\r\n" % len(body) + body)
        victim.over.wait(20)
    victim.counts["unread closed"] += 1


def odd(victim: Victim) -> None:
    """Requests that are none, or that no honest client makes."""
    deep, text = b'{"nodes": ' + b"[" * 964 + b"]" * 964 + b"}", json.dumps({"nodes": [1]})
    for name, data in {
        "deep": whole(deep),
        "very_deep": whole(b"[" * 500_000),
        "utf_16": whole(text.encode("utf-16")),
        "text_plain": whole(text.encode()).replace(b"application/json", b"text/plain"),
        "two_lengths": CHUNKED[:-2] + b"Content-Length: 5\r\n\r\nd\r\n" + text.encode() + b"\r\n0\r\n\r\n",
        "long_headers": POST + b"x: " + b"y" * 20_000 + b"\r\n\r\n",
        "long_line": b"x" * 40_000,
        "garbage": b"\x00\x01\r\n\r\n",
        "bad_chunk": CHUNKED + b"zz\r\n\r\n",
        "another_host": whole(text.encode()).replace(b"Host: 127.0.0.1", b"Host: rebound.example"),
        "pipelined": whole(b"[") * 50,
    }.items():
        one = victim.call()
        one.settimeout(10)
        with suppress(OSError):
            one.sendall(data)
        victim.end(name, one)
        victim.over.wait(0.1)


def dribble(victim: Victim, name: str, first: bytes, more: Callable[[], bytes], pause: float = 0.5) -> None:
    """Send and go on sending until there is an answer."""
    one = victim.call()
    try:
        one.sendall(first)
        while not victim.over.wait(pause) and said(one) is None:
            one.settimeout(5)
            one.sendall(more())
    except OSError:
        pass
    if not victim.over.is_set():
        victim.end(name, one)
    one.close()


def said(one: socket.socket) -> bytes | None:
    """What there is to read, left where it is; nothing where the other end has closed; None as yet."""
    try:
        one.settimeout(0.0001)
        return one.recv(1, socket.MSG_PEEK)
    except TimeoutError:
        return None
    except OSError:
        return b""


def whole(body: bytes) -> bytes:
    return POST + b"Content-Length: %d\r\n\r\n" % len(body) + body


CLIENTS: dict[Callable[[Victim], None], int] = {
    idle: 1,
    slow_headers: 20,
    slow_body: 20,
    endless_body: 4,
    tiny_chunks: 1,
    unread: 10,
    odd: 1,
}
"""How many of each at once."""


@contextmanager
def abused(address: str) -> Iterator[Counter[str]]:
    """All of them at work; what came of it, by name and status."""
    victim = Victim(address, Event(), Counter())

    def again(client: Callable[[Victim], None]) -> None:
        while not victim.over.is_set():
            try:
                client(victim)
            except OSError:  # nobody listens
                victim.over.wait(0.5)

    with ThreadPoolExecutor(sum(CLIENTS.values())) as pool:
        for client, number in CLIENTS.items():
            for _ in range(number):
                pool.submit(again, client)
                time.sleep(0.01)
        try:
            yield victim.counts
        finally:
            victim.over.set()
