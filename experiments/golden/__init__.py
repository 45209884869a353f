"""Layers beside the values that another library computed."""
