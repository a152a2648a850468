"""Scores: how much the loss hangs on each weight, and which weights come first."""
