"""Roles of weights: one file a role, with its metric, its text, and the place in the forward pass that it goes through."""
