"""The analysis: a study's tables as Polars frames, statistics, figures and the report.

import analysis
study = analysis.load("results/quickstart")
study.cells, study.rankings, study.score_stats, study.baselines   # Polars frames
analysis.effects(study)                                           # ΔNLL by group with intervals
analysis.comparisons(study)                                       # super against each control
analysis.jaccard(study)                                           # agreement of seeds
"""

from analysis.damage import baseline, comparisons, effects
from analysis.distribution import blocks, tails
from analysis.figures import charts, save_figures
from analysis.report import write_report
from analysis.stability import consensus, jaccard, jaccard_summary
from analysis.study import Study, StudyError, load, progress
from analysis.summary import print_summary
from analysis.verdicts import Verdict, verdicts

__all__ = [
    "Study",
    "StudyError",
    "Verdict",
    "baseline",
    "blocks",
    "charts",
    "comparisons",
    "consensus",
    "effects",
    "jaccard",
    "jaccard_summary",
    "load",
    "print_summary",
    "progress",
    "save_figures",
    "tails",
    "verdicts",
    "write_report",
]
