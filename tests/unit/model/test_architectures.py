"""The architectures that docs/your-model.md lists: found without being told where LoRA goes, and trained for a step."""

import re
from pathlib import Path

import pytest
import torch
from architectures import IMAGE, LANGUAGE, OWN, SEQ2SEQ, SMALL, TEXT, WORD, base_of, batch_of

from hellora.core.algebra import new_adapter
from hellora.tasks import Task

PAGE = Path(__file__).parents[3] / "docs" / "your-model.md"


@pytest.mark.parametrize("name", sorted(SMALL))
def test_a_step_trains_both_blocks(name: str) -> None:
    task, base = base_of(name)
    spec = base.spec
    assert spec.num_layers == 2
    trained = torch.ones(2, 2, dtype=torch.bool).numpy()
    with base.adapted(new_adapter(spec, base.initial_head(), 0), trained, True) as adapted:
        task.outputs(base, batch_of(task, base)).loss_sums.sum().backward()
        assert len(adapted.lora) == len(spec.modules)
        of_layer = {name: module.B.grad.abs().max().item() for name, module in adapted.lora.items()}
        assert all(max(of_layer[m.name] for m in spec.modules if m.layer == layer) > 0 for layer in (0, 1))
        assert [n for n, p in adapted.head.items() if p.grad is None] == [], "the head is no more than the head"
    assert all(parameter.grad is None for parameter in base.net.parameters())


def test_the_page_names_these_and_no_others() -> None:
    said: dict[Task, set[str]] = {}
    titles = {
        TEXT: "| `task.name = sequence_classification` |",
        OWN: "| `task.name = sequence_classification`, `task.head_type = own` |",
        IMAGE: "| `task.name = image_classification` |",
        LANGUAGE: "| `task.name = causal_lm` |",
        WORD: "| `task.name = token_classification` |",
        SEQ2SEQ: "| `task.name = seq2seq` |",
    }
    for task, title in titles.items():
        (row,) = [line for line in PAGE.read_text().splitlines() if line.startswith(title)]
        said[task] = set(re.findall(r"`([^`]+)`", row.removeprefix(title)))
    for task in titles:
        assert said[task] == {name.partition(" ")[0] for name, (other, _) in SMALL.items() if other == task}
