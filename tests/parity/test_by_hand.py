"""`federate`, with all that makes it fast, against examples/fed_hello_by_hand.py, round by round.

The model has no dropout, and 12 layers, so that layers 1 and 11 can be confused. The two compute the same in another
order (hellora folds frozen LoRA pairs into the weights), so their float32 results differ by rounding. With SGD that
stays as small as it is. AdamW divides a gradient by its own size, so where a gradient is near 0 it makes rounding as
large as a step: hence the wider tolerance, a thousandth of its learning rate (seen: 2e-6; one step moves by 2e-2).
"""

import importlib.util
import subprocess
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import ModuleType

import numpy as np
import numpy.typing as npt
import pytest
import tiny_models
import torch
from datasets import Dataset
from factories import method_of
from torch import Tensor
from transformers import AutoModel, AutoTokenizer

from hellora.backends.local import LocalBackend
from hellora.client.batches import shuffled_batches
from hellora.client.evaluation import fisher_scores
from hellora.client.work import ClientWork
from hellora.core.exchange import TrainSettings
from hellora.core.seeds import seed_for
from hellora.core.state import ServerState
from hellora.core.types import Adapter, AdapterSpec, Budget, ClientProfile, LoraPair
from hellora.methods.aggregators.participant_mean import ParticipantMean
from hellora.methods.allocators.fed_hello import FedHello
from hellora.methods.context import Scores
from hellora.methods.dispatchers.whole import Whole
from hellora.methods.layer_sampling import probabilities_from_scores
from hellora.model.resident import BaseModel
from hellora.model.settings import ModelSettings
from hellora.server.federation import Federation
from hellora.server.rounds import federate
from hellora.tasks.sequence_classification import SequenceClassification

pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")  # in peft

EXAMPLE = Path(__file__).parents[2] / "examples" / "fed_hello_by_hand.py"
BERT = {
    "num_hidden_layers": 12,
    "initializer_range": 0.08,  # large enough for attention to matter, small enough not to magnify rounding
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}
RANK, ALPHA = 2, 6  # the scale is 3
TOPICS = sorted(tiny_models.TOPICS)
SIZES = (5, 9, 12, 17, 20, 33)  # examples, by client
CAPACITIES = (2, 4, 2, 12, 4, 2)  # layers, by client
ROUNDS, COHORT, WARMUP, REFRESH, SEED = 5, 3, 2, 2, 0
SGD = TrainSettings(optimizer="sgd", lr=0.1, momentum=0.9, weight_decay=0.0, batch_size=8, epochs=2)
ADAMW = TrainSettings(optimizer="adamw", lr=0.02, batch_size=8, epochs=2)
TORCH = {"sgd": partial(torch.optim.SGD, lr=0.1, momentum=0.9), "adamw": partial(torch.optim.AdamW, lr=0.02)}

Examples = list[tuple[str, int]]  # text, label
Tensors = dict[str, Tensor]


