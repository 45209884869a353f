"""Clients that mean no good, on real connections to a service with small limits: refused and forgotten."""

import asyncio
import json
import logging
import resource
import select
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import pytest

pytest.importorskip("starlette")
pytest.importorskip("uvicorn")
pytest.importorskip("prometheus_client")

from test_serve import fake

from experiments.serve import command, connection, log
from experiments.serve.answers import Problem, parse
from experiments.serve.server import Server
from experiments.serve.service import Limits, make_app

HOST = b"Host: a\r\nContent-Type: application/json\r\n"
POST = b"POST /embed HTTP/1.1\r\n" + HOST
CHUNKED = POST + b"Transfer-Encoding: chunked\r\n\r\n"
GET = b"GET /healthz HTTP/1.1\r\n" + HOST
LIMITS = Limits(body=1000, seconds=0.4, idle=0.4, connections=4, wait=0.0)


class Running:
    """A service in a thread."""

    def __init__(self, limits: Limits, embedder: Any) -> None:
        self.app = make_app(embedder, limits)
        config, self.socket = command.listen(self.app, limits, "127.0.0.1", 0)
        self.server, self.address = Server(config, 0.1), self.socket.getsockname()
        self.thread = threading.Thread(target=lambda: asyncio.run(self.server.serve([self.socket])))
        self.thread.start()

    def call(self, data: bytes = b"", receive: int = 0) -> socket.socket:
        made = socket.socket()
        made.settimeout(10)
        if receive:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive)
        made.connect(self.address)
        made.sendall(data)
        return made

    def metric(self, name: str) -> float:
        with self.call(b"GET /metrics HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n") as one:
            lines = whole(one).decode().splitlines()
        return next((float(line.split(" ")[1]) for line in lines if line.startswith(name + " ")), 0.0)


def whole(one: socket.socket) -> bytes:
    """All that comes until the other end closes."""
    parts = []
    try:
        while part := one.recv(65536):
            parts.append(part)
    except ConnectionResetError:
        pass
    return b"".join(parts)


def one_answer(one: socket.socket) -> bytes:
    """One answer, of which `}` is the last."""
    text = b""
    while not text.endswith(b"}"):
        part = one.recv(65536)
        assert part, text
        text += part
    return text


def status(text: bytes) -> int:
    """Of the first answer; its reason is JSON if it is a refusal."""
    head, _, body = text.partition(b"\r\n\r\n")
    found = int(head.split()[1])
    if found >= 400 and found != 503:
        assert json.loads(body).keys() == {"error"}
        assert b"content-type: application/json" in head
    return found


@contextmanager
def running(limits: Limits = LIMITS, embedder: Any = None) -> Iterator[Running]:
    made = Running(limits, embedder or fake())
    try:
        yield made
    finally:
        made.server.should_exit = True
        made.thread.join(30)
        assert not made.thread.is_alive()


@pytest.fixture(scope="module")
def service() -> Iterator[Running]:
    with running() as made:
        yield made


def sized(body: bytes) -> bytes:
    return POST + b"Content-Length: %d\r\n\r\n" % len(body) + body


@pytest.mark.parametrize(
    ("sent", "expected"),
    [
        (b"\x00\x01\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nno colon\r\n\r\n", 400),
        (b"x" * 20_000, 400),
        (GET + b"x: " + b"y" * 17_000 + b"\r\n\r\n", 431),
        (CHUNKED[:-2] + b"Content-Length: 3\r\n\r\n0\r\n\r\n", 400),
        (CHUNKED + b"zz\r\n\r\n", 400),
        (POST + b"Content-Length: 9, 10\r\n\r\n", 400),
        (POST + b"Content-Length: 99999\r\n\r\n" + b" " * 99999, 413),
        (CHUNKED + b"8000\r\n" + b" " * 0x8000 + b"\r\n0\r\n\r\n", 413),
        (POST + b"Content-Length: 99\r\n\r\n{", 408),
        (POST[:-2], 408),
        (b"G", 408),
    ],
    ids=range(12),
)
def test_is_refused_and_the_connection_ends(service, sent, expected):
    began = time.perf_counter()
    with service.call(sent) as one:
        assert status(whole(one)) == expected
    assert time.perf_counter() - began < 5
    assert service.metric("jsage_held_bytes") == 0


def test_headers_that_never_end(service):
    with service.call(GET) as one:
        one.settimeout(0.1)
        text, began = b"", time.perf_counter()
        while not text and time.perf_counter() - began < 5:
            one.sendall(b"x: y\r\n")
            try:
                text = one.recv(1000)
            except TimeoutError:
                continue
        one.settimeout(10)
        text += whole(one)
        assert status(text) == 408
        assert b"the headers must arrive within 0.4 s" in text


@pytest.mark.parametrize("first", [b"", GET + b"\r\n"], ids=["at first", "after an answer"])
def test_silence_is_closed_without_a_word(service, first):
    with service.call(first) as one:
        text = whole(one)
    assert text.count(b"HTTP/1.1") == bool(first)


def test_a_body_that_nobody_asked_for_ends_the_connection(service):
    with service.call(b"GET /healthz HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n") as one:
        assert status(one_answer(one)) == 200
        began = time.perf_counter()
        with suppress(OSError):
            while time.perf_counter() - began < 5:
                one.sendall(b"1\r\n \r\n")
                time.sleep(0.01)
    assert time.perf_counter() - began < 5


