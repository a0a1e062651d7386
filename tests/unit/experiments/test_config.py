"""The experiment file: what is accepted, what is refused and in which words, and that it survives being written out."""

import re
import sys
from collections import Counter
from dataclasses import MISSING, fields
from fractions import Fraction
from itertools import combinations
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from hellora.core.errors import InputError
from hellora.core.exchange import TrainSettings
from hellora.core.types import Budget
from hellora.data.partitioners.dirichlet import Dirichlet
from hellora.data.partitioners.iid import Iid
from hellora.experiments import elsewhere, registry
from hellora.experiments.config import (
    NAMING,
    SECTIONS,
    check,
    override,
    own_table,
    owners,
    presets,
    read_experiment,
)
from hellora.experiments.experiment import Experiment
from hellora.experiments.overrides import parse_settings
from hellora.experiments.presets import preset_summaries
from hellora.experiments.sections import TOP, defaults_of
from hellora.experiments.settings import FleetSettings
from hellora.methods.aggregators.mutual_distillation import MutualDistillation
from hellora.methods.allocators.fed_hello import FedHello
from hellora.methods.allocators.geometric import Geometric
from hellora.methods.demands import LASTING_COMPONENTS, LONE_ADAPTER, PROTOTYPES_KEPT, Fact
from hellora.methods.local_training.fed_dyn import FedDyn
from hellora.methods.local_training.fed_prox import FedProx
from hellora.methods.local_training.hetlora import Hetlora
from hellora.methods.local_training.layer_scores import LayerScores
from hellora.methods.local_training.plain import Plain

ISSUE_EXAMPLE = """\
seed = 0
rounds = 10
cohort = 8                      # clients per round
[model]                         # name: hub id, local folder, or the embedded "minilm"
name = "minilm"
rank = 8
[data]                          # name: hub id, local file or folder with train/test files, or "stdlib_docs"
name = "stdlib_docs"
clients = 20
partitioner = "dirichlet"
alpha = 0.3
[fleet]                         # capacity groups and their shares (RoC)
layers = [2, 4, 6]
shares = [1, 1, 1]
[method]
allocator = "fed_hello"
aggregator = "participant_mean"
dispatcher = "whole"
[train]
lr = 2e-3
batch_size = 16
epochs = 1
"""


def file_of(folder: Path, text: str, name: str = "mine.toml") -> str:
    path = folder / name
    path.write_text(text)
    return str(path)


def with_setting(key: str, value: Any) -> dict[str, Any]:
    """A table with one setting, `section.key` or `key`."""
    section, _, rest = key.rpartition(".")
    return {section: {rest: value}} if section else {rest: value}


# ------------------------------------------------------------------------------------------------------------- accepted


def test_the_example_of_the_issue_is_accepted_as_it_stands(tmp_path: Path) -> None:
    experiment = read_experiment(file_of(tmp_path, ISSUE_EXAMPLE))
    assert experiment.name == "mine"
    assert (experiment.run.seed, experiment.run.rounds, experiment.run.cohort) == (0, 10, 8)
    assert (experiment.model.name, experiment.model.rank, experiment.model.scale) == ("minilm", 8, 1.0)
    assert (experiment.data.name, experiment.data.clients) == ("stdlib_docs", 20)
    assert experiment.partitioner == Dirichlet(alpha=0.3)
    assert experiment.fleet == FleetSettings((2, 4, 6), (1.0, 1.0, 1.0))
    assert experiment.method.allocator == FedHello()
    assert experiment.train == TrainSettings(lr=2e-3, batch_size=16, epochs=1)


def test_an_empty_file_is_the_defaults() -> None:
    experiment = check("empty", {})
    assert experiment.method.allocator == FedHello()
    assert experiment.fleet.budgets(3, seed=0) == [Budget()] * 3


def test_settings_from_the_command_line_name_the_same_keys(tmp_path: Path) -> None:
    texts = ["train.lr=1e-3", "rounds = 3", "fleet.layers=[1, 6]", "fleet.shares=[2, 1]", "model.name=org/model"]
    texts += ["method.local_training=[fed_prox,plain]"]  # as a shell leaves a list of names in quotes
    experiment = read_experiment(file_of(tmp_path, ISSUE_EXAMPLE), parse_settings([*texts, "train.lr=5e-4"]))
    assert experiment.train.lr == 5e-4  # the last one counts
    assert experiment.run.rounds == 3
    assert experiment.fleet.layers == (1, 6)
    assert experiment.model.name == "org/model"  # names need no quotes
    assert [rule.name for rule in experiment.method.local_training] == ["fed_prox", "plain"]
    assert experiment.train.batch_size == 16  # the rest stays


def test_a_users_own_strategy_is_named_by_module_and_class() -> None:
    experiment = check(
        "own", {"method": {"allocator": "hellora.methods.allocators.geometric:Geometric", "pattern": "uniform"}}
    )
    assert experiment.method.allocator == Geometric("uniform")


# ------------------------------------------------------------------------------------- naming another strategy by --set


def test_naming_another_allocator_drops_the_options_of_the_one_it_replaces(tmp_path: Path) -> None:
    text = ISSUE_EXAMPLE.replace("[train]", 'warmup = 3\nrefresh = 4\npattern = "uniform"\n[train]')
    source = file_of(tmp_path, text)
    assert read_experiment(source).method.allocator == FedHello(warmup=3, refresh=4, pattern="uniform")
    replaced = read_experiment(source, {"method.allocator": "geometric"})
    assert replaced.method.allocator == Geometric("uniform")  # what both have is kept, what is fed_hello's own is gone
    assert not replaced.table["method"].keys() & {"warmup", "refresh", "scores"}
    assert read_experiment(source, {"method.allocator": "everything"}).table["method"].get("pattern") is None


def test_naming_another_partitioner_drops_the_options_of_the_one_it_replaces(tmp_path: Path) -> None:
    changed = read_experiment(file_of(tmp_path, ISSUE_EXAMPLE), {"data.partitioner": "iid"})
    assert changed.partitioner == Iid()
    assert "alpha" not in changed.table["data"]


def test_options_of_the_new_strategy_can_be_given_beside_its_name(tmp_path: Path) -> None:
    settings = {"method.pattern": "triangle", "method.allocator": "geometric"}
    assert read_experiment(file_of(tmp_path, ISSUE_EXAMPLE), settings).method.allocator == Geometric("triangle")


