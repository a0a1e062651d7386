"""Floor 5: the adapter folder: what peft loads, the head beside it, and a README with the lines that use them."""

import json
import string
from pathlib import Path
from typing import Any

from hellora.experiment import Setup
from hellora.model import resolve_name, save_peft
from hellora.sharing import with_private
from hellora.tasks import length_limit
from hellora.tasks.sequence_classification import SequenceClassification
from hellora.types import ServerState

HEADER = """# {title}

A LoRA adapter of `{model}`, trained by {clients} clients with hellora ({allocator}, {aggregator}).
It gives the same logits with plain transformers and peft:

```python
{code}
```
{labels}"""

MEAN_POOLING = """\
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModel, AutoTokenizer

base = {base!r}
adapter = {folder!r}
{texts}

tokenizer = AutoTokenizer.from_pretrained(base{trust})
{padding}model = AutoModel.from_pretrained(base, dtype=torch.{dtype}{trust})
model = PeftModel.from_pretrained(model, adapter).eval()
head = load_file(adapter + "/head.safetensors")
batch = tokenizer({inputs}, padding=True, truncation=True, max_length={max_length}, return_tensors="pt")
with torch.no_grad():
    hidden = model(**batch).last_hidden_state
mask = batch["attention_mask"].unsqueeze(-1)
logits = (hidden * mask).sum(1) / mask.sum(1) @ head["weight"].T + head["bias"]"""

OWN_HEAD = """\
import torch
from peft import PeftModel
from transformers import AutoModelForSequenceClassification, AutoTokenizer

base = {base!r}
adapter = {folder!r}
{texts}

tokenizer = AutoTokenizer.from_pretrained(base{trust})
{padding}model = AutoModelForSequenceClassification.from_pretrained(
    base, dtype=torch.{dtype}, num_labels={classes}, ignore_mismatched_sizes=True{trust}
)
model.config.pad_token_id = tokenizer.pad_token_id
model = PeftModel.from_pretrained(model, adapter).eval()
batch = tokenizer({inputs}, padding=True, truncation=True, max_length={max_length}, return_tensors="pt")
with torch.no_grad():
    logits = model(**batch).logits"""

IMAGES = """\
import torch
from peft import PeftModel
from PIL import Image
from transformers import AutoImageProcessor, AutoModelForImageClassification

base = {base!r}
adapter = {folder!r}
images = [Image.new("RGB", (32, 32), "red")]  # or Image.open("a file").convert("RGB")

processor = AutoImageProcessor.from_pretrained(base{trust})
model = AutoModelForImageClassification.from_pretrained(
    base, dtype=torch.{dtype}, num_labels={classes}, ignore_mismatched_sizes=True{trust}
)
model = PeftModel.from_pretrained(model, adapter).eval()
with torch.no_grad():
    logits = model(**processor(images, return_tensors="pt")).logits"""

LANGUAGE = """\
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

base = {base!r}
adapter = {folder!r}
prompt = {prompt}

tokenizer = AutoTokenizer.from_pretrained(base{trust})
model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.{dtype}{trust})
model = PeftModel.from_pretrained(model, adapter).eval()
batch = tokenizer(prompt, return_tensors="pt", return_token_type_ids=False)
with torch.no_grad():
    logits = model(**batch).logits
    answer = tokenizer.decode(model.generate(**batch, max_new_tokens=64)[0])"""

PADDING = "tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token\n"

PERSONAL = """
Clients keep a part of their own ({parts}): `personal/` has a folder like this one for each client that took part. What
is here in its place is what all of them began with.
"""

PROTOTYPES = """
Every rank has an adapter of its own. This is the one of rank {largest}; `prototypes/` has a folder like this one for
each smaller rank ({smaller}).
"""


def save_adapter(folder: Path, setup: Setup, state: ServerState, final_folder: Path) -> None:
    """Write the adapter to `folder`; the README speaks of `final_folder`, where it will be moved."""
    folder.mkdir(parents=True)
    experiment = setup.experiment
    save_peft(state.adapter, folder, setup.base, experiment.model, experiment.task.kind())
    for client, own in sorted(state.private.items()):
        personal = folder / "personal" / f"client-{client:05d}"
        adapter = with_private(state.adapter, own)
        save_peft(adapter, personal, setup.base, experiment.model, experiment.task.kind())
    for rank, prototype in state.adapter.prototypes.items():
        smaller = folder / "prototypes" / f"rank-{rank}"
        save_peft(prototype, smaller, setup.base, experiment.model, experiment.task.kind())
    if setup.corpus.labels:
        (folder / "labels.json").write_text(json.dumps(list(setup.corpus.labels), indent=1, ensure_ascii=False))
    (folder / "README.md").write_text(readme(setup, state, final_folder))


def readme(setup: Setup, state: ServerState, folder: Path) -> str:
    experiment = setup.experiment
    task = experiment.task
    if isinstance(task, SequenceClassification):
        template = MEAN_POOLING if task.head_type == "mean_pooling" else OWN_HEAD
    else:
        template = IMAGES if task.columns == "image" else LANGUAGE
    pairs = bool(experiment.data.text_pair)
    code = template.format(
        base=resolve_name(experiment.model.name),
        folder=str(folder),
        dtype=experiment.model.dtype,
        classes=experiment.model.classes or len(setup.corpus.labels),
        max_length=length_limit(setup.base, task.max_length) if isinstance(task, SequenceClassification) else None,
        texts='texts = ["a text to classify", "another one"]'
        + ('\npairs = ["its partner", "its own"]' if pairs else ""),
        inputs="texts, pairs" if pairs else "texts",
        padding=PADDING if borrows_padding(setup.base.processor) else "",
        trust=", trust_remote_code=True" if experiment.model.trust_remote_code else "",
        prompt=filled_in(experiment.data.prompt),
    )
    labels = "\nThe index of a logit is a class in `labels.json`.\n" if task.columns != "instruction" else ""
    if experiment.method.personal:
        parts = ["the head"] if experiment.method.head == "local" else []
        parts += [] if experiment.method.shares == "both" else [f"every factor but {experiment.method.shares}"]
        labels += PERSONAL.format(parts=", ".join(parts))
    if state.adapter.prototypes:
        smaller = ", ".join(map(str, state.adapter.prototypes))
        labels += PROTOTYPES.format(largest=setup.base.spec.max_rank, smaller=smaller)
    return HEADER.format(
        title=experiment.name,
        model=experiment.model.name,
        clients=experiment.data.clients,
        allocator=experiment.table["method"]["allocator"],
        aggregator=experiment.table["method"]["aggregator"],
        code=code,
        labels=labels,
    )


def borrows_padding(processor: Any) -> bool:
    """True for a tokenizer that has no padding token of its own, so that load_tokenizer gave it another one."""
    pad = getattr(processor, "pad_token", None)
    return pad is not None and pad in (processor.eos_token, processor.unk_token)


def filled_in(template: str) -> str:
    """Python code for a prompt of the form that the model was trained on."""
    columns = [column for _, column, _, _ in string.Formatter().parse(template) if column]
    question = "What is federated learning?"
    values = {column: "" if i else question for i, column in enumerate(dict.fromkeys(columns))}
    return f"{template!r}.format(**{values!r})"
