"""Say what a trained adapter predicts for new examples, and how well: `hellora predict` and `hellora evaluate`."""

import csv
import io
import json
import math
import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from hellora.client.evaluation import evaluate
from hellora.client.inference import predict
from hellora.client.per_class import by_name
from hellora.core.errors import InputError
from hellora.core.types import Adapter
from hellora.data.forms import prompts_of
from hellora.data.one_file import Rows, read_rows
from hellora.data.settings import LANGUAGE
from hellora.experiments.machine import device_check, devices
from hellora.experiments.own_code import named_code
from hellora.model.resident import BaseModel
from hellora.record.atomic import write_atomically
from hellora.record.run_folder import RunFolder
from hellora.results.adapter_folder import USAGE_FILE, Usage, load_adapter, read_usage
from hellora.results.exporting import Saved
from hellora.tasks import Prediction

WRITERS = (".jsonl", ".csv")


@dataclass(frozen=True, eq=False)
class Predictor:
    """A predictor is a base model with an adapter for it, loaded and on its device."""

    usage: Usage
    base: BaseModel
    adapter: Adapter

    @staticmethod
    def load(source: Path, settings: Mapping[str, Any], allow: Collection[str] = ()) -> "Predictor":
        """Load an exported adapter, merged weights, or a run: its adapter, or its checkpoint if it is not finished.

        Raises:
            InputError: there is nothing of the kind, a setting is wrong, or it names code that is neither in `allow`
                nor in the settings.
        """
        allowed = {*allow, *named_code(settings)}
        finished = RunFolder(source).adapter
        folder = source if (source / USAGE_FILE).is_file() else finished
        if (folder / USAGE_FILE).is_file():
            usage = read_usage(folder, settings, allowed)
            base = ready(usage)
            return Predictor(usage, base, load_adapter(folder, usage, base))
        if not RunFolder(source).experiment.is_file():
            raise InputError(
                f"{source} is neither an exported adapter, with a {USAGE_FILE}, nor a run: name a run's folder, or "
                f"what `hellora export` wrote"
            )
        saved = Saved.read(source, allowed)
        usage = Usage.of_experiment(saved.experiment, saved.labels, saved.origin, settings, saved.turns)
        return Predictor(usage, ready(usage), saved.state.adapter)

    def read(self, file: str) -> Rows:
        """Read the rows to predict, which need no labels."""
        usage = self.usage
        return read_rows(file, usage.data, usage.task.columns, usage.labels, labelled=False)

    def predict(self, rows: Rows) -> list[Prediction]:
        """Make one prediction per row: what the task says, such as a label with the probability of each class, or an
        answer."""
        task = self.usage.task
        if task.columns in LANGUAGE:
            with torch.no_grad(), self.base.adapted(self.adapter):
                answers = task.answer(self.base, rows.data, task.generation)
            prompts = prompts_of(rows.data)
            return [
                {"row": row, "prompt": prompt, "answer": answer}
                for row, (prompt, answer) in enumerate(zip(prompts, answers, strict=True))
            ]
        compute = self.usage.compute
        labels, precision = self.usage.labels, self.usage.train.precision
        said = predict(self.adapter, self.base, task, rows.data, compute.eval_batch_size, labels, precision)
        files = [{"file": name} for name in rows.files] or [{}] * len(said)
        return [{"row": row, **file, **each} for row, (file, each) in enumerate(zip(files, said, strict=True))]

    def evaluate(self, file: str) -> dict[str, Any]:
        """Compute the metrics of the task, as a run measures them, and how well each class is recognised."""
        usage = self.usage
        read = read_rows(file, usage.data, usage.task.columns, usage.labels, labelled=True)
        for note in read.notes:
            if not note.startswith("read "):  # which is what was asked for
                print(f"data: {note}", file=sys.stderr)
        rows, size = read.data, usage.compute.eval_batch_size
        found = evaluate(self.adapter, self.base, usage.task, rows, size, usage.train.precision, more=usage.metrics)
        return {**found.metrics, **by_name(found.per_class, usage.labels)}


