"""Bilevel algorithms, one file per method."""
