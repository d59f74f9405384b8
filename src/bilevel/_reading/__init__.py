"""Files of others, read in a process of their own, with limits on its memory and time."""

from .client import ReadError, read_file

__all__ = ["ReadError", "read_file"]
