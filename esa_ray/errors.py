"""The one exception a user is meant to read, and the sentence on a file that can't be."""

import errno

#: What the system says of a file that can't be opened → the cause, and what to do.
_UNREADABLE = {
    errno.ENOENT: "there is no such file; check its path",
    errno.ENOTDIR: "a part of its path is a file; check the path",
    errno.EISDIR: "it is a directory; name a file in it",
    errno.EACCES: "permission denied; allow reading it with chmod, or name a copy",
    errno.EPERM: "permission denied; allow reading it with chmod, or name a copy",
    errno.ENAMETOOLONG: "its name is too long to be a path; check it",
}


def first_line(error: BaseException) -> str:
    """The first line of another library's message, or the name of its type."""
    return next(iter(str(error).splitlines()), type(error).__name__)


class EsaError(Exception):
    """A cause and its mend in one sentence; the command line prints it and exits with 2.

    >>> raise EsaError("k=100 is larger than a layer of 64 weights; lower --topk")
    Traceback (most recent call last):
    esa_ray.errors.EsaError: k=100 is larger than a layer of 64 weights; lower --topk
    """


def unreadable(what: str, error: BaseException) -> EsaError:
    """A file that can't be read as a sentence with the cause and its mend; ``what`` is the option and the file.

    >>> print(unreadable("--weights six.csv", FileNotFoundError(errno.ENOENT, "No such file or directory")))
    --weights six.csv can't be read: there is no such file; check its path
    """
    known = _UNREADABLE.get(getattr(error, "errno", None) or 0)
    said = known or f"{getattr(error, 'strerror', None) or first_line(error)}; mend it, or name another file"
    return EsaError(f"{what} can't be read: {said}")
