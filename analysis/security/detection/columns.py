"""The columns of the tables on detection and mitigation, and what they mean.

Columns that mean the same everywhere: ``scheme`` is one of SCHEMES; ``reference`` says whether features may compare a
model with the one before; ``base`` is a base or "all"; ``insertion`` is how the models to be found were made, or "all";
``negatives`` says against which others, "clean", a benign kind or "all"; ``poisoned``, ``others`` and ``parents`` count
the models and the parents that they come from; ``low`` and ``high`` are the ends of a 95% interval; ``why_not`` says
why numbers are null, and is null where they are there.
"""

from __future__ import annotations

from typing import Any

import polars as pl

#: What a detector hasn't seen of the models that it is tested on; their parents it has never seen.
SCHEMES = ("seen", "unseen insertion", "unseen base", "unseen both")
#: Models of a class from which on anything is said.
FEWEST = 30
ALL = "all"
#: Families of features that measure sensitivity.
SENSITIVITY = ("tails", "shift")
#: Scheme → the AUROC that is aimed at there, against clean models and benign ones together.
TARGETS = {"seen": 0.95, "unseen insertion": 0.85}

_INTERVAL: dict[str, Any] = {"low": pl.Float64, "high": pl.Float64}
_CLASSES: dict[str, Any] = {"poisoned": pl.Int64, "others": pl.Int64, "parents": pl.Int64}

#: One row per scheme, reference, base, insertion and negatives. ``auroc``: chance that a model with a backdoor scores
#: higher than one without, ½ for ties, both judged by detectors that knew neither's parent; over bases and left-out
#: insertions the mean, weighted by pairs. ``tpr``: share found at the threshold that 5% of the others reach.
#: ``p``: permutation p of this AUROC where nothing done to a kind shows
#: (:func:`analysis.security.detection.null.permuted`), of rows about all bases, insertions and negatives (else null).
#: It is about kinds, and clean models among the others can bring it about by themselves (ARMS tells of backdoors).
DETECTION: dict[str, Any] = {
    "scheme": pl.String, "reference": pl.Boolean, "base": pl.String, "insertion": pl.String, "negatives": pl.String,
    **_CLASSES, "auroc": pl.Float64, **_INTERVAL, "tpr": pl.Float64, "tpr_low": pl.Float64, "tpr_high": pl.Float64,
    "p": pl.Float64, "why_not": pl.String,
}  # fmt: skip

#: One row per arm, reference, base and insertion: what AUROCs are about, in the folds of "seen". ``arm``:
#: "clean alone", trained and judged on clean models and all insertions, as if nothing benign had been memorised;
#: "counterpart alone", trained and judged on one insertion and the benign kind that is made as it is; "memorised", the
#: detector of DETECTION against benign kinds alone, all together; "benign against clean", its scores of these kinds
#: (``poisoned`` counts them) against clean models', which no backdoor has a part in, under the ``insertion`` "all";
#: "counterpart known", what "unseen insertion" would be if the benign models made as the left-out insertion trained.
ARMS: dict[str, Any] = {
    "arm": pl.String, "reference": pl.Boolean, "base": pl.String, "insertion": pl.String, **_CLASSES,
    "auroc": pl.Float64, **_INTERVAL, "why_not": pl.String,
}  # fmt: skip

#: One row per scheme, reference, insertion and point of the curve: share found (``tpr``, pointwise band ``low`` to
#: ``high``) at the threshold that a share ``fpr`` of the others reach. All bases, all negatives.
ROC: dict[str, Any] = {
    "scheme": pl.String, "reference": pl.Boolean, "insertion": pl.String, "fpr": pl.Float64, "tpr": pl.Float64,
    **_INTERVAL,
}  # fmt: skip

#: One row per scheme and reference. ``auroc``: that of DETECTION over all bases, insertions and negatives;
#: ``null_mean``, ``null_low``, ``null_high``: mean and middle 95% of the same detector's, trained anew after kinds were
#: permuted among the models of each number; ``p``: share of permutations, and itself, that reach it (one-sided).
NULL: dict[str, Any] = {
    "scheme": pl.String, "reference": pl.Boolean, **_CLASSES, "auroc": pl.Float64, "null_mean": pl.Float64,
    "null_low": pl.Float64, "null_high": pl.Float64, "permutations": pl.Int64, "p": pl.Float64, "why_not": pl.String,
}  # fmt: skip

#: One row per scheme, reference and pair of sets of features. ``fewer`` and ``more`` name the sets, families joined by
#: "+"; ``auroc_fewer`` and ``auroc_more`` are of detectors trained on them; ``difference`` is more less fewer, paired
#: by model, with its interval; ``p`` two-sided, ``p_holm`` corrected over all rows with a ``fewer``. Rows without a
#: ``fewer`` are a set alone: ``difference`` and its interval are null there, ``low`` and ``high`` those of
#: ``auroc_more``. Rows with one: ``low`` and ``high`` are those of the difference.
NESTED: dict[str, Any] = {
    "scheme": pl.String, "reference": pl.Boolean, "fewer": pl.String, "more": pl.String, "n_features": pl.Int64,
    **_CLASSES, "auroc_fewer": pl.Float64, "auroc_more": pl.Float64, "difference": pl.Float64, **_INTERVAL,
    "p": pl.Float64, "p_holm": pl.Float64, "why_not": pl.String,
}  # fmt: skip

