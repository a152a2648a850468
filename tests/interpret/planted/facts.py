"""Prompts of the planted facts."""

from __future__ import annotations

import numpy as np
import torch

from esa_ray.interpret.facts.prompts import FactPrompts
from tests.interpret.planted.canvas import Planted
from tests.interpret.planted.circuits import ANSWERS, RELATION, SUBJECTS


def prompts(planted: Planted) -> FactPrompts:
    """Two facts by "subject, relation", and two controls in whose place of a subject the answer itself stands."""
    asked = [[0, SUBJECTS[i], RELATION] for i in (0, 1)] + [[0, ANSWERS[i], RELATION] for i in (0, 1)]
    windows, answers = np.array(asked), np.array([ANSWERS[0], ANSWERS[1]] * 2)
    alternatives = np.array([ANSWERS[2], ANSWERS[3]] * 2)
    with torch.no_grad():
        z = planted.model(torch.from_numpy(windows)).logits[:, -1].numpy()
    intact = z[range(4), answers] - z[range(4), alternatives]
    subject = np.arange(3) == np.ones((4, 1))
    return FactPrompts(windows, np.full(4, 2), subject, answers, alternatives, intact, ("first", "second"))
