"""What a study would do, and what it found, in words."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from esa_ray.cli.app import console
from esa_ray.errors import EsaError
from esa_ray.spec import PLURALS, StudySpec
from esa_ray.storage.location import Location

if TYPE_CHECKING:
    from analysis import Study
    from esa_ray.measurements.plan import Plan


def show_plan(spec: StudySpec, directory: str, on: str | None = None) -> None:
    """Print the resolved study without loading anything, and what it would take on a card of that name."""
    from esa_ray.measurements.plan import plan  # pyarrow: `--help` doesn't need it

    planned = plan(spec)
    foreseen = _on(spec, planned, on) if on else []
    data, out = spec.data, console.out
    out(f"study             {spec.name}")
    out(f"model             {spec.model.source} ({spec.model.dtype})")
    out(
        f"data              {data.source}: {data.calibration_windows} calibration windows per seed, "
        f"{data.evaluation_windows} evaluation windows"
    )
    if spec.scores:
        out(f"scores            {', '.join(f'{s.metric} {s.mode}' for s in spec.scores)}")
    if spec.unit != "weight":
        out(f"unit              {spec.unit}, by {' and '.join(dict.fromkeys(s.combine for s in spec.scores))}")
    if spec.scores or spec.lists:
        out(f"k                 {', '.join(map(str, spec.topk))}")
    out(f"seeds             {', '.join(map(str, spec.seeds))}")
    if spec.perturbations:
        out(f"perturbations     {', '.join(p.label for p in spec.perturbations)}")
        out(f"groups            {', '.join(spec.groups)}")
    for given in spec.lists:
        named = f"{given.k} {PLURALS[given.unit]}"
        out(f"list              {given.name}: {named}, against {' and '.join(spec.controls_of(given)) or 'no control'}")
    if spec.parts or spec.one_by_one:
        words = [part.label for part in spec.parts] + ["one by one"] * spec.one_by_one
        out(f"parts             {', '.join(words)}")
    if spec.pairs:
        out(f"pairs             of the first {spec.pairs} members of each set, and each of these alone")
    if spec.control_draws > 1:
        out(f"control sets      {spec.control_draws} of each drawn control and seed")
    if spec.repeats > 1:
        out(f"repeats           {spec.repeats}")
    if spec.early_stop is not None:
        out(f"early stop        at error rate {spec.early_stop:g}")
    if spec.search:
        out(f"search            smallest {spec.search.smallest} among these cells with ΔNLL ≥ {spec.search.damage:g}")
    if spec.fidelity:
        out(f"fidelity          {spec.fidelity} single weights")
    for asked in spec.protocols:
        tasks = f", tasks {', '.join(asked.tasks)}" if asked.tasks else ""
        lengths = ", ".join(map(str, asked.contexts))
        out(f"protocol          {asked.name}: {asked.windows} windows per seed of {lengths} tokens{tasks}")
    if ways := [how.label for how in spec.applied]:
        out(f"ways              {_few(ways)}")
    if spec.population:
        p = spec.population
        out(f"population        {', '.join(p.kinds)}: {p.models} of each, from {min(p.models, p.parents)} parents")
        if p.mitigations:
            tried = ", ".join(how.label for how in p.mitigations)
            out(f"tried against it  on the first {min(p.mitigated, p.models)} of each insertion: {tried}")
    for line in _interpreted(spec):
        out(line)
    if spec.target:
        target = spec.target
        out(
            f"target            {target.source}: {target.calibration_windows} training and {spec.validation_windows} "
            f"validation windows per seed, {target.evaluation_windows} evaluation windows"
        )
    if spec.other_texts:
        out(f"other texts       {', '.join(other.source for other in spec.other_texts)}")
    if spec.save_models:
        out(f"saved models      {spec.save_models}")
    if spec.analyses:
        out(f"analyses          {', '.join(spec.analyses)}")
    for line in [*planned.lines(spec), *foreseen]:
        out(line)
    out(f"results           {directory}")


def _interpreted(spec: StudySpec) -> Iterator[str]:
    """What is asked of roles and of facts."""
    if roles := spec.roles:
        yield f"roles             {', '.join(roles.roles)}"
        more = f"; also their sets: {', '.join(roles.sets)}" if roles.sets else ""
        null = f"at most {roles.null_weights} matched weights a tensor"
        yield f"tested            by {', '.join(edit.label for edit in roles.edits)}, against {null}{more}"
    if facts := spec.facts:
        yield (
            f"facts             {', '.join(facts.sources)}: {facts.limit} of each, {facts.paraphrases} ways of asking, "
            f"{' and '.join(facts.corruptions)} corrupted"
        )


def _few(labels: Sequence[str], most: int = 3) -> str:
    more = f", and {len(labels) - most} more" if len(labels) > most else ""
    return ", ".join(labels[:most]) + more


def _on(spec: StudySpec, planned: Plan, name: str) -> list[str]:
    """What a study takes on a card, as text."""
    from esa_ray.models.cards import card

    asked, source = card(name), spec.model.source
    from esa_ray.measurements.forecast import study_lines
    from esa_ray.models.known import hollow, stored_dtype

    dtype = asked.dtype(spec.model.dtype, stored_dtype(source))
    return study_lines(spec, planned, hollow(source, dtype), asked, dtype)


@contextmanager
def reading(directory: str | Path) -> Iterator[None]:
    """Analysis of what lies somewhere; what it says of unreadable studies becomes a sentence of the command."""
    import analysis

    try:
        yield
    except analysis.StudyError as error:
        raise EsaError(str(error)) from None
    except OSError as error:
        raise EsaError(f"{error.filename or directory} can't be written: {error.strerror}") from None


@contextmanager
def opened(directory: str | Path) -> Iterator[Study]:
    """A study for analysis."""
    import analysis

    with reading(directory):
        yield analysis.load(directory)


def show_results(
    directory: str | Path, *, save_plots: bool = False, save_tables: bool = False, brief: bool = False
) -> None:
    """Write the report (and its figures and tables as files), and print the answer, or only where the report is."""
    import analysis

    with opened(directory) as study:
        report = analysis.write_report(study)
        if not brief:
            analysis.print_summary(study, console)
        if "stability" in study.spec["analyses"]:
            study.location.write("stability.csv", analysis.jaccard(study).write_csv().encode())
            console.out(f"seeds    {study.location}/stability.csv")
        if save_plots:
            console.out(f"figures  {analysis.save_figures(study)}")
        if save_tables:
            console.out(f"tables   {analysis.save_tables(study)}")
        console.out(f"report   {report}")


def show_comparison(
    locations: Sequence[str], out_dir: str, *, labels: dict[str, dict[str, str]] | None = None,
    sizes: Sequence[int] = (), save_plots: bool = False, save_tables: bool = False,
) -> int:  # fmt: skip
    """Write the report on several studies (its figures and tables as files), and print the answers; the exit status."""
    from analysis.comparison import compare, report

    with reading(out_dir):
        found, place = compare(locations, labels, sizes), Location(out_dir)
        written = report.write_comparison(found, place)
        report.print_answers(found, console)
        if save_plots:
            console.out(f"figures  {report.save_comparison_figures(found, place)}")
        if save_tables:
            console.out(f"tables   {report.save_tables(found, place)}")
        console.out(f"report   {written}")
        return 1 if report.unfinished(found) else 0
