"""An exported adapter is on disk as follows.

adapter_config.json   adapter_model.safetensors   what peft loads; or, merged, a whole model as transformers writes it
head.safetensors                                  hellora's own head, where the network has none
labels.json                                       the classes, in order
hellora.json                                      task, base model, columns: all that predictions need besides
README.md                                         a model card
personal/client-00003/   prototypes/rank-2/       folders like this one
"""

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hellora.client.own_metrics import Metric
from hellora.core.errors import InputError
from hellora.core.exchange import TrainSettings
from hellora.core.types import Adapter
from hellora.data.settings import DataSettings
from hellora.experiments import registry
from hellora.experiments.experiment import Experiment
from hellora.experiments.own_code import is_code, refuse_unnamed_code
from hellora.experiments.sections import SECTIONS, override
from hellora.experiments.settings import ComputeSettings
from hellora.experiments.tables import Table, build
from hellora.methods.sharing import with_private
from hellora.model.origin import Origin
from hellora.model.peft_files import HEAD_FILE, load_head, load_peft, save_merged, save_peft
from hellora.model.resident import BaseModel
from hellora.model.settings import ModelSettings
from hellora.results.model_card import card, notes, padding
from hellora.results.trained import Trained
from hellora.tasks import Task

USAGE_FILE, LABELS_FILE = "hellora.json", "labels.json"
TRAINED = ("rank", "alpha", "targets", "classes")  # of [model]: what an adapter was made with cannot change
# What predictions depend on, of each table; None = every setting.
NEEDED: dict[str, tuple[str, ...] | None] = {
    "task": None,
    "model": None,
    "data": (
        *("subset", "test_split", "text", "text_pair", "label", "labels", "separator", "image", "tokens", "tags"),
        *("messages", "prompt", "response", "system", "as_chat"),
    ),
    "train": ("precision",),
    "compute": ("device", "threads", "eval_batch_size"),
}


@dataclass(frozen=True, eq=False)
class Usage:
    """Says how an adapter is used: hellora.json."""

    task: Task
    metrics: tuple[Metric, ...]  # besides the task's own
    model: ModelSettings
    data: DataSettings
    train: TrainSettings
    compute: ComputeSettings
    labels: tuple[str, ...]
    merged: bool  # the weights are whole, and lie in the same folder
    origin: Origin  # of the base

    @staticmethod
    def of_experiment(
        experiment: Experiment, labels: tuple[str, ...], origin: Origin, settings: Mapping[str, Any], turns: bool
    ) -> "Usage":
        """Say what an experiment's own adapter is used with, with `settings` changed."""
        return Usage.of_table(usage_table(experiment, labels, origin, merged=False, turns=turns), settings)

    @staticmethod
    def of_table(table: Table, settings: Mapping[str, Any]) -> "Usage":
        """Read such a table. Raise InputError where a setting is wrong, or has nothing to do with predictions."""
        for key in settings:
            section, _, name = key.partition(".")
            fixed = section == "model" and (name in TRAINED or (name == "name" and table["merged"]))
            if section not in NEEDED or name not in (NEEDED[section] or [name]) or fixed:
                raise InputError(f"--set {key}: predictions do not depend on it: leave it out")
        changed = override(table, settings)
        task_fields = dict(changed["task"])
        metrics = tuple(registry.metric(name) for name in task_fields.pop("metrics", ()))
        task = registry.find("task", task_fields.pop("name"))
        built = {name: build(registry.named(SECTIONS[name]), changed[name], name) for name in NEEDED if name != "task"}
        return Usage(
            task=build(task, task_fields, "task"),
            metrics=metrics,
            labels=tuple(table["labels"]),
            merged=bool(table["merged"]),
            origin=Origin.from_json(table.get("base")),
            **built,
        )

    def load_base(self) -> BaseModel:
        """Load the base model, on the CPU. Raise InputError where it is another one than the adapter's."""
        if self.merged:
            return self.load(self.model)
        model = self.origin.found_by(self.model)
        base = self.load(model)
        self.origin.check(base, model, self.load)
        return base

    def load(self, model: ModelSettings) -> BaseModel:
        return self.task.load(model, self.labels, seed=0)


