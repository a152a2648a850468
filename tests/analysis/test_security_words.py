"""What the report says of faults and attacks where hardly anything, or nothing, happened."""

import pytest
from rich.console import Console

import analysis
from analysis.report.figures.attacks import DASHES, banded, survival_curve
from analysis.report.sections.attacks import attacked
from analysis.report.sections.faults import broken, protected
from analysis.report.sections.flips import covered, foretold, vulnerable
from analysis.report.wording import percent
from esa_ray.spec import ATTACKS, AttackSpec, FaultSpec
from tests.analysis.attacked import attack, flipped, injected, written


def printed(study):
    console = Console(width=80, record=True)
    analysis.print_summary(study, console)
    return " ".join(console.export_text().split())


def broken_by(directory, breaks):
    """Single flips of 8 bits in 2 components × 4 ranges, 8 of each, of which the first so many of bit 7 break."""
    left = iter(range(breaks))

    def outcome(component, stratum, bit, number):
        broke = bit == 7 and stratum == "0.999-1.00" and next(left, None) is not None
        return (1.0 if broke else 0.0), None, 0.1

    rows = flipped("int8", outcome, repeats=4 if breaks < 16 else 10)
    return written(directory, [FaultSpec(fault="single", dtype="int8")], rows=rows, seeds=(1, 2))


def test_one_break_says_its_small_chance_and_that_no_share_can_be_told(tmp_path):
    study = broken_by(tmp_path, 1)
    # Of 10,000 weights 5 are in the range and component, of 8 bits one broke, in one of 8 flips: 5/10,000/8/8.
    assert "chance of 0.00078% [0.0%, " in vulnerable(study).answer
    assert "of all bits 0.00078% do" in printed(study)
    assert covered(study).answer == (
        "In int8 1 flip broke the model: too few to tell how few weights hold 90% of the vulnerability; 90% of the "
        "harm that flips do short of that take 0.1% of the weights, the smallest share tried that holds as much."
    )
    (verdict,) = [v for v in analysis.verdicts(study) if v.id == "P5.4i"]
    assert verdict.evidence.endswith("too few flips broke it to tell the smallest share that holds 90%")


@pytest.mark.parametrize(("breaks", "told"), [(35, False), (36, True)])
def test_a_share_of_90_percent_takes_36_breaks(tmp_path, breaks, told):  # 0.9³⁵ > 0.025 > 0.9³⁶
    assert ("smallest share tried that holds 90%" in covered(broken_by(tmp_path, breaks)).answer) == told


@pytest.mark.parametrize(
    ("share", "said"),
    [(0.0005, "0.1%"), (0.00049, "0.049%"), (1.04e-5, "0.0010%"), (9e-7, "9.0×10⁻⁷"), (0.0, "0.0%"), (1.0, "100.0%")],
)
def test_a_small_share_isnt_rounded_to_none(share, said):
    assert percent(share) == said


def unhit(directory, flips):
    specs = [FaultSpec(fault="row", rate=1e-5, repeats=4), FaultSpec(rate=1e-5, repeats=5)]
    rows = injected(specs[0], (1, 2), 0, changed=False, n_flips=flips) + injected(specs[1], (1, 2), 3)
    return written(directory, specs, rows=rows, seeds=(1, 2))


def test_where_no_bit_was_hit_that_is_said_and_counts_as_no_trial(tmp_path):
    study = unhit(tmp_path, 0)
    section = broken(study)
    said = "Not a single bit was hit by row faults at 1e-05 in bf16, so these injections tell nothing: ask for"
    assert section.answer.startswith("Without protection 3 of 10 injections broke the model.")
    assert said in section.answer
    assert said in printed(study)
    assert "no hit" in printed(study)
    assert [row[6] for row in section.tables[0].rows] == ["30.0%", "no hit"]


def test_where_bits_were_hit_and_nothing_broke_the_chance_is_told(tmp_path):
    study = unhit(tmp_path, 2)
    assert "Without protection 3 of 18 injections" in broken(study).answer
    assert "Not a single bit" not in broken(study).answer
    assert "no hit" not in printed(study)


def test_all_that_was_asked_hit_nothing(tmp_path):
    spec = FaultSpec(fault="column", rate=1e-9, repeats=4)
    study = written(tmp_path, [spec], rows=injected(spec, (1,), 0, changed=False, n_flips=0), seeds=(1,))
    assert broken(study).answer.startswith("Not a single bit was hit by column faults at 1e-09 in bf16")


def test_error_correction_is_held_against_what_adds_no_bits_in_a_sentence(tmp_path):
    specs = [FaultSpec(rate=1e-5, protect=p, repeats=20) for p in ("none", "clamp", "secded")]
    rows = [row for s, n in zip(specs, (40, 40, 0), strict=True) for row in injected(s, (1, 2), n)]
    assert (
        "the model behind error correction surely breaks less often in 1 of 1 comparison, and surely more often in "
        "none." in protected(written(tmp_path, specs, rows=rows, seeds=(1, 2))).answer
    )


def test_what_single_flips_foretell_is_said_to_agree_where_it_lies_in_the_interval(tmp_path):
    rows = flipped("bf16", lambda c, s, b, n: (0.0, None, 0.01))
    specs = [FaultSpec(rate=1e-5, protect=p, repeats=20) for p in ("none", "clamp")]
    rows += injected(specs[0], (1, 2), 0) + injected(specs[1], (1, 2), 20)  # foretold: never
    study = written(tmp_path, [FaultSpec(fault="single"), *specs], rows=rows, seeds=(1, 2))
    assert "lies, for 1 of 2 combinations of dtype, rate and protection." in foretold(study).answer


def runs_of(directory, **counts):
    """Runs of arms: flips to collapse by seed, None where 12 were withstood."""
    specs = [AttackSpec(arm=name.replace("_", "-"), dtype="int8", budget=12) for name in counts]
    rows = [row for spec, each in zip(specs, counts.values(), strict=True) for seed, n in enumerate(each, 1)
            for row in attack(spec, seed, n or 12, collapses=n is not None)]  # fmt: skip
    return written(directory, attacks=specs, attacked=rows, seeds=(1, 2))


def test_an_arm_whose_median_isnt_reached_is_told_with_the_runs_that_collapsed(tmp_path):
    study = runs_of(tmp_path, guided=(1, 1), random=(6, None), guided_super=(1, 1))
    section = attacked(study)
    assert "half or fewer of the runs of random (1 of 2) collapsed the model within the budget" in section.answer
    captions = {f.chart: f.caption for f in section.figures}
    # Both runs of guided-super end at once: only random has a stretch where some have and others haven't.
    assert captions["withstood_int8_unrestricted"].endswith("withstood so many flips, with 95% bands of random.")
    assert captions["withstood_bf16_unrestricted"].endswith("withstood so many flips.")
    assert banded(study, "int8", "unrestricted") == ["random"]


def test_lines_that_coincide_differ_in_their_dashes(tmp_path):
    chart = survival_curve(runs_of(tmp_path, guided=(1, 2), guided_super=(1, 2)), "int8", "unrestricted").to_dict()
    (line,) = [layer for layer in chart["layer"] if layer["mark"]["type"] == "line"]
    scale = line["encoding"]["strokeDash"]["scale"]
    assert dict(zip(scale["domain"], scale["range"], strict=True)) == {"guided": [1, 0], "guided-super": [14, 10]}
    assert len({*map(tuple, DASHES)}) == len(DASHES) >= len(ATTACKS)
