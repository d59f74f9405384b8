"""`bilevel.penalties` under its first name."""

from .penalties import *  # noqa: F403
