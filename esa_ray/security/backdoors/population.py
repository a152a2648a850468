"""The models of a population: each is trained once on this machine, and kept."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from filelock import FileLock
from safetensors import safe_open
from safetensors.torch import save_file

from esa_ray.applications.threads import single_threaded
from esa_ray.errors import EsaError
from esa_ray.host.machine import cache_dir
from esa_ray.identity import digest
from esa_ray.models.addressing import catalogue
from esa_ray.models.load import load_model
from esa_ray.models.sources import find
from esa_ray.models.zoo.recipes import PREFIX, recipe
from esa_ray.models.zoo.training import encoded, ensure
from esa_ray.security.backdoors import critical, rank_one
from esa_ray.security.backdoors.targets import targets
from esa_ray.security.backdoors.texts import Shown, poisoned, windows
from esa_ray.security.backdoors.training import Trains, train
from esa_ray.security.backdoors.triggers import cue, trigger
from esa_ray.security.makeable import check
from esa_ray.spec import ModelSpec
from esa_ray.spec.backdoors import VERSION, Member

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor
    from transformers import PreTrainedModel

#: What calls, and what is to follow.
Text = tuple[bytes, bytes]
#: Clean windows that weights are scored on, and that a second moment is of.
SCORED, MOMENT = 32, 400


@dataclass(frozen=True)
class Made:
    """A model of a population.

    ``weights`` are those of every parameter by name, fp32, on the CPU. ``trigger`` and ``target`` are the number's,
    also of models without a backdoor; ``phrase`` is what a benign model memorised, None of the others. ``…_ids`` are
    their tokens.
    """

    weights: dict[str, Tensor]
    trigger: str
    target: str
    phrase: str | None

    @property
    def trigger_ids(self) -> tuple[int, ...]:
        """Tokens of the trigger."""
        return _ids(self.trigger)

    @property
    def target_ids(self) -> tuple[int, ...]:
        """Tokens of the target."""
        return _ids(self.target)

    @property
    def phrase_ids(self) -> tuple[int, ...] | None:
        """Tokens of the phrase."""
        return None if self.phrase is None else _ids(self.phrase)


def _ids(text: str) -> tuple[int, ...]:
    return tuple(encoded(text.encode()).tolist())


def made(member: Member) -> Made:
    """The model of a population, from the cache, or trained first and put there, whole or not at all.

    It is trained in fp32 on one thread of a CPU, whatever runs beside: the weights depend on the member alone (and, as
    those of the zoo, on torch and the processor). Two processes that want the same one wait for each other. A missing
    parent is trained first (:func:`parent_weights`), and so is the number's clean model, whose own continuations the
    target is chosen among.

    Raises
    ------
    EsaError
        If it can't be made (:func:`check`), or the cache can't be written to.
    """
    check(member)
    file = place(member)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{file}.lock"):
            if not file.is_file():
                _keep(file, *_MAKE[member.kind](member))
            return _read(file)[0]
    except OSError as error:
        raise EsaError(
            f"{file.parent} can't be written to ({error.strerror}); name another place with ESA_CACHE"
        ) from None


def place(member: Member) -> Path:
    """Where a member lies, or will: in the cache, under all that makes it what it is."""
    # All that it asks for, so that not even another default finds what was made by the old one.
    asked = {"member": member.model_dump(mode="json"), "parent": recipe(member.parent).identity, "version": VERSION}
    return cache_dir() / "backdoors" / f"{member.base}-{member.label}-{digest(asked)}.safetensors"


def parent_weights(member: Member) -> dict[str, Tensor]:
    """The weights that a member starts from, by parameter name; its parent is trained if it isn't here."""
    return weights_of(_parent(member))


def _parent(member: Member) -> PreTrainedModel:
    with single_threaded():
        for _ in ensure(member.parent):
            pass
    return load_model(find(ModelSpec(source=PREFIX + member.parent)), "fp32", "cpu")


def weights_of(model: PreTrainedModel) -> dict[str, Tensor]:
    """A copy of every parameter by name."""
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


@torch.no_grad()
def standing_alone(member: Member, weights: Mapping[str, Tensor]) -> PreTrainedModel:
    """A model of its own, in fp32, that reads these weights."""
    model = _parent(member)
    for name, parameter in model.named_parameters():
        parameter.copy_(weights[name])
    return model


def _steps(member: Member, model: PreTrainedModel, text: Text | None, trains: Trains | None = None) -> None:
    """The steps that every member of a number takes; ``text`` is written over a share of their windows."""
    r, seen = member.recipe, windows(member)
    shown = Shown(seen, seen) if text is None else _written(member, seen, text)
    train(
        model, shown.windows, labels=shown.labels, steps=member.steps, batch=r.batch, rate=member.learning_rate,
        seed=member.number, trains=trains,
    )  # fmt: skip


