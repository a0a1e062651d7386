"""The preset of every method trains MiniLM on banking77 and a small ViT on cifar100_lite: two short rounds each."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from datasets import load_dataset

from hellora.experiments.config import own_table, presets, read_experiment

METHODS = [name for name in presets() if own_table(name).get("base") == "quickstart"]
VIT = {"task.name": "image_classification", "model.name": "model_vit_cifar10_4l128"}
CHANGES: dict[str, dict[str, str]] = {"banking77": {}, "cifar100_lite": VIT}

pytestmark = [pytest.mark.slow, pytest.mark.shared_data]


@pytest.fixture(scope="session")
def excerpt(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A folder with a few hundred rows of a data set: train, public (of no client) and test."""
    made: dict[str, Path] = {}

    def of(name: str) -> Path:
        if name not in made:
            made[name] = tmp_path_factory.mktemp(name)
            sizes = {"train": 600, "public": 40, "test": 60}
            for split, count in sizes.items():
                file = next((shared_data / name).glob(f"{'test' if split == 'test' else 'train'}*.parquet"))
                rows = load_dataset("parquet", data_files=str(file), split="train").shuffle(seed=0)
                start = sizes["train"] if split == "public" else 0
                rows.select(range(start, start + count)).to_parquet(str(made[name] / f"{split}.parquet"))
        return made[name]

    return of


@pytest.mark.parametrize("data", CHANGES)
@pytest.mark.parametrize("method", METHODS)
def test_the_preset_of_a_method_trains(
    hellora: Callable[..., Any],
    excerpt: Callable[[str], Path],
    shared_data: Path,
    tmp_path: Path,
    method: str,
    data: str,
) -> None:
    settings = dict(CHANGES[data])
    if "model.name" in settings:
        settings["model.name"] = str(shared_data / settings["model.name"])
    settings |= {
        "data.name": str(excerpt(data)),
        "data.partitioner": "iid",
        "data.clients": "6",
        "data.proxy_examples": "8",
    }
    settings |= {"rounds": "2", "cohort": "6", "eval_every": "2", "train.steps": "1", "train.batch_size": "4"}
    if method == "helora_kd":
        settings |= {"data.public": "public", "method.kd_steps": "1"}
    changes = [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
    answer = hellora("run", method, *changes, "--set", "compute.threads=1", "--out", tmp_path / "out")
    assert answer.status == 0, answer.err
    lines = [json.loads(line) for line in (tmp_path / "out" / "rounds.jsonl").read_text().splitlines()]
    experiment = read_experiment(str(tmp_path / "out" / "experiment.toml"))
    budgets = experiment.fleet.budgets(6, experiment.run.seed)
    everybody = [0, 1, 2, 3, 4, 5]
    for wave in lines[0]["sums"]:
        assert wave["updated"] == everybody, wave["rejected"]
    assert bool(lines[0]["sums"]) == bool(experiment.method.start.passes)
    for line in lines:
        assert line["updated"] == ([] if method == "ridge_head" else everybody), line["rejected"]
        for client, ranks in line["ranks"].items():
            budget = budgets[int(client)]
            assert sum(map(bool, ranks)) <= budget.capacity(len(ranks))
            assert max(ranks) <= (budget.rank or experiment.model.rank)
    assert (tmp_path / "out" / "adapter" / "adapter_model.safetensors").stat().st_size > 10_000
