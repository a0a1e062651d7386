"""Draft an experiment for data that nobody described: task, columns, model, clients and budgets, each with its reason.

What is guessed is read once as a run reads it, so that what cannot work is said before the file is written.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from hellora.core.errors import InputError
from hellora.core.seeds import seed_for
from hellora.core.types import Budget, ClientProfile
from hellora.core.units import in_bytes, parse_layers
from hellora.data.file_names import check_here, is_tagged
from hellora.data.forms import form_of
from hellora.data.found_columns import Found, found_columns
from hellora.data.lengths import usual_length
from hellora.data.loading import Split, load_splits
from hellora.data.partitioning import client_rows
from hellora.data.settings import DataSettings
from hellora.data.sources import Corpus
from hellora.experiments.commented import SAID, Draft, as_toml
from hellora.experiments.config import check
from hellora.experiments.experiment import Experiment
from hellora.experiments.found_task import FoundTask, by_columns
from hellora.experiments.machine import cores, devices, free_memory
from hellora.experiments.model_choice import Choice, chosen_model
from hellora.experiments.planning import planner_of
from hellora.experiments.prepare import head_check, read_data
from hellora.experiments.sections import SECTIONS, defaults_of, override
from hellora.experiments.tables import build
from hellora.model.family import family_of
from hellora.model.location import is_here
from hellora.tasks import length_limit

MOST_CLIENTS, LEAST_ROWS = 20, 10  # simulated clients, and rows of each
MOST_STEPS = 50  # of a client in a round; of a language model on a CPU fewer, and shorter ones, and a smaller test
ON_A_CPU_STEPS, ON_A_CPU_LENGTH, ON_A_CPU_TEST = 10, 256, 300
LANGUAGE_TASKS = ("causal_lm", "preference", "seq2seq")
SHARES = ("1/3", "2/3", "all")
COUNTS = ("cohort", "min_clients", "data.clients")  # of clients, which go together
TO_SPARE = 0.8  # of the free memory that a client may take


def draft(source: str, changes: Mapping[str, Any]) -> Draft:
    """Draft an experiment for a data file or folder; `changes` are settings that somebody named.

    Raises:
        InputError: there are no data, it is not clear what they are for, or they cannot be used; the message says what
            to change.
    """
    given = {key.removeprefix("data."): value for key, value in changes.items() if key.startswith("data.")}
    known = looked_at(source, given, changes)
    found = sketch(known)
    own_budgets = any(key.startswith("fleet.") and key != "fleet.shares" for key in changes)
    if own_budgets:
        del found.table["fleet"]
    first = {key: value for key, value in changes.items() if key not in COUNTS}
    experiment, corpus = read_data(checked(found, {**first, "cohort": 1}))
    head_check(experiment, corpus)
    dealt_out(found, experiment, corpus, changes)
    final = checked(found, changes)
    if final.natural is None:
        client_rows(final.partitioner, corpus.train, final.data.num_clients, seed_for(final.run.seed, "partition"))
    if not own_budgets:
        afforded(found, final, corpus, known.free)
    found.table = dict(override(found.table, changes))
    checked(found, {})
    found.notes = corpus.notes
    return found


def checked(found: Draft, changes: Mapping[str, Any]) -> Experiment:
    return check(Path(found.source).stem, override(found.table, changes))


@dataclass(frozen=True)
class Known:
    """What is known of data before they are read as a run reads them."""

    source: str
    columns: Mapping[str, Found]
    task: FoundTask
    model: Choice
    rows: int
    length: int  # tokens of most examples
    has_test: bool
    free: int  # bytes, on the device that trains
    device: str
    as_chat: bool  # prompts and responses, for a model that is made to chat
    given: Mapping[str, Any]  # of [data], by somebody

    @property
    def slow(self) -> bool:
        """Return True if a step takes a good while."""
        return self.device == "cpu" and self.task.name in LANGUAGE_TASKS


def looked_at(source: str, given: Mapping[str, Any], changes: Mapping[str, Any]) -> Known:
    """Look at data and at this machine."""
    data = {"name": source, **{key: value for key, value in given.items() if key in defaults_of(SECTIONS["data"])}}
    splits = look_at(source, build(DataSettings, data, "data"))
    train = splits[str(data.get("train_split", "train"))]
    columns = found_columns(train, given)
    own = {key: each.value for key, each in columns.items() if key in defaults_of(SECTIONS["data"])}
    settings = build(DataSettings, {**data, **own}, "data")
    task = task_of(train.data, settings, changes)
    device, free = devices("auto")[0], free_memory("auto")
    model = chosen_model(task.name, changes.get("model.name"), free, device != "cpu")
    return Known(
        source,
        columns,
        task,
        model,
        rows=len(train.data),
        length=usual_length(train.data, settings),
        has_test=any(name in splits for name in settings.test_names),
        free=free,
        device=device,
        as_chat="model.name" not in changes and task.name == "causal_lm" and form_of(train, settings).kind == "pairs",
        given=given,
    )


def look_at(source: str, settings: DataSettings) -> Mapping[str, Split]:
    """Load the splits of a file or folder on this machine, just as they are."""
    check_here(source)
    path = Path(source).expanduser()
    wanted = (source, settings.subset, settings.train_split, settings.test_names)
    if is_tagged(path):
        return load_splits(*wanted, "tokens").splits
    try:
        return load_splits(*wanted, "image").splits
    except InputError:
        if not path.is_dir() or not any(is_tagged(file) for file in path.rglob("*")):
            raise
        return load_splits(*wanted, "tokens").splits


def task_of(rows: Any, settings: DataSettings, changes: Mapping[str, Any]) -> FoundTask:
    """Say what is to be learned of rows, where nobody says it."""
    if "task.name" in changes:
        return FoundTask(str(changes["task.name"]), "you said so")
    labelled = {*settings.target_columns} <= {*rows.column_names}
    family = family_of(str(changes["model.name"])) if "model.name" in changes else ""
    task = next(by_columns(rows, settings, "encoder" if labelled and family != "images" else family or "decoder"), None)
    task = task or next(by_columns(rows, settings, "decoder"), None)
    if task is None:
        raise InputError(
            f"data.name: it is not clear what is to be learned of {settings.name} (it has "
            f"{', '.join(rows.column_names)}): say it with --set task.name=…, and --set data.text=COLUMN …"
        )
    return task


# ----------------------------------------------------------------------------------------------------------- its tables


def sketch(known: Known) -> Draft:
    """Write down all that is known before the data are read as a run reads them."""
    found, gpu = Draft(known.source), known.device != "cpu"
    free = f"{in_bytes(known.free)} of memory free on {known.device}"
    found.about = f"Drafted by `hellora init` from {known.rows} rows of {known.source}, on {cores()} cores with {free}."
    found.add("", "seed", 0)
    found.add("", "rounds", 10)
    found.add("", "cohort", 1)
    found.add("task", "name", known.task.name, known.task.reason)
    if known.task.name != "image_classification":
        length = min(known.length, ON_A_CPU_LENGTH) if known.slow else known.length
        why = "what is longer is cut" if length == known.length else f"on a CPU; most examples have {known.length}"
        found.add("task", "max_length", length, f"tokens; {why}")
    found.add("model", "name", known.model.name, known.model.why)
    found.add("model", "rank", 8)
    add_data(found, known)
    found.add("fleet", "layers", list(SHARES), "of the model's: what a third of the clients each can train")
    found.add("method", "allocator", "fed_hello", "who trains which layers; `hellora list allocators` has others")
    found.add("train", "lr", known.model.lr, "where it does not learn, try a third of it, or three times as much")
    language = known.task.name in LANGUAGE_TASKS
    found.add("train", "batch_size", 8 if language else 32 if known.length <= 64 else 16)
    if known.slow:
        found.add("train", "steps", ON_A_CPU_STEPS, "of a client in a round; on a GPU epochs = 1 may take its place")
    if gpu:
        found.add("train", "precision", "auto", "bf16 where the device has it")
    return found


def add_data(found: Draft, known: Known) -> None:
    """Write down which columns are read, what is held out, and how rows are dealt out to clients."""
    relative = not Path(known.source).expanduser().is_absolute()
    found.add("data", "name", known.source, "from the folder that you run it in" if relative else "")
    for key, value in known.given.items():
        found.add("data", key, value, SAID)
    for key, each in known.columns.items():
        found.add("data", key, each.value, each.why)
    if known.as_chat:
        found.add("data", "as_chat", True, "a prompt is the user's turn, its response the assistant's")
    if not (known.has_test or "test_fraction" in known.given):
        share = 0.1 if known.rows >= 1000 else 0.2 if known.rows >= 200 else 0.3
        share = min(share, round(ON_A_CPU_TEST / known.rows, 3)) if known.slow else share
        found.add("data", "test_fraction", share, f"of the {known.rows} rows, to test on: there is no test split")
    if "partitioner" not in {*known.columns, *known.given}:
        found.add("data", "clients", 1)
        found.add("data", "partitioner", "iid", 'equal shares; "dirichlet" with alpha = 0.3 makes clients that differ')


def dealt_out(found: Draft, experiment: Experiment, corpus: Corpus, changes: Mapping[str, Any]) -> None:
    """Write down what goes by the number of examples: clients, steps, and how layers are scored."""
    rows, clients = len(corpus.train), experiment.data.num_clients
    if experiment.natural is None:
        clients = changes.get("data.clients") or max(1, min(MOST_CLIENTS, rows // LEAST_ROWS))
        found.add("data", "clients", clients, f"simulated, of about {rows // clients} training examples each")
    found.add("", "cohort", min(8, clients), "clients that train in a round")
    if not len(corpus.proxy):
        found.add("method", "scores", "clients", "there are too few test examples for the server to score layers on")
    each, batch = rows // clients, experiment.train.batch_size
    if experiment.train.steps is None and each > MOST_STEPS * batch:
        found.add("train", "steps", MOST_STEPS, f"of a client in a round; an epoch has about {each // batch}")
    elif experiment.train.steps is None:
        found.add("train", "epochs", 1, "of a client in a round")


def afforded(found: Draft, experiment: Experiment, corpus: Corpus, free: int) -> None:
    """Say what training takes in bytes and, where this machine has less, give each client what there is."""
    try:
        peaks = [] if not is_here(experiment.model.name) else peaks_of(experiment, corpus.labels)
    except InputError:  # such as of a task that cannot be planned; a run of layers needs no plan
        peaks = []
    sizes = [f"{-(-peak // 2**20)}MiB" for peak in peaks]
    if peaks and peaks[-1] > TO_SPARE * free:
        del found.table["fleet"]["layers"]
        size = f"{int(TO_SPARE * free) // 2**20}MiB"
        found.add("fleet", "memory", [size], f"all layers take {sizes[-1]}; what fits into less is planned")
    elif peaks:
        found.below["fleet"] = f"memory = {as_toml(sizes)}  # in its place: what the last third, two thirds, all take"


def peaks_of(experiment: Experiment, labels: Sequence[str]) -> list[int]:
    """Predict the memory, in bytes, in which a client trains each of SHARES of the layers, the deepest ones."""
    bare = experiment.task.load(experiment.model, labels, 0, weights=False)
    planner = planner_of(experiment, bare, length_limit(bare, experiment.task.max_tokens))
    spec, client = planner.model.spec, ClientProfile(0, experiment.train.batch_size)
    peaks = []
    for share in SHARES:
        depth = Budget(layers=Fraction(parse_layers(share))).capacity(spec.num_layers)
        ranks = np.where(np.arange(spec.num_layers) < spec.num_layers - depth, 0, spec.max_rank)
        peaks.append(planner.needed_memory_bytes(planner.estimate_of(client, ranks, planner.policy).cost))
    return peaks