def load_example() -> ModuleType:
    """The example is a script, in no package."""
    spec = importlib.util.spec_from_file_location(EXAMPLE.stem, EXAMPLE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


by_hand = load_example()


@dataclass(frozen=True, eq=False)
class Step:
    """A round, told in the same words by both sides."""

    layers: dict[int, list[int]]  # by client
    scores: npt.NDArray[np.float64] | None  # Fisher scores in force, (layers,)
    tensors: Tensors  # after the round, under hellora's names


def examples(count: int, seed: int) -> Examples:
    return [(text, TOPICS.index(topic)) for text, topic in tiny_models.sentences(count, seed)]


def steps_by_hand(model: torch.nn.Module, clients: list[Examples], proxy: Examples, train: TrainSettings) -> list[Step]:
    """The rounds by hand, with hellora's batches."""

    def batches_of(client: int, round: int) -> list[npt.NDArray[np.int64]]:
        lengths = np.array([len(model.tokenizer(text)["input_ids"]) for text, _ in clients[client]])
        seed = seed_for(SEED, "train", round, client)
        epochs = [shuffled_batches(lengths, len(lengths), train.batch_size, seed, e) for e in range(train.epochs)]
        return [batch for epoch in epochs for batch in epoch]

    rounds = by_hand.fed_hello(
        model,
        clients,
        CAPACITIES,
        proxy,
        rounds=ROUNDS,
        cohort=COHORT,
        warmup=WARMUP,
        refresh=REFRESH,
        seed=SEED,
        make_optimizer=TORCH[train.optimizer],
        batches_of=batches_of,
    )
    return [Step(layers, scores, hellora_names(theta)) for layers, scores, theta in rounds]


def hellora_names(theta: Tensors) -> Tensors:
    """PEFT's `encoder.base_model.model.<module>.lora_A.default.weight` is hellora's `<module>.lora_A`."""
    return {n.removeprefix("encoder.base_model.model.").removesuffix(".default.weight"): t for n, t in theta.items()}


def steps_of_federate(
    folder: Path, start: Tensors, clients: list[Examples], proxy: Examples, train: TrainSettings
) -> list[Step]:
    task = SequenceClassification()
    base = task.load(ModelSettings(str(folder), rank=RANK, alpha=ALPHA), TOPICS, seed=0)
    fleet = tuple(
        ClientProfile(i, size, Budget(layers=c)) for i, (size, c) in enumerate(zip(SIZES, CAPACITIES, strict=True))
    )
    parts = np.split(np.arange(sum(SIZES)), np.cumsum(SIZES)[:-1])
    work = ClientWork(base, task, dataset([example for client in clients for example in client]), parts)
    method = method_of(FedHello(warmup=WARMUP, refresh=REFRESH), Whole(), ParticipantMean())
    run = Federation(base.spec, fleet, method, ROUNDS, COHORT, SEED, train)
    steps = []
    with LocalBackend(work, fleet) as backend:
        state = ServerState(0, adapter_from(start, base.spec))
        for report in federate(state, run, backend, Scored(base, proxy)):
            assert report.counted.updated == report.counted.cohort, report.counted.rejected
            layers = {i: np.flatnonzero(report.allocation.row(i).all(axis=1)).tolist() for i in report.counted.cohort}
            scores = report.state.strategies.get("allocator/scores")
            steps.append(Step(layers, None if scores is None else scores.numpy(), report.state.adapter.tensors()))
    return steps


@dataclass(frozen=True, eq=False)
class Scored:
    """The server's model with its proxy data."""

    base: BaseModel
    proxy: Examples

    def layer_scores(self, adapter: Adapter) -> Scores:
        kind = SequenceClassification()
        return fisher_scores(adapter, self.base, kind, kind.encode(self.base, dataset(self.proxy)), 16)


def dataset(rows: Examples) -> Dataset:
    return Dataset.from_dict({"text": [text for text, _ in rows], "label": [label for _, label in rows]})


def adapter_from(tensors: Tensors, spec: AdapterSpec) -> Adapter:
    pairs = {
        m.name: LoraPair(tensors[f"{m.name}.lora_A"], tensors[f"{m.name}.lora_B"], spec.scale) for m in spec.modules
    }
    return Adapter(pairs, {name: tensors[f"head.{name}"] for name in ("weight", "bias")})


@pytest.mark.parametrize(("train", "atol"), [(SGD, 1e-6), (ADAMW, 2e-5)], ids=["sgd", "adamw"])
def test_every_round_is_the_round_of_the_paper(train: TrainSettings, atol: float, tmp_path: Path) -> None:
    folder = tiny_models.save_bert(tmp_path, **BERT)
    encoder, tokenizer = AutoModel.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    torch.manual_seed(SEED)
    model = by_hand.Classifier(encoder, tokenizer, len(TOPICS), RANK, ALPHA)
    start = hellora_names(by_hand.trainable(model))
    rows, proxy = iter(examples(sum(SIZES), seed=1)), examples(20, seed=3)
    clients = [[next(rows) for _ in range(size)] for size in SIZES]

    expected = steps_by_hand(model, clients, proxy, train)
    steps = steps_of_federate(folder, start, clients, proxy, train)

    assert len(steps) == len(expected) == ROUNDS
    for t, (step, paper) in enumerate(zip(steps, expected, strict=True)):
        assert step.layers == paper.layers, f"round {t}"
        if t < WARMUP:
            assert step.scores is paper.scores is None, f"round {t}"
        else:
            np.testing.assert_allclose(step.scores, paper.scores, rtol=1e-4, err_msg=f"round {t}")
        assert step.tensors.keys() == paper.tensors.keys() == start.keys()
        for name, tensor in paper.tensors.items():
            torch.testing.assert_close(
                step.tensors[name], tensor, rtol=1e-4, atol=atol, msg=lambda m, t=t, n=name: f"round {t}, {n}: {m}"
            )

    # What makes this worth comparing: every tensor was trained, and a layer that nobody trained in a round stood still.
    assert not any(torch.equal(steps[-1].tensors[name], old) for name, old in start.items())
    standing = [layer for layer in range(12) if not any(layer in layers for layers in steps[0].layers.values())]
    assert standing
    for name, old in start.items():
        assert (by_hand.layer_of(name) in standing) == torch.equal(steps[0].tensors[name], old), name
    # Fisher scores chose the layers, stayed in force, and chose otherwise after the refresh.
    first, second, refreshed = (probabilities_from_scores(step.scores, 3) for step in steps[WARMUP:])
    np.testing.assert_array_equal(first, second)
    assert not np.array_equal(first, refreshed)


@pytest.mark.slow
def test_the_example_runs_by_itself() -> None:
    done = subprocess.run([sys.executable, EXAMPLE], capture_output=True, text=True, check=True)
    assert [line.partition(":")[0] for line in done.stdout.splitlines()] == [f"round {t}" for t in range(6)]
