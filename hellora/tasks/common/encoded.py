"""What a task makes of rows: examples that can be collated, and what a person should know of them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from hellora.core.errors import InputError

REFUSED = 0.05  # of the conversations that a chat template may not take, as of other rows that cannot be used
Example = dict[str, Any]


@dataclass(frozen=True, eq=False)
class Encoded:
    """Encoded examples can be collated. What an example is does not depend on those beside it.

    Attributes:
        examples: one per row, in their order
        lengths: (examples,) in tokens, to group batches by; None where all are alike
        tokens: (examples,) how many are supervised, of a language task; None for others
        members: of packed rows, which examples are in each; None where a row is an example
        cut: how many were longer than the task allows, and lost their rest
        limit: how many tokens that is; None = as many as the longest example has
        cut_targets: of how many what is to be said was longer, of a task that has a limit of its own for it
        lost: of how many nothing is left to learn, because they were cut
        missed: how many words have no token, of a task that tags words
        refused: of each that a chat template does not take, its row and why; it is there, and nothing is learned of it
    """

    examples: Sequence[Example]
    lengths: npt.NDArray[np.int64] | None = None
    tokens: npt.NDArray[np.int64] | None = None
    members: Sequence[npt.NDArray[np.int64]] | None = None
    cut: int = 0
    limit: int | None = None
    cut_targets: int = 0
    lost: int = 0
    missed: int = 0
    refused: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.examples)

    @property
    def num_tokens(self) -> int | None:
        """Count the supervised tokens of all examples; None where the task is no language task."""
        return None if self.tokens is None else int(self.tokens.sum())

    def note(self, what: str = "") -> str:
        """Say how many examples were cut, how many of them have nothing left to learn, and how many are refused by a
        chat template; "" where there are none. `what` names them, such as "test ".

        Raises:
            InputError: nothing is left to learn, or a template does not take more than REFUSED of them.
        """
        if len(self.refused) > REFUSED * len(self):
            raise InputError(
                f"data.messages: the chat template does not take {len(self.refused)} of {len(self)} {what}conversations"
                f", as {self.refused[0]}: mend the data, or name another template (task.chat_template)"
            )
        found = []
        if self.refused:
            left_out = f"left out: {len(self.refused)} of {len(self)} {what}conversations"
            found.append(f"{left_out}, which the chat template does not take, such as {self.refused[0]}")
        if self.cut and self.lengths is not None:
            limit = self.limit or int(self.lengths.max())  # as long as what was cut is
            if self.lost == len(self):
                raise InputError(
                    f"task.max_length: no {what}example has a token to learn from among its first {limit} tokens: "
                    f"raise it"
                )
            left = f"; {self.lost} of them kept no token to learn from" if self.lost else ""
            cut = f"{self.cut} of {len(self)} {what}examples are longer than {limit} tokens and are cut{left}"
            found.append(f"{cut} (task.max_length)")
        if self.cut_targets:
            found.append(
                f"of {self.cut_targets} of {len(self)} {what}examples the target is cut (task.max_target_length)"
            )
        if self.missed and self.tokens is not None and not self.tokens.any():
            raise InputError(f"data.tokens: the model has a token for no word of any {what}example: name another model")
        if self.missed:
            found.append(f"words without a token of the model's, neither learned nor tagged: {self.missed}")
        return "; ".join(found)

    def names(self, rows: npt.NDArray[np.int64]) -> list[str]:
        """Name some rows by the places of their examples, such as "3", or "3 + 8" of a packed row."""
        of = [[row] if self.members is None else self.members[row].tolist() for row in rows.tolist()]
        return [" + ".join(map(str, places)) for places in of]

    def select(self, rows: npt.NDArray[np.int64]) -> "Encoded":
        """Return the examples of some rows, in the order given; nothing is copied but their lengths."""
        lengths, tokens = (None if of_all is None else of_all[rows] for of_all in (self.lengths, self.tokens))
        return Encoded(Selected(self.examples, rows), lengths, tokens)


class Selected(Sequence[Example]):
    """Selected examples are read from all of them when they are asked for."""

    def __init__(self, examples: Sequence[Example], rows: npt.NDArray[np.int64]) -> None:
        self.examples, self.rows = examples, rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, place: Any) -> Any:
        return self.examples[int(self.rows[place])]
