"""The evidence and the page."""
