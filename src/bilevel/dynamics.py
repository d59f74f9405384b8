"""The flows of weights under their public name."""

from ._analysis.dynamics import *  # noqa: F403
