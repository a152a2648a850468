"""Detecting backdoors without their trigger: numbers that tell a model with one from others.

A family of features a file: :mod:`~esa_ray.security.detection.tails` of sensitivity,
:mod:`~esa_ray.security.detection.shift` of it from a reference's, adversarial
:mod:`~esa_ray.security.detection.gains` of neurons, :mod:`~esa_ray.security.detection.spectra` of matrices, and a scan
of the :mod:`~esa_ray.security.detection.vocabulary`. A family has ``ALONE`` and ``COMPARED``: the names of its features
and what they are, those of a model by itself and those beside a reference.
"""

from esa_ray.security.detection.extract import Feature, feature_names, features, meaning

__all__ = ["Feature", "feature_names", "features", "meaning"]
