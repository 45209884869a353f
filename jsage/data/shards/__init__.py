"""Graphs larger than memory, in parts."""
