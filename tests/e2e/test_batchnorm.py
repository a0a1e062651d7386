"""Models with BatchNorm: what a run measures is what its adapter says on the base as it is on disk."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tomli_w
from architectures import save_model, targets_of
from factories import bits
from PIL import Image
from safetensors.torch import load_file

import hellora as library

Command = Callable[..., Any]


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, rng = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    for split, count in (("train", 12), ("test", 5)):
        for shade, name in ((60, "dark"), (190, "light")):
            (folder / split / name).mkdir(parents=True)
            for i in range(count):
                pixels = np.clip(rng.normal(shade, 60, (32, 32, 3)), 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(folder / split / name / f"{i}.png")
    return folder


@pytest.mark.parametrize(
    "name", ["mobilevit", *(pytest.param(name, marks=pytest.mark.slow) for name in ("levit", "cvt"))]
)
def test_a_run_with_batchnorm_is_what_its_adapter_says(
    name: str, hellora: Command, images: Path, tmp_path: Path
) -> None:
    model = save_model(name, tmp_path / "model")
    before = bits(load_file(model / "model.safetensors"))
    table = {
        "rounds": 2,
        "cohort": 2,
        "task": {"name": "image_classification"},
        "model": {"name": str(model), "rank": 2, "targets": list(targets_of(name))},
        "data": {"name": str(images), "clients": 2, "partitioner": "iid", "proxy_examples": 0},
        "method": {"allocator": "everything"},
        "train": {"lr": 0.01, "batch_size": 5, "steps": 3},
        "compute": {"threads": 1},
    }
    (tmp_path / "bn.toml").write_text(tomli_w.dumps(table))
    answer = hellora("run", tmp_path / "bn.toml", "--out", tmp_path / "out")
    assert answer.status == 0, answer.err
    final = json.loads((tmp_path / "out" / "summary.json").read_text())["final"]
    measured = library.evaluate(tmp_path / "out", images / "test")
    assert {name: measured[name] for name in final} == pytest.approx(final, abs=1e-6)
    assert bits(load_file(model / "model.safetensors")) == before
    if name == "mobilevit":  # each process has its own copy of the buffers, and none needs another one's
        answer = hellora("run", tmp_path / "bn.toml", "--out", tmp_path / "two", "--set", "compute.workers=2")
        assert answer.status == 0, answer.err
        one, two = (load_file(tmp_path / out / "adapter" / "adapter_model.safetensors") for out in ("out", "two"))
        assert bits(one) == bits(two)
