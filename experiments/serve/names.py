"""Names of nodes in requests and answers, where the data set has them."""

from typing import Any

import numpy as np

from experiments.serve.answers import Problem, short
from jsage.typing import HostArray


class Names:
    """In a request, text is a name and a number an id; an answer names the nodes that it has rows of."""

    def __init__(self, names: HostArray | None = None) -> None:
        self._names = [] if names is None else np.asarray(names).tolist()
        self._ids = {name: i for i, name in enumerate(self._names)}
        self.size = 6 * max(map(len, self._names), default=0) + 3 if self._names else 0
        """Bytes of a name in an answer, at most."""

    def __bool__(self) -> bool:
        return bool(self._names)

    def ids(self, nodes: list, what: str) -> list[int]:
        """Names as ids, integers as they are; 400 for a name that no node has, and for other values."""
        found: list[Any] = [self._ids.get(node) if isinstance(node, str) else node for node in nodes]
        if all(type(node) is int for node in found):
            return found
        wrong = next(node for node, one in zip(nodes, found, strict=True) if type(one) is not int)
        if self and isinstance(wrong, str):
            raise Problem(400, f"{what} must be names or ids of nodes, but none is named {short(wrong)}")
        kinds = "integers or names" if self else "integers (nodes of this graph have no names)"
        raise Problem(400, f"{what} must be a list of {kinds}, got {short(nodes)}")

    def of(self, nodes: np.ndarray) -> dict[str, Any]:
        """What an answer says of its nodes."""
        return {"names": [self._names[node] for node in nodes.tolist()]} if self else {}
