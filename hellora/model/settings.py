"""The settings of the [model] table."""

import math
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal

import torch

from hellora.core.errors import InputError

Quantization = Literal["none", "8bit", "4bit"]
Kind = Literal[
    "features", "sequence_classification", "token_classification", "image_classification", "causal_lm", "seq2seq"
]
CLASSIFIES: tuple[Kind, ...] = ("sequence_classification", "token_classification", "image_classification")  # own heads
GENERATES: tuple[Kind, ...] = ("causal_lm", "seq2seq")
QUANTIZED_BYTES: dict[Quantization, float] = {"8bit": 1.01, "4bit": 0.52}  # of a number, with its share of scales


@dataclass(frozen=True)
class ModelSettings:
    """The [model] table says which model is trained, and what shape its adapter has."""

    name: str = "minilm"  # hub id, local folder, "minilm" or "smollm2"
    rank: int = 8  # of the global adapter
    alpha: float | None = None  # scale = alpha / rank; None = rank, so that the scale is 1, or √rank with rslora
    rslora: bool = False  # scale = alpha / √rank, of this rank for every client, whatever ranks clients train
    targets: tuple[str, ...] | Literal["all-linear"] = ()  # module name endings; () = usual attention projections
    modules_to_save: tuple[str, ...] = ()  # outside the blocks, that train whole: ["embed_tokens", "lm_head"]
    dropout: float = 0.0  # on the input of trained LoRA modules
    classes: int | None = None  # size of a classification head; None = the classes in the data
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "float32"  # of the base weights; adapters are float32
    attn_implementation: str = ""  # eager, sdpa, flash_attention_2, flex_attention …; "" = transformers' choice
    quantization: Quantization = "none"  # of the linear modules inside the blocks; needs the extra `quantized`
    trust_remote_code: bool = False  # lets code that comes with the model run

    def __post_init__(self) -> None:
        if self.rank < 1 or not 0 <= self.dropout < 1:
            raise ValueError("rank must be at least 1, and dropout in [0, 1)")
        if self.alpha is not None and not self.alpha > 0:
            raise ValueError(f"alpha must be greater than 0, not {self.alpha}")

        if "/" in self.attn_implementation and not self.trust_remote_code:
            raise ValueError(
                f"attn_implementation = {self.attn_implementation!r} is code to be fetched and run: to let it run, set "
                f"trust_remote_code = true"
            )

    @property
    def scale(self) -> float:
        """Return the scale of every pair, alpha / rank; alpha / √rank of rsLoRA (Kalajdzievski, arXiv 2312.03732).

        The rank is that of the global adapter. Without alpha these are 1 and √rank.
        """
        if self.alpha is None:
            return math.sqrt(self.rank) if self.rslora else 1.0
        return self.alpha / (math.sqrt(self.rank) if self.rslora else self.rank)

    @property
    def torch_dtype(self) -> torch.dtype:
        """Return the dtype of the base weights. Raise InputError where it is auto, which an experiment settles."""
        if self.dtype == "auto":
            raise InputError("model.dtype = 'auto' is settled by an experiment's device: name a dtype here")
        found: torch.dtype = getattr(torch, self.dtype)
        return found


@dataclass(frozen=True)
class GivenModel(ModelSettings):
    """The settings of a model that was given; `name` is its fingerprint, and `folder` where it lies."""

    folder: str = ""

    @staticmethod
    def of(settings: ModelSettings, name: str, folder: Path) -> "GivenModel":
        """Return the same settings, of the model in a folder."""
        same = {each.name: getattr(settings, each.name) for each in fields(ModelSettings)}
        return GivenModel(**{**same, "name": name}, folder=str(folder))
