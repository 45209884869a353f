"""Trained models as files that run with jax and NumPy alone."""

from jsage.serving import export as export
