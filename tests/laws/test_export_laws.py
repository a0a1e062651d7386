"""Of every architecture of docs/your-model.md, an export says with the card's own code what the run's model says."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import bases
import pytest
import torch
from architectures import EVERY, IMAGE, LANGUAGE, OWN, SEQ2SEQ, TEXT, WORD, config_of, save_model, targets_of
from datasets import Dataset

from hellora.client.inference import predict
from hellora.core.algebra import components
from hellora.core.state import ServerState
from hellora.experiments.config import check
from hellora.model.origin import Origin
from hellora.results.adapter_folder import load_adapter, read_usage, save_one
from hellora.results.trained import Trained

pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")  # in peft
TASKS = {TEXT: {}, OWN: {"head_type": "own"}, IMAGE: {}, WORD: {}}
TASKS |= {task: {"answer_tokens": 2} for task in (LANGUAGE, SEQ2SEQ)}


def trained(name: str, folder: Path) -> Trained:
    """A run that has come to an adapter which acts, of unequal ranks."""
    task, _ = config_of(name)
    kind = type(task).__module__.rpartition(".")[2]
    table: dict[str, Any] = {
        "task": {"name": kind, **TASKS[task]},
        "model": {"name": str(folder), "rank": 2, "alpha": 3.0, "targets": list(targets_of(name))},
        "data": {"name": "none", "clients": 2},
        "cohort": 2,
    }
    labels = () if task in (LANGUAGE, SEQ2SEQ) else bases.LABELS
    experiment = check(name, table)
    base = experiment.task.load(experiment.model, labels, seed=0)
    adapter = bases.acting_adapter(base)
    first = base.spec.modules[0].name
    adapter = replace(adapter, pairs={**adapter.pairs, first: components(adapter.pairs[first], torch.arange(1))})
    return Trained(experiment, base, labels, ServerState(1, adapter), {}, [], (), Origin.of(base, experiment.model))


def rows_of(names: dict[str, Any]) -> Dataset:
    """What the card tries."""
    columns: dict[str, list[Any]] = {"image": names["images"]} if "images" in names else {"text": names["texts"]}
    (count,) = map(len, columns.values())
    return Dataset.from_dict({**columns, "label": [0] * count})


@pytest.mark.parametrize("name", EVERY)
def test_an_export_says_what_the_run_says(name: str, tmp_path: Path) -> None:
    found = trained(name, save_model(name, tmp_path / "base"))
    save_one(tmp_path / "out", found, found.state.adapter, tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    assert "filled up with zeros to rank 2" in card
    code = card.partition("```python\n")[2].partition("\n```")[0]
    names: dict[str, Any] = {}
    exec(code, names)  # in this process: there is hellora here, too, but the card does not ask for it
    usage = read_usage(tmp_path / "out", {})
    base = usage.load_base()
    adapter = load_adapter(tmp_path / "out", usage, base)
    task = found.experiment.task
    for model, pairs in ((found.base, found.state.adapter), (base, adapter)):
        with torch.no_grad(), model.adapted(pairs):
            if task.columns == "instruction":
                ids = names["batch"]["input_ids"]
                said = {"decoder_input_ids": names["tokens"]} if task.kind() == "seq2seq" else {}
                got = model.net(input_ids=ids, attention_mask=torch.ones_like(ids), **said).logits
                assert task.answer(model, bases.prompts(names["prompt"])) == [names["answer"]]
            elif task.columns == "tokens":
                got = model.net(**names["batch"]).logits
            else:
                got = None
        if got is None:
            got = bases.logits(pairs, model, task, rows_of(names), 8)
        torch.testing.assert_close(names["logits"], got, atol=1e-5, rtol=1e-5)
        if task.columns == "tokens":
            said = predict(pairs, model, task, Dataset.from_dict({"tokens": names["words"]}), 8, bases.LABELS)
            assert [each["tags"] for each in said] == [[*answer.values()] for answer in names["answers"]]
    assert base.fingerprint() == found.base.fingerprint()
