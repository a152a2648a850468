"""Hypothesis: the weights that a model hangs on aren't where its facts are.

P5.3. SmolLM2-135M is asked for capitals of countries and for symbols and numbers of elements, in three ways each. Of
what it knows the subject is corrupted, by another subject of the same type and length and by noise, and one state is
put back: of the residual stream, of attention, or of the feed-forward layer, in one block or five at once, at each
position. If the hypothesis holds, what restoring a place gives back and the sensitivity Σ|g·w| of the place's last
matrix correlate over places with ρ of at most 0.3. Before that counts, ways of asking for one fact must agree on where
it is (ρ of at least 0.5), and more than ways of asking for different facts. What would speak against it: the two rise
and fall together.

That tracing finds a fact at a place doesn't show that editing it there works (Hase et al. 2023, arXiv:2301.04213).
"""

from esa_ray.spec import DataSpec, FactSpec, ModelSpec, StudySpec

MODEL = "SmolLM2-135M-Instruct"


def study() -> StudySpec:
    """Forty facts of each source, both corruptions, one block and five."""
    text = DataSpec(source="pydoc", calibration_windows=128, evaluation_windows=8, bos="always")
    return StudySpec(name="smollm2-135m", model=ModelSpec(source=MODEL), data=text, scores=(), facts=FactSpec())
