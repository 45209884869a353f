"""What a request must look like, why one is refused, and what predictions look like."""

import json
import re
from typing import Any

import numpy as np
from starlette.responses import JSONResponse, Response

CLOSING = (408, 413, 503)
"""After these the rest of the request is not read."""
STRING = re.compile(rb'"(?:[^"\\]|\\.)*+"?', re.DOTALL)
STEPS = bytes.maketrans(b"[{]}", b"\x01\x01\xff\xff")
OTHERS = bytes({*range(256)} - {*b"[{]}"})


class Problem(Exception):
    """A request that is not answered, with the status and the reason."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status, self.reason = status, reason


def answer(status: int, reason: str, headers: Any = None, *, close: bool = False) -> Response:
    """The reason as JSON; `close` ends the connection, too."""
    return JSONResponse(
        {"error": reason}, status, {**(headers or {}), **({"connection": "close"} if close else {})}
    )


def parse(data: bytearray, depth: int) -> dict:
    """The object that UTF-8 JSON holds, nested at most so deep."""
    steps = STRING.sub(b"", data).translate(STEPS, OTHERS)
    deep = int(np.cumsum(np.frombuffer(steps, np.int8), dtype=np.int64).max(initial=0))
    if deep > depth:
        raise Problem(400, f"a body is nested at most {depth} deep, got {deep}")
    try:
        body = json.loads(str(data, "utf-8"), parse_constant=refuse)
    except (ValueError, RecursionError) as error:
        raise Problem(400, f"the body must be JSON, got {len(data)} bytes: {str(error)[:200]}") from None
    if not isinstance(body, dict):
        raise Problem(400, f"the body must be a JSON object, got {type(body).__name__}")
    return body


def lists(body: dict, names: tuple[str, ...]) -> dict[str, list]:
    """The object's lists under exactly these names."""
    if body.keys() != set(names):
        raise Problem(400, f"the object must have {', '.join(names)}, got {short(list(body)) or 'nothing'}")
    for name in names:
        if not isinstance(body[name], list):
            raise Problem(400, f"{name} must be a list, got {short(body[name])}")
    return body


def short(value: Any) -> str:
    """A value in a message: its beginning."""
    try:
        text = json.dumps(value)
    except (ValueError, RecursionError):
        text = type(value).__name__
    return text if len(text) <= 60 else text[:60] + "..."


def refuse(name: str) -> None:
    """NaN and the infinities are no JSON."""
    raise ValueError(f"{name} is no number in JSON")


def classes(rows: np.ndarray, threshold: float) -> dict:
    """The class of the largest output (of two: the second, if larger by more than the threshold); softmax."""
    grown = np.exp(rows - rows.max(1, keepdims=True, initial=-np.inf))
    shares = grown / grown.sum(1, keepdims=True)
    named = rows.argmax(1) if rows.shape[1] != 2 else (rows[:, 1] - rows[:, 0] > threshold).astype(int)
    return {"classes": named.tolist(), "probabilities": shares.tolist()}


def labels(rows: np.ndarray, threshold: float) -> dict:
    """The labels above the threshold, and the sigmoid."""
    shares = 0.5 * (1 + np.tanh(0.5 * rows))
    return {
        "labels": [np.flatnonzero(row > threshold).tolist() for row in rows],
        "probabilities": shares.tolist(),
    }


TASKS = {"classification": classes, "multilabel": labels}
