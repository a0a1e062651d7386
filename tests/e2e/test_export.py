"""`hellora export`, `predict` and `evaluate`: the model card is followed to the letter where there is no hellora."""

import csv
import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_models
import torch
import yaml
from cards import Follow
from factories import bits
from PIL import Image
from refusals import check_refusal
from safetensors.torch import load_file, save_file

import hellora
from hellora.client.work import ClientWork
from hellora.experiments.config import read_experiment
from hellora.model.peft_files import load_peft
from hellora.record.checkpoint import load_state
from hellora.results.exporting import Saved
from hellora.results.model_card import front_matter

Command = Callable[..., Any]
TEXTS = ["a text to classify", "another one"]  # those of the card
READ_ALL = """
import json
said = {}
for case, card in json.load(open(CARDS)).items():
    names = {}
    exec(open(card).read().partition("```python\\n")[2].partition("\\n```")[0], names)
    found = {"logits": names["logits"].tolist()}
    found |= {name: names[name] for name in ("answer", "answers") if name in names}
    said[case] = found
json.dump(said, open(SAID, "w"))
"""
UNEQUAL = {"fleet.layers": [], "fleet.ranks": [1, 2, 4], "method.allocator": "everything", "cohort": 6}


@dataclass(frozen=True)
class TensorStore:
    """Runs of every kind, each exported as an adapter and, but for the quantised one, merged."""

    folder: Path
    said: Mapping[str, Any]  # by each card, without hellora

    def run(self, case: str) -> Path:
        return self.folder / case

    def inputs(self, case: str) -> Path:
        """What the cards try, as a file."""
        return self.folder / {
            "image": "pictures",
            "language": "prompts.jsonl",
            "tied": "prompts.jsonl",
            "pairs": "pairs.csv",
        }.get(case, "texts.csv")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, sentences: Path, follow: Follow) -> TensorStore:
    folder = tmp_path_factory.mktemp("store")
    bert = tiny_models.save_bert(folder / "bert", hidden_dropout_prob=0.1)
    wide = tiny_models.save_bert(folder / "wide", own_head=True, hidden_size=64)
    vit, llama = tiny_models.save_vit(folder / "vit"), tiny_models.save_llama(folder / "llama")
    tied = tiny_models.save_llama(folder / "tied_llama", tie_word_embeddings=True)
    save_inputs(folder)
    base = {
        "rounds": 2, "cohort": 3, "model.name": bert, "model.rank": 4, "data.name": sentences, "data.clients": 6,
        "data.alpha": 1.0, "data.min_examples": 4, "fleet.layers": [1, 2, 4], "train.lr": 0.03, "train.batch_size": 8,
        "method.allocator": "random_layers", "data.proxy_examples": 0,
        "compute.threads": 1,
    }  # fmt: skip
    three = {"fleet.layers": [1, 2, 3], "data.partitioner": "iid"}
    language = {
        "task.name": "causal_lm", "task.answer_tokens": 5, "model.name": llama, "data.name": folder / "orders",
        "data.prompt": "we saw {instruction}: ", **three,
    }  # fmt: skip
    whole = {"model.rslora": True, "model.targets": "all-linear", "train.schedule": "linear", "train.warmup": 0.1}
    cases: dict[str, dict[str, Any]] = {
        "mean_pooling": {},
        "embeddings": {**whole, "model.modules_to_save": ["embeddings"]},
        "own_head": {"task.head_type": "own", "model.classes": 5},
        "pairs": {"data.text_pair": "text"},
        "image": {"task.name": "image_classification", "model.name": vit, "data.name": folder / "colours", **three},
        "language": language,
        "tied": {**language, **whole, "model.name": tied, "model.modules_to_save": ["lm_head"]},
        "ranks": {**UNEQUAL, "fleet.ranks": [[1, 1, 2, 2], [4, 4, 4, 4], [0, 0, 0, 3]]},
        "residual": {**UNEQUAL, "method.aggregator": "stack", "method.dispatcher": "truncate"},
        "prototypes": {
            **UNEQUAL, "method.aggregator": "mutual_distillation", "method.dispatcher": "prototype",
            "method.kd_steps": 2, "data.public": folder / "public.csv",
        },
        "quantised": {"task.head_type": "own", "model.name": wide, "model.quantization": "8bit"},
    }  # fmt: skip
    cards = {}
    for case, changes in cases.items():
        settings = {**base, **changes}
        if "data.partitioner" in settings:
            settings = {k: v for k, v in settings.items() if k not in ("data.alpha", "data.min_examples")}
        hellora.run(
            "quickstart", {k: str(v) if isinstance(v, Path) else v for k, v in settings.items()}, out=folder / case
        )
        cards[case] = hellora.export(folder / case, folder / f"{case}-adapter") / "README.md"
        if case != "quantised":
            cards[f"{case} merged"] = (
                hellora.export(folder / case, folder / f"{case}-merged", merged=True) / "README.md"
            )
    asked, said = folder / "cards.json", folder / "said.json"
    asked.write_text(json.dumps({case: str(card) for case, card in cards.items()}))
    follow(f"CARDS, SAID = {str(asked)!r}, {str(said)!r}\n{READ_ALL}")
    return TensorStore(folder, json.loads(said.read_text()))


