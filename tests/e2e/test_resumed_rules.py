"""Rules of training, samplers and server optimizers: a run that is stopped and resumed ends with the same bits."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from accelerate.tracking import GeneralTracker
from factories import bits, state_bits
from safetensors.torch import load_file

from hellora.core.state import ServerState
from hellora.record.checkpoint import load_state

Command = Callable[..., Any]
SGD = {"train.optimizer": "sgd", "train.lr": 0.3}
# By name: settings, and the names of what is remembered, reported and kept besides the adapter.
CASES: dict[str, tuple[dict[str, Any], set[str]]] = {
    "a penalty of products": (
        {
            "method.sampler": "by_availability",
            "fleet.availability": [1.0, 0.7, 0.4],
            "method.local_training": ["fed_prox"],
            "method.form": "product",
            "server.optimizer": "fed_yogi",
        },
        {"strategies/server_optimizer"},
    ),
    "three rules": (
        {
            "method.local_training": ["fed_prox", "logit_adjustment", "scaffold"],
            "server.optimizer": "fed_adagrad",
            **SGD,
        },
        {"strategies/local_training/scaffold", "strategies/server_optimizer", "reports/scaffold", "kept/scaffold"},
    ),
    "fed_dyn and losses to choose by": (
        {
            "method.sampler": "power_of_choice",
            "method.candidates": 5,
            "method.local_training": ["fed_dyn", "one_vs_all", "prelort"],
            "method.alpha": 0.1,
            "method.truncations": [0.5],
            "server.optimizer": "fed_dyn",
        },
        {"strategies/sampler", "strategies/server_optimizer", "reports/local_loss", "kept/fed_dyn"},
    ),
    "layer_scores": (
        {
            "method.allocator": "fed_hello",
            "method.scores": "clients",
            "method.warmup": 1,
            "method.refresh": 1,
            "server.optimizer": "fed_adam",
        },
        {"strategies/allocator", "strategies/server_optimizer", "reports/layer_scores"},
    ),
    "a schedule over the run": (
        {
            "method.local_training": ["scaffold"],
            "train.schedule": "cosine",
            "train.warmup": 0.2,
            **SGD,
        },
        {"strategies/local_training/scaffold", "reports/scaffold", "kept/scaffold"},
    ),
    "hetlora": (
        {
            "method.allocator": "self_pruning",
            "method.local_training": ["hetlora"],
            "method.tail_penalty": 10.0,
            "method.tail_share": 0.7,
            "fleet.layers": [],
        },
        {"strategies/allocator", "reports/hetlora"},
    ),
}


class Stop(GeneralTracker):
    """Ends a run after its second round, as Ctrl-C would."""

    name = "stop"
    requires_logging_directory = False

    def __init__(self, run_name: str) -> None:
        super().__init__()

    @property
    def tracker(self) -> None:
        return None

    def start(self) -> None: ...

    def store_init_configuration(self, values: dict[str, Any]) -> None: ...

    def log(self, values: dict[str, Any], step: int | None = None, **_: Any) -> None:
        if step == 1:
            raise KeyboardInterrupt


def final_state(out: Path) -> ServerState:
    found = load_state(out / "checkpoint")
    assert found is not None
    return found[0]


def owners(state: ServerState) -> set[str]:
    """Whose tensors a state has besides the adapter."""
    named = {
        f"strategies/{name.rpartition('/')[0] if kind(name) else name.partition('/')[0]}" for name in state.strategies
    }
    for what, told in (("reports", state.reports), ("kept", state.kept)):
        named |= {f"{what}/{name.partition('/')[0]}" for tensors in told.values() for name in tensors}
    return named


def kind(name: str) -> bool:
    """True of a rule's tensor, of which the owner is a kind and a name."""
    return name.startswith("local_training/")


