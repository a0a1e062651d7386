"""Whatever a module's forward writes, the base keeps its buffers: frozen statistics, and copies of all else."""

from typing import Any

import bases
import pytest
import torch
from architectures import IMAGE, base_of, batch_of
from factories import bits
from torch import Tensor, nn

from hellora.core.types import AdapterSpec, ModuleSpec
from hellora.model.policies import normalised, with_frozen_statistics
from hellora.model.resident import BaseModel


class Writes(nn.Module):
    """A block that counts its calls, keeps a running mean in a way of its own, makes a buffer, and replaces one, a
    module and a number."""

    def __init__(self) -> None:
        super().__init__()
        self.lin, self.act, self.seen = nn.Linear(4, 4), nn.Identity(), 0
        self.register_buffer("calls", torch.zeros(()))
        self.register_buffer("mean", torch.zeros(4), persistent=False)
        self.register_buffer("last", torch.zeros(4))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.mean.data.mul_(0.9).add_(x.detach().mean((0, 1)))  # `data`: no version of the buffer tells
        self.last = x.detach().mean((0, 1))
        self.seen = self.seen + 1
        self.act = nn.ReLU()
        self.register_buffer("made", torch.ones(2))
        return self.lin(x) + self.calls * self.mean


def writing() -> BaseModel:
    torch.manual_seed(0)
    net = nn.Module()
    net.blocks = nn.ModuleList([Writes(), Writes()])
    net.forward = lambda x: net.blocks[1](net.blocks[0](x))  # type: ignore[method-assign]
    net.blocks[1].last = net.blocks[0].last  # tied
    modules = tuple(ModuleSpec(f"blocks.{j}.lin", j, 4, 4) for j in range(2))
    spec = AdapterSpec(modules, ("blocks.0", "blocks.1"), 2, 1.0)
    return BaseModel(net.eval().requires_grad_(False), spec, None)


@pytest.mark.parametrize("raises", [False, True])
@pytest.mark.parametrize("row", [None, [0], [0, 1]], ids=str)
def test_a_loan_leaves_no_trace_in_buffers(row: Any, raises: bool) -> None:
    base = writing()
    before = {name: (id(buffer), buffer.clone()) for name, buffer in base.net.named_buffers()}
    tensors = bits(base.net.state_dict())
    adapter, x = bases.acting_adapter(base), torch.randn(3, 5, 4)
    said = []
    for _ in range(2):
        try:
            with base.adapted(adapter, None if row is None else bases.row_of(base, row)):
                assert base.net.blocks[0].last is base.net.blocks[1].last
                said.append(base.net(x).detach())
                assert float(base.net.blocks[0].calls) == 1, "within a loan it does what it does"
                if raises:
                    raise RuntimeError
        except RuntimeError:
            assert raises
        assert [name for name, _ in base.net.named_buffers()] == list(before)
        assert all(block.seen == 0 and type(block.act) is nn.Identity for block in base.net.blocks)
        for name, buffer in base.net.named_buffers():
            assert (id(buffer), True) == (before[name][0], torch.equal(buffer, before[name][1])), name
    assert torch.equal(*said), "a client begins with what the base has, not with what another one left"
    assert bits(base.net.state_dict()) == tensors


def test_statistics_are_frozen_in_blocks_and_heads() -> None:
    _, base = base_of("levit")
    norms = [module for module in base.net.modules() if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d)]
    blocks = [base.net.get_submodule(name) for name in base.spec.layers]
    inside = [norm for block in blocks for norm in block.modules() if norm in norms]
    head = [norm for name in base.head_modules for norm in base.net.get_submodule(name).modules() if norm in norms]
    assert inside
    assert head
    with base.adapted(bases.acting_adapter(base), bases.row_of(base, range(base.spec.num_layers)), True) as adapted:
        assert not any(norm.training for norm in norms)
        assert all(block.training for block in blocks)
        IMAGE.outputs(base, batch_of(IMAGE, base)).loss_sums.sum().backward()
        trained = [p for name, p in adapted.head.items() if "batch_norm" in name]
        assert trained
        assert all(p.grad is not None for p in trained), "weight and bias of the head's own are no statistics"


@pytest.mark.parametrize("examples", [1, 3])
@pytest.mark.parametrize("affine", [False, True])
def test_frozen_statistics_give_exact_values_and_gradients(affine: bool, examples: int) -> None:
    """Also to a batch of one whose channels come last on the way down alone, which torch's kernel gives wrong ones."""
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(8, affine=affine).double().eval()
    norm.running_mean.normal_()
    norm.running_var.uniform_(0.5, 2)
    x = torch.randn(examples, 8, 4, 4, dtype=torch.float64, requires_grad=True)
    down = torch.randn(examples, 16, 8, dtype=torch.float64).permute(0, 2, 1).view(examples, 8, 4, 4)
    scale = (norm.running_var + norm.eps).rsqrt() * (norm.weight.detach() if affine else 1.0)
    with with_frozen_statistics(norm):
        y = norm(x)
    (gradient,) = torch.autograd.grad(y, x, down)
    torch.testing.assert_close(gradient, down * scale.view(-1, 1, 1))
    torch.testing.assert_close(y, norm(x))
    assert torch.autograd.gradcheck(lambda x: normalised(norm, x), (x,))
