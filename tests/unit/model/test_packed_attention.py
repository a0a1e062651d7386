"""Packed rows: what a model says of a text is what it says of the text alone, whatever stands beside it."""

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from architectures import GROUPED, LANGUAGE, MENTIONED, SMALL, base_of
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from torch.testing import assert_close
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

from hellora.core.algebra import new_adapter
from hellora.core.errors import InputError
from hellora.core.exchange import Policy
from hellora.core.types import AdapterSpec
from hellora.data.packing import PackedRows
from hellora.model import packed_attention
from hellora.model.packed_attention import PackedAttention, allow_packing, check_packing
from hellora.model.policies import int8_activations
from hellora.model.resident import BaseModel
from hellora.tasks.causal_lm import IGNORED, CausalLM

TASK = CausalLM(packing=True)
MODELS = sorted(name for name, (task, *_) in SMALL.items() if task is LANGUAGE)
APART = {"bloom", "falcon", "gpt_neo", "mpt"}  # which cannot be told where texts lie
LENGTHS = (7, 3, 12, 1, 9)
ROWS = ([2, 0, 1], [4, 3])  # two rows, of 22 and 10 tokens


def packable(name: str) -> BaseModel:
    """A small model that may be packed."""
    _, base = base_of(name)
    base.processor = SimpleNamespace(pad_token_id=0)
    allow_packing(base, name)
    return base


def examples(seed: int = 0) -> list[dict[str, list[int]]]:
    """Texts of random words; the first two tokens of the first two have no target."""
    rng = np.random.default_rng(seed)
    texts = [rng.integers(4, 40, length).tolist() for length in LENGTHS]
    return [{"input_ids": ids, "labels": [IGNORED] * (2 * (i < 2)) + ids[2 * (i < 2) :]} for i, ids in enumerate(texts)]


def rows_of(texts: Sequence[dict[str, list[int]]]) -> list[Any]:
    return list(PackedRows(texts, [np.array(row) for row in ROWS]))


def token_losses(base: BaseModel, batch: dict[str, Tensor]) -> Tensor:
    logits = TASK.logits(base, batch).float()
    targets = batch["labels"][:, 1:]
    return nn.functional.cross_entropy(logits, targets[targets != IGNORED], reduction="none")


def alone(base: BaseModel, texts: Sequence[dict[str, list[int]]]) -> Tensor:
    """The losses of the tokens of each text, one batch after the other, in the order of the rows."""
    return torch.cat([token_losses(base, TASK.collate(base, [texts[i]])) for row in ROWS for i in row])


