"""Each policy alone, on small functions: what is kept, in which form, and that gradients stay what they are."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.multiprocessing.reductions import StorageWeakRef
from torch.testing import assert_close

from hellora.core.types import LoraPair, Mask
from hellora.model import policies
from hellora.model.policies import (
    GROUP,
    SMALLEST,
    Packed,
    in_memory_order,
    int8_activations,
    is_activation,
    micro_batches,
    recomputed_layers,
    rounding_noise,
    run_again_in_backward,
)
from hellora.model.stand_ins import Beside


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=generator(seed))


# ------------------------------------------------------------------------------------------------------- fewer at once


@pytest.mark.parametrize(("size", "expected"), [(None, [5]), (1, [1] * 5), (2, [2, 2, 1]), (5, [5]), (9, [5])])
def test_micro_batches_are_the_batch_in_order(size: int | None, expected: list[int]) -> None:
    indices = np.array([7, 3, 9, 0, 4])
    parts = micro_batches(indices, size)
    assert [len(part) for part in parts] == expected
    assert np.concatenate(parts).tolist() == indices.tolist()


# ----------------------------------------------------------------------------------------------------------- run again


@pytest.mark.parametrize(
    ("trained", "frozen", "everything"),
    [
        ([0, 3], [1, 2], [0, 1, 2, 3]),
        ([1], [2, 3], [1, 2, 3]),
        ([2, 3], [], [2, 3]),
        ([0, 1, 2, 3], [], [0, 1, 2, 3]),
        ([], [], []),
    ],
)
def test_recomputed_layers_by_hand(trained: list[int], frozen: list[int], everything: list[int]) -> None:
    row: Mask = np.zeros((4, 3), dtype=bool)
    row[trained, 1] = True
    assert recomputed_layers("none", row) == []
    assert recomputed_layers("frozen", row) == frozen
    assert recomputed_layers("all", row) == everything


def test_a_function_is_run_again_whatever_it_takes_and_returns() -> None:
    """Tensors by position and by name, other things beside, a tuple out; dropout and autocast as they were."""
    runs: list[tuple[bool, bool]] = []

    def block(x: Tensor, power: int, *, y: Tensor, mask: Tensor | None, table: tuple[Tensor, Tensor]) -> Any:
        assert mask is None
        runs.append((torch.is_autocast_enabled("cpu"), torch.is_grad_enabled()))
        h = nn.functional.dropout(x.sin() * y, 0.5) @ normal(8, 8)
        return h.float().pow(power) * table[0], {"second": h}

    def gradients(forward: Callable[..., Any]) -> tuple[Tensor, Tensor, Tensor]:
        torch.manual_seed(3)
        x, y = normal(4, 8, seed=1).requires_grad_(), normal(4, 8, seed=2).requires_grad_()
        with torch.autocast("cpu", torch.bfloat16):
            first, named = forward(x, 2, y=y, mask=None, table=(torch.arange(8.0), torch.ones(2)))
        torch.rand(7)  # whatever is drawn between forward and backward
        (first.sum() + named["second"].float().cos().sum()).backward()
        assert x.grad is not None
        assert y.grad is not None
        return first.detach(), x.grad, y.grad

    with torch.random.fork_rng(devices=[]):
        expected, got = gradients(block), gradients(run_again_in_backward(block))
    assert all(torch.equal(a, b) for a, b in zip(expected, got, strict=True))
    assert runs == [(True, True)] * 3, "once, and then twice"


@pytest.mark.parametrize("named", [False, True])
def test_only_the_inputs_are_kept_and_those_as_autograd_keeps_tensors(named: bool) -> None:
    kept: list[Tensor] = []

    def pack(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    x = normal(4, 8).requires_grad_()
    inner = x * 2
    forward = run_again_in_backward(lambda h: h.sin().cos().exp())
    with saved_tensors_hooks(pack, lambda tensor: tensor):
        forward(h=inner) if named else forward(inner)
    assert [tensor.data_ptr() for tensor in kept] == [inner.data_ptr()]


# -------------------------------------------------------------------------------------------------------- kept as int8


@pytest.mark.parametrize("count", [1, GROUP, 5 * GROUP, 1000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_each_number_is_off_by_less_than_its_scale_and_by_nothing_on_average(count: int, dtype: torch.dtype) -> None:
    numbers = (normal(count) * torch.logspace(-6, 6, count)).to(dtype)
    rng = generator()
    short = -count % GROUP
    scales = (nn.functional.pad(numbers.float(), (0, short)).view(-1, GROUP).abs().amax(1) / 127).repeat_interleave(
        GROUP
    )
    drawn = []
    for _ in range(400):
        packed = Packed.of(numbers, rng)
        assert packed is not None
        assert (packed.values.dtype, packed.values.shape[1]) == (torch.int8, GROUP)
        drawn.append(packed.unpacked())
    error = ((torch.stack(drawn) - nn.functional.pad(numbers.float(), (0, short))) / scales)[:, :count]
    assert error.abs().max() < 1.001
    assert error.mean(0).abs().max() < 5 * 0.5 / 20, "no rounding has a standard deviation above half a scale"
    assert error.mean().abs() < 5 * 0.5 / 20 / count**0.5 + 1e-4


def test_rounding_noise_is_uniform_whichever_bits_it_takes() -> None:
    noise = rounding_noise(4000, generator()).view(-1, 4)
    assert noise.min() < -0.4999
    assert noise.max() > 0.4999
    assert noise.abs().max() <= 0.5
    assert noise.mean(0).abs().max() < 5 / 12**0.5 / 64000**0.5
    assert_close(noise.std(0), torch.full((4,), 12**-0.5), rtol=0.02, atol=0)


@pytest.mark.parametrize("size", [0.0, 1e-40, 1e-35, 1e30, 3e38])
def test_no_magnitude_becomes_garbage(size: float) -> None:
    numbers = size * torch.linspace(-1, 1, GROUP)
    packed = Packed.of(numbers, generator())
    assert packed is not None
    assert_close(packed.unpacked(), numbers, atol=max(1.01 * size / 127, torch.finfo(torch.float32).tiny), rtol=0)


def test_one_large_number_spoils_its_own_group_only() -> None:
    numbers = normal(3 * GROUP)
    numbers[GROUP] = 1e6
    packed = Packed.of(numbers, generator())
    assert packed is not None
    error = (packed.unpacked() - numbers).view(3, GROUP).abs().amax(1)
    assert error[[0, 2]].max() < 0.05
    assert error[1] > 0.05


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_what_is_not_finite_is_kept_as_it_is(value: float) -> None:
    numbers = normal(SMALLEST)
    numbers[5] = value
    assert Packed.of(numbers, generator()) is None
    x = numbers.clone().requires_grad_()
    with int8_activations(generator()):
        y = (x * 1.0).clamp(-2, 2)
    y.sum().backward()
    assert x.grad is not None
    assert_close(x.grad, ((numbers >= -2) & (numbers <= 2)).float())


def test_the_generator_alone_decides_and_the_global_one_is_left_alone() -> None:
    def gradient(seed: int) -> Tensor:
        x = normal(64, 64).requires_grad_()
        torch.rand(3)
        before = torch.random.get_rng_state()
        with int8_activations(generator(seed)):
            y = (x * 1.0).sin()
        y.sum().backward()
        assert torch.equal(torch.random.get_rng_state(), before)
        assert x.grad is not None
        return x.grad

    exact = normal(64, 64).cos()
    assert torch.equal(gradient(1), gradient(1))
    assert not torch.equal(gradient(1), gradient(2))
    assert 0 < (gradient(1) - exact).abs().max() < 4 / 127


def test_no_two_tensors_are_rounded_by_the_same_numbers() -> None:
    """Equal activations of one pass, of the next, and of a block that is run again."""
    x = normal(64, 256).requires_grad_()
    rng, found = generator(), []

    class Seen(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            ctx.save_for_backward(x)
            return x.clone()

        @staticmethod
        def backward(ctx: Any, gradient: Tensor) -> Tensor:
            found.append((ctx.saved_tensors[0] - x.detach()).flatten())
            return gradient

    def twice(h: Tensor) -> Tensor:
        return Seen.apply(h * 1.0) + Seen.apply(h * 1.0)  # type: ignore[no-any-return]

    for _ in range(2):
        with int8_activations(rng):
            y = twice(x) + run_again_in_backward(lambda h: Seen.apply(h * 1.0))(x * 1.0)
        y.sum().backward()
    assert len(found) == 6
    assert all(error.abs().max() > 1e-3 for error in found)
    correlation = torch.corrcoef(torch.stack(found)) - torch.eye(6)
    assert correlation.abs().max() < 5 / x.numel() ** 0.5


def test_backward_lets_go_of_what_is_packed() -> None:
    """Also while the context manager itself is still referred to."""
    made: list[StorageWeakRef] = []
    pack = Packed.of

    def watched(flat: Tensor, rng: torch.Generator) -> Packed | None:
        packed = pack(flat, rng)
        assert packed is not None
        made.append(StorageWeakRef(packed.values.untyped_storage()))
        return packed

    x = normal(64, 64).requires_grad_()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(policies.Packed, "of", staticmethod(watched))
        keeping = int8_activations(generator())
        with keeping:
            y = (x * 1.0).sin().exp().sum()
    assert [storage.expired() for storage in made] == [False, False]
    y.backward()
    assert [storage.expired() for storage in made] == [True, True]
    assert keeping is not None


@pytest.fixture
def packs(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The sizes of all that is packed."""
    sizes: list[int] = []
    pack = Packed.of

    def counted(flat: Tensor, rng: torch.Generator) -> Packed | None:
        sizes.append(len(flat))
        return pack(flat, rng)

    monkeypatch.setattr(policies.Packed, "of", staticmethod(counted))
    return sizes


