"""The flows of weights and their fields under their public name."""

from ._analysis.dynamics import *  # noqa: F403
from ._analysis.fields import *  # noqa: F403
