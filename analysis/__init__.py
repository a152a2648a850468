"""The analysis: a study's tables as Polars frames, statistics, figures and the report.

import analysis
study = analysis.load("results/quickstart")
study.cells, study.rankings, study.score_stats, study.baselines   # Polars frames
study.sample_sizes, study.samples, study.fidelity                 # empty unless "weights" was analysed
analysis.effects(study)                                           # ΔNLL by group with intervals
analysis.comparisons(study)                                       # super against each control
analysis.changes(study)                                           # how many weights the damage changed
analysis.jaccard(study)                                           # agreement of seeds
analysis.jaccard_by_k(study), analysis.jaccard_by_windows(study)  # … against size of set and of text
analysis.stable_from(study), analysis.outlier_seeds(study)        # from where on it is stable; odd seeds
analysis.score_agreement(study), analysis.ensemble_stability(study)   # scores against each other
analysis.hotspot_ranks(study), analysis.depth_pattern(study)      # hot blocks, depth
analysis.spread(study), analysis.mode_comparison(study)           # global against per-layer pools
analysis.line_concentration(study), analysis.residual_channels(study), analysis.clusters(study)
analysis.dose_response(study), analysis.dose_landmarks(study)     # cost against dose; where it starts and collapses
analysis.discrimination(study), analysis.hierarchy_ratios(study)  # which damage tells super from control
analysis.power(study)                                             # what could be found, and what it would take
analysis.fidelity_correlations(study), analysis.calibration(study)    # scores against single-weight edits
analysis.interaction(study), analysis.layer_damage(study), analysis.recovery(study)   # parts of sets
analysis.pairs(study)   # two members together against each alone
analysis.transfer(study), analysis.repeatability(study)           # given weights; the same cells again
analysis.meta_analysis(study), analysis.mixed_effects(study)      # all kinds of damage together
analysis.excess(study), analysis.against(study)                   # compressions: what they cost, and against what
analysis.fronts(study), analysis.goals(study)                     # … at which size, and what was aimed at
analysis.factors(study), analysis.block_errors(study), analysis.error_correlations(study)   # … and why
analysis.chosen(study), analysis.tuned_against(study)             # tunings: gain and forgetting, and against what
analysis.tuning_front(study), analysis.tuning_goals(study)        # … which no other beats, and what was aimed at
analysis.tuning_curves(study), analysis.learning_rates(study)     # … how it went
analysis.moved(study), analysis.how_far(study)                    # … and what moved
analysis.break_rates(study), analysis.tolerated(study)            # faults: how often they break, from which rate on
analysis.protected_against(study), analysis.protection_front(study)   # … what protection buys, at what price
analysis.strata(study), analysis.vulnerability(study)             # … in which bits, components and scores
analysis.coverage(study), analysis.first_order(study)             # … how few weights; what the gradient tells
analysis.predicted(study), analysis.order_agrees(study)           # … which protections single flips foretell
analysis.attack_runs(study), analysis.survival(study)             # attacks: flips and bits to collapse
analysis.attacks_against(study), analysis.flipped_where(study)    # … arms against each other; what they flipped
analysis.population(study), analysis.detection([study, other])    # models with and without a backdoor, one base or more
analysis.inserted(study)                                          # … whether their backdoors work
analysis.roc_curves(study), analysis.permuted(study)              # … curves of detection; what chance would show
analysis.arms(study)                                              # … what their negatives decide
analysis.nested(study), analysis.ranked(study)                    # … what sensitivity adds; each feature alone
analysis.leakage(study), analysis.detection_power(study)          # … what must be at chance; how many models it takes
analysis.detection_goals(study)                                   # … and what was aimed at
analysis.mitigated(study), analysis.mitigated_against(study)      # … what mitigations leave, and against what
analysis.detector("results/backdoors", with_reference=False)      # … a detector for other models
analysis.weight_roles(study), analysis.assigned(study)            # roles: who holds which; how many, how much damage
analysis.damages(study), analysis.mediation(study)                # … what each damage costs, and through what
analysis.false_roles(study), analysis.role_stability(study, other)    # … how many are false; seeds, texts, kinds
analysis.foretold_changes(study), analysis.role_goals(study)      # … what the gradient tells; what was aimed at
analysis.attention_changes(study), analysis.dissociation(study)   # attention under damage; spikes without sinks
analysis.attention_partials(study), analysis.intact_attention(study)  # … what loss goes with; where sinks are
analysis.known_facts(study), analysis.traced(study)               # facts: which are known, and where they come back
analysis.consistency(study), analysis.traced_sensitivity(study)   # … do ways of asking agree; is it sensitive there
analysis.timeline(study), analysis.utilisation(study)             # how it ran: when, where, how busy
analysis.pace(study)                                              # … and how fast it goes just now
analysis.across_studies([study, other])                           # … and several models
"""