def test_a_storage_is_packed_once_however_often_and_in_whatever_shape_it_is_kept(packs: list[int]) -> None:
    x = normal(2, 16, 64).requires_grad_()
    with int8_activations(generator()):
        h = x * 1.0
        heads = h.view(2, 16, 4, 16).transpose(1, 2)
        y = h.sin().sum() + h.cos().sum() + heads.square().sum() + h.mT.sinh().sum()
    assert packs == [2048]
    y.backward()
    exact = x.detach()
    assert x.grad is not None
    assert_close(x.grad, exact.cos() - exact.sin() + 2 * exact + exact.cosh(), atol=0.2, rtol=0.05)


def test_parts_of_a_storage_and_holes_in_it(packs: list[int]) -> None:
    """A slice of the first dimension is one piece of memory; of the last it has holes, and is copied."""
    x = normal(4, 64, 64).requires_grad_()
    with int8_activations(generator()):
        h = x * 1.0
        y = h[1:3].sin().sum() + h[:, :, :32].cos().sum()
    assert sorted(packs) == [8192, 8192]
    y.backward()
    expected = torch.zeros(4, 64, 64)
    expected[1:3] += x.detach()[1:3].cos()
    expected[:, :, :32] -= x.detach()[:, :, :32].sin()
    assert x.grad is not None
    assert_close(x.grad, expected, atol=0.05, rtol=0)


