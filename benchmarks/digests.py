"""What a refactoring must not change: `python benchmarks/digests.py --check` (a minute on one core).

Every preset that is a method, and some settings beside them, trains three rounds on a tiny text, image and language
model, is stopped after the second round and resumed. Of the last checkpoint are kept: a digest of the adapter's tensors
(sorted names, dtypes, shapes, bytes), and one of all other tensors of the state, under the names that NEW_NAMES gives
them. `--keep` writes them to results/digests.json; `--check` compares. The digests are of one version of torch on one
kind of processor: elsewhere, keep them anew on the commit before.
"""

import argparse
import hashlib
import json
import platform
import re
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate.tracking import GeneralTracker
from safetensors.torch import load_file

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
import tiny_models

import hellora

RESULTS = Path(__file__).with_name("results") / "digests.json"
# Names of state tensors that were others before: (what they were, what they are).
NEW_NAMES: tuple[tuple[str, str], ...] = (
    (r"^memory/velocity/", "strategies/server_optimizer/"),
    (r"^memory/", "strategies/"),
    (r"^reports/(\d+)$", r"reports/\1/layer_scores/scores"),
    (r"^reported_ranks/(\d+)$", r"reports/\1/hetlora/rank"),
    (r"^private/(\d+)/", r"kept/\1/private/"),
)
# Besides the presets, on the text model: what they leave out.
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "clients_score": ("fed_hello", {"method.scores": "clients", "method.warmup": 1, "method.refresh": 1}),
    "momentum": ("fedit", {"server.lr": 0.7, "server.momentum": 0.9}),
    "local_head": ("fedit", {"method.head": "local"}),
    "frozen_head": ("fed_hello", {"method.head": "frozen"}),
    "alternate_momentum": ("rolora", {"server.momentum": 0.5}),
    "random_ranks_median": ("fed_plora", {"method.aggregator": "coordinate_median"}),
    "trimmed": ("fedit", {"method.aggregator": "trimmed_mean"}),
    "clipped": (
        "fed_hello",
        {"method.aggregator": "clipped_mean", "method.max_norm": 0.1, "method.weighting": "samples"},
    ),
    "clip_norm_sgd": ("fedit", {"train.optimizer": "sgd", "train.momentum": 0.9, "train.clip_norm": 0.1}),
    "int8_wire": ("helora_pad", {"wire.format": "int8"}),
    "bf16_wire_hetlora": ("hetlora", {"wire.format": "bf16"}),
    "pruning": ("hetlora", {"method.tail_penalty": 0.5, "method.tail_share": 0.7}),
    "memory": (
        "fedit",
        {"method.allocator": "budget_value", "method.value": "fisher", "fleet.memory": ["600KiB", "800KiB", "2MiB"]},
    ),
    "micro_batches": ("fed_hello", {"policy.use": ["micro_batch", "recompute_all"], "policy.micro_batch": 2}),
    "deadline": ("fed_hello", {"fleet.layers": [], "fleet.distribution": "cross_device", "over_select": 1.5}),
}


class Stop(GeneralTracker):
    """A tracker that ends a run after its second round, as Ctrl-C would."""

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


