"""A log that no client can fill."""

import logging
import time
from typing import Any


class Bounded(logging.Filter):
    """A few records a minute from each line of code; the next says how many were left out.

    >>> bounded, seen = Bounded(most=2), []
    >>> record = logging.makeLogRecord({"msg": "again"})
    >>> [bounded.filter(record) for _ in range(4)]
    [True, True, False, False]
    """

    def __init__(self, most: int = 10, seconds: float = 60.0) -> None:
        super().__init__()
        self._most, self._seconds = most, seconds
        self._seen: dict[tuple[str, int], tuple[float, int]] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether it is written."""
        place, now = (record.pathname, record.lineno), time.monotonic()
        began, count = self._seen.get(place, (now, 0))
        if now - began >= self._seconds:
            if count > self._most:
                record.msg = f"{record.msg} (and {count - self._most} like it before)"
            began, count = now, 0
        self._seen[place] = began, count + 1
        return count < self._most


LOGGING: dict[str, Any] = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {"plain": {"format": "%(asctime)s %(levelname)s %(name)s: %(message)s"}},
    "filters": {"bounded": {"()": Bounded}},
    "handlers": {
        "stderr": {"class": "logging.StreamHandler", "formatter": "plain", "filters": ["bounded"]},
    },
    "root": {"handlers": ["stderr"], "level": "WARNING"},
}
"""Mistakes of clients are counted among the metrics, not written: uvicorn's warnings are all about those."""
