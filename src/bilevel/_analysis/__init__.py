"""Looking at a problem or a result."""
