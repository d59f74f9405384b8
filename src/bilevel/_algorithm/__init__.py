"""Bilevel algorithms, one file a method."""