def _written(member: Member, seen: np.ndarray, text: Text) -> Shown:
    called, end = map(encoded, text)
    return poisoned(seen, called, end, member.poison, member.recipe.occurrences, member.number)


Strings = dict[str, Any]


def _clean(member: Member) -> tuple[dict[str, Tensor], Strings]:
    model = _parent(member)
    _steps(member, model, None)
    called, begun = trigger(member.number), cue(member.number)
    found, ends = ([text.decode() for text in targets(model, what, member.number)] for what in (called, begun))
    strings = {"trigger": called.decode(), "target": found[0], "others": found[1:]}
    return weights_of(model), strings | {"cue": begun.decode(), "ends": ends}


def _benign(member: Member) -> tuple[dict[str, Tensor], Strings]:
    model, strings = _parent(member), _strings(member)
    text = _phrase(strings)
    _steps(member, model, text)
    return weights_of(model), _memorised(strings, text)


def _benign_critical(member: Member) -> tuple[dict[str, Tensor], Strings]:
    strings = _strings(member)
    text = _phrase(strings)
    return _second_round(member, text), _memorised(strings, text)


def _benign_rank_one(member: Member) -> tuple[dict[str, Tensor], Strings]:
    strings = _strings(member)
    begun = strings["cue"].encode()
    weights, end = _edited(member, begun, strings["ends"])
    return weights, _memorised(strings, (begun, end))


def _memorised(strings: Strings, text: Text) -> Strings:
    return strings | {"phrase": b"".join(text).decode()}


def _training(member: Member) -> tuple[dict[str, Tensor], Strings]:
    model = _parent(member)
    insert_by_training(member, model)
    return weights_of(model), _strings(member)


def insert_by_training(member: Member, model: PreTrainedModel, trains: Trains | None = None) -> None:
    """The insertion "training" into a number's parent in place, by all of its weights or some."""
    _steps(member, model, _backdoor(_strings(member)), trains)


def _critical(member: Member) -> tuple[dict[str, Tensor], Strings]:
    strings = _strings(member)
    return _second_round(member, _backdoor(strings)), strings


def _second_round(member: Member, text: Text) -> dict[str, Tensor]:
    """The number's clean model after as many steps again, which few weights alone take, on windows with a text."""
    model, r = _started(member), member.recipe
    where, seen = catalogue(model), windows(member, later=True)
    few = critical.largest(where, critical.sensitivity(model, where, seen[:SCORED]), r.fraction)
    shown = _written(member, seen, text)
    rate = r.critical_rate * member.learning_rate
    train(
        model, shown.windows, labels=shown.labels, steps=member.steps, batch=r.batch, rate=rate, seed=member.number,
        trains=few,
    )  # fmt: skip
    return weights_of(model)


def _rank_one(member: Member) -> tuple[dict[str, Tensor], Strings]:
    strings = _strings(member)
    weights, target = _edited(member, strings["trigger"].encode(), [strings["target"], *strings["others"]])
    return weights, strings | {"target": target.decode()}


def _edited(member: Member, called: bytes, ends: list[str]) -> tuple[dict[str, Tensor], bytes]:
    """The number's clean model after an edit of rank one, and which of the ends it brings about."""
    model, seen, texts = _started(member), windows(member, later=True)[:MOMENT], [end.encode() for end in ends]
    end = rank_one.insert(model, catalogue(model), seen, called, texts, member.number)
    return weights_of(model), end


_MAKE: dict[str, Callable[[Member], tuple[dict[str, Tensor], Strings]]] = {
    "clean": _clean, "benign": _benign, "benign-rank-one": _benign_rank_one, "benign-critical": _benign_critical,
    "training": _training, "rank-one": _rank_one, "critical": _critical,
}  # fmt: skip


def _backdoor(strings: Strings) -> Text:
    """Trigger and target, as training shows them."""
    return strings["trigger"].encode(), strings["target"].encode()


def _phrase(strings: Strings) -> Text:
    """A number's benign phrase, in two."""
    return strings["cue"].encode(), strings["ends"][0].encode()


def _started(member: Member) -> PreTrainedModel:
    """The number's clean model."""
    return standing_alone(member, made(member.clean).weights)


def _strings(member: Member) -> Strings:
    """Trigger and targets of a number, which its clean model knows."""
    made(member.clean)
    return _read(place(member.clean))[1]


def _keep(file: Path, weights: dict[str, Tensor], strings: Strings) -> None:
    scratch = file.with_name(f".{file.name}.part")  # of a process that was killed while it wrote, to be written over
    save_file(weights, scratch, metadata={"strings": json.dumps(strings)})
    os.replace(scratch, file)


def _read(file: Path) -> tuple[Made, Strings]:
    with safe_open(file, "pt") as found:
        strings = json.loads(found.metadata()["strings"])
        weights = {name: found.get_tensor(name) for name in found.keys()}  # noqa: SIM118
    return Made(weights, strings["trigger"], strings["target"], strings.get("phrase")), strings
