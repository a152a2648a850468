"""Where sites are in a model's modules."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import cache, partial
from typing import TYPE_CHECKING, Any, cast
from weakref import WeakKeyDictionary

from torch import Tensor, nn

from esa_ray.errors import EsaError
from esa_ray.models.addressing import catalogue
from esa_ray.models.attending import Act, attending, attention_of, own_modules
from esa_ray.models.blocks import stack
from esa_ray.models.final_norm import FinalNorm, final_norm
from esa_ray.models.forwards import catching, hidden, idle
from esa_ray.models.hooks import entering, leaving, state_of, with_state
from esa_ray.models.sites import ATTENTION, Site

if TYPE_CHECKING:
    from transformers import PreTrainedModel

#: Sub-layer → the component whose output is all that it gives.
LAST = {"attention": "o", "mixer": "mixer_out", "ffn": "down"}
#: Lets a function see, or change, what stands at a place for the length of a ``with`` block.
Watch = Callable[[Act], AbstractContextManager[None]]


class Places:
    """Where the sites of a model are; what is looked for once is kept.

    Raises
    ------
    EsaError
        If the model has no one list of blocks.
    """

    def __init__(self, model: PreTrainedModel):
        self.name = type(model).__name__
        self.blocks = stack(model)[1]
        self._modules = _inner(model)
        self._tensors = catalogue(model).tensors
        self._last = cache(self._owners)
        self.attention = cache(self._attention)
        self._norm: FinalNorm | None = None

    def still_of(self, model: PreTrainedModel) -> bool:
        """Whether the model has the modules that it was looked through with."""
        return self._modules == _inner(model)

    def norm(self, model: PreTrainedModel) -> FinalNorm:
        """The final norm."""
        if self._norm is None:
            self._norm = final_norm(model)
        return self._norm

    def _attention(self, layer: int) -> nn.Module:
        return attention_of(self.block(layer), f"block {layer} of {self.name}")

    def block(self, layer: int) -> nn.Module:
        """A block by its number."""
        if not 0 <= layer < len(self.blocks):
            raise EsaError(f"{self.name} has no block {layer}: they go from 0 to {len(self.blocks) - 1}")
        return self.blocks[layer]

    def matrix(self, layer: int, part: str) -> nn.Module:
        """The module of the one matrix whose output is all that a sub-layer of a block gives.

        Raises
        ------
        EsaError
            If the block has no such sub-layer, or what it gives is the sum of several.
        """
        owners = self._last(layer, part)
        if len(owners) != 1 or any(owners.values()):
            why = "sums up several matrices there" if owners else "has none"
            raise EsaError(f"{self.name} can't show the {part} of block {layer}: it {why}; ask for the residual stream")
        return next(iter(owners))

    def sublayer(self, layer: int, part: str) -> nn.Module:
        """The module whose output is all that a sub-layer of a block gives: of one matrix its own, else what holds all.

        Raises
        ------
        EsaError
            If there is none.
        """
        mine = set(self._last(layer, part))
        others = {owner for other in LAST if other != part for owner in self._last(layer, other)}
        if len(mine) > 1 or any(self._last(layer, part).values()):
            for name, module in self.block(layer).named_modules():
                inside, listed = set(module.modules()), isinstance(module, nn.ModuleList | nn.ModuleDict)
                if name and not listed and mine <= inside and not others & inside:
                    return module
        return self.matrix(layer, part)  # which says why not, where it is none

    def _owners(self, layer: int, part: str) -> dict[nn.Module, bool]:
        """The modules in a block that own a sub-layer's last matrices, and whether these are of experts."""
        inside = set(own_modules(self.block(layer)).values())
        return {
            slot.owner: tensor.experts or tensor.expert is not None
            for tensor in self._tensors
            if any(p.component == LAST[part] for p in tensor.parts)
            for slot in tensor.slots
            if slot.owner in inside
        }


_known: WeakKeyDictionary[nn.Module, Places] = WeakKeyDictionary()


def _inner(model: nn.Module) -> list[nn.Module]:
    """All modules but the model itself, which nothing that is kept may keep alive."""
    return list(model.modules())[1:]


