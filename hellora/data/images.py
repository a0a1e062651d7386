"""Read rows with an image, which is decoded when its row is read."""

from collections.abc import Sequence
from typing import Any

from datasets import Dataset, Image

from hellora.core.errors import InputError


class ImageRows(Sequence[Any]):
    """Image rows are the rows of a data set; one whose image cannot be read raises an InputError that names it."""

    def __init__(self, data: Dataset) -> None:
        self.data = data

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, row: Any) -> Any:
        try:
            return self.data[row]
        except Exception as error:  # decoders raise almost anything
            reason = " ".join(str(error).split())[:200]
            raise InputError(
                f"data.image: {self.named(row)} is no image ({type(error).__name__}: {reason}): mend the data"
            ) from error

    def named(self, row: int) -> str:
        """Name an image by its file, or one without a file by its row in the source."""
        as_stored = self.data.select([row]).cast_column("image", Image(decode=False))
        if path := as_stored[0]["image"]["path"]:
            return str(path)
        drawn = self.data._indices  # of a selection, the rows of its source; None for all of them
        return f"row {row if drawn is None else drawn.column(0)[row].as_py()} of the data"
