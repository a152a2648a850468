"""Verdicts on compression turn at their thresholds, and the report tells what was planted."""

import numpy as np
import polars as pl
import pytest
from rich.console import Console

import analysis
from analysis.compression.goals import RIVALS, RULES
from analysis.report.figures import charts
from analysis.report.sections import answered
from esa_ray.spec import PerturbSpec, QuantizeSpec
from tests.analysis.compressed import compressed, prune
from tests.analysis.synthetic import save_table
from tests.analysis.test_figures import PHONE, drawn, labels

OURS = {"score": "regional", "update": "refit"}


def ripple(seed, size=0.01, windows=16):
    return 1 + size * np.cos(np.arange(windows) * 1.3 + seed)


def judged(study):
    return {v.id: v for v in analysis.verdicts(study)}


def at_every_setting(*methods):
    """Methods by name, or points, at 50, 60 and 70% and at 2:4."""
    points = [prune(m) if isinstance(m, str) else m for m in methods]
    return [p.model_copy(update=at) for at in (*({"sparsity": s} for s in (0.5, 0.6, 0.7)), {"pattern": "2:4"})
            for p in points]  # fmt: skip


def against_magnitude(directory, saved, *, specs=None, size=0.01, lost=()):
    """Wanda saves a share of magnitude's excess: ``saved`` by label, else 50%."""

    def cost(p, seed, text):
        if (p.label, seed) in lost:
            return None
        if p.score == "magnitude":
            return 0.8 * ripple(seed, size)
        return 0.8 * (1 - saved.get(p.label, 0.5)) * ripple(3 * seed, size)

    return judged(compressed(directory, specs or at_every_setting("magnitude", "wanda"), cost))["P5.4a"]


@pytest.mark.parametrize("label", ["prune-act_mag-row-0.5", "prune-act_mag-row-0.7", "prune-act_mag-2of4"])
def test_against_magnitude_the_verdict_turns_at_15_percent_of_any_setting(tmp_path, label):
    assert against_magnitude(tmp_path / "enough", {label: 0.16}).status == "holds"
    assert against_magnitude(tmp_path / "less", {label: 0.14}).status == "fails"


def test_a_saving_whose_interval_holds_0_is_not_enough(tmp_path):
    verdict = against_magnitude(tmp_path, {"prune-act_mag-row-0.6": 0.16}, size=0.9)
    assert verdict.status == "fails"
    assert "60%" in verdict.evidence


def test_against_magnitude_all_four_settings_are_needed(tmp_path):
    specs = at_every_setting("magnitude", "wanda")[:-1]
    costs = {"magnitude": 0.8, "act_mag": 0.4}
    assert "P5.4a" not in judged(compressed(tmp_path / "few", specs, lambda p, s, t: costs[p.score] * ripple(s)))


def test_what_a_study_asks_for_and_lacks_is_open(tmp_path):
    specs, costs = at_every_setting("magnitude", "wanda"), {"magnitude": 0.8, "act_mag": 0.4}
    study = compressed(tmp_path, specs, lambda p, s, t: costs[p.score] * ripple(s))
    save_table(tmp_path, "compressions", study.compressions.filter(pl.col("label") != specs[-1].label))
    verdict = judged(analysis.load(tmp_path))["P5.4a"]
    assert (verdict.status, "2:4: needs another method" in verdict.evidence) == ("open", True)


def test_a_claim_names_the_points_that_it_means(tmp_path):
    assert "At 50, 60, 70% and 2:4 wanda has at least 15% less" in against_magnitude(tmp_path / "a", {}).claim
    verdict = against_published(tmp_path / "b", {"home": 0.2, "away": 0.2})
    assert "At 60 and 70% regional-row-refit (not published as such) has" in verdict.claim


def test_magnitude_that_diverges_is_beaten_and_a_method_that_diverges_beats_nothing(tmp_path):
    lost = [("prune-magnitude-tensor-0.7-oneshot", s) for s in (1, 2, 3)]
    verdict = against_magnitude(tmp_path / "magnitude", {}, lost=lost)
    assert verdict.status == "holds"
    assert "70%: wanda stays finite, magnitude diverges" in verdict.evidence
    assert against_magnitude(tmp_path / "wanda", {}, lost=[("prune-act_mag-row-0.7", 2)]).status == "fails"


def test_the_evidence_gives_the_perplexity_reading_beside_the_excess(tmp_path):
    words = against_magnitude(tmp_path, {"prune-act_mag-row-0.5": 0.25}).evidence
    assert "50%: wanda −25% against magnitude" in words
    assert "(perplexity −18%)" in words  # 1 − exp(−0.25 · 0.8)


