"""Convolutions, one a file."""
