"""How a model is compressed: which scores decide, over what they compete, and what is done to the weights that stay."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from esa_ray.spec.base import Spec
from esa_ray.spec.metrics import PROBED, SCORES, STATISTICS, members
from esa_ray.spec.scores import check_components, check_metric

CompareWithin = Literal["row", "tensor", "block", "model"]
Allocation = Literal["uniform", "owl", "damage"]
Update = Literal["none", "sparsegpt", "refit"]
KeepBy = Literal["tacq", "grad_x_weight_abs", "fisher", "magnitude", "random"]
Bits = Literal[2, 3, 4, 8]

#: Share of the mean diagonal that is added to a Hessian's diagonal, as SparseGPT and GPTQ do it.
DAMPING = 0.01

#: Scores that only pruning has: of a layer's inputs (obs), and of a block's own gradients (Wanda++, GBLM).
PRUNING_SCORES = {
    "obs": "w² / (2 [H⁻¹]_jj) with H = 2/n Σ x xᵀ (Hassibi & Stork 1993; SparseGPT, arXiv:2301.00774)",
    "regional": "|w| · (100 · G + ‖X_j‖₂), G the RMS gradient of the block output's norm (Wanda++, arXiv:2503.04992)",
    "gblm": "|w| · ‖X_j‖₂ + 100 · |w| · ‖g‖₂ (GBLM-Pruner, arXiv:2311.04902)",
}
#: Rule of keeping weights → the statistic of the intact model's gradients that it needs.
KEEPING: dict[KeepBy, str | None] = {
    "tacq": "gradient", "grad_x_weight_abs": "gradient_abs", "fisher": "gradient_square", "magnitude": None,
    "random": None,
}  # fmt: skip
#: Structures and the components that each spans.
SPANS = {"neuron": ("gate", "up", "down"), "kv": ("q", "k", "v", "o")}
#: Structures that lie in one matrix.
LINES = ("row", "col")
#: All that leave as a whole.
STRUCTURED = (*LINES, *SPANS)
#: Components outside the blocks, whose matrices alone are compressed.
_OUTSIDE = ("embed", "head")
#: What is compressed where nothing is said: attention, MLP and experts; never embeddings, head, norms or routers.
COMPRESSED = check_components(("attention", "gate", "up", "down"))
_N_OF_M = re.compile(r"([1-9][0-9]*):([1-9][0-9]*)")


def n_of_m(pattern: str) -> tuple[int, int] | None:
    """Zeros, and inputs in a row that they are counted in, of a pattern such as ``2:4``; None for other patterns.

    >>> n_of_m("2:4"), n_of_m("unstructured")
    ((2, 4), None)
    """
    found = _N_OF_M.fullmatch(pattern)
    return (int(found[1]), int(found[2])) if found else None


def gradients_of(score: str) -> tuple[str, ...]:
    """The statistics of the intact model's gradients that a score of pruning needs.

    >>> gradients_of("act_mag"), gradients_of("gblm"), gradients_of("act_mag+grad_x_weight_abs")
    ((), ('gradient_square',), ('gradient_abs',))
    """
    if score in PRUNING_SCORES:
        return ("gradient_square",) if score == "gblm" else ()
    needs = {statistic for name in members(score) for statistic in SCORES[name].needs}
    return tuple(s for s, source in STATISTICS.items() if source == "backward" and s in needs)


class _Compression(Spec):
    components: tuple[str, ...] = Field(default=COMPRESSED, min_length=1)

    @field_validator("components")
    @classmethod
    def _known(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        value = check_components(value)
        if outside := [component for component in _OUTSIDE if component in value]:
            raise ValueError(f"{outside[0]} is no matrix of a block, which alone are compressed; leave it out")
        return value

    def _default_of(self, name: str) -> Any:
        # Of two kinds in one list each says which it is.
        return None if name == "kind" else super()._default_of(name)


class PruneSpec(_Compression):
    """One way to prune: a point of score × group × pattern × sparsity × allocation × update × damping.

    The weights with the smallest ``score`` leave, exactly ⌊s·n⌋ of each ``group`` that they compete within: an output
    row, a tensor, a block or the model. ``pattern`` is "unstructured", "N:M" (N of every M contiguous inputs are zero),
    "row" or "col" (of a matrix), "neuron" or "kv" (whole neurons of an MLP, whole groups of heads that share keys and
    values): structures leave as a whole, by the sum of their weights' scores, ⌊s·n⌋ of the n that compete.

    ``allocation`` shares the sparsity out over blocks: alike, by outliers (OWL, arXiv:2310.05175), or by measured
    damage. ``update`` is what happens to the weights that stay: nothing, SparseGPT's update, or the exact least-squares
    refit of each row. With an update, score "obs" within a tensor or of a pattern N:M is SparseGPT's own choice, one
    block of columns after the other. ``damping`` is added to the diagonal of the Hessian of score "obs" and of both
    updates, as a share of the mean diagonal (:func:`esa_ray.applications.hessian.damped`): more of it trusts the
    calibration windows less. Where nothing has a Hessian it is the default. ``sequential``: a block's activations come
    out of the blocks pruned so far, not out of the intact model.

    Example
    -------
    >>> PruneSpec(score="act_mag", sparsity=0.5).label
    'prune-act_mag-row-0.5'
    >>> PruneSpec(score="obs", group="tensor", pattern="2:4", update="sparsegpt").sparsity
    0.5
    """

    kind: Literal["prune"] = "prune"
    score: str = "act_mag"
    group: CompareWithin = "row"
    pattern: str = "unstructured"
    sparsity: float = Field(default=0.5, gt=0, lt=1)
    allocation: Allocation = "uniform"
    update: Update = "none"
    damping: float = Field(default=DAMPING, ge=0, le=100)
    sequential: bool = True

    @field_validator("score")
    @classmethod
    def _a_score(cls, value: str) -> str:
        if value in PRUNING_SCORES:
            return value
        if unknown := [name for name in members(value) if name not in SCORES]:
            names = ", ".join(name for name in (*SCORES, *PRUNING_SCORES) if name not in PROBED)
            raise ValueError(f"{unknown[0]!r} is not one of {names}, or several of the first joined by +")
        value = check_metric(value)
        if probed := [m for m in members(value) if m in PROBED]:
            raise ValueError(f"{probed[0]} is estimated by probes, which tell few weights apart; choose another score")
        return value

    @model_validator(mode="after")
    def _possible(self) -> PruneSpec:
        counted = n_of_m(self.pattern)
        if counted is None and self.pattern not in ("unstructured", *STRUCTURED):
            raise ValueError(f"--pattern {self.pattern} is not unstructured, row, col, neuron, kv or N:M as 2:4")
        if counted:
            n, m = counted
            if n >= m:
                raise ValueError(
                    f"--pattern {self.pattern} leaves no weight; "
                    "N:M prunes N of every M, so N must be below M, as in 2:4"
                )
            if self.allocation != "uniform":
                raise ValueError(f"--pattern {self.pattern} has one sparsity in every block; use --allocation uniform")
            object.__setattr__(self, "sparsity", n / m)
            object.__setattr__(self, "group", "row")  # each M inputs are a group of their own, inside a row
        if self.pattern in STRUCTURED and self.group in ("row", "tensor"):
            object.__setattr__(self, "group", self._default_of("group"))  # within a row there is but one
        spans = SPANS.get(self.pattern, ())
        if lacking := [component for component in spans if component not in self.components]:
            every, more = ", ".join(spans), ",".join(lacking)
            raise ValueError(f"--pattern {self.pattern} spans {every}; add {more} to --components")
        self._check_defined(spans or self.components)
        if self.pattern in STRUCTURED and self.update == "sparsegpt":
            raise ValueError(f"SparseGPT's update chooses weight by weight; with --pattern {self.pattern} use refit")
        if self.group == "model" and self.allocation != "uniform":
            raise ValueError("--group model shares the sparsity out by itself; use --allocation uniform")
        if not self.inverts:
            object.__setattr__(self, "damping", DAMPING)
        return self

    def _check_defined(self, components: tuple[str, ...]) -> None:
        """Refuse a score that isn't defined for all that is pruned."""
        for name in () if self.score in PRUNING_SCORES else members(self.score):
            found = SCORES[name]
            if found.alone and not set(components) <= set(found.alone):
                here = set(found.alone) <= set(components) and self.pattern not in SPANS
                mend = f"use --components {','.join(found.alone)}, or another score" if here else "use another score"
                raise ValueError(f"--score {name} is defined for {found.where}; {mend}")
            found.check_components(components)

    def _default_of(self, name: str) -> Any:
        if name == "sparsity" and (counted := n_of_m(self.pattern)):
            return counted[0] / counted[1]
        if name == "group" and self.pattern in STRUCTURED:
            return "tensor" if self.pattern in LINES else "block"  # other structures span tensors
        return super()._default_of(name)

    @property
    def inverts(self) -> bool:
        """Whether anything inverts a Hessian, which damping is for."""
        return self.score == "obs" or self.update != "none"

    @property
    def label(self) -> str:
        """Short text for people and file names; what is as usual goes without saying."""
        words = ["prune", self.score]
        words += [self.group] if n_of_m(self.pattern) is None else []
        words += [self.pattern.replace(":", "of")] if self.pattern != "unstructured" else []
        words += [f"{self.sparsity:g}"] if n_of_m(self.pattern) is None else []
        words += [self.allocation] if self.allocation != "uniform" else []
        words += [self.update] if self.update != "none" else []
        words += [f"d{self.damping:g}"] if self.damping != DAMPING else []
        words += [] if self.sequential else ["oneshot"]
        return "-".join(words)