def test_options_of_the_replaced_strategy_are_refused_when_given_anew(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"unknown setting data\.alpha"):
        read_experiment(file_of(tmp_path, ISSUE_EXAMPLE), {"data.partitioner": "iid", "data.alpha": 0.1})


# -------------------------------------------------------------------------------------------------------------- refused


@pytest.mark.parametrize(
    ("key", "nearest"),
    [
        ("round", "rounds"),
        ("cohorts", "cohort"),
        ("train.batchsize", "batch_size"),
        ("train.learning_rates", None),
        ("model.ranks", "rank"),
        ("data.aplha", "alpha"),  # the partitioner's own
        ("data.client", "clients"),
        ("fleet.layer", "layers"),
        ("method.alocator", "allocator"),
        ("method.warm_up", "warmup"),  # the allocator's own
        ("server.momentums", "momentum"),
        ("compute.worker", "workers"),
        ("task.max_lenght", "max_length"),
    ],
)
def test_an_unknown_key_is_named_with_the_nearest_valid_one(key: str, nearest: str | None) -> None:
    with pytest.raises(InputError) as refusal:
        check("bad", with_setting(key, 1))
    assert f"unknown setting {key}: " in str(refusal.value)
    expected = f"did you mean {nearest!r}?" if nearest else "choose among"
    assert expected in str(refusal.value)


@pytest.mark.parametrize(
    ("key", "setting"),
    [
        ("train.learning_rate", "train.lr"),
        ("lr", "server.lr or train.lr"),  # the server optimizer has one, too
        ("lora.r", "model.rank"),
        ("training.num_train_epochs", "train.epochs"),
        ("model.lora_alpha", "model.alpha"),
        ("train.rounds", "rounds"),
        ("data.num_clients", "data.clients"),
        ("num_clients", "data.clients"),
        ("data.dirichlet_alpha", "data.alpha"),
        ("train.rank", "model.rank"),
        ("train.num_train_epochs", "train.epochs"),
        ("train.per_device_train_batch_size", "train.batch_size"),
        ("weight_decay", "train.weight_decay"),
        ("train.warmup_ratio", "train.warmup"),
        ("train.max_grad_norm", "train.clip_norm"),
        ("train.bf16", 'train.precision = "bf16"'),
        ("train.seed", "seed"),
        ("model.r", "model.rank"),
        ("model.target_modules", "model.targets"),
        ("model.lora-dropout", "model.dropout"),
        ("modules_to_save", "model.modules_to_save"),
        ("num_rounds", "rounds"),
        ("fraction_fit", "cohort, a number of clients"),
        ("min_available_clients", "min_clients"),
        ("train.output_dir", "--out on the command line"),
    ],
)
def test_a_key_from_elsewhere_is_answered_with_ours(key: str, setting: str) -> None:
    with pytest.raises(InputError, match=rf"^unknown setting {key.split('.')[0]}\S*: did you mean {setting}\?$"):
        check("bad", with_setting(key, 1))


def test_names_from_elsewhere_are_of_what_there_is_here() -> None:
    own = {key for place in (TOP, *SECTIONS.values()) for key in defaults_of(place)}
    for ours, others in elsewhere.SETTINGS.items():
        section, key = re.match(r"(?:(\w+)\.)?(\w+)|", ours).groups()
        known = owners(section, {}) if section else defaults_of(TOP)
        assert key in known or ours.endswith("on the command line"), ours
        assert not own & set(others), "it is ours already"
    for kind, names in elsewhere.STRATEGIES.items():
        assert names.keys() <= set(registry.names(kind))
    assert {name for names in elsewhere.PRESETS.values() for name in names} <= set(presets())
    assert not set(elsewhere.PRESETS) & set(presets())


@pytest.mark.parametrize(
    ("key", "value", "mend"),
    [
        (
            "method.aggregator",
            "flexlora",
            "flexlora is a preset: write hellora run flexlora (its aggregator is product_svd)",
        ),
        (
            "method.aggregator",
            "FlexLoRA",
            "flexlora is a preset: write hellora run flexlora (its aggregator is product_svd)",
        ),
        (
            "method.dispatcher",
            "glue_rte",
            "glue_rte is a preset: write hellora run glue_rte (its dispatcher is truncate)",
        ),
        ("method.allocator", "trimmed_mean", "trimmed_mean is a name of method.aggregator; choose among budget_value"),
        ("method.aggregator", "FedAvg", "did you mean 'participant_mean'?"),
        ("data.partitioner", "non-iid", "did you mean 'dirichlet'?"),
        ("method.allocator", "FIM-HLA", "did you mean 'fisher'?"),
        ("method.allocator", "RGD-HLA", "did you mean 'randomized_geometric'?"),
        ("method.allocator", "GD-HLA", "did you mean 'geometric'?"),
        ("method.allocator", "RandomizedGeometric", "did you mean 'randomized_geometric'?"),
        (
            "method.aggregator",
            "HeLoRA",
            "helora_pad is a preset: write hellora run helora_pad or hellora run helora_kd",
        ),
        ("method.aggregator", "FedProx", "fed_prox is a name of method.local_training; choose among"),
    ],
)
def test_a_name_in_the_wrong_place_is_answered_with_the_right_one(key: str, value: str, mend: str) -> None:
    with pytest.raises(InputError) as refusal:
        check("bad", with_setting(key, value))
    assert f"{value!r}: {mend}" in str(refusal.value)


def test_an_unknown_table_is_named_with_the_nearest_valid_one() -> None:
    with pytest.raises(InputError, match=r"unknown setting trian: did you mean 'train'\?"):
        check("bad", {"trian": {"lr": 1e-3}})


def test_an_option_of_another_allocator_is_unknown() -> None:
    with pytest.raises(InputError, match=r"unknown setting method\.warmup"):
        check("bad", {"method": {"allocator": "geometric", "warmup": 3}})