def predict_file(
    source: Path, file: str, settings: Mapping[str, Any], out: Path | None, allow: Collection[str] = ()
) -> list[Prediction]:
    """Predict with an adapter for each row of a file; `out` gets the predictions, too, as JSON lines or CSV.

    Raises:
        InputError: adapter, file, setting or `out` does not fit, the model says nan, or code is not in `allow`.
    """
    return predict_shown(source, file, settings, out, allow)[0]


def predict_shown(
    source: Path, file: str, settings: Mapping[str, Any], out: Path | None, allow: Collection[str] = ()
) -> tuple[list[Prediction], list[str]]:
    """Do what `predict_file` does, and return also what a person reads of each row: its text, or its image's file."""
    check_out(out, WRITERS)
    predictor = Predictor.load(source, settings, allow)
    rows = predictor.read(file)
    predictions = predictor.predict(rows)
    if out is not None:
        write(out, as_text(predictions, out.suffix))
    return predictions, texts_of(rows)


def texts_of(rows: Rows) -> list[str]:
    """Return what a person reads of each row: its text, both of a pair, its words, a prompt, or its image's file."""
    names = rows.data.column_names
    if rows.files:
        return list(rows.files)
    if "tokens" in names:
        return [" ".join(words) for words in rows.data["tokens"][:]]
    if "text_pair" in names:
        return [" | ".join(pair) for pair in zip(rows.data["text"][:], rows.data["text_pair"][:], strict=True)]
    return prompts_of(rows.data)


def evaluate_file(
    source: Path, file: str, settings: Mapping[str, Any], out: Path | None, allow: Collection[str] = ()
) -> dict[str, Any]:
    """Compute the metrics of an adapter on the labelled examples of a file, and how well it recognises each class;
    `out` gets them, too, as JSON.

    Raises:
        InputError: adapter, file, setting or `out` does not fit, a label is none of the run's classes, or code is not
            in `allow`.
    """
    check_out(out, (".json",))
    metrics = Predictor.load(source, settings, allow).evaluate(file)
    if out is not None:
        write(out, as_json(metrics))
    return metrics


def ready(usage: Usage) -> BaseModel:
    """Put the base model on the device that is asked for."""
    device_check(usage.compute.device)
    if usage.compute.threads:
        torch.set_num_threads(usage.compute.threads)
    return usage.load_base().to(devices(usage.compute.device)[0])


def check_out(out: Path | None, suffixes: Sequence[str]) -> None:
    """Raise InputError where a result cannot be written, before it is computed."""
    if out is not None and out.suffix not in suffixes:
        raise InputError(f"--out {out}: the name must end in {' or '.join(suffixes)}")
    if out is not None and not out.parent.is_dir():
        raise InputError(f"--out {out}: there is no folder {out.parent}: make it")


def write(out: Path, text: str) -> None:
    """Write a result, whole or not at all."""
    try:
        write_atomically(out, text.encode())
    except OSError as error:
        raise InputError(f"--out {out}: cannot write it: {error.strerror}") from error


def as_json(metrics: Mapping[str, Any]) -> str:
    """Return metrics by name; null for one that is not finite, which JSON has no number for."""
    finite = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in metrics.items()}
    return json.dumps(finite, indent=1, ensure_ascii=False) + "\n"


def as_text(predictions: Sequence[Prediction], suffix: str = ".jsonl") -> str:
    """Write predictions as JSON lines; or as CSV, with columns `probability.<class>`, where lists are JSON."""
    if suffix == ".jsonl":
        return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in predictions)
    flat = []
    for row in predictions:
        probabilities = row.get("probabilities", {})
        plain = {name: in_a_cell(value) for name, value in row.items() if name != "probabilities"}
        flat.append(plain | {f"probability.{name}": value for name, value in probabilities.items()})
    text = io.StringIO()
    writer = csv.DictWriter(text, list(flat[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(flat)
    return text.getvalue()


def in_a_cell(value: Any) -> Any:
    """Return a value as a cell of CSV has it: a list as JSON."""
    return json.dumps(value, ensure_ascii=False) if isinstance(value, list) else value
