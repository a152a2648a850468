"""Models with a weight whose role is known, because it was written by hand."""