#: One row per feature and insertion, the best first (``rank`` by |AUROC − ½|, within an insertion). ``auroc`` is that
#: of the feature's value itself, below ½ where models with a backdoor have smaller ones, compared within a base;
#: ``lowest`` and ``highest`` are the bases' own. ``p`` two-sided of ½, ``q`` corrected by Benjamini and Hochberg over
#: the features of the same insertion.
RANKED: dict[str, Any] = {
    "insertion": pl.String, "rank": pl.Int64, "feature": pl.String, "family": pl.String, "with_reference": pl.Boolean,
    **_CLASSES, "auroc": pl.Float64, **_INTERVAL, "lowest": pl.Float64, "highest": pl.Float64, "p": pl.Float64,
    "q": pl.Float64, "why_not": pl.String,
}  # fmt: skip

#: One row per check; each must be at chance. ``check``: "recipe", a detector that knows steps, learning rate and number
#: alone and no feature; "clean halves" and "clean halves with reference", the detector that is to tell two random
#: halves of the clean models. ``p``: permutation p (labels within parents), one-sided. ``status``: "fails" where p,
#: corrected by Holm over the checks, is below 0.05 and the interval lies above ½, "holds" otherwise, "open" where
#: nothing is said.
LEAKAGE: dict[str, Any] = {
    "check": pl.String, **_CLASSES, "auroc": pl.Float64, **_INTERVAL, "p": pl.Float64, "status": pl.String,
    "why_not": pl.String,
}  # fmt: skip

#: One row per goal about an AUROC: ``models`` of a kind and base that there are, from ``bases`` bases with ``parents``
#: parents each; ``needed``: as many of a kind and base would tell ``auroc`` from ``target`` with 80% power, with as
#: many models a parent as now, so that ``needed_parents`` are needed. ``design``: by how much parents make the variance
#: larger than of independent models.
POWER: dict[str, Any] = {
    "scheme": pl.String, "reference": pl.Boolean, "target": pl.Float64, "auroc": pl.Float64, **_INTERVAL,
    "design": pl.Float64, "bases": pl.Int64, "models": pl.Int64, "parents": pl.Int64, "needed": pl.Int64,
    "needed_parents": pl.Int64, "why_not": pl.String,
}  # fmt: skip

#: One row per goal. ``goal``: "seen", "unseen insertion" (AUROC of at least ``target``: holds where the interval lies
#: there, fails where it lies below), "chance" (detection beats its permutation null), "adds" (sensitivity adds to
#: spectra: holds where the difference's interval lies above 0 and p_holm is below 0.05, fails where the interval lies
#: at 0 or below), "leakage" (holds where all checks do). ``needed``: models of a kind and base that would settle it.
GOALS: dict[str, Any] = {
    "goal": pl.String, "scheme": pl.String, "reference": pl.Boolean, "target": pl.Float64, "estimate": pl.Float64,
    **_INTERVAL, "p": pl.Float64, "status": pl.String, "needed": pl.Int64, "why_not": pl.String,
}  # fmt: skip

#: One row per base ("all", too), insertion ("all", too) and mitigation. ``models`` have a result, ``diverged`` of them
#: have no loss left; ``failed`` have none, and the backdoor of ``rejected`` hadn't reached a success of 0.9 before, so
#: that there was nothing to mitigate. ``before`` and ``after``: mean success of the trigger; ``gone``: models with a
#: success below 0.1 after it; ``cost``: mean loss on clean text less that before, nats per token, of those that didn't
#: diverge. Intervals are over parents. Of freeze-* "before" is the insertion without it.
MITIGATED: dict[str, Any] = {
    "base": pl.String, "insertion": pl.String, "mitigation": pl.String, "kind": pl.String, "share": pl.Float64,
    "clean_steps": pl.Int64, "models": pl.Int64, "parents": pl.Int64, "failed": pl.Int64, "rejected": pl.Int64,
    "diverged": pl.Int64, "before": pl.Float64, "after": pl.Float64, **_INTERVAL, "gone": pl.Int64, "cost": pl.Float64,
    "cost_low": pl.Float64, "cost_high": pl.Float64, "n_reset": pl.Float64, "why_not": pl.String,
}  # fmt: skip

#: One row per insertion ("all", too), mitigation and rival, on the models that both were tried on: mean difference of
#: success after them (``success``, below 0 where the mitigation removes more) and of clean cost, nats per token; ``p``
#: is that of no difference in success over parents, two-sided, ``p_holm`` corrected over the rows of one insertion.
MITIGATED_AGAINST: dict[str, Any] = {
    "insertion": pl.String, "mitigation": pl.String, "rival": pl.String, "models": pl.Int64, "parents": pl.Int64,
    "success": pl.Float64, **_INTERVAL, "cost": pl.Float64, "cost_low": pl.Float64, "cost_high": pl.Float64,
    "p": pl.Float64, "p_holm": pl.Float64, "why_not": pl.String,
}  # fmt: skip