def save_more_sentences(folder: Path) -> Path:
    """Sentences that neither clients nor the test split have."""
    folder.mkdir(parents=True)
    lines = [{"text": text, "label": label} for text, label in tiny_models.sentences(20, seed=5)]
    (folder / "train.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def save_images(folder: Path, seed: int = 0) -> Path:
    """24 training and 12 test images of 8 × 8 noise around a colour, of 3 classes."""
    from PIL import Image

    draw = torch.Generator().manual_seed(seed)
    for split, count in (("train", 24), ("test", 12)):
        for i in range(count):
            label = i % 3
            place = folder / split / list(tiny_models.TOPICS)[label]
            place.mkdir(parents=True, exist_ok=True)
            pixels = torch.randint(0, 120, (8, 8, 3), generator=draw)
            pixels[:, :, label] += 100
            Image.fromarray(pixels.to(torch.uint8).numpy()).save(place / f"{i}.png")
    return folder


def save_instructions(folder: Path, seed: int = 1) -> Path:
    """Prompts of the tiny vocabulary; the response is the prompt's last two words."""
    folder.mkdir(parents=True)
    for split, count, draw in (("train", 36, seed), ("test", 9, seed + 1)):
        lines = [
            {"instruction": text, "response": " ".join(text.split()[-2:])}
            for text, _ in tiny_models.sentences(count, draw)
        ]
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def worlds(folder: Path) -> dict[str, dict[str, Any]]:
    """Settings of each kind of model, with its files."""
    common = {
        "rounds": 3,
        "cohort": 4,
        "eval_every": 3,
        "data.clients": 6,
        "data.proxy_examples": 6,
        "train.lr": 0.02,
        "train.batch_size": 4,
        "train.steps": 3,
        "compute.threads": 1,
        "compute.device": "cpu",
    }
    text = tiny_models.save_bert(folder / "bert", hidden_dropout_prob=0.1)
    image, language = tiny_models.save_vit(folder / "vit"), tiny_models.save_llama(folder / "llama")
    return {
        "text": {
            **common,
            "data.min_examples": 1,
            "model.name": str(text),
            "data.name": str(tiny_models.save_sentences(folder / "sentences", train=60, test=30)),
            "data.public": str(save_more_sentences(folder / "more sentences")),
        },
        "image": {
            **common,
            "data.min_examples": 1,
            "task.name": "image_classification",
            "model.name": str(image),
            "data.name": str(save_images(folder / "images")),
            "data.public": str(save_images(folder / "more images", seed=1)),
        },
        "language": {
            **common,
            "task.name": "causal_lm",
            "task.max_length": 32,
            "model.name": str(language),
            "data.name": str(save_instructions(folder / "instructions")),
            "data.public": str(save_instructions(folder / "more instructions", seed=3)),
            "data.partitioner": "iid",
        },
    }


def methods() -> list[str]:
    """The presets that are methods on the quickstart."""
    folder = next(Path(hellora.__file__).parent.rglob("fed_hello.toml")).parent
    return sorted(file.stem for file in folder.glob("*.toml") if 'base = "quickstart"' in file.read_text())


def cases(folder: Path) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Name, preset and settings of every run."""
    found = worlds(folder)
    for method in methods():
        for world, settings in found.items():
            yield f"{method}/{world}", method, settings
    for name, (method, changes) in VARIANTS.items():
        yield f"{name}/text", method, {**found["text"], **changes}


def digests_of(preset: str, settings: Mapping[str, Any], out: Path) -> dict[str, Any]:
    """Run, stop, resume, and digest what the checkpoint holds; why a run was refused, where it was."""
    try:
        try:
            hellora.run(preset, {**settings, "tracking.trackers": ["digests:Stop"]}, out=out)
        except KeyboardInterrupt:
            hellora.run(preset, settings, out=out, resume=True)
    except hellora.InputError as error:
        print(f"{preset} is refused: {error}")
        return {"refused": True}
    file = max((out / "checkpoint").glob("state-*.safetensors"))
    tensors = {renamed(name): tensor for name, tensor in load_file(file).items()}
    adapter = {name: tensor for name, tensor in tensors.items() if name.startswith("adapter/")}
    rest = {name: tensor for name, tensor in tensors.items() if name not in adapter}
    return {"adapter": digest(adapter), "state": digest(rest), "state tensors": len(rest)}


def renamed(name: str) -> str:
    for old, new in NEW_NAMES:
        name = re.sub(old, new, name)
    return name


def digest(tensors: Mapping[str, torch.Tensor]) -> str:
    found = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].contiguous()
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        found.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--keep", action="store_true", help="write results/digests.json")
    parser.add_argument("--check", action="store_true", help="compare with it; exit with 1 if one differs")
    parser.add_argument("--only", default="", help="runs whose name has this in it")
    options = parser.parse_args()
    torch.set_num_threads(1)
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as place:
        for i, (name, preset, settings) in enumerate(cases(Path(place) / "world")):
            if options.only in name:
                found[name] = digests_of(preset, settings, Path(place) / f"run-{i}")
    print(f"{len(found)} runs")
    if options.keep:
        record = {"torch": torch.__version__, "machine": platform.machine(), "runs": found}
        RESULTS.write_text(json.dumps(record, indent=1) + "\n")
    if options.check:
        kept = {k: v for k, v in json.loads(RESULTS.read_text())["runs"].items() if options.only in k}
        differing = sorted(name for name in kept.keys() | found.keys() if kept.get(name) != found.get(name))
        for name in differing:
            print(f"DIFFERS {name}:\n  kept {kept.get(name)}\n  now  {found.get(name)}")
        print(f"{sum(found.get(name) == each for name, each in kept.items())} of {len(kept)} are the same bits")
        return int(bool(differing))
    return 0


if __name__ == "__main__":
    sys.exit(main())