@pytest.mark.parametrize(
    ("key", "value", "nearest"),
    [
        ("method.allocator", "fedhello", "fed_hello"),
        ("method.aggregator", "participants_mean", "participant_mean"),
        ("method.dispatcher", "hole", "whole"),
        ("data.partitioner", "dirichelt", "dirichlet"),
        ("task.name", "sequence_clasification", "sequence_classification"),
    ],
)
def test_an_unknown_strategy_is_named_with_the_nearest_valid_one(key: str, value: str, nearest: str) -> None:
    with pytest.raises(InputError) as refusal:
        check("bad", with_setting(key, value))
    assert f"{value!r}: did you mean {nearest!r}?" in str(refusal.value)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("rounds", "ten"),
        ("rounds", "10"),  # a text is no number, whatever it says
        ("rounds", 2.5),
        ("rounds", True),
        ("seed", [1]),
        ("train.lr", "fast"),
        ("train.lr", False),
        ("train.steps", 1.5),
        ("train.optimizer", "adam"),
        ("train.precision", 16),
        ("model.name", 5),
        ("model.dtype", "float8"),
        ("model.targets", "query"),
        ("model.trust_remote_code", 1),
        ("data.clients", "many"),
        ("data.alpha", "skewed"),
        ("fleet.layers", 6),
        ("fleet.layers", [2, 1.5]),
        ("fleet.ranks", 4),
        ("fleet.ranks", [2, "all"]),
        ("fleet.ranks", [2, [1, 2.5]]),
        ("method.allocator", 3),
        ("method.head", "shared"),
        ("method.warmup", "long"),
        ("compute.workers", None),
    ],
)
def test_a_value_of_the_wrong_type_is_refused_by_its_key(key: str, value: Any) -> None:
    with pytest.raises(InputError) as refusal:
        check("bad", with_setting(key, value))
    assert key in str(refusal.value)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("rounds", 0),
        ("cohort", 0),
        ("min_clients", 0),
        ("eval_every", 0),
        ("model.rank", 0),
        ("model.dropout", 1.0),
        ("model.alpha", 0.0),
        ("data.clients", 0),
        ("data.alpha", 0.0),
        ("data.test_fraction", 1.0),
        ("data.proxy_examples", -1),
        ("data.max_examples", 0),
        ("fleet.layers", [2, -1]),
        ("fleet.layers", [2, "most"]),
        ("fleet.layers", ["4/3"]),
        ("fleet.layers", ["0/3"]),
        ("fleet.layers", ["1/0"]),
        ("method.refresh", 0),
        ("method.warmup", -1),
        ("method.pattern", "square"),
        ("method.weighting", "equal"),
        ("server.lr", 0.0),
        ("server.momentum", 1.0),
        ("train.lr", 0.0),
        ("train.lr", float("nan")),
        ("train.batch_size", 0),
        ("train.epochs", 0),
        ("train.steps", 0),
        ("train.clip_norm", 0.0),
        ("train.weight_decay", -0.1),
        ("compute.workers", -1),
        ("eval_examples", -1),
        ("compute.threads", -1),
    ],
)
def test_a_value_out_of_range_is_refused_by_its_key(key: str, value: Any) -> None:
    with pytest.raises(InputError) as refusal:
        check("bad", with_setting(key, value))
    section, _, name = key.rpartition(".")
    assert section in str(refusal.value)
    assert name in str(refusal.value)


@pytest.mark.parametrize("text", ["train.lr", "=3", "train.lr.x=3", ".lr=3", "train.=3"])
def test_a_setting_without_section_key_and_value_is_refused(text: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"section\.key"):
        read_experiment(file_of(tmp_path, ISSUE_EXAMPLE), parse_settings([text]))


def test_a_table_where_a_value_belongs_and_the_other_way_round_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="train must be a table"):
        check("bad", {"train": 3})
    with pytest.raises(InputError, match="seed is a setting, not a table"):
        read_experiment(file_of(tmp_path, ISSUE_EXAMPLE), {"seed.x": 3})
    with pytest.raises(InputError, match="rounds"):
        check("bad", {"rounds": {"x": 3}})


def test_a_partitioner_without_its_required_setting_is_refused() -> None:
    with pytest.raises(InputError, match=r"data\.column is missing"):
        check("bad", {"data": {"partitioner": "column"}})


@pytest.mark.parametrize("data", [b"rounds = ", b"rounds = 1\nrounds = 2", b"\xff\xfe"])
def test_a_file_that_is_not_toml_is_refused(data: bytes, tmp_path: Path) -> None:
    path = tmp_path / "broken.toml"
    path.write_bytes(data)
    with pytest.raises(InputError, match=r"broken\.toml is not valid TOML"):
        read_experiment(str(path))


def test_an_absent_source_is_refused_with_the_nearest_preset() -> None:
    with pytest.raises(InputError, match="did you mean 'quickstart'"):
        read_experiment("quikstart")
    with pytest.raises(InputError, match=r"there is no experiment file nowhere\.toml"):
        read_experiment("nowhere.toml")


HELORA_KD = {"aggregator": "mutual_distillation", "dispatcher": "prototype"}
PUBLIC: dict[str, Any] = {"data": {"public": "proxy"}}
EVERYTHING = {"allocator": "everything"}  # it needs nothing


