"""`hellora push` against a hub of this process: what arrives there, what does not, and every refusal in one line."""

import json
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fake_hub import TOKEN, Hub, Repository, serving
from refusals import check_refusal

pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")  # of huggingface_hub's own uploads
Command = Callable[..., Any]


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)  # its protocol is not served here
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    with serving() as found:
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", found.url)
        yield found


@pytest.fixture
def run(hellora: Command, small: Path, tmp_path: Path) -> Path:
    """A run whose clients have heads of their own, so that its export has a folder for each."""
    personal = ["--set", "method.head=local", "--set", "method.scores=clients", "--set", "rounds=1"]
    assert hellora("run", small, "--out", tmp_path / "run", *personal).status == 0
    return tmp_path / "run"


def test_an_adapter_arrives_with_its_card_and_nothing_of_this_machine(
    hellora: Command, hub: Hub, run: Path, tmp_path: Path, tiny_bert: Path
) -> None:
    answer = hellora("push", run, "me/topics")
    assert (answer.status, answer.err) == (0, "")
    assert answer.out == f"{hub.url}/me/topics\n"
    found = hub.repositories["me/topics"]
    assert not found.private
    assert found.files.keys() >= {"README.md", "adapter_config.json", "adapter_model.safetensors", "hellora.json"}
    assert not [name for name in found.files if name.startswith("personal/")], "these are the clients' own"
    whole = b"".join(content for name, content in found.files.items() if not name.endswith(".safetensors"))
    assert str(tmp_path).encode() not in whole
    assert str(tiny_bert).encode() not in whole
    card = found.files["README.md"].decode()
    assert "from huggingface_hub import snapshot_download\n\nadapter = snapshot_download('me/topics')\n" in card
    assert f"base = {tiny_bert.name!r}\n" in card
    assert json.loads(found.files["adapter_config.json"])["base_model_name_or_path"] == tiny_bert.name
    assert hellora("export", run, "--out", tmp_path / "exported").status == 0
    stored = (tmp_path / "exported" / "adapter_model.safetensors").read_bytes()
    assert found.files["adapter_model.safetensors"] == stored
    assert hellora("push", tmp_path / "exported", "me/again").status == 0
    assert hub.repositories["me/again"].files.keys() == found.files.keys()
    hub.repositories["me/topics"].files["notes.txt"] = b"mine"
    assert hellora("push", tmp_path / "exported", "me/topics").status == 0, "it is there already"
    assert (found.files["notes.txt"], found.commits) == (b"mine", 2)


def test_a_merged_model_into_a_private_repository(hellora: Command, hub: Hub, run: Path, tmp_path: Path) -> None:
    assert hellora("push", run, "me/whole", "--merged", "--private").status == 0
    found = hub.repositories["me/whole"]
    assert found.private
    assert {"model.safetensors", "tokenizer.json"} <= found.files.keys()
    assert "model_folder = snapshot_download('me/whole')" in found.files["README.md"].decode()
    assert hellora("export", run, "--out", tmp_path / "exported").status == 0
    check_refusal(
        hellora("push", tmp_path / "exported", "me/x", "--merged"), "--merged: ", "is an adapter: name its run"
    )


@pytest.fixture
def exported(tmp_path: Path) -> Path:
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "hellora.json").write_text('{"merged": false, "base": {"name": "smollm2"}}')
    (tmp_path / "adapter" / "README.md").write_text("base = '/home/me/.cache/x'  # on the Hub: y\nadapter = '/tmp/a'\n")
    return tmp_path / "adapter"


def test_an_embedded_base_is_called_as_the_hub_calls_it(hellora: Command, hub: Hub, exported: Path) -> None:
    assert hellora("push", exported, "me/a").status == 0
    card = hub.repositories["me/a"].files["README.md"].decode()
    assert card.startswith("base = 'HuggingFaceTB/SmolLM2-135M-Instruct'\n")


def test_a_repository_that_others_can_see_is_not_private(hellora: Command, hub: Hub, exported: Path) -> None:
    hub.repositories["me/a"] = Repository(private=False)
    check_refusal(hellora("push", exported, "me/a", "--private"), "--private: me/a is there already, and public")
    assert hub.repositories["me/a"].commits == 0


def test_without_a_token_nothing_is_asked(
    hellora: Command, hub: Hub, exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "none"))
    check_refusal(hellora("push", exported, "me/a"), "no token for the Hub", "`hf auth login` once, or HF_TOKEN")
    assert hub.asked == []


@pytest.mark.usefixtures("hub")
def test_a_refused_token_is_not_shown(hellora: Command, exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check_refusal(hellora("push", exported, "others/a"), "refuses the token for others/a (403)")
    monkeypatch.setenv("HF_TOKEN", "hf_secret-of-mine")
    answer = hellora("push", exported, "me/a")
    check_refusal(answer, "refuses the token for me/a (401)")
    assert "hf_secret" not in answer.out + answer.err


@pytest.mark.parametrize("name", ["a/b/c", "me/", "-x-", "me/a b"])
def test_a_name_that_is_none(name: str, hellora: Command, hub: Hub, exported: Path) -> None:
    check_refusal(hellora("push", exported, "--", name), "is no name of a repository: write it as NAME or OWNER/NAME")
    assert hub.asked == []


def test_what_is_no_adapter(hellora: Command, hub: Hub, tmp_path: Path) -> None:
    check_refusal(hellora("push", tmp_path, "me/a"), "is neither a run nor what `hellora export` wrote")
    assert hub.asked == []


def test_a_hub_that_fails_or_is_not_there(
    hellora: Command, hub: Hub, exported: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.failing = 418
    answer = hellora("push", exported, "me/a")
    assert (answer.status, answer.err.count("\n")) == (1, 1)
    assert answer.err.startswith("error: push: the Hub answers 418: ")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", f"http://127.0.0.1:{free.getsockname()[1]}")
        answer = hellora("push", exported, "me/a")
    assert (answer.status, answer.err.count("\n")) == (1, 1)
    assert answer.err.startswith("error: push: the Hub cannot be reached")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    check_refusal(hellora("push", exported, "me/a"), "HF_HUB_OFFLINE keeps this machine from the Hub")