class QuantizeSpec(_Compression):
    """Round to nearest at ``bits`` bits in groups of ``group_size`` inputs, with the share ``kept`` left in 16 bits.

    Kept weights are held out before the scales are computed; ``keep_by`` says which: by TaCQ (|g|·|w − Q(w)|·|w|,
    arXiv:2504.07389), Σ|g·w|, Fisher·(w − Q)², |w|, or at random.

    Example
    -------
    >>> QuantizeSpec(bits=3, kept=0.0035, keep_by="tacq").label
    'quantize-3-g64-keep0.0035-tacq'
    """

    kind: Literal["quantize"] = "quantize"
    bits: Bits = 4
    group_size: int = Field(default=64, ge=8)
    kept: float = Field(default=0.0, ge=0, lt=0.5)
    keep_by: KeepBy | None = None

    @model_validator(mode="after")
    def _complete(self) -> QuantizeSpec:
        if self.kept and self.keep_by is None:
            object.__setattr__(self, "keep_by", "tacq")
        if not self.kept and self.keep_by is not None:
            object.__setattr__(self, "keep_by", None)  # nothing is kept, by whatever rule
        return self

    def _default_of(self, name: str) -> Any:
        return "tacq" if name == "keep_by" and self.kept else super()._default_of(name)

    @property
    def label(self) -> str:
        """Short text for people and file names."""
        kept = [f"keep{self.kept:g}", str(self.keep_by)] if self.kept else []
        return "-".join(["quantize", str(self.bits), f"g{self.group_size}", *kept])


Compression = Annotated[PruneSpec | QuantizeSpec, Field(discriminator="kind")]


class _Methods(Mapping[str, PruneSpec]):
    """Published methods as points of the product; a spec is made when it is asked for, since that asks the scores."""

    _POINTS: ClassVar[dict[str, dict[str, Any]]] = {
        "magnitude": {"score": "magnitude", "group": "tensor", "sequential": False},
        "wanda": {"score": "act_mag"},
        "sparsegpt": {"score": "obs", "group": "tensor", "update": "sparsegpt"},
        "owl": {"score": "act_mag", "allocation": "owl"},
        "owl+sparsegpt": {"score": "obs", "group": "tensor", "update": "sparsegpt", "allocation": "owl"},
        "wanda++": {"score": "regional"},
        "gblm": {"score": "gblm", "sequential": False},
    }

    def __getitem__(self, name: str) -> PruneSpec:
        return PruneSpec(**self._POINTS[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self._POINTS)

    def __len__(self) -> int:
        return len(self._POINTS)


#: Published methods by name.
METHODS = _Methods()