def test_prototypes_that_learn_from_public_data_are_welcome() -> None:
    method = check("good", {**PUBLIC, "method": {**HELORA_KD, "kd_lr": 1e-2, "top_k": 8, "head": "frozen"}}).method
    assert method.aggregator == MutualDistillation(kd_lr=1e-2, top_k=8)


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ({"cohort": 21}, "cohort = 21 is more than data.clients = 20"),
        ({"cohort": 2, "min_clients": 3}, "min_clients = 3 can never be met by cohort = 2"),
        ({"data": {"proxy_examples": 0}}, "'fed_hello' needs proxy data to score layers on: raise data.proxy_examples"),
        ({"data": {"proxy": "train"}}, "proxy must not be the clients' training data"),
        ({"data": {"train_split": "a", "test_split": "a"}}, "train_split and test_split must differ"),
        ({"fleet": {"layers": [0, 0]}}, "no client can train"),
        (
            {"fleet": {"ranks": 4}},
            "fleet.ranks is a list, with a value for each group of clients: write fleet.ranks = [4]",
        ),
        ({"fleet": {"layers": "all"}}, 'write fleet.layers = ["all"]'),
        ({"fleet": {"memory": "2GiB"}}, 'write fleet.memory = ["2GiB"]'),
        ({"fleet": {"layers": [2, 4], "availability": 0.5}}, "write fleet.availability = [0.5, 0.5]"),
        ({"model": {"targets": "key"}}, 'model.targets is a list: write model.targets = ["key"]'),
        ({"fleet": {"layers": [2, 4], "shares": [1]}}, "shares has 1 numbers for 2 groups"),
        ({"fleet": {"layers": [2, 4], "shares": [0, 0]}}, "shares must not be negative, nor all 0"),
        ({"fleet": {"ranks": [2, 4], "shares": [1, 1, 1]}}, "shares has 3 numbers for 2 groups"),
        ({"fleet": {"layers": [2, 4, 6], "ranks": [2, 4]}}, "layers has 3 groups, ranks has 2 groups: give one each"),
        ({"fleet": {"ranks": [4, 8, 12]}}, "fleet.ranks has 12, but model.rank = 8: set model.rank = 12"),
        ({"method": {"trains": "A"}}, "set method.trains = 'both', 'B' or 'alternate'"),
        ({"method": {"aggregator": "zero_pad"}}, "set method.dispatcher = 'truncate'"),
        (
            {
                "method": {
                    **EVERYTHING,
                    "aggregator": "sparsity_weighted",
                    "dispatcher": "truncate",
                    "shares": "A",
                }
            },
            "method.aggregator = 'sparsity_weighted' needs both factors shared: remove method.shares",
        ),
        (
            {**PUBLIC, "method": HELORA_KD, "fleet": {"ranks": [1, 2]}},
            "so nobody would train the prototype of model.rank",
        ),
        ({"fleet": {"ranks": [0, [0, 0]]}}, "ranks is 0 for every group, so no client can train"),
        ({"fleet": {"layers": [0, 4], "shares": [1, 0]}}, "fleet: no client can train, each has 0 layers or rank 0"),
        ({"fleet": {"ranks": [0, 4], "shares": [1, 0]}}, "fleet: no client can train, each has 0 layers or rank 0"),
        ({"fleet": {"ranks": [[0, 0], 4], "shares": [1, 0]}}, "fleet: no client can train"),
        ({"fleet": {"layers": [0, 4], "ranks": [4, 0]}}, "fleet: no client can train"),
        ({"method": {"head": "local"}}, "set method.scores = 'clients'"),
        ({"eval_examples": 9, "method": {"head": "local", "scores": "clients"}}, "samples the test split"),
        ({"method": {"allocator": "fisher", "shares": "A"}}, "set method.scores = 'clients'"),
        ({"fleet": {"ranks": [2, [1, -1]]}}, "ranks must not be negative"),
        (
            {"model": {"modules_to_save": ["embeddings"]}, "method": {"head": "frozen"}},
            "averaged as a head is, and method.head = 'frozen': set method.head = 'aggregate'",
        ),
        (
            {"model": {"modules_to_save": ["embeddings"]}, "method": {"head": "local", "scores": "clients"}},
            "averaged as a head is, and method.head = 'local': set method.head = 'aggregate'",
        ),
        (
            {"model": {"modules_to_save": ["embeddings"]}, "method": {"start": "ridge"}},
            "are no part of a head that is solved, or averaged by class: remove them",
        ),
        (
            {"model": {"modules_to_save": ["embeddings"]}, "method": {"head_mean": "by_class"}},
            "are no part of a head that is solved, or averaged by class: remove them",
        ),
        (
            {
                "model": {"modules_to_save": ["embeddings"]},
                "policy": {"use": ["prefix_cache"]},
                "train": {"same_batches": True},
            },
            "policy.use with a prefix cache keeps what frozen blocks make of an example",
        ),
        ({"train": {"momentum": 0.9}}, "momentum is a setting of optimizer = 'sgd'"),
        ({"task": {"name": "causal_lm"}, "method": {"head": "frozen"}}, "which a language model has not: remove it"),
        ({"data": {"public": "train"}}, "public must not be the clients' training data"),
        ({"method": {"aggregator": "mutual_distillation"}}, "set method.dispatcher = 'prototype'"),
        ({"method": {"dispatcher": "prototype"}}, "set method.aggregator = 'mutual_distillation'"),
        ({"method": HELORA_KD}, "needs public data to distil on: set data.public to a source"),
        (
            {**PUBLIC, "method": HELORA_KD, "server": {"momentum": 0.5}},
            "server.optimizer = 'average' needs one global adapter, and the aggregator keeps one for every rank",
        ),
        ({**PUBLIC, "method": HELORA_KD, "server": {"lr": 0.5}}, "'average' needs one global adapter"),
        ({**PUBLIC, "method": {**HELORA_KD, "trains": "B"}}, "needs both factors trained in every round"),
        ({**PUBLIC, "method": {**HELORA_KD, **EVERYTHING, "shares": "A"}}, "needs one model for all clients"),
        ({**PUBLIC, "method": {**HELORA_KD, **EVERYTHING, "head": "local"}}, "needs one model for all clients"),
        ({"method": {"dispatcher": "svd"}}, "or an aggregator of products, such as product_update"),
        (
            {"method": {"dispatcher": "svd", "aggregator": "fed_svd", "trains": "B"}},
            "or an aggregator of products, such as product_update",
        ),
        (
            {"method": {"aggregator": "product_svd"}, "server": {"lr": 0.5}},
            "server.optimizer = 'average' needs rank components that stay themselves",
        ),
        (
            {"method": {"aggregator": "residual"}, "server": {"momentum": 0.5}},
            "server.optimizer = 'average' needs rank components that stay themselves",
        ),
        (
            {"method": {**EVERYTHING, "aggregator": "stack", "shares": "A"}},
            "method.shares = 'A' needs rank components that stay themselves",
        ),
        ({"method": {"aggregator": "fed_svd"}}, "needs clients that train B alone: set method.trains = 'B'"),
        (
            {"method": {"aggregator": "stack", "trains": "alternate"}},
            "needs B trained in every round: set method.trains = 'both' or 'B'",
        ),
    ],
)
def test_settings_that_cannot_work_together_are_refused(table: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError) as refusal:
        check("bad", table)
    assert words in str(refusal.value)


@pytest.mark.parametrize(
    "method",
    [
        {"aggregator": "fed_svd", "trains": "B", "dispatcher": "truncate", "period": 5},
        {"aggregator": "product_update", "trains": "alternate", "dispatcher": "svd", "eta": 0.5},
        {"aggregator": "stack", "trains": "B", "dispatcher": "svd", "energy": 0.9, "residual_rank": 64},
        {"aggregator": "residual", "trains": "B"},
        {"aggregator": "refine", "trains": "alternate", "ridge": 1.0},
    ],
)
def test_factors_train_one_at_a_time_wherever_that_is_sound(method: dict[str, Any]) -> None:
    assert check("good", {"method": method}).method.trains == method.get("trains")


@pytest.mark.parametrize("scores", ["clients", None])
def test_without_proxy_data_an_allocator_that_needs_none_is_welcome(scores: str | None) -> None:
    method = {"scores": scores} if scores else {"allocator": "geometric"}
    assert check("good", {"data": {"proxy_examples": 0}, "method": method}).data.proxy_examples == 0


