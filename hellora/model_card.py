"""Floor 5: the README of an exported adapter: what it is, what it learned from and how, and the lines that use it.

Its head is what the Hub reads of a model: https://huggingface.co/docs/hub/model-cards. Its code runs as it stands, with
plain transformers and peft.
"""

import json
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tomli_w

from hellora.config import Experiment
from hellora.model import MINILM_HUB, QUANTIZATION, outside_blocks, resolve_name
from hellora.resident import BaseModel
from hellora.tasks import length_limit
from hellora.tasks.causal_lm import CausalLM, prompt_tokens
from hellora.tasks.sequence_classification import SequenceClassification
from hellora.types import Adapter, ServerState

PIPELINES = {"text": "text-classification", "image": "image-classification", "instruction": "text-generation"}
METRICS = {"accuracy": "accuracy", "macro_f1": "f1", "perplexity": "perplexity", "rouge_l": "rouge"}  # on the Hub
LOCAL = ("name", "proxy", "public", "table")  # settings that may be a path on this machine


@dataclass(frozen=True, eq=False)
class Trained:
    """What a run has come to after some of its rounds: what is exported, and what a card says of it."""

    experiment: Experiment
    base: BaseModel
    labels: tuple[str, ...]  # () where there is no label
    state: ServerState
    initial: Mapping[str, float]  # metrics before round 0
    lines: Sequence[Mapping[str, Any]]  # of rounds.jsonl, the finished rounds
    clients: Sequence[str] = field(default=())  # names by id, where clients have names

    @property
    def classes(self) -> tuple[str, ...]:
        """The class of each logit; a head may have room for more than the data has."""
        return class_names(self.labels, self.experiment.model.classes or len(self.labels))


def class_names(labels: Sequence[str], count: int) -> tuple[str, ...]:
    """A name for each of `count` classes, of which `labels` are the first."""
    return (*labels, *(f"class {i}" for i in range(len(labels), count)))


# ------------------------------------------------------------------------------------------- the code

MEAN_POOLING = """\
import json
{imports}from safetensors.torch import load_file
from transformers import AutoModel, AutoTokenizer{quantizer}

{places}
{texts}

{quantization}tokenizer = AutoTokenizer.from_pretrained({source}{trust})
{padding}model = AutoModel.from_pretrained({source}, {arguments})
{wrapped}head = load_file({folder} + "/head.safetensors")
batch = tokenizer({inputs}, padding=True, truncation=True, max_length={max_length}, return_tensors="pt")
with torch.no_grad():
    hidden = model(**batch).last_hidden_state
mask = batch["attention_mask"].unsqueeze(-1)
logits = (hidden * mask).sum(1).float() / mask.sum(1) @ head["weight"].T + head["bias"]
{answers}"""

OWN_HEAD = """\
import json
{imports}from transformers import AutoModelForSequenceClassification, AutoTokenizer{quantizer}

{places}
{texts}

{quantization}tokenizer = AutoTokenizer.from_pretrained({source}{trust})
{padding}model = AutoModelForSequenceClassification.from_pretrained(
    {source}, {arguments}
)
model.config.pad_token_id = tokenizer.pad_token_id
{wrapped}batch = tokenizer({inputs}, padding=True, truncation=True, max_length={max_length}, return_tensors="pt")
with torch.no_grad():
    logits = model(**batch).logits
{answers}"""

IMAGES = """\
import json
{imports}from PIL import Image
from transformers import AutoImageProcessor, AutoModelForImageClassification{quantizer}

{places}
images = [Image.new("RGB", (32, 32), "red")]  # or Image.open("a file").convert("RGB")

{quantization}processor = AutoImageProcessor.from_pretrained({source}{trust})
model = AutoModelForImageClassification.from_pretrained(
    {source}, {arguments}
)
{wrapped}with torch.no_grad():
    logits = model(**processor(images, return_tensors="pt")).logits
{answers}"""