def test_what_is_broken_behind_an_answer_is_no_failure(service, caplog):
    with service.call(b"POST /nothing HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n") as one:
        assert status(one_answer(one)) == 404
        one.sendall(b"zz\r\n\r\n")
        assert whole(one) == b""
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


def test_what_is_no_request_is_counted(service):
    name = 'jsage_requests_total{path="other",status="400"}'
    before = service.metric(name)
    with service.call(b"\x00\r\n\r\n") as one:
        whole(one)
    assert service.metric(name) == before + 1


def test_the_longest_idle_make_room():
    with running(LIMITS._replace(idle=30.0)) as service:
        idle = [service.call() for _ in range(4)]
        time.sleep(0.2)
        for turn in range(6):
            with service.call(GET + b"Connection: close\r\n\r\n") as one:
                assert status(whole(one)) == 200, turn
        assert whole(idle[0]) == b""  # one, for each of the others went before the next came
        idle[3].sendall(GET + b"\r\n")
        assert status(one_answer(idle[3])) == 200
        for one in idle:
            one.close()


def test_connections_that_are_all_busy_leave_503():
    with running(LIMITS._replace(seconds=5.0)) as service:
        busy = [service.call(POST + b"Content-Length: 99\r\n\r\n{") for _ in range(4)]
        time.sleep(0.2)
        with service.call(GET + b"\r\n") as one:
            assert status(whole(one)) == 503
        for one in busy:
            one.close()


def test_tiny_chunks_are_no_way_to_keep_it_busy(monkeypatch):
    """Time enough for the body: the processor's alone counts."""
    monkeypatch.setattr(connection, "PARSING", 0.02)
    with running(LIMITS._replace(seconds=60.0)) as service, service.call(CHUNKED) as one:
        with suppress(ConnectionResetError, BrokenPipeError):  # it closes while more is on its way
            while not select.select([one], [], [], 0.001)[0]:
                one.sendall(b"1\r\n \r\n" * 900)
        assert status(whole(one)) == 400


def test_bodies_and_answers_have_so_much_memory_and_give_it_back():
    limits = LIMITS._replace(seconds=3.0, memory=1500, connections=64)
    with running(limits) as service:
        first = service.call(POST + b"Content-Length: 999\r\n\r\n" + b" " * 900)
        time.sleep(0.2)
        assert service.metric("jsage_held_bytes") == 900
        with service.call(sized(b" " * 900)) as second:
            text = whole(second)
            assert status(text) == 503
            assert b"at most 1500: try later" in text
        first.sendall(b" " * 99)
        assert status(one_answer(first)) == 400
        first.close()
        assert service.metric("jsage_held_bytes") == 0
        nodes = b'{"nodes": [' + b"1, " * 40 + b"1]}"  # 41 rows of two numbers
        with service.call(sized(nodes)) as one:
            assert status(whole(one)) == 503


def test_an_answer_that_is_not_read_is_dropped():
    limits = LIMITS._replace(seconds=1.0)
    with running(limits, fake(width=200_000)) as service:
        one = service.call(sized(b'{"nodes": [1, 1, 1, 1]}'), receive=4096)
        assert one.recv(100).startswith(b"HTTP/1.1 200")
        began = time.perf_counter()
        while service.metric("jsage_held_bytes"):
            assert time.perf_counter() < began + 10
        assert time.perf_counter() > began + 0.2  # it has its time, and counts until then
        one.close()


def test_a_log_of_so_many_lines_a_minute(monkeypatch):
    now = 0.0
    monkeypatch.setattr(log.time, "monotonic", lambda: now)
    bounded = log.Bounded(most=2, seconds=60.0)

    def seen(line: int) -> str | None:
        record = logging.makeLogRecord({"msg": "no %s", "lineno": line, "args": ("way",)})
        return record.getMessage() if bounded.filter(record) else None

    assert [seen(1) for _ in range(5)] == ["no way", "no way", None, None, None]
    assert seen(2) == "no way"
    now = 61.0
    assert [seen(1) for _ in range(3)] == ["no way (and 3 like it before)", "no way", None]


@pytest.mark.parametrize(
    ("text", "deep"),
    [
        (b"[[]]", 2),
        (b'{"a": [[1], [2]]}', 3),
        (b'"[[["', 0),
        (rb'["\"[[[", [1]]', 2),
        (b'["[[[', 1),
        (b"]]]]", 0),
    ],
)
def test_depth(text, deep):
    with pytest.raises(Problem) as caught:
        parse(bytearray(text), deep - 1)
    assert caught.value.reason == f"a body is nested at most {deep - 1} deep, got {deep}"
    with pytest.raises(Problem, match="must be"):
        parse(bytearray(text + b"x"), deep)


def test_more_connections_than_files(monkeypatch):
    monkeypatch.setattr(resource, "getrlimit", lambda what: (256, 256))
    with pytest.raises(
        ValueError, match=r"--max-connections needs 324 files, the limit is 256: raise ulimit -n"
    ):
        command.may_open(324)
    asked = []
    monkeypatch.setattr(resource, "getrlimit", lambda what: (256, 4096))
    monkeypatch.setattr(resource, "setrlimit", lambda what, limits: asked.append(limits))
    command.may_open(324)
    assert asked == [(324, 4096)]
