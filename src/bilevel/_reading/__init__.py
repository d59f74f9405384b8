"""Files of others, read in a process of their own, with limits on its memory and time."""

from .client import Mapped, ReadError, Rows, map_file, read_file, stream_file

__all__ = ["Mapped", "ReadError", "Rows", "map_file", "read_file", "stream_file"]
