"""Facts: where they come from, which of them a model knows, where in the model they are, and the role "fact"."""
