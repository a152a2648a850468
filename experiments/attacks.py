"""Hypothesis: an adversary who flips bits of the super weights needs far fewer flips than one who flips by chance.

P5.2. Progressive bit search chooses flips among all weights of three architectures of the zoo, among the 64 super
weights, and among as many random or matched ones; beside it stand random flips in the super weights and anywhere, and
the signs of the largest weights of the first blocks. Weights are stored in fp32, fp16, bf16 and int8; in bf16 a second
adversary stays within each tensor's largest |w|, since in floats one exponent bit ends it all. In int8 matrices are
also stored reflected (after arXiv:2603.16382), as a defence. SmolLM2-135M is asked the same with fewer arms, seeds and
flips. If the hypothesis holds, random flips in the super weights and anywhere take surely more than once as many flips
as guided ones in the super weights; the ratios of medians say how many times. What would speak against it: search is as
quick among random weights, so that it is the search and not the set; or guided search anywhere leaves the super weights
alone.
"""

from dataclasses import dataclass

from esa_ray.spec import ATTACKS, AttackSpec, StudySpec
from esa_ray.spec.security import DRAWN, GUIDED, Arm, Protection, Stored, Threat
from experiments.faults import LARGE, MODELS, study

#: A median of five seeds has an interval of 94% at most; guided arms differ by the seed alone.
SEEDS, LARGE_SEEDS = (1337, 123, 999, 7, 2024), (1337, 123, 999)
#: Search and selection windows of the zoo's models, and tensors whose best flip is tried.
WINDOWS, TRIES = 4, 8
#: Super weights, so few that every tensor holds as many controls beside them: many lie in the norms.
SUPER = 64
#: Guided arms whose set is a control.
CONTROLLED = ("guided-random", "guided-matched")


@dataclass(frozen=True)
class Place:
    """How a model is stored, who attacks it, and how many flips each kind of arm has; an arm without flips is left out.

    ``search`` is the budget of guided arms, ``controlled`` that of those in controls, ``chance`` that of random ones.
    """

    dtype: Stored
    threat: Threat
    search: int
    chance: int
    controlled: int = 0
    signs: int = 0
    draws: int = 1
    protect: Protection = "none"

    def budget(self, arm: str) -> int:
        """How many flips an arm has."""
        kinds = (((*CONTROLLED,), self.controlled), (GUIDED, self.search), (DRAWN, self.chance), (ATTACKS, self.signs))
        return next(flips for arms, flips in kinds if arm in arms)

    def attacks(self, arms: tuple[Arm, ...], windows: int) -> list[AttackSpec]:
        """Those of some arms, with several draws of the random ones where there are any."""
        return [
            AttackSpec(arm=arm, dtype=self.dtype, threat=self.threat, protect=self.protect, budget=self.budget(arm),
                       draw=draw, k=SUPER, tries=TRIES, search_windows=windows, selection_windows=windows)
            for arm in arms if self.budget(arm)
            for draw in range(self.draws if arm in ("random-super", "random") else 1)
        ]  # fmt: skip


#: Chance has two draws: with one, five seeds could not tell two arms apart at all (p at least 2/2⁵).
PLACES = (
    Place("int8", "unrestricted", search=100, controlled=30, chance=40, signs=20, draws=2),
    Place("bf16", "stealthy", search=40, chance=20, signs=10, draws=2),
    Place("bf16", "unrestricted", search=2, controlled=2, chance=20, signs=5, draws=2),
    Place("fp16", "unrestricted", search=2, controlled=2, chance=20, signs=5, draws=2),
    Place("fp32", "unrestricted", search=2, controlled=2, chance=30, signs=5, draws=2),
)
#: A defence, against search over all weights.
DEFENDED = Place("int8", "unrestricted", search=50, chance=0, protect="rotation")
LARGE_PLACES = (
    Place("int8", "unrestricted", search=5, chance=15), Place("bf16", "unrestricted", search=2, chance=15),
)  # fmt: skip


def attacks() -> tuple[AttackSpec, ...]:
    """Every arm in every place, and the search over all weights against the defence."""
    arms: tuple[Arm, ...] = ATTACKS  # type: ignore[assignment]
    return (*(each for p in PLACES for each in p.attacks(arms, WINDOWS)), *DEFENDED.attacks(("guided",), WINDOWS))


def large() -> tuple[AttackSpec, ...]:
    """Four arms in two places."""
    arms: tuple[Arm, ...] = ("guided", "guided-super", "random-super", "random")
    return tuple(each for place in LARGE_PLACES for each in place.attacks(arms, 8))


def studies() -> list[StudySpec]:
    """A study of each model."""
    return [*(study(model, SEEDS, attacks=attacks()) for model in MODELS), study(LARGE, LARGE_SEEDS, attacks=large())]