def places(model: PreTrainedModel) -> Places:
    """Where a model's sites are, looked for anew where its modules aren't those of the last time.

    Raises
    ------
    EsaError
        If the model has no one list of blocks.
    """
    found = _known.get(model)
    if found is None or not found.still_of(model):
        found = _known[model] = Places(model)
    return found


def watch(model: PreTrainedModel, where: Places, site: Site, *, held: bool) -> Watch:
    """What lets a function see, or change, all that stands at the place of a site, whatever its index.

    ``held`` says that it is changed: a block that only hands through then raises, as nothing would be held there.

    Raises
    ------
    EsaError
        If the model has no such place.
    """
    if site.kind == "denominator":
        return where.norm(model).dividing
    if site.layer is None:
        return partial(_logits, model, site, held)
    if site.kind == "residual":
        first = site.layer == -1
        block = where.block(0 if first else site.layer)
        return partial(_entered if first else _left, block, held)
    if site.kind in ATTENTION:
        watched: Callable = partial(attending, where.attention(site.layer), site.kind)
    elif site.kind == "neurons":
        watched = partial(_input, where.matrix(site.layer, "ffn"))
    else:
        watched = partial(_output, where.sublayer(site.layer, site.kind))
    return partial(_inside, where.block(site.layer), held, watched)


@contextmanager
def _entered(block: nn.Module, _: bool, act: Act) -> Iterator[None]:
    def see(args: tuple, kwargs: dict) -> tuple[tuple, dict] | None:
        if (new := act(hidden(args, kwargs))) is None:
            return None
        return ((new, *args[1:]), kwargs) if args else (args, kwargs | {"hidden_states": new})

    with entering(block, see):
        yield


@contextmanager
def _left(block: nn.Module, held: bool, act: Act) -> Iterator[None]:
    def see(_: tuple, __: dict, output: Any) -> Any:
        if _runs(block, held):
            new = act(state_of(output))
            return None if new is None else with_state(output, new)
        return None

    with leaving(block, see):
        yield


def _runs(block: nn.Module, held: bool) -> bool:
    if idle(block) and held:
        raise ValueError("something is held in a block that only hands through: resume at that block, or before it")
    return not idle(block)


@contextmanager
def _inside(block: nn.Module, held: bool, watched: Callable, act: Act) -> Iterator[None]:
    """Let a function see what it watches while a block runs: modules may be shared by several."""
    shape: list[tuple[int, ...]] = []

    def enter(args: tuple, kwargs: dict) -> None:
        shape[:] = [tuple(hidden(args, kwargs).shape[:2])] if _runs(block, held) else []

    def leave(*_: Any) -> None:
        shape.clear()

    def see(there: Tensor) -> Tensor | None:
        if not shape:
            return None
        if there.dim() > 2:
            return act(there)
        new = act(there.view(*shape[0], -1))  # some models lay windows end to end
        return None if new is None else new.view(there.shape)

    with entering(block, enter), leaving(block, leave), watched(see):
        yield


@contextmanager
def _input(module: nn.Module, act: Act) -> Iterator[None]:
    def see(args: tuple, kwargs: dict) -> tuple[tuple, dict] | None:
        new = act(args[0])
        return None if new is None else ((new, *args[1:]), kwargs)

    with entering(module, see):
        yield


@contextmanager
def _output(module: nn.Module, act: Act) -> Iterator[None]:
    def see(_: tuple, __: dict, output: Any) -> Any:
        new = act(state_of(output))
        return None if new is None else with_state(output, new)

    with leaving(module, see):
        yield


@contextmanager
def _logits(model: PreTrainedModel, site: Site, held: bool, act: Act) -> Iterator[None]:
    def see(_: tuple, __: dict, output: Any) -> Any:
        if catching(model.get_output_embeddings()):
            if held:
                raise ValueError("logits are held, but this pass makes none: measure it with head_shortcut=False")
            return output
        new = act(output.logits) if site.direction is None else _projected(site.direction.unit, act, output.logits)
        if new is not None:
            output.logits = new
        return output

    with leaving(cast(nn.Module, model), see):
        yield


def _projected(unit: Tensor, act: Act, logits: Tensor) -> Tensor | None:
    """Logits whose projection on a direction is what ``act`` makes of it."""
    unit = unit.to(logits.device, logits.dtype)
    own = logits @ unit
    held = act(own)
    return None if held is None else logits + (held - own)[..., None] * unit
