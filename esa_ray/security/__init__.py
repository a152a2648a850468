"""Faults in stored weights, what protects them, and flips that an adversary chooses: plain functions on a model."""
