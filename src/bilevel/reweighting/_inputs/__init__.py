"""From what people have to checked numbers."""
