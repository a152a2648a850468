"""Hypothesis: damaging one harmless row undoes the damage of another.

It was reported of two rows of a larger model of this family. The four rows of the whole model with the largest
first-order loss are zeroed one at a time, by twos and all at once, beside random rows of their matrices, rows of
matched norm and the rows of the highest norm. If it holds, a pair costs surely less than the costlier of its two rows;
if rows act on their own, pairs cost the sum; and if size is all there is, the rows of the highest norm cost as much.
"""

from esa_ray.spec import DataSpec, ModelSpec, PerturbSpec, ScoreSpec, StudySpec


def study() -> StudySpec:
    """One score × one kind × (set, three controls, four single rows, six pairs): 14 cells."""
    return StudySpec(
        name="rows",
        model=ModelSpec(source="SmolLM2-135M-Instruct"),
        data=DataSpec(calibration_windows=16, evaluation_windows=16),
        scores=(ScoreSpec(unit="row", mode="global"),),
        topk=(4,),
        perturbations=(PerturbSpec(kind="zero"),),
        groups=("super", "random_k", "matched_k", "largest_k"),
        pairs=4,
    )
