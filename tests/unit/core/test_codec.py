"""Rounded numbers: how far off they are, without bias, and the same again when they travel twice."""

import math

import pytest
import torch
from factories import bits
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hellora.core.codec import SCALES, Way, decode, encode, num_scales, quantize, wire_bytes
from hellora.core.exchange import TensorSpec, WireFormat

modest = settings(deadline=None, max_examples=60, derandomize=True, database=None)


def normal(*shape: int, seed: int = 0) -> Tensor:
    """Normal values of sizes that differ from row to row and from column to column."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(shape, generator=generator)
    for dim, size in enumerate(shape):
        sizes = 10 ** torch.linspace(-3, 1, size).reshape([-1 if d == dim else 1 for d in range(len(shape))])
        values = values * sizes
    return values


def there_and_back(tensor: Tensor, format: WireFormat, seed: int = 0) -> Tensor:
    return decode(encode({"x": tensor}, format, seed))["x"]


def steps_of(tensor: Tensor, seed: int = 0) -> Tensor:
    """The scale of every number."""
    _, scales = quantize(tensor, torch.Generator().manual_seed(seed))
    if tensor.ndim == 2 and len(scales) < len(tensor):
        return scales.expand(tensor.shape)
    return scales.reshape(-1, *[1] * (tensor.ndim - 1)).expand(tensor.shape)


SHAPES = [(8, 30), (30, 8), (5,), (4, 4), (1, 9), (9, 1), (3, 2, 5)]


def test_int8_by_hand() -> None:
    """127 / 127 = 1 is a power of two; 128 / 127 takes a scale of 2, 63.5 / 127 one of 0.5."""
    tensor = torch.tensor([[127.0, 1.0, -3.0], [128.0, 2.0, -4.0]])
    q, scales = quantize(tensor, torch.Generator())
    assert q.tolist() == [[127, 1, -3], [64, 1, -2]]
    assert scales.tolist() == [1.0, 2.0]
    assert steps_of(torch.tensor([63.5, -0.5])).tolist() == [0.5, 0.5]


@pytest.mark.parametrize(("shape", "count"), [((8, 30), 8), ((30, 8), 8), ((5,), 1), ((), 1), ((3, 2, 5), 3)])
def test_a_scale_for_each_rank_component(shape: tuple[int, ...], count: int) -> None:
    """Of a matrix along its shorter side, so that B has no more of them than A."""
    tensor = torch.rand(shape) + 1
    assert num_scales(tensor.shape) == count
    assert len(quantize(tensor, torch.Generator())[1]) == count
    column = torch.ones(30, 8)
    column[:, 3] *= 1000
    assert steps_of(column)[:, 3].tolist() == [8.0] * 30
    assert steps_of(column)[:, 4].tolist() == [2.0**-6] * 30


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@given(seed=st.integers(0, 9999))
@settings(deadline=None, max_examples=5, derandomize=True, database=None)
def test_int8_is_off_by_less_than_one_step(shape: tuple[int, ...], seed: int) -> None:
    tensor = normal(*shape, seed=seed)
    step = steps_of(tensor)
    error = (there_and_back(tensor, "int8", seed).double() - tensor.double()).abs()
    assert (error < step).all()
    assert (error > 0).any()
    for index, scale in enumerate(step.unique()):
        largest = tensor[step == scale].abs().max()
        assert scale < 2 * largest / 127, index
        assert math.log2(scale) == int(math.log2(scale))


def test_int8_has_no_bias() -> None:
    """The mean over 3000 seeds is as near as 3000 draws can be: 5 standard errors, each at most step / 2 / √3000."""
    tensor = normal(4, 25)
    mean = torch.stack([there_and_back(tensor, "int8", seed).double() for seed in range(3000)]).mean(0)
    off = (mean - tensor.double()).abs() / (steps_of(tensor) / 2 / 3000**0.5)
    assert off.max() < 5
    nearest = (tensor / steps_of(tensor)).round() * steps_of(tensor)
    assert ((nearest - tensor).abs() / (steps_of(tensor) / 2 / 3000**0.5)).max() > 20, (
        "which rounding to nearest is not"
    )


def test_the_same_seed_gives_the_same_bytes() -> None:
    tensors = {"a": normal(4, 5), "b": normal(4, 5)}
    same = [bits(encode(tensors, "int8", seed=7)) for _ in range(2)]
    assert same[0] == same[1] != bits(encode(tensors, "int8", seed=8))
    assert bits(encode(dict(reversed(tensors.items())), "int8", seed=7)) == same[0], "nor does the order matter"
    assert not torch.equal(*(there_and_back(tensors["a"], "int8", seed) for seed in (1, 2)))
    coded = encode({"a": tensors["a"], "b": tensors["a"]}, "int8", seed=7)
    assert not torch.equal(coded["/int8/a"], coded["/int8/b"]), "each tensor has draws of its own"


def test_what_goes_up_is_rounded_by_other_numbers_than_what_came_down() -> None:
    """Errors of one tensor on both ways, of two tensors on one, and of two seeds: no two go together."""
    tensor = normal(200, 300)

    def errors(name: str, seed: int, way: Way) -> Tensor:
        found = decode(encode({name: tensor}, "int8", seed, way))[name]
        return ((found - tensor) / steps_of(tensor)).flatten().double()

    drawn = [
        errors("a", 7, "down"),
        errors("a", 7, "up"),
        errors("b", 7, "down"),
        errors("b", 7, "up"),
        errors("a", 8, "up"),
    ]
    correlation = torch.corrcoef(torch.stack(drawn)) - torch.eye(len(drawn))
    assert correlation.abs().max() < 5 / tensor.numel() ** 0.5


def test_bf16_is_off_by_half_a_step() -> None:
    tensor = normal(50, 40)
    error = (there_and_back(tensor, "bf16") - tensor).abs() / tensor.abs()
    assert 2**-10 < error.max() <= 2**-8
    assert there_and_back(torch.tensor([1.0, 1 + 2**-8, 1 + 3 * 2**-8]), "bf16").tolist() == [1.0, 1.0, 1 + 2**-6]


@pytest.mark.parametrize("format", ["fp32", "bf16", "int8"])
@given(
    values=st.lists(st.floats(-(2.0**100), 2.0**100, width=32), min_size=1, max_size=12),
    rows=st.sampled_from([0, 1, 2, 3]),
    seed=st.integers(0, 2**63 - 1),
)
@modest
def test_what_was_decoded_is_encoded_to_itself(format: WireFormat, values: list[float], rows: int, seed: int) -> None:
    """Whatever the seed; and nothing becomes nan."""
    tensor = torch.tensor(values) if rows == 0 else torch.tensor(values).repeat(rows, 1).T
    once = there_and_back(tensor, format, seed)
    assert once.dtype == torch.float32
    assert once.isfinite().all()
    assert torch.equal(there_and_back(once, format, seed + 1), once)
    if format == "fp32":
        assert bits({0: once}) == bits({0: tensor})


@pytest.mark.parametrize("format", ["bf16", "int8"])
def test_zeros_stay_zeros_and_what_is_not_finite_is_found_out(format: WireFormat) -> None:
    tensor = torch.zeros(3, 8)
    tensor[1] = 1e-45  # below every scale
    assert there_and_back(tensor, format)[0].tolist() == [0.0] * 8
    assert there_and_back(tensor, format).isfinite().all()
    for bad in (math.nan, math.inf, -math.inf):
        tensor = normal(3, 8)
        tensor[1, 2] = bad
        back = there_and_back(tensor, format)
        assert not back[1].isfinite().all()
        assert back[[0, 2]].isfinite().all()


@pytest.mark.parametrize("format", ["fp32", "bf16", "int8"])
def test_what_is_no_float32_is_not_rounded(format: WireFormat) -> None:
    tensors = {
        "mask": torch.tensor([True, False]),
        "count": torch.tensor([2**40]),
        "double": torch.tensor([1 / 3], dtype=torch.float64),
        "half": torch.tensor([0.1], dtype=torch.float16),
        "bf16": torch.tensor([0.1], dtype=torch.bfloat16),
        "nothing": torch.zeros(0, 5),
    }
    back = decode(encode(tensors, format, 0))
    assert back.keys() == tensors.keys()
    assert all(torch.equal(back[name], t) and back[name].dtype == t.dtype for name, t in tensors.items())
    assert wire_bytes(map(TensorSpec.of, tensors.values()), format) == 2 + 8 + 8 + 2 + 2


@pytest.mark.parametrize(("format", "expected"), [("fp32", 4 * 245), ("bf16", 2 * 245), ("int8", 245 + 4 * 9)])
def test_bytes_by_hand(format: WireFormat, expected: int) -> None:
    """A of 4 × 30, B of 30 × 4 and a bias of 5: 245 numbers, with 4 + 4 + 1 scales as int8."""
    tensors = {"A": normal(4, 30), "B": normal(30, 4), "bias": normal(5)}
    assert wire_bytes(map(TensorSpec.of, tensors.values()), format) == expected
    assert sum(t.numel() * t.element_size() for t in encode(tensors, format, 0).values()) == expected


def test_what_cannot_be_decoded() -> None:
    coded = encode({"a": normal(4, 5)}, "int8", 0)
    with pytest.raises(ValueError, match="are not the 4 scales"):
        decode({**coded, SCALES: coded[SCALES][:3]})
    with pytest.raises(ValueError, match="are not the 4 scales"):
        decode({**coded, SCALES: coded[SCALES].double()})
    with pytest.raises(ValueError, match=r"/int8/a is torch\.float32"):
        decode({**coded, "/int8/a": coded["/int8/a"].float()})
    with pytest.raises(ValueError, match=r"/bf16/a is torch\.float32"):
        decode({"/bf16/a": normal(4, 5)})
