"""Rules that brief, report and keep: the same bits in one process, in two, on a grid, and after every stop."""

from pathlib import Path
from typing import Any

import pytest
from factories import bits
from fake_grid import FakeGrid
from federation_site import Silent, tensors

from hellora.deployment.flower_setup import SimulatedOnFlower
from hellora.experiments.config import check
from hellora.experiments.experiment import Experiment
from hellora.record.checkpoint import load_state
from hellora.runs.run import run_experiment

ROUNDS = 3
METHODS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "scaffold": ({"local_training": ["scaffold"]}, {"optimizer": "sgd", "lr": 0.1, "weight_decay": 0.0}),
    "fed_prox": ({"local_training": ["fed_prox"], "mu": 0.5}, {"lr": 0.03}),
    "schedule": ({"local_training": ["plain"]}, {"lr": 0.03, "schedule": "cosine", "warmup": 0.2}),
    "embeddings": ({"local_training": ["scaffold"]}, {"optimizer": "sgd", "lr": 0.1, "weight_decay": 0.0}),
    "fed_dyn+prelort": (
        {
            "sampler": "power_of_choice",
            "candidates": 4,
            "local_training": ["fed_dyn", "prelort", "logit_adjustment"],
            "adjustment": "fedlc",
            "alpha": 0.5,
        },
        {"lr": 0.03},
    ),
    "layer_scores+hetlora": (
        {
            "allocator": "self_pruning",
            "dispatcher": "truncate",
            "aggregator": "sparsity_weighted",
            "local_training": ["layer_scores", "hetlora"],
            "tail_penalty": 5.0,
            "tail_share": 0.5,
        },
        {"lr": 0.03},
    ),
}


def experiment(method: str, model: Path, data: Path, **changes: Any) -> Experiment:
    settings, train = METHODS[method]
    table = {
        "rounds": ROUNDS,
        "cohort": 3,
        "model": {
            "name": str(model),
            "rank": 4,
            "modules_to_save": ["embeddings"] if method == "embeddings" else [],
        },
        "data": {"name": str(data), "clients": 4},
        "fleet": {"layers": [2, 4, 1, 3], "ranks": [4, 2, 4, 3]},
        "train": {"batch_size": 8, **train},
        "compute": {"threads": 1, "device": "cpu"},
        "method": {"allocator": "depth_from_output", **settings},
        "server": {"optimizer": "fed_dyn" if "fed_dyn" in settings["local_training"] else "average"},
    }
    return check("named", {**table, **changes})


class Stopping(Silent):
    """Stops a run after a round, as Ctrl-C would."""

    def __init__(self, after: int) -> None:
        self.after = after

    def round_finished(self, line: Any, *_: Any) -> None:
        if line["round"] == self.after:
            raise KeyboardInterrupt


def facts(run: Path, method: str) -> None:
    """What makes the comparison worth its while: something was told and kept."""
    found = load_state(run / "checkpoint")
    assert found is not None
    state = found[0]
    if method == "scaffold":
        assert len(state.kept) >= 3
        assert all(name.startswith("scaffold/") for kept in state.kept.values() for name in kept)
        assert any(name.startswith("local_training/scaffold/") for name in state.strategies)
        assert all(bool(kept["scaffold/head.bias"].any()) for kept in state.kept.values())
    if method == "embeddings":
        name = "embeddings.word_embeddings.weight"
        assert state.adapter.head.keys() > {"weight", "bias", name}
        assert all(bool(kept[f"scaffold/head.{name}"].any()) for kept in state.kept.values())
    if method == "fed_dyn+prelort":
        assert all(bool(kept["fed_dyn/head.bias"].any()) for kept in state.kept.values())
        assert all("local_loss/loss" in told for told in state.reports.values())
        assert any(name.startswith("sampler/") for name in state.strategies)
    if method == "layer_scores+hetlora":
        assert all("layer_scores/scores" in told for told in state.reports.values())
    assert state.round == ROUNDS
    assert state.kept_versions == {}


@pytest.mark.parametrize(
    ("method", "format"),
    [
        ("scaffold", "fp32"),
        ("schedule", "fp32"),
        ("embeddings", "fp32"),
        pytest.param("embeddings", "int8", marks=pytest.mark.slow),
        ("fed_dyn+prelort", "fp32"),
        pytest.param("scaffold", "bf16", marks=pytest.mark.slow),
        pytest.param("fed_prox", "fp32", marks=pytest.mark.slow),
        pytest.param("layer_scores+hetlora", "fp32", marks=pytest.mark.slow),
        pytest.param("fed_prox", "bf16", marks=pytest.mark.slow),
        pytest.param("layer_scores+hetlora", "bf16", marks=pytest.mark.slow),
    ],
)
def test_every_world_ends_with_the_same_bits(
    method: str, format: str, tiny_bert: Path, sentences: Path, tmp_path: Path
) -> None:
    wire = {"wire": {"format": format}}
    run = experiment(method, tiny_bert, sentences, **wire)
    run_experiment(run, tmp_path / "one", Silent())
    facts(tmp_path / "one", method)
    two = experiment(method, tiny_bert, sentences, **wire, compute={"threads": 1, "device": "cpu", "workers": 2})
    run_experiment(two, tmp_path / "two", Silent())
    grid = FakeGrid({node: {"partition-id": node - 50, "num-partitions": 4} for node in range(50, 54)})
    run_experiment(run, tmp_path / "grid", Silent(), preparing=SimulatedOnFlower(grid, lambda _: None).prepare)
    expected = bits(tensors(tmp_path / "one"))
    assert bits(tensors(tmp_path / "two")) == expected
    assert bits(tensors(tmp_path / "grid")) == expected


@pytest.mark.parametrize("method", ["scaffold", "layer_scores+hetlora", "fed_dyn+prelort"])
def test_a_stop_after_any_round_changes_no_bit(method: str, tiny_bert: Path, sentences: Path, tmp_path: Path) -> None:
    run = experiment(method, tiny_bert, sentences)
    run_experiment(run, tmp_path / "through", Silent())
    for after in range(ROUNDS - 1):
        with pytest.raises(KeyboardInterrupt):
            run_experiment(run, tmp_path / "stopped", Stopping(after), resume=after > 0)
    run_experiment(run, tmp_path / "stopped", Silent(), resume=True)
    facts(tmp_path / "stopped", method)
    assert bits(tensors(tmp_path / "stopped")) == bits(tensors(tmp_path / "through"))
