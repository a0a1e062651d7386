"""A run as an object."""

import warnings
from collections.abc import Collection, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hellora.core.errors import InputError
from hellora.data.given import is_table, table_of
from hellora.interactive import tables
from hellora.interactive.given import Given
from hellora.interactive.view import html_of
from hellora.reporting.overview import write_report
from hellora.reporting.record import read_run

if TYPE_CHECKING:
    import pandas as pd

    from hellora.results.prediction import Predictor


class Run(Mapping[str, Any]):
    """A run in its folder, finished or not. It maps the names of `summary.json` to their values: `run["final"]`.

    A notebook shows it with plots. It is as it was when it was read: `hellora.load` reads it again.

    Attributes:
        folder: of the run
        summary: as in `summary.json`; None of a run that has not ended
    """

    def __init__(self, folder: str | Path, given: Given | None = None, allow: Collection[str] = ()) -> None:
        self.folder = Path(folder)
        self._record = read_run(self.folder)
        self._given, self._allow = given or Given(), tuple(allow)
        found = self._record.summary
        self.summary = None if found is None else {key: value for key, value in found.items() if key != "seal"}

    def __getitem__(self, key: str) -> Any:
        if self.summary is None:
            raise KeyError(f"{key}: the run in {self.folder} has not ended, so there is no summary yet")
        return self.summary[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self.summary or {})

    def __len__(self) -> int:
        return len(self.summary or {})

    def __repr__(self) -> str:
        record = self._record
        rounds = f"{len(record.lines)} of {record.table['rounds']} rounds"
        last: Mapping[str, float] = next((line["metrics"] for line in reversed(record.lines) if line["metrics"]), {})
        values = [each[record.metric] for each in (record.initial, last) if record.metric in each]
        quality = f", {record.metric} {' → '.join(f'{value:.3f}' for value in values)}" if values else ""
        return f"<hellora run {self.folder}: {rounds}{quality}>"

    def _repr_html_(self) -> str:
        return html_of(self._record)

    @cached_property
    def history(self) -> "pd.DataFrame":
        """Return a row for each round: round, metrics, train_loss, bytes up and down, seconds, clients."""
        return tables.history(self._record)

    @cached_property
    def clients(self) -> "pd.DataFrame":
        """Return a row for each client: group, budget, examples, in how many rounds it trained which layers."""
        return tables.clients(self._record)

    @cached_property
    def per_class(self) -> "pd.DataFrame | None":
        """Return precision, recall, f1 and the number of examples by class; None, with a warning, without classes."""
        return self._of_classes(tables.per_class(self.summary or {}), "per_class")

    @cached_property
    def confusion(self) -> "pd.DataFrame | None":
        """Return how many of each class (rows) are taken for each (columns); None, with a warning, without classes, or
        where they are more than 50."""
        return self._of_classes(tables.confusion(self.summary or {}), "confusion")

    def _of_classes(self, table: "pd.DataFrame | None", name: str) -> "pd.DataFrame | None":
        if table is None:
            why = "its task has no classes, or too many" if self.summary else "it has not ended"
            warnings.warn(f"{name} of the run in {self.folder} is None: {why}", stacklevel=4)
        return table

    @property
    def adapter(self) -> Path:
        """Return the folder of the adapter, which plain peft loads. Raise InputError where the run has not ended."""
        if self.summary is None:
            raise InputError(
                f"the run in {self.folder} has not ended, and its adapter is written then: go on with it "
                f"(resume=True), or write the one of its last round with hellora.export"
            )
        return self.folder / "adapter"

    @cached_property
    def _predictor(self) -> "Predictor":
        from hellora.results.prediction import Predictor

        return Predictor.load(self.folder, {}, self._allow, self._given.model)

    def predict(self, rows: Any) -> list[dict[str, Any]]:
        """Say what the adapter predicts for each row. The model is loaded by the first call, and kept.

        Args:
            rows: a DataFrame, a `datasets.Dataset`, a list of dictionaries with the columns of the run's data, a list
                of texts, or what `hellora.predict` takes: a file, a folder of images, a data set of the hub

        Returns:
            One dictionary per row, as of `hellora.predict`.

        Raises:
            InputError: the rows do not fit, or the model was given as an object and is not at hand.
        """
        predictor = self._predictor
        if isinstance(rows, list) and rows and all(isinstance(row, str) for row in rows):
            rows = [{predictor.usage.data.text: row} for row in rows]
        if is_table(rows):
            return predictor.predict(predictor.read({"test": table_of(rows, "rows")}))
        if not isinstance(rows, str | Path):
            raise InputError(f"rows must be a table, texts or a file's name, not {rows!r:.80}")
        if isinstance(rows, str) and " " in rows and not Path(rows).exists():
            raise InputError(f"{rows!r:.80} is no file: give texts as a list, run.predict([text])")
        return predictor.predict(predictor.read(str(rows)))

    def report(self, path: str | Path | None = None) -> Path:
        """Write the run's report, one HTML file; None = `report.html` in its folder. Return the file."""
        return write_report([self.folder], None if path is None else Path(path))
