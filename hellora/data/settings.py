"""What the [data] table says."""

from dataclasses import dataclass
from typing import Literal

from hellora.core.errors import InputError

Columns = Literal["text", "image", "instruction", "preference", "text_numbers", "text_labels", "tokens"]
TEXTS: tuple[Columns, ...] = ("text", "text_numbers", "text_labels")  # a text or a pair of texts, and what it is
ONE_CLASS: tuple[Columns, ...] = ("text", "image")  # whose examples have a class each
LANGUAGE: tuple[Columns, ...] = ("instruction", "preference")  # what language models learn from


@dataclass(frozen=True)
class DataSettings:
    """The [data] table says which data is read and how; the partitioner's own settings are not among these."""

    name: str = "stdlib_docs"  # or stdlib_questions, a hub id, a local file, a local folder
    subset: str = ""  # configuration of a hub data set
    train_split: str = "train"  # of a folder: the name of its files, or of the folder that they are in
    test_split: str = "test"  # where it is "test" and absent, "validation" or "dev" stands in
    text: str = "text"
    text_pair: str = ""
    label: str = "label"
    labels: tuple[str, ...] = ()  # several columns in its place: of numbers, or one-hot, a label each
    separator: str = ""  # of labels in one text, such as ","
    image: str = "image"
    tokens: str = ""  # a column of words, where each has a tag; "" = found by its name, as is that of tags
    tags: str = ""
    messages: str = ""  # a column of conversations; "" = found by its name
    prompt: str = ""  # a template over columns, as is the response, such as "{instruction}"; "" = found by their names
    response: str = ""
    system: str = (
        ""  # before conversations that have none: a text or a template; "" = a column `system`, if there is one
    )
    chosen: str = "chosen"  # of pairs of answers, the column of the preferred one
    rejected: str = "rejected"
    as_chat: bool = False  # prompts and responses become turns, in the form of the model's chat template
    test_fraction: float = 0.1  # held out where the source has no test split
    proxy: str = (
        ""  # a split or another source; "" = the split "proxy", or where there is none a slice of the test split
    )
    proxy_examples: int = 100  # at most; 0 = no proxy data
    public: str = ""  # a split or another source, for methods that distil on public data
    public_examples: int = 1000  # at most
    max_examples: int | None = None  # of the training split, drawn by seed
    validation: float = 0.0  # part of the training split that is held out before the clients get theirs
    evaluate_on: Literal["test", "validation"] = "test"  # validation: to choose settings without a look at the test
    strict: bool = False  # refuse the first row that cannot be used
    unusable: float = 0.05  # the share of rows that may be left out because they cannot be used
    clients: int | None = None  # 20; of natural clients the most that take part, all where it is not given
    partitioner: str = "dirichlet"

    def __post_init__(self) -> None:
        for name in ("name", "train_split", "test_split", "partitioner"):
            if not getattr(self, name):
                raise ValueError(f"{name} must not be empty")
        if self.messages and (self.prompt or self.response):
            raise ValueError("messages and prompt or response both say what is read: keep one of them")
        if self.labels and (self.separator or len(set(self.labels)) < len(self.labels) or not all(self.labels)):
            raise ValueError(
                "labels name a column each, each once, and a separator splits the texts of one: correct it"
            )
        if not 0 < self.test_fraction < 1:
            raise ValueError(f"test_fraction must be between 0 and 1, not {self.test_fraction}")
        if self.proxy_examples < 0:
            raise ValueError(f"proxy_examples must not be negative, not {self.proxy_examples}")
        for name in ("public_examples", "max_examples", "clients"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        if not 0 <= self.unusable <= 1:
            raise ValueError(f"unusable must be a share of the rows, from 0 to 1, not {self.unusable}")
        if not 0 <= self.validation < 1:
            raise ValueError(f"validation must be 0 or a part below 1, not {self.validation}")
        if self.evaluate_on == "validation" and not self.validation:
            raise ValueError("evaluate_on = 'validation' needs a validation split: set validation, such as 0.1")
        if self.train_split == self.test_split:
            raise ValueError(f"train_split and test_split must differ, both are '{self.train_split}'")
        for name in ("proxy", "public"):
            if getattr(self, name) in (self.name, self.train_split):
                raise ValueError(f"{name} must not be the clients' training data, '{getattr(self, name)}'")

    def check_columns_differ(self) -> None:
        """Raise InputError where what is learned of a text is the text itself, or a pair is one text twice."""
        used = [("text", self.text), ("text_pair", self.text_pair)]
        used += [("labels" if self.labels else "label", column) for column in self.target_columns]
        for place, (setting, column) in enumerate(used):
            if other := next((each for each, taken in used[:place] if taken == column), ""):
                raise InputError(f"data.{setting}: '{column}' is the column of data.{other}, too: name another one")

    @property
    def target_columns(self) -> tuple[str, ...]:
        """Return the columns of what is learned, where that is no class."""
        return self.labels or (self.label,)

    @property
    def found_by_name(self) -> bool:
        """Return True if the names of columns say what a language model learns from."""
        return not (self.messages or self.prompt or self.response)

    @property
    def num_clients(self) -> int:
        """Return how many clients there are, as far as the settings say; of natural clients there may be others."""
        return 20 if self.clients is None else self.clients

    @property
    def test_names(self) -> tuple[str, ...]:
        """Name the splits that can be the test split, best first."""
        return ("test", "validation", "dev") if self.test_split == "test" else (self.test_split,)