def usage_table(experiment: Experiment, labels: tuple[str, ...], origin: Origin, *, merged: bool, turns: bool) -> Table:
    """Return the content of hellora.json. Where and how fast the run was computed is no part of it, nor are metrics of
    its user's own: predictions need no such code. `turns`: prompts are asked as turns, for conversations were learned,
    in whatever form the data had them."""
    table: Table = {"format": 1, "merged": merged, "labels": list(labels), "base": origin.to_json()}
    for section, keys in NEEDED.items():
        content = experiment.table[section]
        table[section] = {k: v for k, v in content.items() if keys is None or k in keys}
    table["task"]["metrics"] = [name for name in experiment.table["task"]["metrics"] if not is_code(name)]
    table["data"]["as_chat"] = turns or experiment.data.as_chat
    table["compute"] = {"eval_batch_size": experiment.compute.eval_batch_size}
    return table


# ------------------------------------------------------------------------------------------- writing


def save_adapter(folder: Path, trained: Trained, final_folder: Path) -> None:
    """Write the whole of a run's adapter to `folder`, with personal adapters and prototypes below; the READMEs speak of
    `final_folder`, where it will be moved."""
    save_one(folder, trained, trained.state.adapter, final_folder, alone=False)
    for client, own in sorted(trained.state.private.items()):
        place = Path("personal") / f"client-{client:05d}"
        save_one(folder / place, trained, with_private(trained.state.adapter, own), final_folder / place, client=client)
    for rank, prototype in trained.state.adapter.prototypes.items():
        place = Path("prototypes") / f"rank-{rank}"
        save_one(folder / place, trained, prototype, final_folder / place)


def save_one(
    folder: Path,
    trained: Trained,
    adapter: Adapter,
    final_folder: Path,
    *,
    client: int | str | None = None,
    alone: bool = True,
    merged: bool = False,
) -> None:
    """Write one adapter, or (`merged`) the whole model with it. `client` is whose own it is: its id or, where it
    writes that itself, its name; None everybody's."""
    folder.mkdir(parents=True)
    experiment = trained.experiment
    if merged:
        save_merged(adapter, folder, trained.base, experiment.model)
    else:
        model = replace(experiment.model, name=trained.origin.path or experiment.model.name)
        save_peft(adapter, folder, trained.base, model, experiment.task.kind())
    if trained.labels:
        (folder / LABELS_FILE).write_text(json.dumps(list(trained.classes), indent=1, ensure_ascii=False))
    usage = usage_table(experiment, trained.labels, trained.origin, merged=merged, turns=trained.turns)
    (folder / USAGE_FILE).write_text(json.dumps(usage, indent=1, ensure_ascii=False))
    said = notes(trained, adapter, client, alone) + ("" if merged else padding(adapter))
    text = card(trained, final_folder, said, merged)
    (folder / "README.md").write_text(text)


# ------------------------------------------------------------------------------------------- reading


def read_usage(folder: Path, settings: Mapping[str, Any], allow: Collection[str] = ()) -> Usage:
    """Read how the adapter in `folder` is used, with `settings` ("section.key": value) changed.

    Raises:
        InputError: hellora.json is damaged or of a later version, names code that is not in `allow`, or a setting is
            wrong.
    """
    try:
        table = json.loads((folder / USAGE_FILE).read_bytes())
        refuse_unnamed_code(table, allow, folder / USAGE_FILE)
        if table["format"] != 1:
            raise ValueError(f"its format is {table['format']}, and this hellora knows 1")
        usage = Usage.of_table(table, settings)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{folder / USAGE_FILE} cannot be read ({error}): export the adapter again") from error
    return replace(usage, model=replace(usage.model, name=str(folder))) if usage.merged else usage


def load_adapter(folder: Path, usage: Usage, base: BaseModel) -> Adapter:
    """Load the adapter in `folder`; of merged weights, the head alone.

    Raises:
        InputError: a file is absent, damaged, or of another base model.
    """
    if not usage.merged:
        return load_peft(folder, base)
    if base.head is None:
        return Adapter({}, base.initial_head())
    try:
        head = load_head(folder)
    except Exception as error:  # safetensors raises an error of its own
        raise InputError(f"{folder / HEAD_FILE} cannot be read ({error}): export it again") from error
    return Adapter({}, base.initial_head() | head)