def save_inputs(folder: Path) -> None:
    """Training data for images and language, and the inputs of the cards as files."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 12), ("test", 4)):
        for channel, colour in enumerate(("blue", "green", "red")):
            (folder / "colours" / split / colour).mkdir(parents=True)
            for i in range(count):
                pixels = rng.integers(0, 120, (8, 8, 3), dtype=np.uint8)
                pixels[:, :, channel] += 130
                Image.fromarray(pixels).save(folder / "colours" / split / colour / f"{i}.png")
    (folder / "orders").mkdir()
    for name, count, seed in (("train", 36, 3), ("test", 6, 4)):
        rows = [{"instruction": text, "response": text.split()[-1]} for text, _ in tiny_models.sentences(count, seed)]
        (folder / "orders" / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    public = [text for text, _ in tiny_models.sentences(40, seed=9)]
    (folder / "public.csv").write_text("\n".join(["text", *public]) + "\n")
    (folder / "texts.csv").write_text("\n".join(["text", *TEXTS]) + "\n")
    (folder / "pairs.csv").write_text("one,two\na text to classify,its partner\nanother one,its own\n")
    (folder / "pictures").mkdir()
    Image.new("RGB", (32, 32), "red").save(folder / "pictures" / "red.png")
    (folder / "prompts.jsonl").write_text(json.dumps({"instruction": "What is federated learning?"}) + "\n")


CASES = ["mean_pooling", "embeddings", "own_head", "pairs", "image", "ranks", "residual", "prototypes"]


@pytest.mark.parametrize(
    ("case", "form"),
    [
        *((case, form) for case in CASES for form in ("adapter", "merged")),
        ("quantised", "adapter"),
    ],
)
def test_plain_libraries_predict_what_hellora_predicts(store: TensorStore, case: str, form: str) -> None:
    said = store.said[case if form == "adapter" else f"{case} merged"]
    columns = {"data.text": "one", "data.text_pair": "two"} if case == "pairs" else {}
    of_run = hellora.predict(store.run(case), store.inputs(case), columns)
    of_folder = hellora.predict(store.folder / f"{case}-{form}", store.inputs(case), columns)
    plain = torch.tensor(said["logits"], dtype=torch.float64).softmax(-1)
    for predictions in (of_run, of_folder):
        ours = torch.tensor([list(row["probabilities"].values()) for row in predictions], dtype=torch.float64)
        torch.testing.assert_close(ours, plain, atol=2e-6, rtol=0)
        assert [row["label"] for row in predictions] == said["answers"]
        assert [row["row"] for row in predictions] == list(range(len(plain)))
    assert (plain - 1 / plain.shape[1]).abs().max() > 1e-3


@pytest.mark.parametrize("run", ["language", "tied"])
def test_a_language_model_answers_as_its_card_says(store: TensorStore, run: str) -> None:
    (of_run,) = hellora.predict(store.run(run), store.inputs(run))
    assert of_run["prompt"] == "we saw What is federated learning?: "
    assert 0 < len(of_run["answer"].split()) <= 5
    for form, case in (("adapter", run), ("merged", f"{run} merged")):
        assert store.said[case]["answer"] == of_run["answer"]
        (of_folder,) = hellora.predict(store.folder / f"{run}-{form}", store.inputs(run))
        assert of_folder == of_run
    torch.testing.assert_close(
        torch.tensor(store.said[run]["logits"]), torch.tensor(store.said[f"{run} merged"]["logits"]),
        atol=1e-4, rtol=0,
    )  # fmt: skip


@pytest.mark.parametrize(
    "case", ["mean_pooling", "embeddings", "own_head", "image", "language", "tied", "residual", "quantised"]
)
def test_evaluate_measures_what_the_run_measured(store: TensorStore, case: str) -> None:
    """On the run's own test file; a run without proxy data tests on all of it."""
    summary = json.loads((store.run(case) / "summary.json").read_text())
    experiment = read_experiment(str(store.run(case) / "experiment.toml"))
    data = Path(experiment.data.name)
    file = next(iter([*data.glob("test.*"), data / "test"]))
    for source in (store.run(case), store.folder / f"{case}-adapter"):
        metrics = hellora.evaluate(source, file)
        for key in ("per_class", "confusion"):
            assert metrics.pop(key, None) == summary.get(key)
        assert metrics.keys() == summary["final"].keys()
        assert metrics == pytest.approx(summary["final"], abs=1e-5)