def against_published(
    directory, saved, *, rivals=RIVALS, texts=("home", "away"), others=0, jitter=0.0, seeds=(1, 2, 3)
):
    """Ours saves ``saved[text]`` of the excess of the best rival, OWL+SparseGPT; ``others`` save nothing.

    Seeds 1, 2, 3 save less, as much and more by a ``jitter``.
    """
    more = [prune(score="act_mag", update="refit"), prune(score="gblm"), prune(score="obs")][:others]
    methods = [*map(prune, rivals), prune(**OURS), *more]
    specs = [p.model_copy(update={"sparsity": s}) for s in (0.6, 0.7) for p in methods]

    def cost(p, seed, text):
        if (p.score, p.update) == ("regional", "refit"):
            return 0.5 * (1 - saved[text] - jitter * (seed - 2)) * ripple(5 * seed)
        best = p.allocation == "owl" or p.label in {m.model_copy(update={"sparsity": p.sparsity}).label for m in more}
        return (0.5 if best else 0.7) * ripple(seed + len(p.label))

    return judged(compressed(directory, specs, cost, texts=texts, seeds=seeds)).get("P5.4b")


def test_against_the_best_published_the_verdict_turns_at_10_percent(tmp_path):
    assert against_published(tmp_path / "enough", {"home": 0.11, "away": 0.11}).status == "holds"
    verdict = against_published(tmp_path / "less", {"home": 0.09, "away": 0.11})
    assert verdict.status == "fails"
    assert "60% on home: regional-row-refit −9.0% against owl+sparsegpt" in verdict.evidence


def test_a_rival_has_to_be_beaten_at_every_damping_that_was_run(tmp_path):
    methods = [*map(prune, RIVALS), prune("sparsegpt", damping=0.1), prune(**OURS)]
    specs = [p.model_copy(update={"sparsity": s}) for s in (0.6, 0.7) for p in methods]

    def cost(p, seed, text):
        return {0.1: 0.42}.get(p.damping, 0.4 if p.score == "regional" and p.update == "refit" else 0.6) * ripple(seed)

    verdict = judged(compressed(tmp_path, specs, cost))["P5.4b"]
    assert verdict.status == "fails"
    assert "regional-row-refit −4.8% against sparsegpt-d0.1" in verdict.evidence


def test_a_text_on_which_a_rival_loses_nothing_says_so_and_not_that_a_method_diverges(tmp_path):
    specs = [p.model_copy(update={"sparsity": s}) for s in (0.6, 0.7) for p in (*map(prune, RIVALS), prune(**OURS))]

    def cost(p, seed, text):
        if text == "away":
            return 0.1 * np.cos(2 * np.pi * (np.arange(16) + seed) / 16)  # no excess on average
        return (0.49 if p.score == "regional" and p.update == "refit" else 0.5) * ripple(seed)

    verdict = judged(compressed(tmp_path, specs, cost))["P5.4b"]
    assert verdict.status == "fails"
    assert "60% on away: the rival's excess isn't surely above 0" in verdict.evidence
    assert "diverges" not in verdict.evidence


def test_out_of_domain_counts_as_much(tmp_path):
    assert against_published(tmp_path / "a", {"home": 0.5, "away": 0.09}).status == "fails"
    assert against_published(tmp_path / "b", {"home": 0.5}, texts=("home",)) is None


@pytest.mark.parametrize("rival", RIVALS)
def test_without_one_of_the_rivals_there_is_no_verdict(tmp_path, rival):
    assert against_published(tmp_path, {"home": 0.5, "away": 0.5}, rivals=[r for r in RIVALS if r != rival]) is None


def test_one_seed_is_said_to_speak_of_windows_alone(tmp_path):
    verdict = against_published(tmp_path, {"home": 0.2, "away": 0.2}, seeds=(1,))
    assert "one calibration seed" in verdict.evidence


def test_what_is_sure_alone_but_not_with_the_choice_of_methods_is_open(tmp_path):
    # Student's t of 2 degrees: 0.15 · √3 / 0.045 = 5.8, a p of 0.03.
    few = {"home": 0.15, "away": 0.15}
    found = [against_published(tmp_path / str(n), few, others=n, jitter=0.045) for n in (0, 3)]
    assert [v.status for v in found] == ["holds", "open"]
    assert "not sure with the choice of 4 methods" in found[1].evidence


def kept(directory, best, rules=RULES):
    specs = [QuantizeSpec(bits=3, kept=0.0035, keep_by=rule) for rule in rules]
    cost = dict.fromkeys(rules, 0.4) | {"fisher": 0.4 * (1 - best)}
    study = compressed(directory, specs, lambda q, s, t: cost[q.keep_by] * ripple(s + len(q.keep_by)), texts=("home",))
    return judged(study).get("P5.4c")


