"""Trained models as files that run with jax, NumPy and flatbuffers alone."""

from jsage.serving import export as export
