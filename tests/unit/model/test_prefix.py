"""The frozen prefix, run once per batch: the same adapter to the bit, the blocks skipped, and who is left alone."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import bases
import numpy as np
import pytest
import tiny_models
import torch
from datasets import Dataset
from factories import bits
from PIL import Image
from torch import Tensor, nn
from transformers import GPT2Config, GPT2Model, T5Config, T5EncoderModel

from hellora.client.batches import training_batches
from hellora.client.train import TrainingError, train_client
from hellora.core.errors import InputError
from hellora.core.exchange import ClientTask, Policy, TrainSettings
from hellora.methods.local_training.layer_scores import LayerScores
from hellora.model.load import adapter_spec
from hellora.model.prefix import InMemory, OnDisk, PrefixCache, TensorStore, passes, prefix_cache
from hellora.model.resident import BaseModel
from hellora.model.settings import ModelSettings
from hellora.tasks import Encoded, Task
from hellora.tasks.causal_lm import CausalLM
from hellora.tasks.image_classification import ImageClassification
from hellora.tasks.sequence_classification import SequenceClassification

IDS = torch.tensor([[2, 7, 8, 9, 3], [2, 11, 12, 13, 3]])


def images(count: int) -> Dataset:
    rng = np.random.default_rng(0)
    pictures = [Image.fromarray(rng.integers(0, 255, (8, 8, 3), dtype=np.uint8)) for _ in range(count)]
    return Dataset.from_dict({"image": pictures, "label": [i % 3 for i in range(count)]})


def instructions(count: int) -> Dataset:
    rows = tiny_models.sentences(count)
    return Dataset.from_dict({"prompt": [text for text, _ in rows], "response": [f"the {topic}" for _, topic in rows]})


# A folder's fixture, its task, and rows of it: 22, so that the last batch of four has two.
MODELS: dict[str, tuple[str, Task, Callable[[int], Dataset]]] = {
    "bert": ("tiny_bert", SequenceClassification(), bases.texts),  # with dropout
    "bert's own head": ("tiny_bert_with_head", SequenceClassification(head_type="own"), bases.texts),
    "vit": ("tiny_vit", ImageClassification(), images),
    "llama": ("tiny_llama", CausalLM(), instructions),
}
COUNT = 22


def loaded(model: str, request: pytest.FixtureRequest) -> tuple[BaseModel, Task, Dataset]:
    folder, kind, rows = MODELS[model]
    return bases.load(request.getfixturevalue(folder), kind, dropout=0.1), kind, rows(COUNT)


def runs_of(base: BaseModel, train: Callable[[], Any]) -> tuple[list[int], Any]:
    """How often the inside of each block runs during `train`, from the first block to the last; and what it returns."""
    counts = [0] * base.spec.num_layers
    with ExitStack() as hooks:
        for place, name in enumerate(base.spec.layers):

            def count(*_: Any, place: int = place) -> None:
                counts[place] += 1

            norm = next(m for m in base.net.get_submodule(name).modules() if "Norm" in type(m).__name__)
            hooks.callback(norm.register_forward_pre_hook(count).remove)
        result = train()
    return counts, result


def with_cache(task: ClientTask, kept: str = "memory", limit: int | None = None) -> ClientTask:
    policy = replace(task.policy, prefix_cache=kept, prefix_cache_bytes=limit)  # type: ignore[arg-type]
    return replace(task, policy=policy)


# --------------------------------------------------------------------------------------------------- the same training


@pytest.mark.parametrize("kept", ["memory", "disk"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("model", MODELS)
def test_training_is_the_same_to_the_bit_and_the_prefix_runs_once_per_batch(
    model: str, precision: str, kept: str, request: pytest.FixtureRequest
) -> None:
    base, kind, rows = loaded(model, request)
    last = base.spec.num_layers - 1
    task = bases.task_of(base, [last - 1, last], epochs=3, same_batches=True, precision=precision, lr=1e-2)
    rules = (LayerScores(),)
    plain = train_client(task, base, kind, rows, rules)
    counts, cached = runs_of(base, lambda: train_client(with_cache(task, kept), base, kind, rows, rules))
    assert counts == [6] * (last - 1) + [18, 18]
    assert bits(cached.adapter.tensors()) == bits(plain.adapter.tensors())
    assert cached.metrics["loss"] == plain.metrics["loss"]
    assert plain.report.keys() == {"layer_scores/scores"}
    assert bits(cached.report) == bits(plain.report)


def test_it_goes_with_every_other_policy(tiny_bert: Path) -> None:
    base, kind, rows = bases.load(tiny_bert, dropout=0.1), bases.MEAN_POOLING, bases.texts(COUNT)
    policy = Policy(recompute="all", int8_activations=True, bf16=True, micro_batch=3, merge=False)
    task = replace(bases.task_of(base, [2, 3], epochs=3, same_batches=True, lr=1e-2), policy=policy)
    plain = train_client(task, base, kind, rows)
    counts, cached = runs_of(base, lambda: train_client(with_cache(task), base, kind, rows))
    parts = 11  # five batches of 3 + 1 examples, and one of 2
    assert counts == [parts, parts, 2 * 3 * parts, 2 * 3 * parts], "blocks that train run again in backward"
    assert bits(cached.adapter.tensors()) == bits(plain.adapter.tensors())


@pytest.mark.parametrize("model", ["bert", "bert's own head", "vit"])
def test_with_nothing_but_the_head_to_train_every_block_is_the_prefix(
    model: str, request: pytest.FixtureRequest
) -> None:
    base, kind, rows = loaded(model, request)
    task = bases.task_of(base, [], steps=12, same_batches=True)
    plain = train_client(task, base, kind, rows)
    counts, cached = runs_of(base, lambda: train_client(with_cache(task), base, kind, rows))
    assert counts == [6] * base.spec.num_layers
    assert bits(cached.adapter.tensors()) == bits(plain.adapter.tensors())
    assert cached.adapter.head


BATCH = 4 * 9 * 32 * 4  # examples × tokens × width × bytes; the last batch has half as many examples
NONE_FITS, ONE_OF_FOUR, ALL = BATCH // 2 - 1, BATCH, 2 * BATCH + BATCH // 2


@pytest.mark.parametrize("kept", ["memory", "disk"])
@pytest.mark.parametrize(("limit", "runs"), [(NONE_FITS, {9}), (ONE_OF_FOUR, {7}), (ALL - 1, {5, 6}), (ALL, {3})])
def test_what_does_not_fit_is_computed_again(limit: int, runs: set[int], kept: str, tiny_bert: Path) -> None:
    base, kind = bases.load(tiny_bert), bases.MEAN_POOLING
    rows = Dataset.from_dict({"text": ["we saw a boat near the harbour"] * 10, "label": [0] * 10})
    task = bases.task_of(base, [3], epochs=3, same_batches=True)
    counts, cached = runs_of(base, lambda: train_client(with_cache(task, kept, limit), base, kind, rows))
    assert counts[3] == 9
    assert len(set(counts[:3])) == 1
    assert counts[0] in runs
    assert bits(cached.adapter.tensors()) == bits(train_client(task, base, kind, rows).adapter.tensors())


def test_the_blocks_just_run_where_nothing_can_be_saved(tiny_bert: Path) -> None:
    base, kind, rows = bases.load(tiny_bert), bases.MEAN_POOLING, bases.texts(8)
    settings: Sequence[tuple[list[int], dict[str, Any]]] = [([0, 3], {"epochs": 2}), ([3], {}), ([3], {"steps": 2})]
    for layers, train in settings:
        task = with_cache(bases.task_of(base, layers, same_batches=True, **train))
        with prefix_cache(base.net, task, base.spec.layers, len(rows)) as cache:
            assert not cache.blocks
        steps = 4 if "epochs" in train else 2
        assert runs_of(base, partial(train_client, task, base, kind, rows))[0] == [steps] * 4
    task = with_cache(replace(bases.task_of(base, [3], epochs=2, same_batches=True), bypass=True))
    with prefix_cache(base.net, task, base.spec.layers, len(rows)) as cache:
        assert not cache.blocks
    assert passes(TrainSettings(steps=6, batch_size=4), 9) == 2


@pytest.mark.parametrize("kept", ["memory", "disk"])
def test_the_model_is_as_it_was_after_a_failure(kept: str, tiny_bert: Path) -> None:
    base = bases.load(tiny_bert)
    first = base.net.get_submodule(base.spec.layers[0])
    own = first.forward
    first.forward = own  # as some libraries do
    task = with_cache(bases.task_of(base, [3], epochs=2, same_batches=True), kept)
    broken = {name: tensor * torch.nan for name, tensor in task.adapter.head.items()}
    with pytest.raises(TrainingError):
        train_client(
            replace(task, adapter=replace(task.adapter, head=broken)), base, bases.MEAN_POOLING, bases.texts(8)
        )
    assert vars(first).pop("forward") is own
    assert all("forward" not in vars(module) for module in base.net.modules())


# ------------------------------------------------------------------------------------------------------------- batches


def test_the_same_batches_come_in_another_order() -> None:
    encoded = Encoded([{}] * 23, np.random.default_rng(0).integers(3, 9, 23))
    plain = epochs_of(encoded, TrainSettings(batch_size=4, epochs=3))
    same = epochs_of(encoded, TrainSettings(batch_size=4, epochs=3, same_batches=True))
    assert same[0] == plain[0]
    assert sorted(same[0]) == sorted(same[1]) == sorted(same[2]) != sorted(plain[1])
    assert len({tuple(map(tuple, epoch)) for epoch in same}) == 3


def epochs_of(encoded: Encoded, settings: TrainSettings) -> list[list[list[int]]]:
    flat = [batch.tolist() for batch in training_batches(encoded, settings, seed=5)]
    return [flat[i : i + len(flat) // 3] for i in range(0, len(flat), len(flat) // 3)]


def test_a_cache_without_the_same_batches_is_refused(tiny_bert: Path) -> None:
    task = bases.task_of(bases.load(tiny_bert), [3], epochs=3)
    with pytest.raises(InputError, match=r"a prefix cache needs train\.same_batches = true"):
        with_cache(task)


# ------------------------------------------------------------------------------------------------------------ a chain


class Block(nn.Module):
    """Doubles and adds one; counts its runs."""

    def __init__(self, *others: Any) -> None:
        super().__init__()
        self.others, self.runs = others, 0

    def forward(self, hidden_states: Tensor) -> Any:
        self.runs += 1
        result = 2 * hidden_states + 1
        return (result, *self.others) if self.others else result


class InPlace(Block):
    def forward(self, hidden_states: Tensor) -> Any:
        self.runs += 1
        return hidden_states.mul_(2).add_(1)


def chain(x: Tensor, blocks: Sequence[Any]) -> Tensor:
    for block in blocks:
        answer = block(hidden_states=x)
        x = answer[0] if isinstance(answer, tuple) else answer
    return x


def with_a_step_between(x: Tensor, blocks: Sequence[Any]) -> Tensor:
    return chain(chain(x, blocks[:1]) + 1, blocks[1:])


def backwards(x: Tensor, blocks: Sequence[Any]) -> Tensor:
    return chain(x, blocks[::-1])


def first_one_twice(x: Tensor, blocks: Sequence[Any]) -> Tensor:
    return chain(x, [blocks[0], *blocks])


def all_but_one(x: Tensor, blocks: Sequence[Any]) -> Tensor:
    return chain(x, [blocks[0], blocks[2]])


def beside_each_other(x: Tensor, blocks: Sequence[Any]) -> Tensor:
    result: Tensor = sum(block(x) for block in blocks)  # type: ignore[assignment]
    return result


def strided(x: Tensor, blocks: Sequence[Any]) -> Tensor:
    return chain(x.T, blocks)


def training_before(x: Tensor, blocks: Sequence[Any]) -> Tensor:
    return chain(x * torch.ones(1, requires_grad=True), blocks)


def three_passes(net: Callable[[Tensor, Sequence[Any]], Tensor], blocks: Sequence[Block]) -> list[Tensor]:
    """What the net says of batches 0, 1, and 0 again, in a training that caches the first three blocks."""
    root = nn.ModuleList(blocks)
    layers = [str(place) for place in range(len(blocks))]
    trained = np.array([[False], [False], [False], [True]])[: len(blocks)]
    train = TrainSettings(epochs=2, same_batches=True)
    task = ClientTask(0, 0, 0, None, trained, train, policy=Policy(prefix_cache="memory"))  # type: ignore[arg-type]
    said = []
    with prefix_cache(root, task, layers, 32) as cache:
        for number in (0, 1, 0):
            with cache.batch(np.array([number])):
                said.append(net(torch.arange(6.0).reshape(2, 3) + number, blocks))
    return said


@pytest.mark.parametrize("others", [(), (None,), (None, None)])
def test_a_chain_is_skipped_whatever_form_its_blocks_answer_in(others: tuple[None, ...]) -> None:
    blocks = [Block(*others) for _ in range(4)]
    first, second, again = three_passes(chain, blocks)
    assert first.tolist() == [[15, 31, 47], [63, 79, 95]]
    assert second.tolist() == [[31, 47, 63], [79, 95, 111]]
    assert torch.equal(again, first)
    assert [block.runs for block in blocks] == [2, 2, 2, 3]


def test_what_is_kept_does_not_change_when_a_model_writes_into_it() -> None:
    blocks = [Block(), Block(), Block(), InPlace()]
    first, _, again = three_passes(chain, blocks)
    assert torch.equal(again, first)
    assert [block.runs for block in blocks] == [2, 2, 2, 3]
    store = InMemory()
    store.put(b"x", torch.ones(2))
    for _ in range(2):
        found = store.get(b"x")
        assert found is not None
        assert found.mul_(2).tolist() == [2, 2]


@pytest.mark.parametrize(
    "net",
    [with_a_step_between, backwards, first_one_twice, all_but_one, beside_each_other, strided, training_before],
)
def test_what_is_no_chain_is_left_alone(net: Callable[[Tensor, Sequence[Any]], Tensor]) -> None:
    expected_blocks, blocks = [Block() for _ in range(3)], [Block() for _ in range(3)]
    x = torch.arange(6.0).reshape(2, 3)
    expected = [net(x + number, expected_blocks) for number in (0, 1, 0)]
    assert [said.tolist() for said in three_passes(net, blocks)] == [said.tolist() for said in expected]
    assert [block.runs for block in blocks] == [block.runs for block in expected_blocks]


def test_a_block_that_returns_more_than_its_tensor_is_left_alone() -> None:
    blocks = [Block(torch.ones(1)) for _ in range(4)]
    first, _, again = three_passes(chain, blocks)
    assert torch.equal(again, first)
    assert [block.runs for block in blocks] == [3] * 4


@pytest.mark.parametrize(("family", "skipped"), [("gpt2", True), ("t5", False)])
def test_other_families(family: str, skipped: bool) -> None:
    """GPT-2 is a chain. T5's first block returns the position bias that the later ones use."""
    torch.manual_seed(0)
    words = {"vocab_size": 30, "bos_token_id": 1, "eos_token_id": 1}
    small: dict[str, Any] = {"vocab_size": 30, "num_layers": 4, "num_heads": 2, "d_model": 16, "d_ff": 24, "d_kv": 8}
    if family == "gpt2":
        net: Any = GPT2Model(GPT2Config(n_positions=16, n_embd=16, n_layer=4, n_head=2, **words))
    else:
        net = T5EncoderModel(T5Config(**small))
    net = net.eval().requires_grad_(False)
    base = BaseModel(net, adapter_spec(net, ModelSettings(rank=3)), None)
    task = with_cache(bases.task_of(base, [3], bases.acting_adapter(base), epochs=2, same_batches=True))

    def two_passes() -> list[Tensor]:
        said = []
        with base.adapted(task.adapter, task.trained), prefix_cache(net, task, base.spec.layers, 32) as cache:
            net.eval()
            for _ in range(2):
                with cache.batch(np.arange(2)):
                    said.append(net(input_ids=IDS, attention_mask=torch.ones_like(IDS)).last_hidden_state)
        return said

    counts, said = runs_of(base, two_passes)
    assert counts == ([1, 1, 1, 2] if skipped else [2] * 4)
    with base.adapted(task.adapter, task.trained):
        net.eval()
        plain = net(input_ids=IDS, attention_mask=torch.ones_like(IDS)).last_hidden_state
    assert torch.equal(said[1], plain)


