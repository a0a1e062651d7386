"""Language models between machines, over TLS: one running federation takes chats, texts, packed rows and preferences in
turn, and each run ends with the bits that it has on one machine."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny_models
from federation_site import CLIENTS, Site, running, same_bits, tensors

from hellora.experiments.config import check
from hellora.experiments.experiment import Experiment

pytestmark = [pytest.mark.slow, pytest.mark.flower, pytest.mark.xdist_group("deployed language")]
COLUMNS = "messages,story,chosen,rejected,prompt,label"
TEMPLATE = "{% for m in messages %}{{ m.content + ' [SEP] ' }}{% endfor %}"
CHAT = {"name": "causal_lm", "chat_template": TEMPLATE, "max_length": 40}
CASES: dict[str, dict[str, Any]] = {
    "chat": {"task": CHAT},
    "packed": {"task": {**CHAT, "packing": True}},
    "text": {"task": {"name": "causal_lm"}, "data": {"text": "story"}},
    "preference": {"task": {"name": "preference", "chat_template": TEMPLATE}},
}


def row(text: str, owner: str) -> dict[str, Any]:
    """A row that can be read in every form."""
    *words, last = text.split()
    asked, answer = ({"role": "user", "content": " ".join(words)}, {"role": "assistant", "content": last})
    rejected = [asked, {**answer, "content": "the the"}]
    return {"messages": [asked, answer], "chosen": [asked, answer], "rejected": rejected, "story": text, "owner": owner}


def lines(texts: list[tuple[str, str]]) -> bytes:
    """JSON lines, shared out among the clients."""
    names = list(CLIENTS)
    return "".join(json.dumps(row(text, names[i % len(names)])) + "\n" for i, (text, _) in enumerate(texts)).encode()


class LanguageSite(Site):
    """A site whose clients let a server read the columns of every form."""

    def start_client(self, name: str, *more: object) -> None:
        super().start_client(name, "--columns", COLUMNS, *more)

    def experiment(self, at: Path, **changes: Any) -> Experiment:  # type: ignore[override]  # `data` is a table here
        own = changes.pop("data", {})
        table = super().experiment(at, **changes).table
        return check("language", {**table, "data": {**table["data"], **own}}, simulated=False)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder: Path = tmp_path_factory.mktemp("language")
    training, test = lines(tiny_models.sentences(120, 3)), lines(tiny_models.sentences(12, 4))
    site = LanguageSite(folder, tiny_models.save_llama(folder / "llama"), [row("a b", name) for name in CLIENTS], b"")
    for old in (*folder.glob("*.csv"), *folder.glob("*/*.csv")):
        old.unlink()
    (folder / "whole" / "train.jsonl").write_bytes(training)
    for at in ("whole", "server"):
        (folder / at / "test.jsonl").write_bytes(test)
    for name in CLIENTS:  # `--data NAME.csv` of the site: a folder's name is as good
        (folder / f"{name}.csv").mkdir()
        own = [line for line in training.splitlines(True) if json.loads(line)["owner"] == name]
        (folder / f"{name}.csv" / "train.jsonl").write_bytes(b"".join(own))
    with running(site) as begun:
        yield begun


@pytest.mark.parametrize("case", CASES)
def test_every_form_ends_with_the_same_bits(case: str, site: Site) -> None:
    changes = {"train": {"lr": 0.03, "batch_size": 4, "steps": 3}, **CASES[case]}
    run = site.submit(case, **changes)
    assert run.wait() == 0, run.log
    assert not any(line["missing"] or line["rejected"] for line in run.lines())
    assert same_bits(tensors(run.folder), site.replay(case, run.lost(), **changes))