LANGUAGE = """\
{imports}from transformers import AutoModelForCausalLM, AutoTokenizer{quantizer}

{places}
prompt = {prompt}

{quantization}tokenizer = AutoTokenizer.from_pretrained({source}{trust})
{padding}model = AutoModelForCausalLM.from_pretrained({source}, {arguments})
{wrapped}batch = tokenizer(prompt, return_tensors="pt", return_token_type_ids=False)
{without_end}with torch.no_grad():
    logits = model(**batch).logits
    tokens = model.generate(
        **batch, max_new_tokens={new_tokens}, do_sample=False, pad_token_id=tokenizer.pad_token_id
    )
answer = tokenizer.decode(tokens[0, batch["input_ids"].shape[1] :], skip_special_tokens=True)"""

PADDING = "tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token\n"
WITHOUT_END = "batch = {name: ids[:, :-1] for name, ids in batch.items()}  # the answer follows, not the end\n"
ANSWERS = """\
with open({folder} + "/labels.json") as file:
    labels = json.load(file)
answers = [labels[i] for i in logits.argmax(-1).tolist()]"""


def code(trained: Trained, folder: Path, merged: bool) -> str:
    """Python that loads what is in `folder` and uses it. `merged`: the weights are whole, and peft is not needed."""
    experiment, base = trained.experiment, trained.base
    task, model = experiment.task, experiment.model
    if isinstance(task, SequenceClassification):
        template = MEAN_POOLING if task.head_type == "mean_pooling" else OWN_HEAD
    else:
        template = IMAGES if task.columns == "image" else LANGUAGE
    pairs, where = bool(experiment.data.text_pair), "model_folder" if merged else "adapter"
    trust = ", trust_remote_code=True" if model.trust_remote_code else ""
    quantized = model.quantization != "none"
    arguments = f"dtype=torch.{model.dtype}{trust}"
    arguments += ', quantization_config=quantization, device_map={"": "cpu"}' if quantized else ""
    if template in (OWN_HEAD, IMAGES) and not merged:
        arguments += f", num_labels={len(trained.classes)}, ignore_mismatched_sizes=True"
    places = f"{where} = {str(folder)!r}"
    if not merged:
        places = f"base = {resolve_name(model.name)!r}{also_on_hub(model.name)}\n{places}"
    return template.format(
        imports="import torch\n" + ("" if merged else "from peft import PeftModel\n"),
        quantizer=", BitsAndBytesConfig" if quantized else "",
        quantization=f"quantization = {quantization(trained)}\n" if quantized else "",
        places=places,
        source=where if merged else "base",
        folder=where,
        trust=trust,
        arguments=arguments,
        wrapped="model = model.eval()\n" if merged else f"model = PeftModel.from_pretrained(model, {where}).eval()\n",
        max_length=length_limit(base, task.max_length) if isinstance(task, SequenceClassification) else None,
        texts='texts = ["a text to classify", "another one"]'
        + ('\npairs = ["its partner", "its own"]' if pairs else ""),
        inputs="texts, pairs" if pairs else "texts",
        padding=PADDING if borrows_padding(base.processor) else "",
        prompt=filled_in(experiment.data.prompt),
        without_end=WITHOUT_END if task.columns == "instruction" and appends_end(base.processor) else "",
        new_tokens=task.new_tokens(base) if isinstance(task, CausalLM) else None,
        answers=ANSWERS.format(folder=where),
    )


def also_on_hub(name: str) -> str:
    """A comment for a base that has a name on the hub, and is taken from this machine."""
    return f"  # on the Hub: {MINILM_HUB}" if name == "minilm" and resolve_name(name) != MINILM_HUB else ""


def quantization(trained: Trained) -> str:
    """Code for how the base was quantised."""
    model = trained.experiment.model
    said = ", ".join(f"{name}={value!r}" for name, value in QUANTIZATION[model.quantization].items())
    return (
        f"BitsAndBytesConfig(\n    {said}, bnb_4bit_compute_dtype=torch.{model.dtype},\n"
        f"    llm_int8_skip_modules={outside_blocks(trained.base.net)!r},\n)"
    )


