"""From numbers to weights."""
