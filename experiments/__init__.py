"""Experiments: one file a question, its hypothesis first, then a function that returns the study."""
