"""The document on roles, attention and facts: models side by side, then each, with the cards of its leading weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import polars as pl

from analysis.comparison.loading import below, model_name
from analysis.documents.sources import sources
from analysis.report import wording
from analysis.report.attention_verdicts import attention_verdicts
from analysis.report.figures import charts
from analysis.report.parts import Figure, Section, Table
from analysis.report.role_verdicts import role_verdicts
from analysis.report.sections import answered
from analysis.report.sections.faults import shares
from analysis.report.sections.roles import at_first, called, mass_words
from analysis.report.verdicts import Verdict
from analysis.roles.assigned import ANY, NONE, assigned
from analysis.roles.false import false_roles
from analysis.roles.goals import role_goals
from analysis.roles.stability import role_stability
from analysis.study import Study, load

#: Experiment → what its sections are called after, and the sections that the document has of each of its studies.
SECTIONS = {
    "roles": ("Roles", ("roles_held", "role_cards", "necessity", "mediated", "false_positives", "stable_roles",
                        "foretold_roles")),
    "attention": ("Attention", ("attention_damaged", "attention_costs", "spikes_and_sinks")),
    "facts": ("Facts", ("facts_known", "facts_traced", "facts_consistent", "fact_stores")),
}  # fmt: skip
EXPERIMENTS = tuple(SECTIONS)
#: Cards of a study that the document shows, and necessary pairs.
CARDS = 5
#: A goal of three families, as the zoo has them.
FAMILIES = 3


def there(results: Path) -> dict[str, Study]:
    """``experiment/study`` → the study, of those experiments that have run."""
    ran = [name for name in EXPERIMENTS if any((results / name).glob("**/study.json"))]
    places = [(name, place) for name in ran for place in below(results / name)]
    return {f"{name}/{Path(place).name}": load(place) for name, place in places}


def repeated(studies: Mapping[str, Study]) -> dict[str, list[Study]]:
    """Study of roles that a model is told by → it and those that repeat it: other texts, and kinds of damage.

    A model is told by its study with the most leading weights and seeds on the first text.
    """
    found: dict[str, list[Study]] = {}
    asked = {key: s for key, s in studies.items() if key.startswith("roles/")}
    for name in dict.fromkeys(model_name(s) for s in asked.values()):
        mine = [(key, s) for key, s in asked.items() if model_name(s) == name]
        mine.sort(key=lambda pair: (-max(pair[1].spec["topk"]), -len(pair[1].spec["seeds"])))
        found[mine[0][0]] = [s for _, s in mine]
    return found


def found(studies: Mapping[str, Study]) -> dict[str, Any]:
    """What the studies found: sources, verdicts by model, and sections with their figures' files."""
    made = sources(studies.values())
    verdicts = [_families(studies)] if repeated(studies) else []
    verdicts += [replace(v, id=f"{v.id}, {model_name(s[0])}") for s in repeated(studies).values()
                 for v in role_verdicts(*s)]  # fmt: skip
    verdicts += [replace(v, id=f"{v.id}, {model_name(s)}") for key, s in studies.items()
                 if key.startswith("facts/") for v in role_verdicts(s)]  # fmt: skip
    verdicts += [replace(v, id=f"{v.id}, {model_name(s)}") for key, s in studies.items()
                 if key.startswith("attention/") for v in attention_verdicts(s)]  # fmt: skip
    sections = [*_across(studies), *(_named(key, s) for key in _told(studies) for s in _sections(key, studies))]
    return {
        "sources": made, "verdicts": [asdict(v) for v in sorted(verdicts, key=lambda v: v.id.partition(",")[0])],
        "sections": [asdict(s) for s in sections],
    }  # fmt: skip


def _told(studies: Mapping[str, Study]) -> list[str]:
    """The studies that have sections of their own: repetitions of roles have none."""
    main = repeated(studies)
    return [key for key in studies if key in main or not key.startswith("roles/")]


