"""Rough measurements of the real programs on this machine."""