def test_memory_that_is_used_again_is_another_storage() -> None:
    """Packing lets the exact activations go; the next ones may lie at the same address."""

    def gradient(keeping: AbstractContextManager[Any]) -> Tensor:
        x = normal(64, 64).requires_grad_()
        with keeping:
            h = x
            for _ in range(20):
                h = (h * 1.3).sin()
        (result,) = torch.autograd.grad(h.sum(), x)
        return result.flatten()

    exact, got = gradient(nullcontext()), gradient(int8_activations(generator()))
    assert torch.cosine_similarity(exact, got, dim=0) > 0.99


def test_a_storage_that_changed_is_packed_anew() -> None:
    x = normal(64, 64).requires_grad_()
    with int8_activations(generator()):
        h = x * 1.0
        h.sin()
        h.mul_(2.0)
        y = h.sin()
    y.sum().backward()
    assert x.grad is not None
    assert_close(x.grad, 2 * (2 * x.detach()).cos(), atol=0.2, rtol=0)


def test_what_is_an_activation() -> None:
    """Neither weights in any form, nor constants, nor what is small."""
    trained, frozen = nn.Parameter(normal(64, 64)), nn.Parameter(normal(64, 64), requires_grad=False)
    x = normal(32, 64)
    h = x @ trained
    for tensor in (h, h.mT, h.view(64, 32), h.bfloat16(), h.exp(), h @ frozen, nn.functional.gelu(h), h + x):
        assert is_activation(tensor)
    for tensor in (trained, trained.mT, trained.bfloat16(), trained.view(32, 128).mT.exp(), frozen, frozen.mT):
        assert not is_activation(tensor)
    for tensor in (h.log_softmax(1), x, x > 0, x.long(), frozen.bfloat16(), h[:4], h.sum(), x.clone().requires_grad_()):
        assert not is_activation(tensor)


