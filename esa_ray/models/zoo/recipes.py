"""What the zoo's models are: their architectures, their sizes, and how each is trained. No torch here."""

from __future__ import annotations

import platform
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from pydantic import Field

from esa_ray.errors import EsaError
from esa_ray.host.machine import cache_dir
from esa_ray.identity import digest
from esa_ray.spec.base import Spec

#: How a model of the zoo is named where any model can be: zoo:llama-1m.
PREFIX = "zoo:"

#: What a recipe means may change with the code: then this number does.
RECIPE_VERSION = 1

Architecture = Literal["llama", "neox", "mixtral"]

#: Size → blocks and width, for 12 · blocks · width² parameters in the blocks, about.
SIZES: dict[str, tuple[int, int]] = {"0.1m": (2, 64), "0.3m": (3, 96), "1m": (5, 128), "3m": (7, 192), "10m": (8, 320)}
HEAD = 32
#: Tokens that every model sees, how many more of them a tuned one sees afterwards, and tokens a window.
TOKENS, TUNING_SHARE, WINDOW = 500_000, 0.2, 256
EXPERTS, CHOSEN = 8, 2
#: Families of the zoo: an architecture, or one that is then tuned on instructions.
FAMILIES: tuple[str, ...] = ("llama", "neox", "mixtral", "llama-instruct")
#: A family, a size, and perhaps a length of training and a seed. Seed 0 has one name, without it.
NAME = re.compile(
    r"(?P<family>.*)-(?P<size>[^-@~]*)(@(?P<n>[1-9]\d{0,4})(?P<unit>[km]))?(~(?P<seed>[1-9]\d{0,3}))?", re.ASCII
)


class Recipe(Spec):
    """All that makes a model of the zoo what it is; two with the same recipe are the same model, on one machine.

    ``tokens`` are those of training on text, in windows of ``window`` tokens, ``batch`` windows a step; ``rate`` is the
    peak learning rate. ``tuning_tokens`` are those of training on instructions afterwards (0: none). ``text`` is the
    version of Python whose docstrings are the text (:mod:`esa_ray.models.zoo.text`).

    >>> recipe("llama-1m").layers, recipe("llama-1m").width
    (5, 128)
    """

    architecture: Architecture
    layers: int = Field(ge=1)
    width: int = Field(ge=HEAD, multiple_of=HEAD)
    tokens: int = Field(ge=1)
    tuning_tokens: int = Field(default=0, ge=0)
    window: int = Field(ge=8)
    batch: int = Field(default=1, ge=1)
    rate: float = Field(gt=0)
    seed: int = Field(default=0, ge=0)
    text: str = Field(default_factory=platform.python_version)
    version: int = RECIPE_VERSION

    @property
    def inner(self) -> int:
        """Width of the feed-forward layer (of each expert), so that every architecture has the same parameters."""
        whole = {"llama": 8 * self.width / 3, "neox": 4 * self.width, "mixtral": 8 * self.width / 3 / EXPERTS}
        return 4 * round(whole[self.architecture] / 4)

    @property
    def tuning(self) -> str:
        """Whether it was also trained on instructions."""
        return "instruct" if self.tuning_tokens else "base"

    @property
    def identity(self) -> str:
        """A name for all of this; the defaults of text and version are others in time."""
        return digest(self.content() | {"text": self.text, "version": self.version})


def recipe(name: str) -> Recipe:
    """The recipe of a model of the zoo, by its name: a family and a size.

    With so little text a step of one window beats larger ones (llama-3m, held-out nats per byte: 1.94 with four windows
    a step and 1.81 with two, both at a rate of 2.9e-3, 1.71 with one at 2.0e-3), and the best rate falls with width
    faster than widths rise (of the rates that were tried: 2.5e-3 for llama-1m, 0.9e-3 for llama-3m, 0.6e-3 for
    llama-10m).

    ``@`` and a number of tokens behind it ask for another length of training: ``llama-1m@2m``. Instruction tuning takes
    a fifth of it. ``~`` and a number in the end ask for another seed of weights and order of text: ``llama-1m~3``,
    ``llama-1m@2m~3``; without it the seed is 0.

    Raises
    ------
    EsaError
        If there is none of that name.

    Example
    -------
    >>> recipe("neox-0.1m@50k").tokens, recipe("neox-0.1m@50k~3").seed
    (50000, 3)
    """
    named = NAME.fullmatch(name)
    if not named or named["family"] not in FAMILIES or named["size"] not in SIZES:
        raise EsaError(
            f"the zoo has no model {name!r}; a name is one of {', '.join(FAMILIES)}, a dash, and one of "
            f"{', '.join(SIZES)}, and may end in @ and tokens to train on, as in llama-1m@2m, and in ~ and a seed from "
            "1 to 9999, as in llama-1m~3"
        )
    tokens = int(named["n"]) * {"k": 1_000, "m": 1_000_000}[named["unit"]] if named["n"] else TOKENS
    layers, width = SIZES[named["size"]]
    architecture, _, tuned = named["family"].partition("-")
    return Recipe.model_validate(
        {
            "architecture": architecture, "layers": layers, "width": width, "window": WINDOW, "tokens": tokens,
            "rate": min(4e-3, 2.5e-3 * (128 / width) ** 1.6),
            "tuning_tokens": round(TUNING_SHARE * tokens) if tuned else 0, "seed": int(named["seed"] or 0),
        }
    )  # fmt: skip


def names(families: Sequence[str] = FAMILIES, sizes: Sequence[str] = tuple(SIZES)) -> list[str]:
    """The zoo's models of these families and sizes.

    >>> names(["neox"], ["0.1m", "1m"])
    ['neox-0.1m', 'neox-1m']
    """
    found = [f"{family}-{size}" for family in families for size in sizes]
    for name in found:
        recipe(name)
    return found


def base(name: str) -> str | None:
    """The model that an instruction-tuned one starts from; None for the others.

    >>> base("llama-instruct-1m")
    'llama-1m'
    """
    return name.replace("-instruct", "") if recipe(name).tuning_tokens else None


def plain(name: str) -> str:
    """A model's name without the length of its training and its seed.

    >>> plain("llama-1m@2m"), plain("llama-1m~3")
    ('llama-1m', 'llama-1m')
    """
    return re.split("[@~]", name, maxsplit=1)[0]


def trained() -> list[str]:
    """The models that are trained here, by name, with those of another length of training or another seed."""
    there = (file.parent.name.rpartition("-")[0] for file in (cache_dir() / "zoo").glob("*/zoo.json"))
    return sorted(name for name in there if _is_one(name) and directory(name).is_dir())


def _is_one(name: str) -> bool:
    try:
        recipe(name)
    except EsaError:
        return False
    return True


def directory(name: str) -> Path:
    """Where a trained model lies, or will: in the cache, under its recipe."""
    return cache_dir() / "zoo" / f"{name}-{recipe(name).identity}"
