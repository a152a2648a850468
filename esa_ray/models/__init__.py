"""Models: where they come from, how they are loaded, and how their weights are addressed."""
