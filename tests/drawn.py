"""Any damage that a study can ask for, for hypothesis to draw."""

from hypothesis import strategies as st

from esa_ray.spec import (
    KINDS,
    PerturbSpec,
)

_strengths = st.floats(1e-3, 1, allow_subnormal=False).map(lambda x: float(f"{x:.3g}"))


@st.composite
def perturbations(draw, nested=True):
    kind = draw(st.sampled_from([k for k in KINDS if nested or k != "progressive"]))
    fields = {"kind": kind}
    if kind not in ("zero", "set_mean"):
        fields["strength"] = float(draw(st.integers(2, 16))) if kind == "quantize" else draw(_strengths)
    if kind == "scale" and fields["strength"] == 1:
        fields["strength"] = -0.5
    choices = {"bit_flip": ("bits", ["all", "sign", "exponent", "mantissa"]), "quantize": ("per", ["row", "tensor"]),
               "gauss_noise": ("relative_to", ["weight", "tensor"]), "adaptive": ("adapt", ["score", "row"]),
               "correlated": ("shared", ["row", "layer", "component"])}  # fmt: skip
    if kind in choices:
        name, values = choices[kind]
        fields[name] = draw(st.sampled_from(values))
    if kind == "correlated":
        fields["relative_to"] = draw(st.sampled_from(["weight", "tensor"]))
    if kind == "progressive":
        fields["toward"] = draw(perturbations(nested=False))
    return PerturbSpec(**fields)
