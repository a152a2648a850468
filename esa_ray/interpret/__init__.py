"""What weights do: their roles, what they do to attention, and where facts are; plain functions on a model."""
