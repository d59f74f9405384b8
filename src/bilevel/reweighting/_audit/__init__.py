"""What is wrong with rows."""
