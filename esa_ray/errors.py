"""The one exception a user is meant to read."""


def first_line(error: BaseException) -> str:
    """The first line of another library's message, or the name of its type."""
    return next(iter(str(error).splitlines()), type(error).__name__)


class EsaError(Exception):
    """A cause and its mend in one sentence; the command line prints it and exits with 2.

    >>> raise EsaError("k=100 is larger than a layer of 64 weights; lower --topk")
    Traceback (most recent call last):
    esa_ray.errors.EsaError: k=100 is larger than a layer of 64 weights; lower --topk
    """
