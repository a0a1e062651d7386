"""What stands in the place of a model's modules: it shows what it stands for, and finds its examples."""

import pytest
import torch
from torch import nn
from torch.testing import assert_close
from transformers.pytorch_utils import Conv1D

from hellora.core.types import LoraPair
from hellora.model.stand_ins import Beside, LoraLinear, PerExampleError, truncated

PAIR = LoraPair(torch.ones(2, 4), torch.ones(3, 2), 1.0)


@pytest.mark.parametrize("nested", [False, True])
def test_it_shows_the_weight_bias_and_sizes_of_its_base(nested: bool) -> None:
    linear, plain = nn.Linear(4, 3), nn.Linear(4, 3, bias=False)
    beside = Beside(linear, [PAIR], torch.device("cpu"))
    for module in (beside, LoraLinear(beside if nested else linear, PAIR.A, PAIR.B, 1.0, 0.0)):
        assert module.weight is linear.weight
        assert module.bias is linear.bias
        assert (module.in_features, module.out_features) == (4, 3)
        assert not hasattr(module, "nothing_of_the_kind")
    assert LoraLinear(plain, PAIR.A, PAIR.B, 1.0, 0.0).bias is None
    wide = LoraLinear(Conv1D(3, 4), PAIR.A, PAIR.B, 1.0, 0.0)
    assert (wide.nf, wide.weight.shape) == (3, (4, 3))
    assert sorted(name for name, _ in wide.named_parameters()) == ["A", "B", "base.bias", "base.weight"]


@pytest.mark.parametrize(("shape", "dim"), [((5, 7, 4), 0), ((7, 5, 4), 1), ((5, 5, 4), 1), ((5, 2, 7, 4), 0)], ids=str)
def test_copies_are_of_the_examples_wherever_these_are_counted(shape: tuple[int, ...], dim: int) -> None:
    """Each copy gets the gradient of its own example's loss, also where a batch has as many tokens as examples."""
    torch.manual_seed(0)
    linear = nn.Linear(4, 3).requires_grad_(False)
    A, B, x = torch.randn(2, 4), torch.randn(3, 2), torch.randn(shape)
    copies = LoraLinear(linear, A.clone(), B.clone(), 2.0, 0.0, copies=5, batch_dim=dim)
    y = copies(x)
    assert_close(y, LoraLinear(linear, A, B, 2.0, 0.0)(x))
    y.square().sum().backward()
    for example in range(5):
        alone = LoraLinear(linear, A.clone(), B.clone(), 2.0, 0.0)
        alone(x.select(dim, example)).square().sum().backward()
        for name in "AB":
            assert_close(getattr(copies, name).grad[example], getattr(alone, name).grad, atol=1e-5, rtol=1e-5)


def test_copies_refuse_another_number_of_examples() -> None:
    module = LoraLinear(nn.Linear(4, 3), PAIR.A, PAIR.B, 1.0, 0.0, copies=5, batch_dim=1)
    for shape in ((5, 7, 4), (5, 4), (4,)):
        with pytest.raises(PerExampleError):
            module(torch.zeros(shape))


@pytest.mark.parametrize(("share", "acting"), [(1.0, 25), (0.28, 7), (0.25, 7), (0.01, 1)])
def test_truncated_modules_are_those_of_a_lower_rank(share: float, acting: int) -> None:
    """0.28 · 25 is 7.000000000000001 in floats. What does not act has a gradient of 0; afterwards everything acts."""
    torch.manual_seed(0)
    linear, A, B, x = nn.Linear(4, 3).requires_grad_(False), torch.randn(25, 4), torch.randn(3, 25), torch.randn(5, 4)
    module = LoraLinear(linear, A.clone(), B.clone(), 2.0, 0.0)
    alone = LoraLinear(linear, A[:acting].clone(), B[:, :acting].clone(), 2.0, 0.0)
    whole = module(x)
    with truncated([module], share):
        y = module(x)
    assert_close(y, alone(x))
    y.square().sum().backward()
    alone(x).square().sum().backward()
    assert_close(module.A.grad[:acting], alone.A.grad)
    assert_close(module.B.grad[:, :acting], alone.B.grad)
    assert not module.A.grad[acting:].any()
    assert not module.B.grad[:, acting:].any()
    assert torch.equal(module(x), whole)
    with pytest.raises(KeyError), truncated([module], share):
        raise KeyError
    assert module.acting is None