def test_of_kept_weights_the_verdict_turns_at_15_percent_against_every_other_rule(tmp_path):
    assert kept(tmp_path / "enough", 0.16).status == "holds"
    assert kept(tmp_path / "less", 0.14).status == "fails"
    assert kept(tmp_path / "few", 0.5, ("fisher", "magnitude", "random")) is None


def test_a_study_is_asked_only_what_it_compresses(tmp_path, made):
    specs = [QuantizeSpec(bits=3), QuantizeSpec(bits=4)]
    assert not judged(compressed(tmp_path / "bits", specs, lambda q, s, t: 1 / q.bits))
    rules = [QuantizeSpec(bits=3, kept=0.0035, keep_by=rule) for rule in RULES]
    assert set(judged(compressed(tmp_path / "rules", rules, lambda q, s, t: 0.3 * ripple(s)))) == {"P5.4c"}
    assert not {v for v in judged(analysis.load(made)) if v.startswith("P5.4")}


def full(directory):
    """Pruning and quantization with blocks' errors; ours is best, SparseGPT next."""
    specs = [prune(m, sparsity=s) for m in ("magnitude", "wanda", "sparsegpt") for s in (0.5, 0.6, 0.7)]
    specs += [prune(**OURS, sparsity=s) for s in (0.5, 0.6, 0.7)]
    specs += [QuantizeSpec(bits=b, kept=0.0035, keep_by=k) for b in (3, 4) for k in RULES]
    costs = {"magnitude": 1.0, "act_mag": 0.5, "obs": 0.4, "regional": 0.3, "tacq": 0.2, "fisher": 0.25,
             "grad_x_weight_abs": 0.3, "random": 0.6}  # fmt: skip

    def cost(p, seed, text):
        if isinstance(p, QuantizeSpec):
            return costs[p.keep_by] / p.bits**2 * ripple(seed + len(p.label))
        return costs[p.score] * p.sparsity**3 * ripple(seed + len(p.label))

    return compressed(
        directory, specs, cost, blocks=lambda p, s: [costs[p.score] * p.sparsity * (i + 1) for i in range(4)]
    )


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    return full(tmp_path_factory.mktemp("compressed"))


def test_the_report_answers_with_what_was_planted(study):
    sections = {s.id: s for s in answered(study, set(charts(study)))}
    assert list(sections)[:5] == ["excess", "against", "front", "factors", "block_errors"]
    assert "At 50% regional-row-refit loses least" in sections["excess"].answer
    assert "regional-row-refit has −25% [−2" in sections["against"].answer
    assert "regional-row-refit at 70%" in sections["front"].answer
    assert "Prune, at equal size: ρ 1.00" in sections["block_errors"].answer
    html = analysis.write_report(study).read_text()
    for section in sections.values():
        assert f'id="{section.id}"' in html
        assert section.answer.replace("'", "&#39;") in html
        assert section.figures
        assert all(len(row) == len(t.columns) for t in section.tables for row in t.rows)
    assert "What does compressing made-up cost?" in html
    assert "3 bits g64 0.35% kept: tacq −20% against fisher" in html  # the verdict's evidence


def test_a_study_that_also_damages_is_asked_about_its_weights_too(tmp_path):
    study = compressed(tmp_path, [prune("wanda")], lambda *_: 0.1, perturbations=(PerturbSpec(kind="zero"),))
    assert {"P2.7a", "P3.7"} <= set(judged(study))


def test_every_figure_of_compressions_is_labelled_and_no_wider_than_a_phone(study):
    found = charts(study)
    assert set(found) == {
        "excess", "excess_bits", "savings", "savings_bits", "front_sparsity", "front_bits", "factors", "block_errors",
    }  # fmt: skip
    for name, chart in found.items():
        assert all(len(axis) >= 2 for axis in labels(drawn(chart))), name
        assert float(drawn(chart, 100).get("width")) <= PHONE, name


def test_the_terminal_tells_each_method_and_setting_in_80_columns(study):
    console = Console(width=80, record=True)
    analysis.print_summary(study, console)
    lines = console.export_text().splitlines()
    assert max(map(len, lines)) <= 80
    row = next(line.split() for line in lines if "regional-row-refit" in line)
    assert row[1:] == ["0.0375", "0.0648", "0.103"]  # 0.3 · sparsity³
    assert any("P5.4c" in line for line in lines)


def test_tables_are_written_as_latex(study):
    written = {file.name: file.read_text() for file in analysis.save_tables(study).glob("*.tex")}
    assert any(name.startswith("against-") for name in written)
    assert r"regional-row-refit & sparsegpt, the best" in "".join(written.values())
    assert all(text.startswith(r"\begin{tabular}") for text in written.values())
