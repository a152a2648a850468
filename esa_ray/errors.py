"""The one exception a user is meant to read."""


class EsaError(Exception):
    """A cause and its mend in one sentence; the command line prints it and exits with 2.

    >>> raise EsaError("k=100 is larger than a layer of 64 weights; lower --topk")
    Traceback (most recent call last):
    esa_ray.errors.EsaError: k=100 is larger than a layer of 64 weights; lower --topk
    """