def test_what_is_no_activation_is_kept_exactly(packs: list[int]) -> None:
    trained, frozen = nn.Parameter(normal(64, 64)), nn.Parameter(normal(64, 64, seed=1), requires_grad=False)
    x, scale = normal(32, 64, seed=2), normal(32, 64, seed=3)

    def gradient(keeping: AbstractContextManager[Any]) -> Tensor:
        with keeping:
            y = ((x @ trained.mT) * scale) @ frozen.mT  # of a linear path, backward needs constants alone
        (result,) = torch.autograd.grad(y.sum(), trained)
        return result

    assert torch.equal(gradient(int8_activations(generator())), gradient(nullcontext()))
    assert packs == []


def test_sure_predictions_keep_their_exact_probabilities() -> None:
    """Backward exponentiates log-probabilities: rounded ones of -30 to 0 would be off by a tenth."""
    trained, x = nn.Parameter(normal(64, 512)), normal(256, 64, seed=1)

    def gradient(keeping: AbstractContextManager[Any]) -> Tensor:
        with keeping:
            logits = x @ trained
            loss = nn.functional.cross_entropy(logits, logits.argmax(1).roll(1))
        (result,) = torch.autograd.grad(loss, trained)
        return result

    assert torch.equal(gradient(int8_activations(generator())), gradient(nullcontext()))


def test_memory_order() -> None:
    x = normal(2, 3, 4)
    for view in (x, x.mT, x.permute(2, 0, 1), x[1], x[:, None], x.permute(1, 2, 0)[None]):
        flat = in_memory_order(view)
        assert flat is not None
        assert flat.data_ptr() == view.data_ptr()
        assert torch.equal(flat, x.flatten()[view.storage_offset() :][: view.numel()])
        assert torch.equal(flat.as_strided(view.shape, view.stride(), view.storage_offset()), view)
    assert in_memory_order(x[:, :, :2]) is None
    assert in_memory_order(x[:, :1].expand(2, 3, 4)) is None


# --------------------------------------------------------------------------------------------------- beside the weight


def test_pairs_beside_a_weight_are_their_sum_and_keep_no_activation() -> None:
    linear = nn.Linear(16, 12).requires_grad_(False)
    pairs = [LoraPair(normal(3, 16), normal(12, 3), 2.0), LoraPair(normal(2, 16, seed=1), normal(12, 2, seed=1), 1.0)]
    module = Beside(linear, pairs, torch.device("cpu"))
    x = normal(5, 16).requires_grad_()
    kept: list[Tensor] = []

    def pack(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        y = module(x)
    dense = linear.weight + sum(pair.scale * pair.B @ pair.A for pair in pairs)
    assert_close(y, x @ dense.T + linear.bias, atol=1e-5, rtol=1e-5)
    y.sum().backward()
    assert_close(x.grad, dense.sum(0).expand(5, 16), atol=1e-5, rtol=1e-5)
    own = {tensor.untyped_storage().data_ptr() for tensor in (linear.weight, module.A, module.B)}
    assert {tensor.untyped_storage().data_ptr() for tensor in kept} == own
    assert not any(tensor.requires_grad for tensor in (*module.parameters(), *module.buffers()))