def test_the_residual_and_unequal_ranks_are_inside(store: TensorStore) -> None:
    config = json.loads((store.folder / "ranks-adapter" / "adapter_config.json").read_text())
    assert config["r"] == 4
    saved = Saved.read(store.run("residual"))
    adapter, base = saved.state.adapter, saved.trained().base
    assert adapter.residual
    read = load_peft(store.folder / "residual-adapter", base)
    for module in base.spec.modules:
        pair, residual = adapter.pairs[module.name], adapter.residual[module.name]
        expected = pair.scale * pair.B.double() @ pair.A.double() + residual.B.double() @ residual.A.double()
        found = read.pairs[module.name]
        torch.testing.assert_close(found.scale * found.B.double() @ found.A.double(), expected, atol=1e-6, rtol=0)


def test_every_prototype_predicts_by_itself(store: TensorStore) -> None:
    losses = {}
    for rank in (1, 2):
        for folder in (store.folder / "prototypes-adapter", store.run("prototypes") / "adapter"):
            data = Path(read_experiment(str(store.run("prototypes") / "experiment.toml")).data.name)
            losses[rank] = hellora.evaluate(folder / "prototypes" / f"rank-{rank}", data / "test.csv")["loss"]
    summary = json.loads((store.run("prototypes") / "summary.json").read_text())
    assert losses == {rank: pytest.approx(summary["prototypes"][str(rank)]["loss"], abs=1e-5) for rank in (1, 2)}
    text = (store.folder / "prototypes-adapter" / "prototypes" / "rank-1" / "README.md").read_text()
    assert "the one of rank 1; the results are those of rank 4" in " ".join(text.split())


# -------------------------------------------------------------------------------- the card


def test_the_card_says_what_trained_whole_and_by_what_scale(store: TensorStore) -> None:
    card = (store.folder / "tied-adapter" / "README.md").read_text()
    assert "| adapter | rank 4, scale 2 (rsLoRA), on 21 modules of 3 layers |" in card
    assert "| trained whole | lm_head |" in card
    assert "learning rate 0.03, linear |" in card


def head_of(card: str) -> dict[str, Any]:
    head: dict[str, Any] = yaml.safe_load(card.split("---\n")[1])
    return head