def borrows_padding(processor: Any) -> bool:
    """True for a tokenizer that has no padding token of its own, so that load_tokenizer gave it another one."""
    pad = getattr(processor, "pad_token", None)
    return pad is not None and pad in (processor.eos_token, processor.unk_token)


def appends_end(tokenizer: Any) -> bool:
    """True for a tokenizer that ends every text with an end-of-text token."""
    return len(prompt_tokens(tokenizer, ["a"])[0]) < len(tokenizer("a")["input_ids"])


def filled_in(template: str) -> str:
    """Python code for a prompt of the form that the model was trained on."""
    columns = [column for _, column, _, _ in string.Formatter().parse(template) if column]
    question = "What is federated learning?"
    values = {column: "" if i else question for i, column in enumerate(dict.fromkeys(columns))}
    return f"{template!r}.format(**{values!r})"


# ------------------------------------------------------------------------------------------- the card

CARD = """\
---
{head}
---

# {title}

{what} of `{model}`, trained by {clients} clients with hellora ({allocator}, {aggregator}).
{state}It gives the same logits with plain {libraries}:

```python
{code}
```
{notes}
## Training

| | |
|---|---|
{facts}

## Results

On {evaluated_on}:

| | {names} |
|---|{rule}|
{rows}

## Settings

```toml
{settings}```
"""

UNFINISHED = """
**Not finished:** this is the state after {done} of {rounds} rounds.

"""
LABELS = "\nThe index of a logit is a class in `labels.json`.\n"
PERSONAL = """
Clients keep a part of their own ({parts}). {where}
"""
PROTOTYPES = """
Every rank has an adapter of its own. This is the one of rank {largest}; {where}
"""
PERSONAL_BESIDE = (
    "`personal/` has a folder like this one for each client that took part. What is here in its place is what all of "
    "them began with."
)


def card(trained: Trained, folder: Path, notes: str = "", merged: bool = False) -> str:
    """The README of the adapter in `folder`; `notes` stand below the code."""
    experiment, rounds = trained.experiment, trained.experiment.run.rounds
    done, data = len(trained.lines), experiment.data
    on = "the clients' held-out examples" if experiment.method.personal else f"the {data.evaluate_on} split"
    measured = [line for line in trained.lines if line["metrics"] is not None]
    results = [("before training", trained.initial)]
    results += [(f"after round {line['round']}", line["metrics"]) for line in measured[-1:]]
    names = list(trained.initial)
    return CARD.format(
        head=front_matter(trained, merged),
        title=experiment.name,
        what="The merged weights" if merged else "A LoRA adapter",
        model=hub_name(experiment.model.name),
        clients=data.clients,
        allocator=experiment.table["method"]["allocator"],
        aggregator=experiment.table["method"]["aggregator"],
        state=UNFINISHED.format(done=done, rounds=rounds) if done < rounds else "",
        libraries="transformers" if merged else "transformers and peft",
        code=code(trained, folder, merged),
        notes=(LABELS if experiment.task.columns != "instruction" else "") + notes,
        facts="\n".join(f"| {name} | {value} |" for name, value in facts(trained).items()),
        evaluated_on=on,
        names=" | ".join(names),
        rule="|".join("---" for _ in names),
        rows="\n".join(
            f"| {when} | " + " | ".join(f"{metrics[name]:.4f}" for name in names) + " |" for when, metrics in results
        ),
        settings=tomli_w.dumps(public_settings(experiment)),
    )


