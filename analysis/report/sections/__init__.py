"""The report's sections: each an answer, figures, tables and a caveat, or absent without data.

Every module here registers its questions (:mod:`analysis.report.questions`).
"""

from importlib import import_module
from pkgutil import iter_modules

from analysis.report.questions import QUESTIONS, answered

__all__ = ["CONTENTS", "answered"]

#: The order in which the report asks; a question that isn't named here comes after these.
CONTENTS = (
    "intact", "roles_held", "role_cards", "necessity", "mediated", "false_positives", "stable_roles",
    "foretold_roles", "attention_damaged", "attention_costs", "spikes_and_sinks", "facts_known", "facts_traced",
    "facts_consistent", "fact_stores", "search", "changed", "dose", "kinds", "together", "pairs", "layers",
    "recovery", "transfer", "repeatability", "kinds_together", "excess", "against", "front", "factors",
    "block_errors", "tuned", "tuned_against", "tuning_course", "moved_where", "broken", "protected", "vulnerable",
    "covered", "foretold", "gradient_tells", "attacked", "attack_ratios", "flipped", "inserts", "detected", "traces",
    "trusted", "removed", "stability", "scores", "where", "modes", "structure", "fidelity", "ran",
)  # fmt: skip

for _module in iter_modules(__path__):
    import_module(f"{__name__}.{_module.name}")
for _name in (*CONTENTS, *(name for name in [*QUESTIONS] if name not in CONTENTS)):
    QUESTIONS[_name] = QUESTIONS.pop(_name)
