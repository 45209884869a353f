"""GraphSAGE in pure JAX: neighbour sampling inside the jitted step."""

__version__ = "0.1.0"