def front_matter(trained: Trained, merged: bool) -> str:
    """What the Hub reads, without the lines around it. A JSON value is a YAML value."""
    experiment = trained.experiment
    model, data = hub_name(experiment.model.name), experiment.data
    head: dict[str, Any] = {}
    if not is_local(experiment.model.name):  # a folder of this machine is no model of the Hub
        head |= {"base_model": model, "base_model_relation": "merge" if merged else "adapter"}
    head |= {"library_name": "transformers" if merged else "peft", "pipeline_tag": PIPELINES[experiment.task.columns]}
    head["tags"] = ["lora", "federated-learning", "hellora"]
    if data.name != "stdlib_docs" and not is_local(data.name):
        head["datasets"] = [data.name]
    head["metrics"] = [METRICS[name] for name in trained.initial if name in METRICS]
    return "\n".join(f"{name}: {json.dumps(value, ensure_ascii=False)}" for name, value in head.items())


def facts(trained: Trained) -> dict[str, str]:
    """What a reader asks first."""
    experiment = trained.experiment
    run, data, model, train = experiment.run, experiment.data, experiment.model, experiment.train
    method = experiment.table["method"]
    length = f"{train.steps} steps" if train.steps else f"{train.epochs} epoch{'s' * (train.epochs > 1)}"
    found = {
        "data": f"`{shown_name(data.name)}`" + (f" ({data.subset})" if data.subset else ""),
        "task": experiment.table["task"]["name"] + (f", {len(trained.labels)} classes" if trained.labels else ""),
        "rounds": f"{len(trained.lines)} of {run.rounds}, {run.cohort} of {data.clients} clients in each",
        "method": ", ".join(f"{part} {method[part]}" for part in ("allocator", "dispatcher", "aggregator")),
        "adapter": f"rank {model.rank}, scale {model.scale:g}, on {len(trained.base.spec.modules)} modules of "
        f"{trained.base.spec.num_layers} layers",
        "local training": f"{length}, batches of {train.batch_size}, {train.optimizer}, learning rate {train.lr:g}",
        "seed": str(run.seed),
    }
    if model.quantization != "none":
        found["base weights"] = model.quantization
    return found


def public_settings(experiment: Experiment) -> dict[str, Any]:
    """Every setting that has to do with the result; of a file or folder of this machine, its name alone."""
    shown: dict[str, Any] = {}
    for section, content in experiment.table.items():
        if section in ("compute", "tracking"):
            continue
        shown[section] = content
        if isinstance(content, dict):
            shown[section] = {k: shown_name(v) if k in LOCAL and isinstance(v, str) else v for k, v in content.items()}
    return shown


def is_local(name: str) -> bool:
    return Path(name).expanduser().exists() or name.startswith((".", "/", "~"))


def shown_name(name: str) -> str:
    return Path(name).name if is_local(name) else name


def hub_name(name: str) -> str:
    """A model as its reader knows it."""
    return MINILM_HUB if name == "minilm" else shown_name(name)


def notes(trained: Trained, adapter: Adapter, client: int | None, alone: bool) -> str:
    """What there is besides this adapter: the clients' own parts, the prototypes of other ranks.

    `client` is whose adapter this is; None is everybody's. `alone`: it has no folders beside or below it.
    """
    method, found = trained.experiment.method, ""
    if method.personal:
        parts = ["the head"] if method.head == "local" else []
        parts += [] if method.shares == "both" else [f"every factor but {method.shares}"]
        where = PERSONAL_BESIDE if not alone else "What is here in its place is what all of them began with."
        if client is not None:
            where = f"This is the adapter of client {client}; the results are a mean over all clients."
        found += PERSONAL.format(parts=", ".join(parts), where=where)
    if trained.state.adapter.prototypes:
        (rank,) = {pair.rank for pair in adapter.pairs.values()}
        smaller = ", ".join(map(str, trained.state.adapter.prototypes))
        where = f"`prototypes/` has a folder like this one for\neach smaller rank ({smaller})."
        if alone or rank != trained.base.spec.max_rank:
            where = f"the results are those of rank {trained.base.spec.max_rank}."
        found += PROTOTYPES.format(largest=rank, where=where)
    return found