def test_the_card_says_what_the_hub_and_a_reader_want(store: TensorStore) -> None:
    card = (store.folder / "mean_pooling-adapter" / "README.md").read_text()
    assert head_of(card) == {  # neither the model nor the data is one of the Hub
        "library_name": "peft",
        "pipeline_tag": "text-classification",
        "tags": ["lora", "federated-learning", "hellora"],
        "metrics": ["accuracy", "f1"],
    }
    summary = json.loads((store.run("mean_pooling") / "summary.json").read_text())
    for when, metrics in (("before training", summary["initial"]), ("after round 1", summary["final"])):
        assert f"| {when} | " + " | ".join(f"{value:.4f}" for value in metrics.values()) + " |" in card
    for fact in (
        "| rounds | 2 of 2, 3 of 6 clients in each |",
        "| task | sequence_classification, 3 classes |",
        "| method | allocator random_layers, dispatcher whole, aggregator participant_mean |",
        "| adapter | rank 4, scale 1, on 8 modules of 4 layers |",
        "On the test split:",
        'allocator = "random_layers"',
    ):
        assert fact in card
    settings = card.partition("```toml")[2]
    assert str(store.folder) not in settings, "no path of this machine"
    assert "Not finished" not in card


@pytest.mark.parametrize(
    ("folder", "packages"),
    [
        ("mean_pooling-adapter", "torch peft safetensors transformers"),
        ("mean_pooling-merged", "torch safetensors transformers"),
        ("own_head-adapter", "torch peft transformers"),
        ("image-merged", "numpy torch pillow transformers"),
        ("language-adapter", "torch peft transformers"),
        ("quantised-adapter", "torch peft transformers bitsandbytes accelerate"),
    ],
)
def test_the_card_says_what_its_code_needs(store: TensorStore, folder: str, packages: str) -> None:
    assert f"(`pip install {packages}`):" in (store.folder / folder / "README.md").read_text()


def test_what_is_on_the_hub_is_named(store: TensorStore) -> None:
    trained = Saved.read(store.run("mean_pooling")).trained()
    experiment = trained.experiment
    there = replace(
        trained,
        experiment=replace(
            experiment,
            model=replace(experiment.model, name="minilm"),
            data=replace(experiment.data, name="trec/of-the-hub"),
        ),
    )
    head = yaml.safe_load(front_matter(there, merged=False))
    assert head["base_model"] == "sentence-transformers/all-MiniLM-L6-v2"
    assert (head["base_model_relation"], head["datasets"]) == ("adapter", ["trec/of-the-hub"])
    assert yaml.safe_load(front_matter(there, merged=True))["library_name"] == "transformers"


# -------------------------------------------------------------------------------- unfinished, personal


