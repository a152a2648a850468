"""What a score is: one object, of which specs, plans, passes, rankings and reports ask all that they need.

Built-in scores stand in :mod:`esa_ray.scoring.metrics`.

Legend: N windows of T tokens, g_n the gradient of window n's summed next-token NLL in nats, ``tokens`` = N·(T−1)
scored tokens, X the inputs of a matrix over all positions that it saw, Y its outputs, h the diagonal of the Hessian of
the NLL.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, ClassVar, Protocol

from esa_ray.spec.registry import Entry, Registry

#: Statistic → the pass that gathers it.
STATISTICS = {
    "gradient": "backward",  # Σ_n g_n
    "gradient_abs": "backward",  # Σ_n |g_n|
    "gradient_square": "backward",  # Σ_n g_n²
    "input_norm": "forward",  # ‖X_j‖₂ of the weight's input channel j, as if every token had been routed to it
    "input_peak": "forward",  # max |X_j|
    "output_peak": "forward",  # max |Y_i| of its output channel i
    "curvature": "probes",  # h, per token
    "curvature_error": "probes",  # its standard error
}

#: How a unit's score comes of its weights' scores s: Σs, max s, √Σs², or |Σs| of signed ones (:meth:`Score.signed`).
JOINT = ("sum", "largest", "norm", "signed")


class Places(Protocol):
    """Some weights of one tensor with all that is known of them, each a 1-D fp32 tensor."""

    @property
    def weight(self) -> Any:
        """The weights themselves."""

    @property
    def tokens(self) -> int:
        """Scored tokens of all windows."""

    def __getitem__(self, statistic: str) -> Any:
        """A statistic of :data:`STATISTICS` at these weights."""


class Score(Entry):
    """A score of every weight: the statistics that it is made of, and its formula.

    ``formula`` and ``unit`` are its words in the table of scores. ``needs`` are those of :data:`STATISTICS` that it is
    made of; a score that needs none is the same for every text and seed, and one that needs those of probes is an
    estimate. ``alone`` are the only components that it is defined for, or ``never`` those that it isn't, and ``where``
    says so in words. ``magnitude``: its values can be averaged. ``joint`` is how the weights of a row, column, neuron
    or head make that unit's score where nothing else is asked for: one of :data:`JOINT`.

    Its module imports no torch when it is imported: specs, plans and reports ask it, too.

    Example
    -------
    ``docs/extending.md`` has a whole one that runs.

    >>> class Saliency(Score):
    ...     name, needs = "saliency", ("gradient_abs",)
    ...     formula, unit = "Σ_n |g_n| / tokens", "nats/w per token"
    ...     def at(self, places):
    ...         return places["gradient_abs"] / places.tokens
    """

    formula: ClassVar[str]
    unit: ClassVar[str]
    needs: ClassVar[tuple[str, ...]] = ()
    alone: ClassVar[tuple[str, ...]] = ()
    never: ClassVar[tuple[str, ...]] = ()
    where: ClassVar[str] = ""
    magnitude: ClassVar[bool] = True
    joint: ClassVar[str] = "sum"

    @abstractmethod
    def at(self, places: Places) -> Any:
        """Its value at some weights, 1-D, fp32."""

    def signed(self, places: Places) -> Any:
        """What adds up over a unit's weights before the absolute value is taken, of a score whose joint form is so."""
        raise NotImplementedError

    def error(self, places: Places) -> Any:
        """Its standard error there, if it is an estimate; else None."""
        return None

    @property
    def passes(self) -> frozenset[str]:
        """Which passes it takes: "backward", "forward", "probes"."""
        return frozenset(STATISTICS[statistic] for statistic in self.needs)

    @property
    def probed(self) -> bool:
        """Whether it is estimated with random probes."""
        return "probes" in self.passes

    @property
    def data_free(self) -> bool:
        """Whether it depends on no text, and so not on the seed."""
        return not self.needs

    @property
    def row(self) -> tuple[str, ...]:
        """Name, formula, unit, and where it is defined."""
        return self.name, self.formula, self.unit, self.where

    def narrowed(self, components: tuple[str, ...]) -> tuple[str, ...]:
        """Those of some components that it is defined for, where that is for few alone.

        Raises
        ------
        ValueError
            If none of them is.
        """
        mine = tuple(c for c in components if c in self.alone)
        if not mine:
            raise ValueError(f"{self.name} is defined for {self.where}; add {' or '.join(self.alone)} to --components")
        return mine

    def check_components(self, components: tuple[str, ...]) -> None:
        """Refuse components that it isn't defined for.

        Raises
        ------
        ValueError
            Naming them.
        """
        if undefined := sorted(set(self.never) & set(components)):
            raise ValueError(
                f"{self.name} is defined for {self.where}; leave {' and '.join(undefined)} out of --components"
            )

    def check(self) -> None:
        """Refuse a statistic that nothing gathers."""
        if self.joint not in JOINT:
            raise ValueError(f"score {self.name}: joint {self.joint!r} is not one of {', '.join(JOINT)}")
        if unknown := [statistic for statistic in self.needs if statistic not in STATISTICS]:
            raise ValueError(f"score {self.name}: {unknown[0]} is not one of the statistics {', '.join(STATISTICS)}")


#: Every score. ``print(SCORES)`` is a table of them.
SCORES: Registry[Score] = Registry("score", "esa_ray.scoring.metrics", ("score", "of weight w", "unit", "defined for"))
#: What one is called in a :class:`esa_ray.spec.ScoreSpec`, and in every table.
METRICS, Metric = SCORES, Score
#: Scores that are estimated with random probes.
PROBED = SCORES.where(lambda score: score.probed)
#: Scores that don't depend on any text, and so not on the seed.
DATA_FREE = SCORES.where(lambda score: score.data_free)


def members(metric: str) -> tuple[str, ...]:
    """The scores that a rank ensemble combines; a score by itself is its only member.

    >>> members("grad_x_weight+act_mag")
    ('grad_x_weight', 'act_mag')
    """
    return tuple(metric.split("+"))


def is_ensemble(metric: str) -> bool:
    """Whether a score combines ranks of others, and so is no magnitude."""
    return len(members(metric)) > 1


def is_data_free(metric: str) -> bool:
    """Whether a score looks at no text: all its members are the same for every seed."""
    return set(members(metric)) <= DATA_FREE


def is_of_activations(metric: str) -> bool:
    """Whether a score, or a member of an ensemble, is made of what a forward pass shows of the text's activations.

    >>> is_of_activations("act_mag"), is_of_activations("magnitude+super_activation"), is_of_activations("grad_squared")
    (True, True, False)
    """
    return any("forward" in SCORES[name].passes for name in members(metric) if name in SCORES)


def has_magnitude(metric: str) -> bool:
    """Whether a score's values can be averaged: ensembles are of ranks, and some scores know only candidates.

    >>> has_magnitude("grad_x_weight"), has_magnitude("grad_x_weight+act_mag"), has_magnitude("super_activation")
    (True, False, False)
    """
    if is_ensemble(metric):
        return False
    known = SCORES.get(metric)
    return known is None or known.magnitude
