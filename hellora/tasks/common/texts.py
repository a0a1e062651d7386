"""Say something of a text, or of a pair of texts, by an encoder with mean pooling and a linear head, or an own head."""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from hellora.core.errors import InputError
from hellora.model.load import adapter_spec, load_network, load_tokenizer
from hellora.model.normalise import blank_end, embedding_rows, settle_own_head
from hellora.model.padding import refuse_padding, settle_padding
from hellora.model.resident import BaseModel
from hellora.model.settings import Kind, ModelSettings
from hellora.model.texts import encoded_texts, named
from hellora.model.whole import saved_modules
from hellora.tasks import Batch, Encoded, Example, Task, length_limit

HeadType = Literal["mean_pooling", "own"]  # the masked mean of the last hidden states under a linear head, or own

MEAN_POOLING = """\
import json
{imports}from safetensors.torch import load_file
from transformers import AutoModel, AutoTokenizer{quantizer}

{places}
{texts}

{quantization}tokenizer = AutoTokenizer.from_pretrained({source}{sides}{trust})
{padding}model = AutoModel.from_pretrained({source}, {arguments})
{wrapped}head = load_file({folder} + "/head.safetensors")
{splitting}batch = tokenizer(
    {inputs}, padding=True, truncation=True, max_length={max_length}, split_special_tokens=True, return_tensors="pt"
)
with torch.no_grad():
    hidden = model(**batch).last_hidden_state
mask = batch["attention_mask"].unsqueeze(-1)
logits = (hidden * mask).sum(1).float() / mask.sum(1).clamp(min=1) @ head["weight"].T + head["bias"]
{answers}"""

OWN_HEAD = """\
import json
{imports}from transformers import AutoModelForSequenceClassification, AutoTokenizer{quantizer}

{places}
{texts}

{quantization}tokenizer = AutoTokenizer.from_pretrained({source}{sides}{trust})
{padding}model = AutoModelForSequenceClassification.from_pretrained(
    {source}, {arguments}
)
model.config.get_text_config().pad_token_id = tokenizer.pad_token_id
{wrapped}{splitting}batch = tokenizer(
    {inputs}, padding=True, truncation=True, max_length={max_length}, split_special_tokens=True, return_tensors="pt"
)
with torch.no_grad():
    logits = model(**batch).logits
{answers}"""


class TextTask(Task):
    """Says something of each text, or pair of texts. A task that extends it has these settings, and gives logits their
    meaning; texts that are longer than `max_length` tokens are cut.
    """

    head_type: HeadType
    max_length: int

    def __post_init__(self) -> None:
        if self.max_length < 4:
            raise ValueError(f"max_length must be at least 4 tokens, not {self.max_length}")

    @property
    def max_tokens(self) -> int:
        return self.max_length

    @property
    def usage(self) -> str:
        code = MEAN_POOLING if self.head_type == "mean_pooling" else OWN_HEAD
        return code.replace("{answers}", self.answering)

    @property
    def answering(self) -> str:
        """Return the last lines of a card's code, which make `answers` of `logits`."""
        return "{answers}"

    def labels_in(self, rows: Any) -> list[Any]:
        """Return what is learned of each row, as `collate` makes a tensor of it: its class."""
        found: list[Any] = rows["label"][:]
        return found

    def kind(self) -> Kind:
        return "features" if self.head_type == "mean_pooling" else "sequence_classification"

    def load(self, settings: ModelSettings, labels: Sequence[str], seed: int, weights: bool = True) -> BaseModel:
        notices: list[str] = []
        net, head_modules = load_network(settings, self.kind(), labels, seed, weights, notices)
        head = None
        if self.head_type == "mean_pooling":
            with torch.random.fork_rng(devices=[]), torch.device("cpu" if weights else "meta"):
                torch.manual_seed(seed)
                classes = settings.classes or len(labels) or 2  # 2 stand for those in data that is not read yet
                head = nn.Linear(net.config.hidden_size, classes).requires_grad_(False)
        processor = load_tokenizer(settings, embedding_rows(net)) if weights else None
        if processor is not None and self.head_type == "own":
            settle_own_head(net, processor)
        spec = adapter_spec(net, settings)
        base = BaseModel(
            net,
            spec,
            processor,
            dropout=settings.dropout,
            head=head,
            head_modules=head_modules,
            saved=saved_modules(net, settings),
        )
        base.notices = tuple(notices)
        if weights:
            limit = length_limit(base, self.max_length)
            settle_padding(base, settings.name, limit, lambda given: self.logits(base, self.collate(base, given)))
        return base

    def encode(self, base: BaseModel, rows: Any) -> Encoded:
        columns = ("text", "text_pair") if "text_pair" in rows.column_names else ("text",)
        limit = length_limit(base, self.max_length)
        tokens = encoded_texts(base, rows, columns, truncation=True, max_length=limit)
        lengths = np.array([len(ids) for ids in tokens["input_ids"]])
        if not lengths.all():
            raise InputError(
                f"data.text: the model's tokenizer finds no token in {named(rows, int(lengths.argmin()), 'text')}: "
                f"leave the row out"
            )
        names = list(tokens.keys())
        examples = [
            {**dict(zip(names, values, strict=True)), "label": label}
            for *values, label in zip(*tokens.values(), self.labels_in(rows), strict=True)
        ]
        return Encoded(examples, lengths)

    def collate(self, base: BaseModel, examples: Sequence[Example]) -> Batch:
        inputs = [{key: value for key, value in example.items() if key != "label"} for example in examples]
        refuse_padding(base, [len(one["input_ids"]) for one in inputs])
        batch: Batch = dict(base.processor.pad(inputs, return_tensors="pt"))
        return {**batch, "labels": torch.tensor([example["label"] for example in examples])}

    def blank_batch(self, base: BaseModel, examples: int, tokens: int) -> Batch:
        blank = torch.zeros(examples, tokens, dtype=torch.long, device=base.device)
        blank[:, -1] = blank_end(base.net.config)
        mask = torch.ones_like(blank)
        mask[0, -1] = 0  # some padding, so that the model needs its mask
        labels = torch.zeros(examples, dtype=torch.long, device=base.device)
        return {"input_ids": blank, "attention_mask": mask, "labels": labels}

    def logits(self, base: BaseModel, batch: Batch) -> Tensor:
        inputs = {key: value for key, value in batch.items() if key != "labels"}
        if base.head is None:
            logits: Tensor = base.net(**inputs).logits
        else:
            hidden = base.net(**inputs).last_hidden_state  # (batch, tokens, d)
            mask = batch["attention_mask"].unsqueeze(-1).to(hidden.dtype)
            logits = base.head(((hidden * mask).sum(1) / mask.sum(1).clamp(min=1)).float())
        return logits