def test_a_run_that_is_not_finished_is_exported_from_its_checkpoint(
    hellora: Command, small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, worked = tmp_path / "out", ClientWork.train

    def fail_later(self: ClientWork, task: Any) -> Any:
        if task.round == 2:
            raise RuntimeError("out of memory")
        return worked(self, task)

    monkeypatch.setattr(ClientWork, "train", fail_later)
    assert hellora("run", small, "--out", out).status == 1
    text = tmp_path / "texts.csv"
    text.write_text("text\nwe saw the boat\n")
    before = hellora("predict", out, text, "--json")
    assert before.status == 0, before.err
    answer = hellora("export", out)
    assert (answer.status, answer.err) == (0, "")
    card = (out / "export" / "README.md").read_text()
    assert "**Not finished:** this is the state after 2 of 3 rounds." in card
    assert "| rounds | 2 of 3, 3 of 6 clients in each |" in card
    (tmp_path / "moved").mkdir()
    (out / "export").rename(tmp_path / "moved" / "adapter")  # it needs neither its place nor its run
    moved = hellora("predict", tmp_path / "moved" / "adapter", text, "--json")
    (row,) = [json.loads(line) for line in moved.out.splitlines()]
    (of_run,) = [json.loads(line) for line in before.out.splitlines()]
    assert row["probabilities"] == pytest.approx(of_run["probabilities"], abs=1e-6)
    assert row["label"] in ("sea", "sky", "soil")


def test_a_clients_own_adapter(hellora: Command, small: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    personal = ["--set", "method.head=local", "--set", "method.scores=clients", "--set", "rounds=1"]
    assert hellora("run", small, "--out", out, *personal).status == 0
    found = load_state(out / "checkpoint")
    assert found is not None
    client, own = next(iter(found[0].private.items()))
    assert hellora("export", out, "--client", client, "--out", tmp_path / "own").status == 0
    head = load_file(tmp_path / "own" / "head.safetensors")
    assert bits(head) == bits({name.removeprefix("head."): tensor for name, tensor in own.items()})
    assert bits(head) != bits(load_file(out / "adapter" / "head.safetensors"))
    assert f"This is the adapter of client {client}" in (tmp_path / "own" / "README.md").read_text()
    absent = next(c for c in range(6) if c not in found[0].private)
    check_refusal(hellora("export", out, "--client", absent), f"--client {absent}: it has not taken part: choose among")
    check_refusal(hellora("export", out, "--client", "hospital"), "--client hospital: it has not taken part")


# -------------------------------------------------------------------------------- the commands


def test_predict_writes_a_table_and_evaluate_a_file(hellora: Command, store: TensorStore, tmp_path: Path) -> None:
    adapter = store.folder / "own_head-adapter"
    rows = tmp_path / "rows.csv"
    rows.write_text("body,topic\nwe saw the boat,sea\nthe moon,sky\nthe boat and the old moon near the tide,sea\n")
    columns = ["--set", "data.text=body", "--set", "data.label=topic"]
    answer = hellora("predict", adapter, rows, *columns, "--out", tmp_path / "said.csv")
    assert (answer.status, answer.err) == (0, "")
    table = list(csv.DictReader((tmp_path / "said.csv").read_text().splitlines()))
    names = ["sea", "sky", "soil", "class 3", "class 4"]
    assert list(table[0]) == ["row", "label", *(f"probability.{name}" for name in names)]
    printed = [json.loads(line) for line in hellora("predict", adapter, rows, *columns, "--json").out.splitlines()]
    for line, row in zip(printed, table, strict=True):
        assert row["label"] == line["label"] == max(line["probabilities"], key=line["probabilities"].get)
        assert sum(line["probabilities"].values()) == pytest.approx(1)
        assert [float(row[f"probability.{name}"]) for name in names] == list(line["probabilities"].values())
    first = printed[0]["label"]
    shown = hellora("predict", adapter, rows, *columns).out.splitlines()
    assert shown[0].split() == ["row", "text", "likeliest", "2nd", "3rd"]
    assert [line.split()[0] for line in shown[1:]] == ["0", "1", "2"]
    probability = printed[0]["probabilities"][first]
    assert shown[1].split()[:7] == ["0", "we", "saw", "the", "boat", f"{probability:.2f}", first.split()[0]]
    evaluated = hellora("evaluate", adapter, rows, *columns, "--out", tmp_path / "metrics.json")
    assert evaluated.status == 0, evaluated.err
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    right = sum(line["label"] == true for line, true in zip(printed, ["sea", "sky", "sea"], strict=True))
    assert metrics["accuracy"] == pytest.approx(right / 3)
    nll = [-np.log(line["probabilities"][true]) for line, true in zip(printed, ["sea", "sky", "sea"], strict=True)]
    assert metrics["loss"] == pytest.approx(np.mean(nll), abs=1e-5)
    assert f"accuracy    {right / 3:.4f}" in evaluated.out


def test_what_diverged_is_no_prediction(hellora: Command, store: TensorStore, tmp_path: Path) -> None:
    adapter = shutil.copytree(store.folder / "mean_pooling-adapter", tmp_path / "adapter")
    head = load_file(adapter / "head.safetensors")
    save_file({name: torch.full_like(value, torch.nan) for name, value in head.items()}, adapter / "head.safetensors")
    rows = tmp_path / "rows.csv"
    rows.write_text("text,label\nthe boat,sea\nthe moon,sky\n")
    check_refusal(
        hellora("predict", adapter, rows),
        "row 0: the model says nan, and predicts nothing: the adapter is not finite (head",
    )
    assert hellora("evaluate", adapter, rows, "--out", tmp_path / "metrics.json").status == 0
    metrics = json.loads((tmp_path / "metrics.json").read_text(), parse_constant=lambda name: pytest.fail(name))
    assert metrics["loss"] is None


def test_images_are_named(store: TensorStore) -> None:
    said = hellora.predict(store.folder / "image-adapter", store.folder / "colours" / "test")
    assert len(said) == 12
    assert {Path(row["file"]).name for row in said} == {f"{i}.png" for i in range(4)}
    assert {Path(row["file"]).parent.name for row in said} == {"blue", "green", "red"}


def test_a_broken_image_is_named(hellora: Command, store: TensorStore, tmp_path: Path) -> None:
    """By predict and evaluate, and at the start of a run, which measures the model on the test split."""
    colours = shutil.copytree(store.folder / "colours", tmp_path / "colours")
    (colours / "test" / "green" / "2.png").write_bytes(b"")
    for command in ("predict", "evaluate"):
        answer = hellora(command, store.folder / "image-adapter", colours / "test")
        check_refusal(answer, "test/green/2.png", "its image cannot be read")
    run = hellora(
        "run", store.run("image") / "experiment.toml", "--out", tmp_path / "run", "--set", f"data.name={colours}",
        "--set", "data.proxy_examples=0",
    )  # fmt: skip
    check_refusal(run, "data.unusable: ", "test/green/2.png", "its image cannot be read")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["export", "nothing"], "nothing is not the folder of a run: it has no experiment.toml"),
        (["export", "{run}", "--out", "{run}"], "exists: choose another --out, or remove it"),
        (["export", "{run}", "--client", "0"], "--client: no client has an adapter of its own in this run"),
        (["predict", "nothing", "{texts}"], "nothing is neither an exported adapter, with a hellora.json, nor a run"),
        (["predict", "{adapter}", "nothing.csv"], "there is no file or folder nothing.csv: correct the path"),
        (["predict", "{adapter}", "{texts}", "--out", "x.txt"], "--out x.txt: the name must end in .jsonl or .csv"),
        (["predict", "{adapter}", "{texts}", "--out", "no/x.csv"], "--out no/x.csv: there is no folder no: make it"),
        (["predict", "{adapter}", "{texts}", "--set", "data.text=b"], "texts.csv has no column 'b'"),
        (["predict", "{adapter}", "{texts}", "--set", "rounds=3"], "--set rounds: predictions do not depend on it"),
        (["predict", "{adapter}", "{texts}", "--set", "model.rank=3"], "--set model.rank: predictions do not depend"),
        (["predict", "{adapter}", "{texts}", "--set", "train.lr=3"], "--set train.lr: predictions do not depend on"),
        (["predict", "{adapter}", "{texts}", "--set", "task.max_length=no"], "task.max_length: Input should be"),
        (["evaluate", "{adapter}", "{texts}"], "texts.csv has no column 'label' (it has text)"),
        (["evaluate", "{adapter}", "{wrong}"], "has the label 'fire', which no training example has"),
        (["predict", "{damaged}", "{texts}"], "hellora.json cannot be read"),
        (["predict", "{other}", "{texts}"], "is another base than the adapter was trained on"),
    ],
)
def test_wrong_input_is_one_line(
    hellora: Command, store: TensorStore, tmp_path: Path, arguments: list[str], words: str
) -> None:
    wrong, damaged, other = tmp_path / "wrong.csv", tmp_path / "damaged", tmp_path / "other"
    wrong.write_text("text,label\nthe boat,fire\n")
    damaged.mkdir()
    (damaged / "hellora.json").write_text("{")
    other.mkdir()
    table = json.loads((store.folder / "mean_pooling-adapter" / "hellora.json").read_text())
    table["model"]["name"] = str(store.folder / "wide")
    (other / "hellora.json").write_text(json.dumps(table))
    for name in ("adapter_model.safetensors", "head.safetensors"):
        (other / name).write_bytes((store.folder / "mean_pooling-adapter" / name).read_bytes())
    places = {
        "run": store.run("mean_pooling"), "adapter": store.folder / "mean_pooling-adapter", "wrong": wrong,
        "texts": store.folder / "texts.csv", "damaged": damaged, "other": other,
    }  # fmt: skip
    check_refusal(hellora(*(argument.format(**places) for argument in arguments)), words)


def test_a_quantised_base_is_not_merged(hellora: Command, store: TensorStore, tmp_path: Path) -> None:
    answer = hellora("export", store.run("quantised"), "--merged", "--out", tmp_path / "merged")
    check_refusal(answer, "--merged: the base is quantised (8bit)")
    assert list(tmp_path.iterdir()) == [], "nothing is left behind"