from analysis.compression.against import against
from analysis.compression.excess import excess
from analysis.compression.factors import factors
from analysis.compression.fronts import fronts
from analysis.compression.goals import goals
from analysis.compression.layers import block_errors, error_correlations
from analysis.damage.across import across_studies
from analysis.damage.changed import changes
from analysis.damage.discrimination import discrimination, hierarchy_ratios
from analysis.damage.dose import dose_response
from analysis.damage.effects import baseline, comparisons, effects
from analysis.damage.interaction import interaction
from analysis.damage.landmarks import dose_landmarks
from analysis.damage.layers import layer_damage
from analysis.damage.meta import meta_analysis
from analysis.damage.mixed import mixed_effects
from analysis.damage.pairs import pairs
from analysis.damage.pools import mode_costs
from analysis.damage.power import power
from analysis.damage.recovery import recovery
from analysis.damage.repeatability import repeatability
from analysis.damage.transfer import transfer
from analysis.fidelity.tables import above_noise, calibration, calibration_deciles, fidelity_correlations, precision_at
from analysis.report.figures import charts, save_figures
from analysis.report.page import save_tables, write_report
from analysis.report.terminal import print_summary
from analysis.report.verdicts import Verdict, verdicts
from analysis.roles.assigned import assigned
from analysis.roles.attention import attention_changes, attention_partials, intact_attention
from analysis.roles.damages import damages
from analysis.roles.dissociation import dissociation
from analysis.roles.false import false_roles
from analysis.roles.first_order import foretold_changes
from analysis.roles.goals import fact_goals, role_goals
from analysis.roles.mediation import mediation
from analysis.roles.stability import role_stability
from analysis.roles.table import weight_roles
from analysis.roles.tracing import consistency, known_facts, traced, traced_sensitivity
from analysis.run.progress import progress
from analysis.run.protocols import protocol_summary, reliability
from analysis.run.timeline import Utilisation, pace, timeline, utilisation
from analysis.scores.agreement import ensemble_stability, score_agreement, score_correlations
from analysis.scores.clusters import clusters
from analysis.scores.convergence import jaccard_by_k, jaccard_by_windows, stable_from
from analysis.scores.depth import depth_pattern, depth_profile, hotspot_ranks, sides
from analysis.scores.distribution import blocks, tail_summary, tails
from analysis.scores.pools import layer_shares, mode_comparison, spread
from analysis.scores.residual import line_concentration, residual_channels
from analysis.scores.stability import consensus, jaccard, jaccard_by_pool, jaccard_summary, outlier_seeds
from analysis.security.attacks import (
    attack_runs,
    attacks_against,
    defended_against,
    flipped_where,
    survival,
    survival_curves,
)
from analysis.security.coverage import coverage
from analysis.security.detection.arms import arms
from analysis.security.detection.detector import detector
from analysis.security.detection.evaluated import detection, roc_curves
from analysis.security.detection.goals import detection_goals
from analysis.security.detection.leakage import leakage
from analysis.security.detection.mitigated import mitigated, mitigated_against
from analysis.security.detection.nested import nested
from analysis.security.detection.null import permuted
from analysis.security.detection.power import detection_power
from analysis.security.detection.ranked import ranked
from analysis.security.detection.table import population
from analysis.security.first_order import first_order
from analysis.security.injections import injections
from analysis.security.inserted import inserted
from analysis.security.predicted import order_agrees, predicted
from analysis.security.protections import protected_against, protection_front
from analysis.security.rates import break_rates, tolerated
from analysis.security.vulnerability import strata, vulnerability
from analysis.study import Study, StudyError, load
from analysis.tuning.against import tuned_against
from analysis.tuning.curves import learning_rates, tuning_curves
from analysis.tuning.front import tuning_front
from analysis.tuning.goals import tuning_goals
from analysis.tuning.moved import how_far, moved
from analysis.tuning.points import chosen

__all__ = [
    "Study",
    "StudyError",
    "Utilisation",
    "Verdict",
    "above_noise",
    "across_studies",
    "against",
    "arms",
    "assigned",
    "attack_runs",
    "attacks_against",
    "attention_changes",
    "attention_partials",
    "baseline",
    "block_errors",
    "blocks",
    "break_rates",
    "calibration",
    "calibration_deciles",
    "changes",
    "charts",
    "chosen",
    "clusters",
    "comparisons",
    "consensus",
    "consistency",
    "coverage",
    "damages",
    "defended_against",
    "depth_pattern",
    "depth_profile",
    "detection",
    "detection_goals",
    "detection_power",
    "detector",
    "discrimination",
    "dissociation",
    "dose_landmarks",
    "dose_response",
    "effects",
    "ensemble_stability",
    "error_correlations",
    "excess",
    "fact_goals",
    "factors",
    "false_roles",
    "fidelity_correlations",
    "first_order",
    "flipped_where",
    "foretold_changes",
    "fronts",
    "goals",
    "hierarchy_ratios",
    "hotspot_ranks",
    "how_far",
    "injections",
    "inserted",
    "intact_attention",
    "interaction",
    "jaccard",
    "jaccard_by_k",
    "jaccard_by_pool",
    "jaccard_by_windows",
    "jaccard_summary",
    "known_facts",
    "layer_damage",
    "layer_shares",
    "leakage",
    "learning_rates",
    "line_concentration",
    "load",
    "mediation",
    "meta_analysis",
    "mitigated",
    "mitigated_against",
    "mixed_effects",
    "mode_comparison",
    "mode_costs",
    "moved",
    "nested",
    "order_agrees",
    "outlier_seeds",
    "pace",
    "pairs",
    "permuted",
    "population",
    "power",
    "precision_at",
    "predicted",
    "print_summary",
    "progress",
    "protected_against",
    "protection_front",
    "protocol_summary",
    "ranked",
    "recovery",
    "reliability",
    "repeatability",
    "residual_channels",
    "roc_curves",
    "role_goals",
    "role_stability",
    "save_figures",
    "save_tables",
    "score_agreement",
    "score_correlations",
    "sides",
    "spread",
    "stable_from",
    "strata",
    "survival",
    "survival_curves",
    "tail_summary",
    "tails",
    "timeline",
    "tolerated",
    "traced",
    "traced_sensitivity",
    "transfer",
    "tuned_against",
    "tuning_curves",
    "tuning_front",
    "tuning_goals",
    "utilisation",
    "verdicts",
    "vulnerability",
    "weight_roles",
    "write_report",
]
