"""Every path on every layout of cards finds what the CPU finds, bit for bit: the pretend cards run the CPU's kernels."""

import pytest
import torch

from esa_ray.resume import HEAD_TOLERANCE
from tests.pretend.layouts import Case
from tests.pretend.paths import BY_SHORTCUT, EVALUATION, PATHS, difference

F32, F16, B16 = torch.float32, torch.float16, torch.bfloat16
#: Families, dtypes, tying and layouts in pairs, not in full product.
CASES = [
    Case("llama", False, F32, "one card"),
    Case("gpt2", True, F16, "one card"),
    Case("mixtral", False, B16, "one card"),
    Case("phi3", False, B16, "one card"),
    Case("gemma", True, F32, "one card"),
    Case("gpt_neox", False, F16, "one card"),
    Case("llama", False, F32, "two cards"),
    Case("llama", True, B16, "two cards"),
    Case("gpt2", True, F32, "two cards"),
    Case("mixtral", False, B16, "two cards"),
    Case("gpt_neox", False, F16, "two cards"),
    Case("llama", False, B16, "card and CPU"),
    Case("phi3", False, F32, "card and CPU"),
    Case("llama", False, F32, "card and disk"),
    Case("mixtral", False, B16, "card and disk"),
    Case("llama", False, B16, "two cards and CPU"),
    Case("gemma", False, F32, "two cards and CPU"),
]


@pytest.mark.parametrize("name", PATHS)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_path_finds_on_cards_what_it_finds_on_the_cpu(benches, case, name):
    expected = benches.expected(name, case.family, case.tied, case.dtype)
    with benches.cards:
        bench = benches.spread(case)
        found = PATHS[name](bench)
    if name == "second derivatives" and bench.offloads:
        return  # refused, as it ought to be: a part of the model is away
    longer = name in BY_SHORTCUT and bench.head_away
    tolerance = HEAD_TOLERANCE * EVALUATION.shape[1] if longer else 0.0
    assert (differs := difference(expected, found, tolerance)) is None, differs
