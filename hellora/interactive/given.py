"""Settings as people write them in Python, and the objects among them: a loaded model, tables."""

import shutil
import tempfile
import tomllib
import weakref
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hellora.core.errors import InputError
from hellora.core.given import GIVEN
from hellora.data.given import GivenData, is_table, name_of, table_of
from hellora.data.settings import DataSettings
from hellora.experiments.config import check, read_experiment
from hellora.experiments.experiment import Experiment
from hellora.experiments.sections import override
from hellora.model.given import lay_down
from hellora.model.settings import GivenModel, ModelSettings

Settings = Mapping[str, Any]  # "section.key": value, or "section": {key: value}
NAMED = ("model", "data")  # sections in whose place there may be a name alone
OBJECTS = {"model": "model=… and tokenizer=…", "data": "data={'train': …}"}  # what may be given, and how


class Folder:
    """A temporary folder, which is removed with this object."""

    def __init__(self) -> None:
        self.path = Path(tempfile.mkdtemp(prefix="hellora-"))
        weakref.finalize(self, shutil.rmtree, self.path, ignore_errors=True)


@dataclass(frozen=True, eq=False)
class Given:
    """The objects in the place of a model's name and of the data's; None where a name was given."""

    model: GivenModel | None = None
    data: GivenData | None = None
    folder: Folder | None = None  # where the model lies

    @staticmethod
    def of(model: Any, tokenizer: Any, tables: Mapping[str, Any]) -> "Given":
        """Gather objects. Raise InputError where one is none that hellora takes, or a model lacks its tokenizer."""
        if (model is None) != (tokenizer is None):
            raise InputError("model and tokenizer belong together: give both, or settings of the model alone")
        splits = {split: table_of(table, f"data[{split!r}]") for split, table in tables.items()}
        data = GivenData.of(DataSettings(), name_of(splits), splits) if splits else None
        if model is None:
            return Given(None, data)
        folder = Folder()
        return Given(GivenModel.of(ModelSettings(), lay_down(model, tokenizer, folder.path), folder.path), data, folder)

    def put_into(self, experiment: Experiment) -> Experiment:
        """Return an experiment with these objects in the place of names."""
        model: ModelSettings = experiment.model
        data: DataSettings = experiment.data
        if self.model is not None:
            model = GivenModel.of(model, self.model.name, Path(self.model.folder))
        if self.data is not None:
            data = GivenData.of(data, self.data.name, self.data.splits)
        return experiment.with_given(model, data)


def given_experiment(
    source: "str | Path | Experiment", settings: Sequence[Settings], allow: Collection[str], model: Any, tokenizer: Any
) -> tuple[Experiment, Given]:
    """Read an experiment with settings that may hold tables, the last of which count, and a model that may be loaded.

    Raises:
        InputError: a setting or an object does not fit.
    """
    if isinstance(model, Mapping | str | Path):  # settings of it, as of all others
        settings, model = [*settings, {"model": model}], None
    changes, tables = apart(settings)
    given = Given.of(model, tokenizer, tables)
    changes |= {} if given.model is None else {"model.name": given.model.folder}
    changes |= {} if given.data is None else {"data.name": given.data.name}
    if isinstance(source, Experiment):
        experiment = check(source.name, override(source.table, changes)) if changes else source
    else:
        splits = {} if given.data is None else given.data.splits
        train = splits.get(str(changes.get("data.train_split", DataSettings.train_split)))
        experiment = read_experiment(str(source), changes, allow=allow, rows=train)
    return given.put_into(experiment), given


def apart(settings: Sequence[Settings]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return settings as {"section.key": value}, and the tables among those of [data], by split."""
    flat: dict[str, Any] = {}
    for key, value in (item for some in settings for item in some.items()):
        if key in NAMED and isinstance(value, str | Path):
            flat[f"{key}.name"] = str(value)
        elif key == "data" and is_table(value):
            flat["data.train"] = value
        elif isinstance(value, Mapping):
            flat |= {f"{key}.{name}": each for name, each in value.items()}
        else:
            flat[key] = value
    for key in ("data.train", "data.test"):  # no settings: whoever writes them means tables
        if key in flat and not is_table(flat[key]):
            raise InputError(
                f"{key} must be a DataFrame, a datasets.Dataset or a list of dictionaries, not {flat[key]!r:.80}: "
                "files are named with data.name"
            )
    tables = {key.removeprefix("data."): value for key, value in flat.items() if is_table(value)}
    return {key: value for key, value in flat.items() if not is_table(value)}, tables


def check_same(experiment: Experiment, out: Path) -> None:
    """Raise InputError where the run in a folder was given other objects than the experiment has, or where it has none.

    What is no run's folder, or a damaged one, is left to whoever claims it.
    """
    try:
        begun = tomllib.loads((out / "experiment.toml").read_text())
    except (OSError, ValueError):
        return
    for section, how in OBJECTS.items():
        before, now = (str(table.get(section, {}).get("name")) for table in (begun, experiment.table))
        if before != now and before.startswith(GIVEN):
            what = "another one" if now.startswith(GIVEN) else "a name"
            raise InputError(
                f"{section}: the run in {out} was given an object, {before}, and this is {what}, {now}: give the same "
                f"again, with {how}"
            )