# ------------------------------------------------------------------------------ settings never belong to two strategies

OWN = """
from dataclasses import dataclass

from hellora.methods.aggregators.participant_mean import ParticipantMean
from hellora.methods.allocators.everything import Everything


@dataclass(frozen=True)
class Greedy(Everything):
    weighting: str = "greedy"


@dataclass(frozen=True)
class Careful(ParticipantMean):
    trust: float = 0.5
"""


def own_strategies(folder: Path, patch: pytest.MonkeyPatch, text: str = OWN) -> None:
    (folder / "own_settings.py").write_text(text)
    patch.syspath_prepend(str(folder))
    patch.delitem(sys.modules, "own_settings", raising=False)


@pytest.mark.parametrize("aggregator", ["participant_mean", "own_settings:Careful"])
def test_two_strategies_with_a_setting_of_one_name_are_refused(
    aggregator: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own_strategies(tmp_path, monkeypatch)
    method = {"allocator": "own_settings:Greedy", "aggregator": aggregator}
    for setting in ({}, {"weighting": "uniform"}):
        with pytest.raises(InputError) as refusal:
            check("bad", {"method": {**method, **setting}})
        for words in ("method.allocator = 'own_settings:Greedy'", f"method.aggregator = '{aggregator}'", "'weighting'"):
            assert words in str(refusal.value)
        assert "\n" not in str(refusal.value)
    alone = check("good", {"method": {**method, "aggregator": "zero_pad", "dispatcher": "truncate"}})
    assert alone.table["method"]["weighting"] == "greedy"


@pytest.mark.parametrize("name", ["head", "shares", "allocator", "local_training"])
def test_a_strategy_with_a_setting_of_its_sections_own_is_refused(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own_strategies(tmp_path, monkeypatch, OWN.replace("weighting: str", f"{name}: str"))
    with pytest.raises(InputError) as refusal:
        check("bad", {"method": {"allocator": "own_settings:Greedy"}})
    assert "method.allocator = 'own_settings:Greedy' and [method] both have a setting" in str(refusal.value)
    assert f"both have a setting {name!r}" in str(refusal.value)


def test_all_settings_of_a_section_are_distinct() -> None:
    """Of any two strategies that one experiment may name, and of the section itself."""
    for section, place in SECTIONS.items():
        cls = registry.named(place)
        kinds = [kind for (owner, _), kind in NAMING.items() if owner == section]
        known = {(kind, name): registry.find(kind, name) for kind in kinds for name in registry.names(kind)}
        for key, strategy in known.items():
            assert not names_of(strategy) & names_of(cls), (section, key)
        for ((kind, name), one), ((other_kind, other_name), other) in combinations(known.items(), 2):
            if kind != other_kind or kind == "local_training":
                assert not names_of(one) & names_of(other), (kind, name, other_kind, other_name)


def names_of(cls: type) -> set[str]:
    return {f.name for f in fields(cls)}


def value_of(hint: Any, default: Any) -> st.SearchStrategy[Any]:
    """Values of a setting, most of which are not its default."""
    if get_origin(hint) is Literal:
        return st.sampled_from(get_args(hint))
    if hint is bool:
        return st.booleans()
    if hint is str:
        return st.sampled_from(["author", "source"])
    if hint is int:
        return st.integers(1, 20)
    if hint is float:
        return st.sampled_from([0.5 * default + 0.001, 0.25, 0.75, default])
    if hint == tuple[float, ...]:
        return st.lists(st.sampled_from([0.25, 0.5, 0.75]), unique=True).map(sorted)
    if hint == tuple[str, ...]:
        return st.lists(st.sampled_from(["author", "source"]), unique=True)
    if tuple[float, ...] in get_args(hint):
        return st.sampled_from([[], "balanced", [0.5, 2.0]])
    assert set(get_args(hint)) == {int, type(None)}, hint
    return st.integers(1, 20)


def fits(kind: str, name: str, promised: set[Fact]) -> bool:
    """False of what an aggregator that promises these facts does not go with, so that fewer draws are in vain."""
    of_aggregators = {LASTING_COMPONENTS, LONE_ADAPTER, PROTOTYPES_KEPT}
    if kind not in ("dispatcher", "local_training", "server_optimizer"):
        return True
    return promised.issuperset(registry.find(kind, name)().demands.needs & of_aggregators)


@st.composite
def tables(draw: st.DrawFn) -> dict[str, Any]:
    """Any strategies of the registry together, with any settings."""
    table: dict[str, Any] = {"data": {"public": "proxy"}, "train": {"optimizer": "sgd"}}
    promised: set[Fact] = set()
    for (section, key), kind in sorted(NAMING.items(), key=lambda item: item[1] != "aggregator"):
        several = kind == "local_training"
        fitting = [name for name in registry.names(kind) if fits(kind, name, promised)]
        names = st.sampled_from(fitting)
        chosen = draw(st.lists(names, unique=True, max_size=4) if several else names)
        table.setdefault(section, {})[key] = chosen
        if kind == "aggregator":
            promised |= registry.find(kind, chosen)().demands.promises
        for name in chosen if several else [chosen]:
            cls = registry.find(kind, name)
            hints = get_type_hints(cls)
            for f in fields(cls):
                if f.default is MISSING or draw(st.booleans()):
                    table[section][f.name] = draw(value_of(hints[f.name], f.default))
    for name, allowed in (("head", ["aggregate", "local", "frozen"]), ("trains", ["both", "B"]), ("shares", ["both"])):
        table["method"][name] = draw(st.sampled_from(allowed))
    return table


def checked(table: dict[str, Any]) -> Experiment | None:
    """None where it is refused, and then in one line."""
    refusal = ""
    try:
        return check("any", table)
    except InputError as error:
        refusal = str(error)
    assert refusal
    assert "\n" not in refusal
    return None


@settings(
    max_examples=100,
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.filter_too_much, HealthCheck.function_scoped_fixture],
)
@given(table=tables())
def test_what_is_not_refused_is_written_and_read_back(tmp_path: Path, table: dict[str, Any]) -> None:
    experiment = checked(table)
    assume(experiment is not None)
    assert experiment is not None
    again = read_experiment(file_of(tmp_path, experiment.to_toml()))
    assert again.table == experiment.table
    assert again.same_run(experiment)
    assert (again.method, again.task, again.partitioner) == (
        experiment.method,
        experiment.task,
        experiment.partitioner,
    )
    given_settings = {(section, key): value for section, content in table.items() for key, value in content.items()}
    for (section, key), value in given_settings.items():
        if key != "local_training":
            assert experiment.table[section][key] == value


# ---------------------------------------------------------------------------------------------------- rules of training


def test_rules_of_local_training_are_a_list_in_order() -> None:
    names = [["hetlora", "fed_prox"], ["fed_prox", "hetlora"]]
    found = [check("good", {"method": {"local_training": rules, "mu": 0.5, "min_rank": 2}}) for rules in names]
    for rules, experiment in zip(names, found, strict=True):
        assert [rule.name for rule in experiment.method.local_training] == rules
        assert set(experiment.method.local_training) == {FedProx(mu=0.5), Hetlora(min_rank=2)}
        assert experiment.table["method"]["local_training"] == rules
    assert not found[0].same_run(found[1])
    assert check("empty", {}).method.local_training == (Plain(),)
    assert check("none", {"method": {"local_training": []}}).method.local_training == ()


@pytest.mark.parametrize(
    ("rules", "words"),
    [
        (["fed_proxy"], "there is no local_training 'fed_proxy': did you mean 'fed_prox'?"),
        (["fed_prox", "hetlora", "fed_prox"], "method.local_training names 'fed_prox' twice"),
        (["fed_prox", "hellora.methods.local_training.fed_prox:FedProx"], "or two of one file name"),
        ("fed_prox", 'method.local_training is a list: write method.local_training = ["fed_prox"]'),
        ([3], "method.local_training must be a list of names, such as ['plain'], not [3]"),
        ({"fed_prox": 0.1}, "method.local_training must be a list of names"),
        (["nowhere:Mine"], "local_training = 'nowhere:Mine' cannot be imported"),
    ],
)
def test_what_is_no_list_of_rules_is_refused(rules: Any, words: str) -> None:
    with pytest.raises(InputError) as refusal:
        check("bad", {"method": {"local_training": rules}})
    assert words in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_no_rule_has_the_name_of_what_a_client_keeps_of_its_own_model(tmp_path: Path) -> None:
    file = tmp_path / "private.py"
    file.write_text("from hellora.methods.local_training.plain import Plain\n\n\nclass Mine(Plain):\n    pass\n")
    with pytest.raises(InputError, match=r"private.py:Mine': give its file another name than private\.py"):
        check("bad", {"method": {"local_training": [f"{file}:Mine"]}})


def test_other_rules_drop_the_settings_of_those_they_replace_and_keep_the_others() -> None:
    table = {"method": {"local_training": ["fed_prox", "hetlora"], "mu": 0.5, "form": "product", "min_rank": 2}}
    changed = override(table, {"method.local_training": ["hetlora", "logit_adjustment"]})
    assert changed["method"] == {"local_training": ["hetlora", "logit_adjustment"], "min_rank": 2}
    assert override(table, {"method.local_training": ["fed_prox"]})["method"] == {
        "local_training": ["fed_prox"], "mu": 0.5, "form": "product",
    }  # fmt: skip
    assert table["method"]["min_rank"] == 2, "the table that was given stays as it was"
    with pytest.raises(InputError, match=r"unknown setting method\.mu"):
        check("bad", override(table, {"method.local_training": ["hetlora"], "method.mu": 0.1}))


def test_what_clients_score_comes_with_a_rule_that_scores(tmp_path: Path) -> None:
    experiment = check("scored", {"method": {"allocator": "fed_hello", "scores": "clients"}})
    assert experiment.method.local_training == (Plain(), LayerScores())
    assert experiment.table["method"]["local_training"] == ["plain", "layer_scores"]
    again = read_experiment(file_of(tmp_path, experiment.to_toml()))
    assert again.same_run(experiment)
    assert again.method == experiment.method
    named = check("named", {"method": {"scores": "clients", "local_training": ["layer_scores", "fed_prox"]}})
    assert named.table["method"]["local_training"] == ["layer_scores", "fed_prox"], "it need not come twice"


@pytest.mark.parametrize("name", ["tail_penalty", "tail_share", "min_rank"])
def test_a_setting_that_has_moved_is_refused_with_its_new_place(name: str, tmp_path: Path) -> None:
    for table in ({"train": {name: 1}}, {"train": {name: 1}, "method": {"local_training": ["hetlora"]}}):
        with pytest.raises(InputError) as refusal:
            check("old", table)
        assert f"train.{name} is now method.{name}, of the rule method.local_training = ['hetlora']" in str(
            refusal.value
        )
        assert "\n" not in str(refusal.value)
    with pytest.raises(InputError, match=rf"train\.{name} is now method\.{name}"):
        read_experiment(file_of(tmp_path, f"[train]\n{name} = 1\n"))
    with pytest.raises(InputError, match=rf"train\.{name} is now method\.{name}"):
        read_experiment("hetlora", {f"train.{name}": 1})


def test_scaffold_is_refused_where_its_variates_would_not_be_right() -> None:
    """Each need in turn; the last combination is welcome."""
    method: dict[str, Any] = {"allocator": "everything", "local_training": ["scaffold"]}
    sgd = {"train": {"optimizer": "sgd"}}
    for table, words in (
        ({"method": method}, "needs SGD without momentum"),
        ({"method": method, "train": {"optimizer": "sgd", "momentum": 0.9}}, "needs SGD without momentum"),
        ({**sgd, "method": {**method, "aggregator": "product_svd"}}, "needs rank components that stay themselves"),
        ({**sgd, "method": {**method, "dispatcher": "svd"}}, "needs clients that receive the global adapter's own"),
        ({**sgd, "method": {**method, "shares": "A"}}, "needs both factors shared: remove method.shares"),
        ({**sgd, "method": {**method, "head": "local"}}, "needs one model for all clients"),
    ):
        with pytest.raises(InputError) as refusal:
            check("bad", table)
        assert str(refusal.value).startswith("method.local_training = ['scaffold'] needs ")
        assert words in str(refusal.value)
    assert check("good", {**sgd, "method": method}).method.local_training[0].name == "scaffold"


def test_fed_dyn_is_a_rule_and_a_server_optimizer_that_need_each_other() -> None:
    named: dict[str, Any] = {"allocator": "everything", "local_training": ["fed_dyn"], "alpha": 0.1}
    usual: dict[str, Any] = {"server": {"optimizer": "fed_dyn"}}
    assert check("named", {**usual, "method": named}).method.local_training == (FedDyn(0.1),)
    assert check("plain", {"method": {**named, "alpha": 0}}).method.local_training == (FedDyn(0),)
    for table, words in (
        ({"method": named}, "needs a server that takes the drift of clients back: set server.optimizer = 'fed_dyn'"),
        ({**usual, "method": {**named, "aggregator": "product_svd"}}, "needs rank components that stay themselves"),
        ({**usual, "method": {**named, "dispatcher": "svd"}}, "needs clients that receive the global adapter's own"),
        ({**usual, "method": {**named, "shares": "A"}}, "needs both factors shared: remove method.shares"),
        ({**usual, "method": {**named, "head": "local"}}, "needs one model for all clients"),
    ):
        with pytest.raises(InputError) as refusal:
            check("bad", table)
        assert str(refusal.value).startswith("method.local_training = ['fed_dyn'] needs ")
        assert words in str(refusal.value)
    for method in ({**named, "alpha": 0}, {"allocator": "everything"}):
        with pytest.raises(InputError, match=r"server\.optimizer = 'fed_dyn' needs clients that remember their drift"):
            check("bad", {**usual, "method": method})


def test_only_one_rule_puts_a_loss_in_the_place_of_the_tasks() -> None:
    both = {"local_training": ["logit_adjustment", "one_vs_all"]}
    with pytest.raises(InputError) as refusal:
        check("bad", {"method": both})
    assert str(refusal.value) == (
        "method.local_training = ['logit_adjustment'] and method.local_training = ['one_vs_all'] both put another loss "
        "in the place of the task's: keep one of them"
    )
    assert check("good", {"method": {**both, "tau": 0}}).method.local_training[1].name == "one_vs_all"


@pytest.mark.parametrize(
    ("task", "named"),
    [
        ({"class_weights": "balanced"}, "class_weights"),
        ({"class_weights": [1, 2.5], "label_smoothing": 0.1}, "class_weights and label_smoothing"),
    ],
)
@pytest.mark.parametrize("rule", ["logit_adjustment", "one_vs_all"])
def test_a_weighted_loss_of_the_task_is_not_replaced_unseen(task: dict[str, Any], named: str, rule: str) -> None:
    with pytest.raises(InputError) as refusal:
        check("bad", {"task": task, "method": {"local_training": [rule]}})
    assert str(refusal.value).startswith(f"method.local_training = ['{rule}'] and task.{named} both put another loss")
    assert check("good", {"task": task, "method": {"local_training": ["fed_prox"]}}).task.own_loss == named


@pytest.mark.parametrize(
    ("weights", "words"),
    [("balance", "Input should be 'balanced', not 'balance'"), ({"a": 2.0}, "write task.class_weights = […]")],
)
def test_a_setting_of_a_word_or_a_list_says_which(weights: Any, words: str) -> None:
    with pytest.raises(InputError) as refusal:
        check("bad", {"task": {"class_weights": weights}})
    assert str(refusal.value).endswith(f": {words}")


def test_power_of_choice_comes_with_a_rule_that_reports_losses() -> None:
    experiment = check("chosen", {"method": {"sampler": "power_of_choice", "candidates": 12}})
    assert [rule.name for rule in experiment.method.local_training] == ["plain", "local_loss"]


# ---------------------------------------------------------------------------------------------------------------- fleet


@pytest.mark.parametrize(
    ("clients", "shares", "counts"),
    [
        (20, (1, 1, 1), (7, 7, 6)),  # 6.67 each: two groups are rounded up, the first ones
        (10, (6, 3, 1), (6, 3, 1)),
        (7, (6, 3, 1), (4, 2, 1)),  # 4.2, 2.1, 0.7
        (3, (1, 1, 2), (1, 1, 1)),  # 0.75, 0.75, 1.5: the first two have the largest remainders
        (5, (0, 1, 3), (0, 1, 4)),  # 0, 1.25, 3.75
        (4, (), (2, 1, 1)),  # equal shares
    ],
)
def test_shares_are_kept_by_largest_remainder(clients: int, shares: tuple[float, ...], counts: tuple[int, ...]) -> None:
    budgets = FleetSettings((2, 4, 6), shares).budgets(clients, seed=5)
    found = Counter(budget.layers for budget in budgets)
    assert tuple(found[layers] for layers in (2, 4, 6)) == counts


def test_layers_may_be_shares_of_the_models(tmp_path: Path) -> None:
    experiment = check("shares", {"fleet": {"layers": ["1/3", 2, "all"]}})
    found = Counter(budget.layers for budget in experiment.fleet.budgets(6, seed=5))
    assert found == {Fraction(1, 3): 2, 2: 2, Fraction(1): 2}
    assert read_experiment(file_of(tmp_path, experiment.to_toml())).same_run(experiment)


def test_capacities_are_dealt_by_seed() -> None:
    fleet = FleetSettings((2, 4, 6))
    hands = [fleet.budgets(20, seed) for seed in (0, 0, 1)]
    assert hands[0] == hands[1] != hands[2]
    assert hands[0] != sorted(hands[0], key=lambda budget: budget.layers or 0)  # dealt out, not in blocks


@pytest.mark.parametrize(
    ("fleet", "groups"),
    [
        ({"ranks": [2, 4, 8]}, [Budget(rank=2), Budget(rank=4), Budget(rank=8)]),
        ({"ranks": [[1, 1, 2, 2], [4, 4, 4, 4]]}, [Budget(rank=(1, 1, 2, 2)), Budget(rank=(4, 4, 4, 4))]),
        ({"ranks": [3, [0, 0, 2, 2]], "layers": [2, 4]}, [Budget(2, 3), Budget(4, (0, 0, 2, 2))]),
        ({"ranks": [0, 5], "layers": [4, 2]}, [Budget(4, 0), Budget(2, 5)]),
    ],
)
def test_rank_budgets_by_group(fleet: dict[str, Any], groups: list[Budget], tmp_path: Path) -> None:
    """Layers and ranks of a group go together; they are dealt out as layers are, and read back as they were."""
    experiment = check("ranks", {"fleet": fleet})
    budgets = experiment.fleet.budgets(12, seed=3)
    assert Counter(budgets) == dict.fromkeys(groups, 12 // len(groups))
    numbered = FleetSettings(layers=tuple(range(1, len(groups) + 1))).budgets(12, seed=3)
    assert budgets == [groups[(budget.layers or 0) - 1] for budget in numbered]
    again = read_experiment(file_of(tmp_path, experiment.to_toml()))
    assert again.fleet == experiment.fleet
    assert again.same_run(experiment)


def test_rank_budgets_from_the_command_line(tmp_path: Path) -> None:
    settings = parse_settings(["fleet.ranks=[2, [1, 2], 8]"])
    assert read_experiment(file_of(tmp_path, ISSUE_EXAMPLE), settings).fleet.ranks == (2, (1, 2), 8)


# ----------------------------------------------------------------------------------------------------- written and read


def resolved_experiments() -> list[Experiment]:
    unusual = {
        "seed": 3,
        "method": {"allocator": "fisher", "scores": "clients", "refresh": 2, "head": "local", "weighting": "uniform"},
        "model": {"alpha": 12.5, "targets": ["query", "key"], "classes": 30},
        "data": {"partitioner": "column", "column": "author", "max_examples": 10, "prompt": 'say "{x}"\n\\'},
        "fleet": {"layers": [1, 0, 5], "shares": [0.5, 1, 2], "ranks": [2, 0, [1, 2, 3]]},
        "train": {"steps": 4, "clip_norm": 1, "optimizer": "sgd", "momentum": 0.9},
        "server": {"momentum": 0.5},
        "wire": {"format": "bf16"},
        "guard": {"max_norm": 2},
    }
    return [check("unusual", unusual), *(read_experiment(name) for name in presets())]


@pytest.mark.parametrize("experiment", resolved_experiments(), ids=lambda experiment: experiment.name)
def test_the_resolved_table_reads_back_as_the_same_experiment(experiment: Experiment, tmp_path: Path) -> None:
    again = read_experiment(file_of(tmp_path, experiment.to_toml()))
    assert again.same_run(experiment)
    assert again.table == experiment.table
    for part in ("run", "task", "model", "data", "partitioner", "fleet", "method", "train", "wire", "guard", "compute"):
        assert getattr(again, part) == getattr(experiment, part)
    assert set(experiment.table) >= set(SECTIONS)  # every default is written out


def test_where_the_work_is_done_does_not_make_another_run() -> None:
    here = check("here", {"compute": {"workers": 1}})
    there = check("there", {"compute": {"workers": 4, "threads": 1, "device": "cuda", "eval_batch_size": 8}, "keep": 9})
    assert here.same_run(there)


@pytest.mark.parametrize(
    "table",
    [
        {"seed": 1},
        {"train": {"lr": 0.5}},
        {"method": {"warmup": 7}},
        {"data": {"alpha": 9.0}},
        {"wire": {"format": "int8"}},
    ],
)
def test_any_other_setting_makes_another_run(table: dict[str, Any]) -> None:
    assert not check("one", {}).same_run(check("other", table))


def test_every_preset_has_a_line_for_the_list() -> None:
    for name, lines in preset_summaries().items():
        assert all(20 < len(line) < 120 for line in lines), name
        assert lines, name


def test_a_preset_of_a_method_says_what_it_assumes_and_when_it_fails() -> None:
    """Those that stand on another preset are one paper's parts, put together."""
    for name, lines in preset_summaries().items():
        if own_table(name).get("base") == "quickstart":
            assert [line.partition(": ")[0] for line in lines[1:]] == ["Assumes", "Fails"], name


def test_a_file_on_a_base_changes_only_what_it_says(tmp_path: Path) -> None:
    (tmp_path / "below.toml").write_text('base = "quickstart"\nrounds = 3\n[train]\nlr = 0.5\n')
    above = tmp_path / "above.toml"
    above.write_text(f'base = "{tmp_path}/below.toml"\n[method]\nallocator = "geometric"\npattern = "triangle"\n')
    plain, mine = read_experiment("quickstart"), read_experiment(str(above), {"train.epochs": 2})
    changed = {"rounds": 3, "train": {**plain.table["train"], "lr": 0.5, "epochs": 2}}
    dropped = {k: v for k, v in plain.table["method"].items() if k not in ("warmup", "refresh", "scores", "resample")}
    method = {**dropped, "allocator": "geometric", "pattern": "triangle"}
    assert mine.table == {**plain.table, **changed, "method": method}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('base = "quickstrat"', "there is no preset or file 'quickstrat': did you mean 'quickstart'"),
        ("base = 3", "base must be the name of a preset or file, not 3"),
        ('base = "{itself}"', "goes round in a circle"),
        ('base = "quickstart"\n[train]\nlrr = 1', "unknown setting train.lrr"),
    ],
)
def test_a_base_that_cannot_be_used_is_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(text.replace("{itself}", str(path)))
    with pytest.raises(InputError, match=re.escape(message)):
        read_experiment(str(path))


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"guard": {"max_norm": 0.0}}, r"guard: max_norm must be greater than 0, 'auto' or 'off', not 0\.0"),
        ({"guard": {"max_norm": "none"}}, r"guard\.max_norm"),
        ({"guard": {"max_weight": 0.5}}, r"guard: max_weight must be at least 1, or 'off', not 0\.5"),
        ({"keep": 0}, "keep must be 1 to 100 states, not 0"),
        ({"keep": 101}, "keep must be 1 to 100 states, not 101"),
    ],
)
def test_guards_and_states_to_keep_that_cannot_be(table: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        check("one", table)


OURS = {"quickstart", "llm_quickstart", "hellora", "smollm2_dolly", "smollm2_natural_instructions", "qwen_chat"}


def test_a_run_of_ones_own_is_guarded_and_presets_of_papers_are_as_published() -> None:
    for name in presets():
        guard = read_experiment(name).guard
        expected = ("auto", 10.0) if name in OURS else ("off", "off")
        assert (guard.max_norm, guard.max_weight) == expected, name
    assert check("mine", {}).guard == read_experiment("quickstart").guard


def test_who_is_guarded_against_may_change_when_a_run_is_resumed() -> None:
    assert check("one", {}).same_run(check("one", {"guard": {"max_norm": 0.5, "max_weight": "off"}}))


def test_an_unknown_wire_format() -> None:
    with pytest.raises(InputError, match=r"wire\.format: .*'fp32', 'bf16' or 'int8'"):
        check("one", {"wire": {"format": "int4"}})


def test_a_language_model_whose_embeddings_train_has_something_like_a_head() -> None:
    table: dict[str, Any] = {"task": {"name": "causal_lm"}, "method": {"allocator": "head_alone"}}
    with pytest.raises(InputError, match="needs a model with a head of its own, which a language model has not"):
        check("any", table)
    check("any", {**table, "model": {"modules_to_save": ["embed_tokens"]}})
