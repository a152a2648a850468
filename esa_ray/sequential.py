"""A paired test that may be looked at after every window, and still errs no more often than it says."""

from __future__ import annotations

import math

import numpy as np
from scipy.special import betaln


def log_sign_e_value(positive: np.ndarray | int, negative: np.ndarray | int) -> np.ndarray:
    r"""Log of the evidence that a sign's odds aren't even: log(2ⁿ · B(p + ½, n − p + ½) / B(½, ½)).

    If every difference is positive or negative with probability ½ given those before it, this is (the log of) a
    nonnegative martingale that begins at 1, the wealth of a gambler who mixes over all odds with Jeffreys' prior
    (Krichevsky & Trofimov 1981). So it ever reaches 1/α with probability α at most (Ville's inequality; Robbins
    1970, Ann. Math. Stat. 41:1397).

    >>> round(float(np.exp(log_sign_e_value(8, 0))), 1)
    50.3
    """
    n = np.add(positive, negative)
    return n * math.log(2) + betaln(np.add(positive, 0.5), np.add(negative, 0.5)) - betaln(0.5, 0.5)


class SignTest:
    """Whether paired differences are more often of one sign, tested after every window at one error rate for all.

    H₀: damage raises a window's loss as often as it lowers it. The probability that it is ever rejected although
    true is at most ``error_rate``, however many looks there are (:func:`log_sign_e_value`). Ties say nothing. It
    can only find a difference, and never its absence: a harmless cell runs to its last window.
    """

    def __init__(self, error_rate: float):
        self._bound = -math.log(error_rate)

    def decides(self, differences: np.ndarray) -> bool:
        """Whether the differences so far reject H₀, or one of them is not finite: more windows can't change that."""
        if not np.isfinite(differences).all():
            return True
        positive, negative = int((differences > 0).sum()), int((differences < 0).sum())
        return bool(log_sign_e_value(positive, negative) >= self._bound)