@pytest.mark.parametrize("case", CASES)
def test_a_run_that_is_resumed_ends_with_the_same_bits(
    hellora: Command, small: Path, tmp_path: Path, case: str
) -> None:
    settings, remembered = CASES[case]
    usual = {"method.allocator": "random_layers", "fleet.ranks": [2, 3, 4], "cohort": 4, "eval_every": 3}
    words = [word for key, value in {**usual, **settings}.items() for word in ("--set", f"{key}={value}")]
    alone, out = tmp_path / "alone", tmp_path / "out"
    answer = hellora("run", small, "--out", alone, *words)
    assert (answer.status, answer.err) == (0, "")
    stopped = hellora("run", small, "--out", out, *words, "--set", f"tracking.trackers=['{__name__}:Stop']")
    assert stopped.status == 130
    assert final_state(out).round == 2
    assert hellora("run", small, "--out", out, *words, "--resume").status == 0
    state = final_state(out)
    assert state.round == 3
    assert state_bits(state) == state_bits(final_state(alone))
    assert bits(load_file(out / "adapter" / "adapter_model.safetensors")) == bits(
        load_file(alone / "adapter" / "adapter_model.safetensors")
    )
    assert owners(state) == remembered
    for one, other in zip(lines_of(out), lines_of(alone), strict=True):
        assert without_seconds(one) == without_seconds(other)


def lines_of(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "rounds.jsonl").read_text().splitlines()]


def without_seconds(value: Any) -> Any:
    """JSON values less what is measured of the machine."""
    if isinstance(value, dict):
        return {key: without_seconds(each) for key, each in value.items() if key not in ("seconds", "peak_bytes")}
    return value


def test_rules_change_what_is_trained(hellora: Command, small: Path, tmp_path: Path) -> None:
    """With a strength of 0 a rule is plain training, bit for bit; with more it is not."""
    found = {}
    for name, words in {
        "plain": [],
        "fed_prox at 0": ["method.local_training=['fed_prox']", "method.mu=0.0"],
        "fed_prox": ["method.local_training=['fed_prox']", "method.mu=1.0"],
        "logit_adjustment at 0": ["method.local_training=['logit_adjustment']", "method.tau=0.0"],
        "logit_adjustment": ["method.local_training=['logit_adjustment']"],
        "fed_dyn at 0": ["method.local_training=['fed_dyn']", "method.alpha=0.0"],
        "fed_dyn": ["method.local_training=['fed_dyn']", "method.alpha=1.0", "server.optimizer=fed_dyn"],
        "prelort at 0": ["method.local_training=['prelort']", "method.truncations=[]"],
        "prelort": ["method.local_training=['prelort']"],
        "hetlora at 0": ["method.local_training=['hetlora']", "method.tail_penalty=0.0"],
        "hetlora": ["method.local_training=['hetlora']", "method.tail_penalty=1.0"],
    }.items():
        settings = [part for word in ["rounds=1", *words] for part in ("--set", word)]
        assert hellora("run", small, "--out", tmp_path / name, *settings).status == 0
        found[name] = bits(load_file(tmp_path / name / "adapter" / "adapter_model.safetensors"))
    for name in ("fed_prox", "logit_adjustment", "fed_dyn", "prelort", "hetlora"):
        assert found[f"{name} at 0"] == found["plain"], name
        assert found[name] != found["plain"], name


def test_an_old_run_cannot_be_gone_on_with(hellora: Command, small: Path, tmp_path: Path) -> None:
    """Its experiment has settings where they are no more, and its checkpoint is of an older format."""
    out = tmp_path / "out"
    assert hellora("run", small, "--out", out, "--set", "rounds=1").status == 0
    arguments = ("run", small, "--out", out, "--set", "rounds=1", "--resume")
    (out / "summary.json").unlink()
    max((out / "checkpoint").glob("state-*.json")).rename(out / "checkpoint" / "state.json")
    for newer in (out / "checkpoint").glob("state-*"):
        newer.unlink()
    refused = hellora(*arguments)
    assert refused.status == 2
    assert "has an older format than 3, which this hellora reads" in refused.err
    assert refused.err.count("\n") == 1
    text = (out / "experiment.toml").read_text().partition("# sha256")[0]  # which older runs have not
    (out / "experiment.toml").write_text(text.replace("[train]\n", "[train]\ntail_penalty = 0.0\n"))
    for command in (arguments, ("plan", out / "experiment.toml")):
        refused = hellora(*command)
        assert refused.status == 2
        assert "train.tail_penalty is now method.tail_penalty" in refused.err
        assert refused.err.count("\n") == 1
