"""Does sensitivity betray a backdoor? Detection in populations of models with and without one, and mitigations.

Every function takes one study or a list of them, one a base, and answers in a Polars frame; the frames' columns are
explained in :mod:`analysis.security.detection.columns`::

    population(studies)          # table.py: one row a model, whatever became of it
    detection(studies)           # evaluated.py: AUROC, TPR at 5% FPR by scheme, base, insertion, negatives
    roc_curves(studies)          # evaluated.py: their curves with bands
    permuted(studies)            # null.py: what chance would show
    arms(studies)                # arms.py: what the negatives decide; what is left against memorised phrases
    nested(studies)              # nested.py: what sensitivity adds to spectra, and each family alone
    ranked(studies)              # ranked.py: each feature alone
    leakage(studies)             # leakage.py: what must be at chance
    detection_power(studies)     # power.py: how many models would settle the goals
    detection_goals(studies)     # goals.py: the goals, each with the numbers that judge it
    mitigated(studies)           # mitigated.py: what is left after each mitigation
    mitigated_against(studies)   # mitigated.py: ... against its rival
    detector(studies, with_reference=False)   # detector.py: an esa_ray.spec.detector.Detector

Schemes: "seen" trains within a base on all kinds of models of other parents; "unseen insertion" also leaves out every
model of the insertion that it is tested on; "unseen base" trains on all models of the other bases; "unseen both" leaves
out both. No parent is ever in training and test at once. A row about fewer than 30 models of a class says why and no
numbers.
"""
