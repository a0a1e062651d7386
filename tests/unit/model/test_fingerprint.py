"""Two models of the same shape have one fingerprint only if they are equal in every number."""

from pathlib import Path

import bases
import pytest
import torch
from torch import nn

from hellora.model.fingerprint import fingerprint, persistent


def of(*tensors: torch.Tensor) -> str:
    return fingerprint((str(i), tensor) for i, tensor in enumerate(tensors))


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.int8, torch.bool], ids=str
)
def test_any_number_counts(dtype: torch.dtype) -> None:
    whole = torch.randint(0, 2, (40, 30), generator=torch.Generator().manual_seed(0)).to(dtype)
    seen = {of(whole)}
    for place in ((0, 0), (39, 29), (20, 7)):
        other = whole.clone()
        other[place] = 1 - other[place].float()
        seen.add(of(other))
    seen |= {of(whole.flip(0)), of(whole.view(30, 40)), of(whole.double() if dtype != torch.float64 else whole.float())}
    assert len(seen) == 7
    assert of(whole.clone()) == of(whole) == of(whole.T.contiguous().T)


def test_odd_shapes_have_one() -> None:
    assert len({of(torch.tensor(v)) for v in (0.0, 1.0)}) == 2
    assert of(torch.zeros(0, 3)) != of(torch.zeros(0, 4))
    large = torch.zeros(3, 2**23, dtype=torch.int8)  # more than is summed at once
    other = large.clone()
    other[-1, -1] = 1
    assert of(large) != of(other)


def test_what_is_saved_counts() -> None:
    net = nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 3))
    net[0].register_buffer("cache", torch.zeros(3), persistent=False)
    assert {name for name, _ in persistent(net)} == set(net.state_dict())
    before = fingerprint(persistent(net))
    net[0].cache += 1
    assert fingerprint(persistent(net)) == before
    net[0].running_mean += 1
    assert fingerprint(persistent(net)) != before


def test_a_base_has_one_whatever_its_head(tiny_bert: Path) -> None:
    bases_of = [bases.MEAN_POOLING.load(bases.ModelSettings(name=str(tiny_bert)), ("a",) * n, seed=n) for n in (2, 3)]
    assert bases_of[0].fingerprint() == bases_of[1].fingerprint()