def _families(studies: Mapping[str, Study]) -> Verdict:
    """Whether half of the leading weights have a role in the larger model and in three families of the zoo."""
    claim = f"It is so in SmolLM2-135M and in at least {FAMILIES} architectures of the zoo"
    status = {}
    for told in repeated(studies).values():
        goals = {r["goal"]: r["status"] for r in role_goals(*told).to_dicts()}
        status[model_name(told[0]), told[0].resolved["architecture"]] = goals.get("weights", "open")
    kinds = {architecture for (_, architecture), s in status.items() if s == "holds"}
    failed = [name for (name, _), s in status.items() if s == "fails"]
    words = ", ".join(f"{name}: {s}" for (name, _), s in status.items())
    enough = len(kinds) > FAMILIES
    return Verdict("P5.4p", claim, "holds" if enough else "fails" if failed else "open", words)


def _across(studies: Mapping[str, Study]) -> Iterator[Section]:
    told = [(model_name(s[0]), s) for s in repeated(studies).values()]
    if len(told) < 2:
        return
    rows, agree = [], []
    for name, mine in told:
        table = at_first(assigned(mine[0]), mine[0])
        by_role = {r["role"]: r for r in table.to_dicts()}
        if ANY not in by_role:
            continue
        r, false = by_role[ANY], at_first(false_roles(mine[0]), mine[0]).filter(pl.col("role") == ANY).to_dicts()
        held = sorted(
            (x for k, x in by_role.items() if k not in (ANY, NONE) and x["weights"]), key=lambda x: -x["weights"]
        )
        rows.append([
            name, f"{r['weights']} of {r['of']}", f"{wording.percent(r['share'])} {shares(r['low'], r['high'])}",
            mass_words(r),
            f"{false[0]['false']} of {false[0]['hurt']}" if false else "–",
            ", ".join(f"{x['weights']} {called(x['role'], x['weights'])}" for x in held) or "–",
        ])  # fmt: skip
        agree += [[name, a["over"], a["one"], a["other"], a["of"], str(a["weights"]),
                   wording.within(a["kappa"], a["kappa_low"], a["kappa_high"]),
                   wording.within(a["jaccard"], a["jaccard_low"], a["jaccard_high"])]
                  for a in role_stability(*mine).iter_rows(named=True)]  # fmt: skip
    yield Section(
        "across_roles", "All models: what do the weights do that they hang on?",
        "; ".join(f"{r[0]}: {r[1]} leading weights hold a role, and bear {r[3]} of the damage" for r in rows) + ".",
        "As in the models' own sections, by the first kind of damage and seed. Agreement is between seeds, kinds of "
        "damage and texts of one model: κ beyond chance within each role, of all leading weights that both "
        "damaged; 95% intervals by a bootstrap over weights. Seeds and kinds of damage share their evaluation "
        "windows.",
        tables=[Table(["<model", "<hold a role", "<share of the weights", "<share of the damage",
                       "matched that would, of hurt ones", "~roles"], rows),
                Table(["<model", "<differing in", "<one", "<other", "<of", "weights", "<κ", "<Jaccard"], agree,
                      "Do other seeds, texts and kinds of damage agree?")],
    )  # fmt: skip


def _sections(key: str, studies: Mapping[str, Study]) -> list[Section]:
    study = studies[key]
    wanted = SECTIONS[key.partition("/")[0]][1]
    made = [s for s in answered(study, set(charts(study)), "roles") if s.id in wanted]
    return [replace(s, cards=s.cards[:CARDS]) for s in made]


def _file(key: str, figure: Figure) -> Figure:
    return Figure(f"{key.replace('/', '-')}-{figure.chart}", figure.label, figure.caption)


def _named(key: str, section: Section) -> Section:
    """A section of one experiment and model, told from those of the same name."""
    experiment, _, model = key.partition("/")
    return replace(
        section, title=f"{SECTIONS[experiment][0]}, {model}: {section.title}",
        figures=[_file(key, f) for f in section.figures],
        cards=[replace(c, figures=[_file(key, f) for f in c.figures]) for c in section.cards],
    )  # fmt: skip


def draw(studies: Mapping[str, Study], directory: Path, name: str, width: int = 640) -> None:
    """Write the figures that the document shows."""
    for key in _told(studies):
        drawn = charts(studies[key])
        shown = {f.chart for s in _sections(key, studies) for f in s.every_figure}
        for chart in sorted(shown):
            path = directory / f"{name}-{key.replace('/', '-')}-{chart}.svg"
            drawn[chart].properties(width=width).save(str(path), format="svg")
