"""What somebody means who wrote something else, and the line in which it is written."""

from pathlib import Path
from typing import Any

import pytest

from hellora.core.errors import InputError
from hellora.experiments.config import check, read_experiment

FILE = """\
rounds = 2
# [train] in a comment is none

[ train ]
lr = 1e-3
batch_size = 0  # such as learning_rate = 1

[method]
allocator = "fed_hello"
"""


@pytest.mark.parametrize(
    ("table", "mend"),
    [
        ({"method": "fed_hello"}, "write --set method.allocator=fed_hello or hellora run fed_hello"),
        ({"method": "FlexLoRA"}, "write hellora run flexlora"),
        ({"method": "fedavg"}, "['plain']\" or --set method.aggregator=participant_mean or hellora run fedit"),
        ({"method": "nothing of the kind"}, "write [method] and its settings below it, or --set method.KEY=…"),
        ({"method": 3}, "write [method] and its settings below it, or --set method.KEY=…"),
        ({"server": "FedAdam"}, "write --set server.optimizer=fed_adam"),
        ({"task": "causal_lm"}, "write [task] and its settings below it, or --set task.name=causal_lm"),
    ],
)
def test_a_value_in_the_place_of_a_table(table: dict[str, Any], mend: str) -> None:
    with pytest.raises(InputError, match="must be a table") as refusal:
        check("bad", table)
    assert mend in str(refusal.value)


@pytest.mark.parametrize(
    ("source", "mend"),
    [
        ("FlexLoRA", "did you mean 'flexlora'?"),
        ("HeLoRA", "did you mean 'helora_pad' or 'helora_kd'?"),
        ("FIM-HLA", "did you mean hellora run quickstart --set method.allocator=fisher?"),
        ("geometric", "did you mean hellora run quickstart --set method.allocator=geometric?"),
        ("FedProx", "did you mean hellora run quickstart --set \"method.local_training=['fed_prox']\"?"),
    ],
)
def test_a_name_in_the_place_of_a_preset(source: str, mend: str) -> None:
    with pytest.raises(InputError) as refusal:
        read_experiment(source)
    assert str(refusal.value) == f"there is no preset or file {source!r}: {mend}"


@pytest.mark.parametrize(
    ("was", "becomes", "said"),
    [
        (
            "batch_size = 0  #",
            "learning_rate = 3  #",
            "line 6: unknown setting train.learning_rate: did you mean train.lr",
        ),
        ("", "", "line 6: train: batch_size must be greater than 0"),
        ("batch_size = 0", 'batch_size = "0"', "line 6: train.batch_size: "),
        ("rounds", "num_rounds", "line 1: unknown setting num_rounds: did you mean rounds?"),
        ("[ train ]", "[trian]", "line 4: unknown setting trian: did you mean 'train'?"),
        ('"fed_hello"', '"fed_helo"', "line 9: method.allocator: there is no allocator 'fed_helo': did you mean"),
    ],
)
def test_an_error_names_the_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, was: str, becomes: str, said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("my.toml").write_text(FILE.replace(was, becomes, 1))
    with pytest.raises(InputError) as refusal:
        read_experiment("my.toml")
    assert str(refusal.value).startswith(f"my.toml, {said}")
    Path("other.toml").write_text('base = "my.toml"\nseed = 1\n')
    with pytest.raises(InputError) as refusal:
        read_experiment("other.toml")
    assert str(refusal.value).startswith(f"my.toml, {said}")


def test_what_is_set_on_the_command_line_is_in_no_file(tmp_path: Path) -> None:
    (tmp_path / "my.toml").write_text(FILE.replace("batch_size = 0", "batch_size = 2"))
    with pytest.raises(InputError, match=r"^train: batch_size must be"):
        read_experiment(str(tmp_path / "my.toml"), {"train.batch_size": -1})
    with pytest.raises(InputError, match=r"^unknown setting train.learning_rate"):
        read_experiment("quickstart", {"train.learning_rate": 1})