# ------------------------------------------------------------------------------------------------------------- shelves


@pytest.mark.parametrize("kind", ["memory", "disk"])
def test_a_shelf_gives_back_what_it_was_given(kind: str) -> None:
    with TemporaryFile() as file:
        store: TensorStore = InMemory(100) if kind == "memory" else OnDisk(file, 100)
        given = {
            b"a": torch.tensor([[1.5, -0.0, torch.nan]]),  # 12 bytes
            b"b": torch.arange(4, dtype=torch.bfloat16).reshape(2, 1, 2),  # 8 bytes
            b"c": torch.arange(10.0, dtype=torch.float64),  # 80 bytes
        }
        assert all(store.put(name, tensor) for name, tensor in given.items())
        assert not store.put(b"d", torch.tensor(True)), "it is full to the last byte"
        for name in (b"c", b"a", b"b", b"a"):
            found = store.get(name)
            assert found is not None
            as_int = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[found.element_size()]
            assert (found.shape, found.dtype) == (given[name].shape, given[name].dtype)
            assert torch.equal(found.view(as_int), given[name].view(as_int))
        assert store.get(b"d") is None


def test_a_cache_of_no_blocks_does_nothing() -> None:
    cache = PrefixCache([], InMemory())
    with cache.batch(np.arange(3)):
        pass
    assert cache.store.num_bytes == 0
