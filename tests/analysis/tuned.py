"""Studies of tunings whose every window is planted, written row by row."""

from datetime import UTC, datetime

import numpy as np

import analysis
from esa_ray.spec import DataSpec, ModelSpec, StudySpec, grouped
from esa_ray.spec.tuning import TuneSpec
from esa_ray.storage.store import Store
from tests.analysis.synthetic import save_table

TOKENS, VALIDATION, WEIGHTS, BLOCKS = 100, 4, 1000, 3
#: Loss of the intact model, nats per token.
RATE = {"target": 3.0, "source": 2.0}


def tuned(
    directory, specs, change, *, seeds=(1, 2, 3), windows=(16, 12), validation=None, moves=None, fails=(), **spec
):
    """A study whose tunings change the loss by ``change(spec, seed, text, step)`` nats per token; None: diverged.

    ``change`` gives a number, or one a window. The intact model has RATE[text] nats per token on average;
    ``windows`` are evaluation windows of target and source, ``validation(spec, seed)`` the validation loss of the last
    step (else the target's own). ``moves(spec, seed)`` gives norms by block and by component (q, down). Trainings in
    ``fails``, (label, seed), have an error and no more.
    """
    store, (target, source) = Store(directory), windows
    asked = StudySpec(
        name="made", model=ModelSpec(source="made-up"), data=DataSpec(source="home", evaluation_windows=source),
        target=DataSpec(source="away", evaluation_windows=target), seeds=seeds, tunings=tuple(specs), scores=(), **spec,
    )  # fmt: skip
    resolved = {"model": "f" * 64, "dtype": "fp32", "text": "t", "bos": True, "windows": 200, "pool": 190,
                "parameters": 1000, "layers": BLOCKS, "architecture": "Made"}  # fmt: skip
    store.save_study(asked, resolved, {"esa-ray": "0"})
    common = {
        "study": "made", "model": "m", "dtype": "fp32", "data": "home", "target": "away", "device": "here",
        "version": "v", "created": datetime.now(UTC), "seconds": 1.0, "status": "ok", "n_weights": WEIGHTS,
    }  # fmt: skip
    base = {text: TOKENS * (RATE[text] + np.linspace(-0.2, 0.2, n))
            for text, n in zip(RATE, windows, strict=True)}  # fmt: skip
    rows = [common | _measured(base, dict.fromkeys(RATE, 0.0)) | {
        "tuning_id": "intact", "label": "intact", "way": "intact", "steps": 0, "last": True,
    }]  # fmt: skip
    for each in specs:
        for seed in seeds:
            did = common | _asked(each, seed)
            if (each.label, seed) in fails:
                rows.append(did | {"status": "error", "error": "out of memory"})
                continue
            for step in each.looked:
                row = _look(each, seed, step, base, change, validation, moves)
                rows.append(did | row)
                if row.get("status") == "diverged":
                    break
    save_table(directory, "tunings", rows)
    return analysis.load(directory)


def _asked(spec, seed):
    trainable = WEIGHTS if spec.arm == "full" else int(spec.fraction * WEIGHTS)
    return {
        "tuning_id": f"{spec.label}{seed}", "label": spec.label, "way": spec.way, "arm": spec.arm,
        **{name: None if name in spec.unused() else getattr(spec, name) for name in ("fraction", "score", "draw")},
        "learning_rate": spec.learning_rate, "protect": spec.protect, "strength": spec.dose, "rescore": spec.rescore,
        "damage": spec.damage.label if spec.damage else None, "damaged": spec.damaged if spec.damage else None,
        "seed": seed, "components": ",".join(grouped(spec.components)), "trainable": trainable,
        "rank": 2 if spec.arm == "lora" else None,
    }  # fmt: skip


def _look(spec, seed, step, base, change, validation, moves):
    last = step == spec.steps
    changed = {text: change(spec, seed, text, step) for text in RATE}
    if any(c is None for c in changed.values()):
        return {"steps": step, "last": last, "status": "diverged", "target_nll": [float("nan")] * len(base["target"])}
    valid = validation(spec, seed) if validation else RATE["target"] + np.mean(changed["target"])
    row = _measured(base, changed) | {
        "steps": step, "last": last, "train_nll": 2.5, "n_changed": 10, "delta_norm": 1.0,
        "validation_nll": [TOKENS * valid] * VALIDATION, "validation_tokens": [TOKENS] * VALIDATION,
    }  # fmt: skip
    if last and moves:
        blocks, components = moves(spec, seed)
        row |= {"block_moved": list(blocks), "component_moved": list(components), "moved_components": ["q", "down"],
                "delta_norm": float(np.linalg.norm(blocks))}  # fmt: skip
    return row


def _measured(base, changed):
    found = {}
    for text, nll in base.items():
        found[f"{text}_nll"] = (nll + TOKENS * np.asarray(changed[text])).tolist()
        found[f"{text}_tokens"] = [TOKENS] * len(nll)
    return found


def arms(rate=1e-3, fraction=0.01, draws=(0, 1), **more):
    """Full tuning and every sparse arm at one rate, random masks with some draws."""
    names = ("lora", "critical-source", "critical-target", "magnitude", "bottom")
    sparse = [TuneSpec(arm=arm, fraction=fraction, learning_rate=rate, **more) for arm in names]
    drawn = [TuneSpec(arm="random", fraction=fraction, draw=d, learning_rate=rate, **more) for d in draws]
    return [TuneSpec(learning_rate=rate, **more), *sparse, *drawn]
