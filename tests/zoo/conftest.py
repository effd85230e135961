"""A hub on this machine."""

from hubserver import hub

__all__ = ["hub"]
