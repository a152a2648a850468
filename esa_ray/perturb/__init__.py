"""Perturbations: how chosen weights are damaged, applied in place and taken back bit for bit."""