@pytest.mark.parametrize("name", sorted({*MODELS} - APART))
def test_losses_of_tokens_are_those_of_texts_alone(name: str) -> None:
    base, texts = packable(name), examples()
    with torch.no_grad():
        found = token_losses(base, TASK.collate(base, rows_of(texts)))
        assert_close(found, alone(base, texts), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt2"])
def test_a_neighbour_moves_nothing(name: str) -> None:
    """Not a bit of the first text's losses, when all the others change."""
    base, texts = packable(name), examples()
    others = [texts[0], *examples(1)[1:]]
    with torch.no_grad():
        found, changed = (TASK.logits(base, TASK.collate(base, rows_of(each))) for each in (texts, others))
    assert torch.equal(found[11:16], changed[11:16])
    assert not torch.equal(found[:11], changed[:11])


@pytest.mark.parametrize("window", [2, 5])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_sliding_windows_are_kept(window: int, attention: str) -> None:
    _, base = base_of("mistral")
    base.processor = SimpleNamespace(pad_token_id=0)
    base.net.config.sliding_window = window
    base.net.set_attn_implementation(attention)
    texts = examples()
    with torch.no_grad():
        expected = alone(base, texts)
        base.net.config.sliding_window = 40
        assert float((alone(base, texts) - expected).abs().max()) > 1e-5, "the window matters"
        base.net.config.sliding_window = window
        allow_packing(base, "mistral")
        assert_close(token_losses(base, TASK.collate(base, rows_of(texts))), expected, atol=1e-6, rtol=1e-6)


def gradients(base: BaseModel, batches: Sequence[Any], policy: Policy) -> dict[str, Tensor]:
    """What a step finds over some batches together."""
    adapter = new_adapter(base.spec, base.initial_head(), 0)
    for pair in adapter.pairs.values():
        pair.B.normal_(generator=torch.Generator().manual_seed(0)).mul_(0.3)
    row = np.ones((base.spec.num_layers, base.spec.max_rank), dtype=bool)
    with base.adapted(adapter, row, policy=policy) as adapted:
        base.net.eval()
        for batch in batches:
            torch.autograd.backward(TASK.outputs(base, batch).loss_sums.sum())
        return {f"{name} {f}": getattr(m, f).grad for name, m in adapted.lora.items() for f in ("A", "B")}


@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt2", "qwen3"])
@pytest.mark.parametrize("policy", [Policy(), Policy(recompute="all")], ids=["plain", "recompute"])
def test_gradients_are_those_of_texts_alone(name: str, policy: Policy) -> None:
    base, texts = packable(name), examples()
    found = gradients(base, [TASK.collate(base, rows_of(texts))], policy)
    expected = gradients(base, [TASK.collate(base, [text]) for text in texts if len(text["input_ids"]) > 1], Policy())
    for what in expected:
        assert_close(found[what], expected[what], atol=1e-6 * max(1, float(expected[what].abs().max())), rtol=1e-4)


@pytest.mark.parametrize("bf16", [False, True])
def test_the_fused_kernel_by_text_is_attention_by_text(bf16: bool) -> None:
    """Values and gradients, with padding and with int8 activations around it, which keep its inputs in few bits."""
    inputs = [torch.randn(2, 3, 11, 8, requires_grad=True) for _ in range(3)]
    places = [(0, 0, 4), (0, 4, 11), (1, 0, 6)]
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        found = packed_attention.by_text(*inputs, places, 0.5)
        expected = torch.zeros_like(found)
        for row, begin, end in places:
            parts = (tensor[row : row + 1, :, begin:end] for tensor in inputs)
            part = scaled_dot_product_attention(*parts, is_causal=True, scale=0.5).transpose(1, 2)
            expected[row, begin:end] = part[0]
    weights = torch.randn_like(found)
    got, wanted = (torch.autograd.grad((out * weights).sum(), inputs) for out in (found, expected))
    bound = 2e-2 if bf16 else 1e-6
    assert_close(found, expected, atol=bound, rtol=bound)
    assert not found[1, 6:].any()
    for one, other in zip(got, wanted, strict=True):
        assert_close(one, other, atol=bound, rtol=bound)
    with int8_activations(torch.Generator()):
        again = packed_attention.by_text(*inputs, places, 0.5)
    torch.autograd.grad(again.sum(), inputs)


def test_flash_attention_is_told_where_texts_lie(monkeypatch: pytest.MonkeyPatch) -> None:
    """Padding behind the last text of a row is a text of its own."""
    told: dict[str, Any] = {}

    def flash(_module: Any, _query: Tensor, _key: Tensor, _value: Tensor, mask: Any, **named: Any) -> Any:
        told.update(named, mask=mask)
        return torch.zeros(1), None

    monkeypatch.setattr(packed_attention, "attention_of", lambda *_: flash)
    texts = torch.tensor([[[0, 4], [4, 11]], [[0, 6], [0, 0]]])[:, None]
    inputs = [torch.zeros(2, 3, 11, 8)] * 3
    PackedAttention("flash_attention_2")(None, *inputs, texts, scaling=0.5)
    assert told["cu_seq_lens_q"].tolist() == told["cu_seq_lens_k"].tolist() == [0, 4, 11, 17, 22]
    assert (told["max_length_q"], told["max_length_k"], told["scaling"], told["mask"]) == (7, 7, 0.5, None)


def test_other_batches_are_as_without_packing() -> None:
    """To the bit: evaluations, and Fisher scores, are of padded batches."""
    base, texts = packable("llama"), examples()
    _, plain = base_of("llama")
    batch = TASK.collate(base, [texts[0], texts[2]])
    with torch.no_grad():
        assert torch.equal(TASK.logits(base, batch), TASK.logits(plain, batch))


def logits_of(base: BaseModel) -> Any:
    return lambda texts, packed: TASK.logits_of_texts(base, texts, packed)


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_a_trial_passes(name: str) -> None:
    base = packable(name)
    check_packing(base, name, 32, logits_of(base))


@pytest.mark.parametrize("name", sorted(APART))
def test_attention_by_code_of_its_own_is_refused(name: str) -> None:
    with pytest.raises(InputError, match=r"^task.packing: .*cannot keep the texts of a row apart") as refused:
        packable(name)
    assert "\n" not in str(refused.value)


def test_a_model_without_attention_is_refused() -> None:
    assert MENTIONED["mamba"][1] is LANGUAGE
    base = packable("mamba")
    with pytest.raises(InputError, match=r"^task.packing: 'mamba'"):
        check_packing(base, "mamba", 32, logits_of(base))


@pytest.mark.parametrize("shift", [1, -1], ids=["behind", "before"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_model_that_lets_texts_touch_is_refused(dtype: torch.dtype, shift: int) -> None:
    """One whose tokens see a little of what stands beside them in the row, as a convolution would."""
    base = packable("llama")
    base.net.to(dtype)
    block = base.net.model.layers[0]
    own = block.forward

    def forward(hidden: Tensor, *rest: Any, **named: Any) -> Any:
        beside = hidden.roll(shift, 1)
        beside[:, 0 if shift > 0 else -1] = 0
        return own(hidden + 1e-3 * beside, *rest, **named)

    check_packing(base, "llama", 32, logits_of(base))
    block.forward = forward
    with pytest.raises(InputError, match="one reaches into the other"):
        check_packing(base, "llama", 32, logits_of(base))


def test_a_model_whose_positions_go_on_is_refused() -> None:
    """Its second text would begin at the sixth place."""
    base = packable("gpt2")
    table = base.net.transformer.wpe
    table.register_forward_hook(lambda _table, places, _found: table.weight[: places[0].shape[-1]][None])
    with pytest.raises(InputError, match="moves its logits by"):
        check_packing(base, "gpt2", 32, logits_of(base))


@pytest.mark.parametrize("name", ["mistral", "phimoe"])
def test_a_window_that_only_masks_tell_is_refused(name: str) -> None:
    """Mistral's layers name theirs, PhiMoE's do not. Of texts that are no longer it makes no difference."""
    config = CONFIG_MAPPING[name](**GROUPED, sliding_window=8)
    torch.manual_seed(0)
    net = AutoModelForCausalLM.from_config(config).eval()
    base = BaseModel(net, AdapterSpec((), (), 1, 1.0), SimpleNamespace(pad_token_id=0))
    allow_packing(base, name)
    check_packing(base, name, 8, logits_of(base))
    if name == "mistral":
        check_packing(base, name, 9, logits_of(base))
    else:
        with pytest.raises(InputError, match="only its masks tell its window of 8 tokens"):
            check_packing(base, name, 9, logits_of(base))
