"""What a request must look like, why one is refused, and what predictions look like."""

import json
from typing import Any

import numpy as np


class Problem(Exception):
    """A request that is not answered, with the status and the reason."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status, self.reason = status, reason


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
    except ValueError:
        text = type(value).__name__
    return text if len(text) <= 60 else text[:60] + "..."


def refuse(name: str) -> None:
    """NaN and the infinities are no JSON."""
    raise ValueError(f"{name} is no number in JSON")


def classes(rows: np.ndarray) -> dict:
    """The class of the largest output, and the softmax."""
    grown = np.exp(rows - rows.max(1, keepdims=True, initial=-np.inf))
    shares = grown / grown.sum(1, keepdims=True)
    return {"classes": rows.argmax(1).tolist(), "probabilities": shares.tolist()}


def labels(rows: np.ndarray) -> dict:
    """The labels of at least one half, and the sigmoid."""
    shares = 0.5 * (1 + np.tanh(0.5 * rows))
    return {
        "labels": [np.flatnonzero(row >= 0.5).tolist() for row in shares],
        "probabilities": shares.tolist(),
    }


TASKS = {"classification": classes, "multilabel": labels}
