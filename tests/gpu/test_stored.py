"""Weights in storage are the same bits on every device, and are taken back there."""

import numpy as np
import pytest
import torch

from esa_ray.models.addressing import catalogue
from esa_ray.security.inject import inject
from esa_ray.security.memory import Memory
from esa_ray.security.protection import Protection
from esa_ray.spec.security import STORED, FaultSpec
from tests.tiny import tiny


@pytest.mark.parametrize("computed", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("protect", ["none", "secded", "clamp", "parity-zero"])
@pytest.mark.parametrize("dtype", list(STORED))
@pytest.mark.parametrize("family", ["phi3", "gpt2", "mixtral"])
def test_a_device_reads_and_injects_what_the_host_does(device, family, dtype, protect, computed):
    spec = FaultSpec(dtype=dtype, protect=protect, rate=0.01)
    here, there = tiny(family, dtype=computed), tiny(family, dtype=computed).to(device)
    before = {name: p.clone() for name, p in there.named_parameters()}
    with Memory(here, catalogue(here), spec) as host, Memory(there, catalogue(there), spec) as memory:
        every = np.arange(memory.n_weights)
        assert (memory.codes(every) == host.codes(every)).all()
        assert (memory.largest == host.largest).all()
        edits = [inject(m, Protection(m), spec, 0, 1).edit for m in (host, memory)]
        with edits[0].standing() as expected, edits[1].standing() as applied:
            assert applied.n_changed == expected.n_changed
            for mine, other in zip(here.parameters(), there.parameters(), strict=True):
                assert torch.equal(mine.nan_to_num(7.0), other.cpu().nan_to_num(7.0))
    assert all(torch.equal(p, before[name]) for name, p in there.named_parameters())


@pytest.mark.parametrize("dtype", list(STORED))
def test_reflected_weights_are_read_alike_on_a_device(device, dtype):
    spec = FaultSpec(dtype=dtype, protect="rotation", rate=0.001)
    here, there = tiny("phi3"), tiny("phi3").to(device)
    with Memory(here, catalogue(here), spec) as host, Memory(there, catalogue(there), spec) as memory:
        every = np.arange(memory.n_weights)
        # A value halfway between two patterns may go either way, as Fourier transforms differ in the last bit.
        assert (memory.codes(every) == host.codes(every)).mean() > 0.99
        edit = inject(memory, Protection(memory), spec, 0, 0).edit
        stored = {name: p.clone() for name, p in there.named_parameters()}
        with edit.standing():
            assert not all(torch.equal(p, stored[name]) for name, p in there.named_parameters())
        assert all(torch.equal(p, stored[name]) for name, p in there.named_parameters())
