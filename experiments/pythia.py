"""Hypothesis: what holds of small models holds of the Pythia series over three orders of magnitude.

Ten models of one architecture, trained on the same text in the same order (Biderman et al. 2023, arXiv:2304.01373): the
cleanest series there is for laws of size, and with ten sizes enough to ask for a break. The same study as of the zoo.
Needs the hub, and for the largest a GPU.
"""

from esa_ray.spec import StudySpec
from experiments import scaling

SIZES = ("14m", "31m", "70m", "160m", "410m", "1b", "1.4b", "2.8b", "6.9b", "12b")


def studies() -> list[StudySpec]:
    """A study of each size."""
    return [scaling.study(f"EleutherAI/pythia-{size}") for size in SIZES]
