"""Every preset is valid, and can be planned from its model's config alone: no download, no weights, no data."""

import json
import time
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from factories import method_of
from transformers import BertConfig, DistilBertConfig, LlamaConfig, PretrainedConfig, Qwen2Config, ViTConfig

from hellora.core.types import Budget
from hellora.core.units import parse_layers
from hellora.data.partitioners.iid import Iid
from hellora.experiments.config import own_table, presets, read_experiment
from hellora.experiments.experiment import Experiment
from hellora.experiments.planning import plan
from hellora.methods.aggregators.context_pad import ContextPad
from hellora.methods.aggregators.participant_mean import ParticipantMean
from hellora.methods.allocators.everything import Everything
from hellora.methods.allocators.fed_hello import FedHello
from hellora.methods.allocators.fisher import span
from hellora.methods.demands import PROTOTYPES_KEPT, PROXY_DATA
from hellora.methods.dispatchers.truncate import Truncate
from hellora.methods.local_training.plain import Plain
from hellora.model.location import resolve_name
from hellora.model.resident import BaseModel
from hellora.tasks import Task

LLAMA_1B = {
    "hidden_size": 2048,
    "num_hidden_layers": 16,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "intermediate_size": 8192,
    "vocab_size": 128256,
    "tie_word_embeddings": True,
}
SMOLLM2 = {
    "hidden_size": 576,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "intermediate_size": 1536,
    "vocab_size": 49152,
    "tie_word_embeddings": True,
}
QWEN_HALF_B = {
    "hidden_size": 896,
    "num_hidden_layers": 24,
    "num_attention_heads": 14,
    "num_key_value_heads": 2,
    "intermediate_size": 4864,
    "vocab_size": 151936,
    "tie_word_embeddings": True,
}
MINILM = {"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12, "intermediate_size": 1536}
# By preset: the config of the model that it names, the number of layers, and of adapted modules in each.
ARCHITECTURES: dict[str, tuple[PretrainedConfig, int, int]] = {
    "quickstart": (BertConfig(**MINILM), 6, 2),
    "llm_quickstart": (LlamaConfig(**SMOLLM2), 30, 4),
    "vit_cifar100": (ViTConfig(), 12, 2),
    "vit_domainnet": (ViTConfig(), 12, 2),
    "bert_ledgar": (BertConfig(), 12, 2),
    "distilbert_imdb": (DistilBertConfig(), 6, 2),
    "llama_dolly": (LlamaConfig(**LLAMA_1B), 16, 4),
    "llama_natural_instructions": (LlamaConfig(**LLAMA_1B), 16, 4),
    "smollm2_dolly": (LlamaConfig(**SMOLLM2), 30, 4),
    "smollm2_natural_instructions": (LlamaConfig(**SMOLLM2), 30, 4),
    "qwen_chat": (Qwen2Config(**QWEN_HALF_B), 24, 7),
}
OURS = {"quickstart", "llm_quickstart", "smollm2_dolly", "smollm2_natural_instructions", "qwen_chat"}  # no paper's


def read_offline(name: str, folder: Path, **settings: Any) -> Experiment:
    """The preset, its model replaced by a folder that holds nothing but the same architecture's config.json."""
    config = ARCHITECTURES[name][0]
    (folder / "config.json").write_text(json.dumps(config.to_dict()))
    return read_experiment(name, {"model.name": str(folder), **settings})


METHODS = [name for name in presets() if own_table(name).get("base") == "quickstart"]
GLUE = [name for name in presets() if name.startswith("glue_")]


def test_every_preset_is_a_papers_experiment_or_a_method_on_the_quickstart() -> None:
    assert sorted([*ARCHITECTURES, *METHODS, *GLUE]) == presets()
    assert len(METHODS) > 20


@pytest.mark.parametrize("name", GLUE)
def test_glue_is_measured_with_helora_pad_on_the_split_that_has_labels(name: str) -> None:
    table = own_table(name)
    assert (table["base"], set(table) - {"base", "task"}) == ("helora_pad", {"data"})
    assert (table["data"]["subset"], table["data"]["test_split"]) == (name.removeprefix("glue_"), "validation")


@pytest.mark.parametrize("name", METHODS)
def test_the_preset_of_a_method_is_planned_from_a_config_alone(name: str, tmp_path: Path) -> None:
    """Thirds of the clients can train a third, two thirds or all: of the layers, or of the rank in every layer."""
    (tmp_path / "config.json").write_text(json.dumps(BertConfig(**MINILM).to_dict()))
    experiment = read_experiment(name, {"model.name": str(tmp_path)})
    federation, allocation = plan(experiment, min(3, experiment.run.rounds - 1))
    assert len(allocation.clients) == experiment.run.cohort
    for client, ranks in zip(allocation.clients, allocation.ranks, strict=True):
        budget = federation.fleet[client].budget
        trains = name not in ("ridge_head", "ova_lp")  # they have the head alone
        assert np.count_nonzero(ranks) == trains * budget.capacity(6)
        assert ranks.max() == trains * (budget.rank or experiment.model.rank)
    budgets = {profile.budget for profile in federation.fleet}
    if name == "fedit":
        assert budgets == {Budget()}
    else:
        thirds = {Budget(layers=Fraction(part, 3)) for part in (1, 2, 3)}
        assert budgets in (thirds, {Budget(rank=r) for r in (4, 8, 12)})


@pytest.mark.parametrize("name", METHODS)
def test_a_method_preset_names_nothing_but_what_its_method_is(name: str) -> None:
    once = {"rounds"} if name == "ridge_head" else set()  # nothing is trained, so that there is nothing to go on with
    assert set(own_table(name)) <= {"base", "model", "fleet", "method", "train", "data", "guard"} | once
    assert set(own_table(name).get("model", {})) == {"rank"}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_preset_is_planned_from_a_config_alone(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    experiment = read_offline(name, tmp_path)
    built: list[BaseModel] = []
    load = type(experiment.task).load

    def load_and_note(self: Task, *args: Any, **options: Any) -> BaseModel:
        built.append(load(self, *args, **options))
        return built[-1]

    monkeypatch.setattr(type(experiment.task), "load", load_and_note)
    started = time.perf_counter()
    federation, first = plan(experiment, 0)
    assert time.perf_counter() - started < 10

    _, num_layers, modules_per_layer = ARCHITECTURES[name]
    spec = federation.spec
    assert spec.num_layers == num_layers
    assert len(spec.modules) == modules_per_layer * num_layers
    assert spec.max_rank == experiment.model.rank
    assert all(parameter.device == torch.device("meta") for base in built for parameter in base.net.parameters())

    _, last = plan(experiment, experiment.run.rounds - 1)
    for allocation in (first, last):
        assert len(allocation.clients) == experiment.run.cohort
        for client, ranks in zip(allocation.clients, allocation.ranks, strict=True):
            budget = federation.fleet[client].budget
            assert np.count_nonzero(ranks) == budget.capacity(num_layers)  # all that a client can afford
            assert set(ranks) <= {0, budget.rank or experiment.model.rank}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_preset_uses_every_capacity_up_to_the_whole_model(name: str) -> None:
    experiment = read_experiment(name)
    budgets = experiment.fleet.budgets(experiment.data.clients, experiment.run.seed)
    if name == "distilbert_imdb":  # HeLoRA
        assert {budget.rank for budget in budgets} == {6, 7, 8}
        assert {budget.layers for budget in budgets} == {None}
    else:  # Fed-HeLLo with the server's own data
        layers, capacities = ARCHITECTURES[name][1], {budget.layers for budget in budgets}
        assert capacities == set(map(parse_layers, experiment.fleet.layers))
        assert max(Budget(layers=capacity).capacity(layers) for capacity in capacities) == layers
        assert (PROXY_DATA in experiment.method.allocator.demands.needs) == (name != "llm_quickstart")
    assert resolve_name(experiment.model.name)  # a hub id, never somebody's folder


@pytest.mark.parametrize("name", sorted(set(ARCHITECTURES) - OURS - {"distilbert_imdb"}))
def test_fed_hello_s_own_experiments_have_its_mean_and_its_capacities(name: str) -> None:
    """Eq. 3 counts every client that trained a layer alike; capacities are a half, three quarters and all (6/9/12)."""
    experiment = read_experiment(name)
    assert experiment.method.aggregator == ParticipantMean(weighting="uniform")
    assert [4 * capacity / ARCHITECTURES[name][1] for capacity in experiment.fleet.layers] == [2, 3, 4]
    assert experiment.fleet.shares == (1.0, 1.0, 1.0)
    assert experiment.model.rank == 16
    assert experiment.model.scale == 1.0
    warmup, refresh = (
        span(value, experiment.run.rounds)
        for value in (experiment.method.allocator.warmup, experiment.method.allocator.refresh)
    )
    assert warmup == refresh == experiment.run.rounds / 10  # T_RGD = T_FIM = 50 of 500


def test_bert_ledgar_has_the_official_values_and_else_those_of_cifar100() -> None:
    experiment = read_experiment("bert_ledgar")
    assert experiment.model.name == "google-bert/bert-base-uncased"
    assert (experiment.task.max_length, experiment.data.proxy_examples) == (512, 50)
    assert (experiment.data.clients, experiment.run.cohort, experiment.run.rounds) == (100, 10, 500)
    assert (experiment.train.lr, experiment.train.batch_size, experiment.train.epochs) == (1e-2, 128, 1)


def test_distilbert_imdb_has_the_official_values_of_helora() -> None:
    experiment = read_experiment("distilbert_imdb")
    assert experiment.method == method_of(Everything(), Truncate(), ContextPad(), local_training=(Plain(),))
    assert experiment.model.targets == ("q_lin", "k_lin")
    assert (experiment.model.rank, experiment.model.alpha, experiment.model.dropout) == (8, 32.0, 0.1)
    assert (experiment.data.clients, experiment.run.cohort, experiment.run.rounds) == (3, 3, 200)
    assert (experiment.train.optimizer, experiment.train.lr) == ("adamw", 5e-5)
    assert (experiment.train.batch_size, experiment.train.epochs) == (32, 1)
    assert isinstance(experiment.partitioner, Iid)


def test_distilbert_imdb_can_distil_on_the_reviews_without_a_label() -> None:
    """As docs/papers.md says: HeLoRA-KD with IMDB's own unlabelled split, which no client holds."""
    changes = {"method.aggregator": "mutual_distillation", "method.dispatcher": "prototype"}
    experiment = read_experiment("distilbert_imdb", {**changes, "data.public": "unsupervised"})
    assert PROTOTYPES_KEPT in experiment.method.aggregator.demands.promises


def test_vit_cifar100_has_the_papers_values() -> None:
    experiment = read_experiment("vit_cifar100")
    assert experiment.method.allocator == FedHello(warmup=50, refresh=50)  # T_RGD, T_FIM; bottleneck
    assert experiment.fleet.layers == (6, 9, 12)
    assert experiment.fleet.shares == (1.0, 1.0, 1.0)
    assert experiment.model.rank == 16
    assert experiment.data.clients == 100
    assert experiment.run.cohort == 10
    assert experiment.run.rounds == 500
    assert experiment.train.lr == 1e-2
    assert experiment.train.batch_size == 128
    assert experiment.train.epochs == 1
    assert experiment.train.steps is None


def test_the_warm_up_of_vit_cifar100_draws_by_the_published_probabilities(tmp_path: Path) -> None:
    """Bottleneck of 6, 9 and 12 of 12 layers: (3,3,3,2,2,1,1,1,2,3,3,3) / 27; the outer layers train most often."""
    experiment = read_offline("vit_cifar100", tmp_path)
    trained = np.zeros(12)
    for round in range(4):
        _, allocation = plan(experiment, round)
        trained += (allocation.ranks > 0).sum(axis=0)
    assert trained[[0, 1, 2, 9, 10, 11]].mean() > trained[[5, 6, 7]].mean()


def test_a_preset_is_planned_with_another_allocator(tmp_path: Path) -> None:
    experiment = read_offline("vit_cifar100", tmp_path, **{"method.allocator": "geometric"})
    federation, allocation = plan(experiment, 0)
    for client, ranks in zip(allocation.clients, allocation.ranks, strict=True):
        capacity = federation.fleet[client].budget.layers
        expected = {6: [0, 1, 2, 9, 10, 11], 9: [0, 1, 2, 3, 4, 8, 9, 10, 11], 12: list(range(12))}[capacity or 0]
        assert np.flatnonzero(ranks).tolist() == expected
