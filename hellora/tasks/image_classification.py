"""Classify an image with a vision transformer's own classification head."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from hellora.core.class_loss import Weights
from hellora.core.errors import InputError
from hellora.core.exchange import Outputs
from hellora.data.images import ImageRows
from hellora.data.settings import Columns
from hellora.model.load import adapter_spec, load_image_processor, load_network
from hellora.model.resident import BaseModel
from hellora.model.settings import Kind, ModelSettings
from hellora.model.whole import saved_modules
from hellora.tasks import Batch, Encoded, Example, classification_metrics, classification_outputs
from hellora.tasks.common.class_losses import ClassTask

IMAGES = """\
import json

import numpy as np
{imports}from PIL import Image, ImageOps
from transformers import AutoImageProcessor, AutoModelForImageClassification{quantizer}

{places}


{eight_bit}

images = [eight_bit(Image.new("RGB", (32, 32), "red"), {channels})]  # or Image.open("a file") in its place

{quantization}processor = AutoImageProcessor.from_pretrained({source}{trust})
model = AutoModelForImageClassification.from_pretrained(
    {source}, {arguments}
)
{wrapped}with torch.no_grad():
    logits = model(**processor(images, return_tensors="pt")).logits
{answers}"""


@dataclass(frozen=True)
class ImageClassification(ClassTask):
    """Classifies images, which are decoded and processed batch by batch."""

    class_weights: Weights = ()  # of the loss in training: a number per class, in their order, or "balanced"
    label_smoothing: float = 0.0  # of the labels in training, from 0 to below 1
    columns: ClassVar[Columns] = "image"
    pipeline: ClassVar[str] = "image-classification"

    def __post_init__(self) -> None:
        _ = self.class_loss  # which checks its settings

    @property
    def usage(self) -> str:
        return IMAGES

    def kind(self) -> Kind:
        return "image_classification"

    def load(self, settings: ModelSettings, labels: Sequence[str], seed: int, weights: bool = True) -> BaseModel:
        self.class_loss.check(labels)
        notices: list[str] = []
        net, head_modules = load_network(settings, self.kind(), labels, seed, weights, notices)
        processor = load_image_processor(settings) if weights else None
        if processor is not None:
            fit_channels(processor, channels(net.config))
        spec = adapter_spec(net, settings)
        saved = saved_modules(net, settings)
        base = BaseModel(net, spec, processor, dropout=settings.dropout, head_modules=head_modules, saved=saved)
        base.notices = tuple(notices)
        return base

    def encode(self, base: BaseModel, rows: Any) -> Encoded:
        return Encoded(ImageRows(rows, channels(base.net.config)))

    def collate(self, base: BaseModel, examples: Sequence[Example]) -> Batch:
        images = [example["image"] for example in examples]
        pixels = base.processor(images, return_tensors="pt")["pixel_values"]
        return {"pixel_values": pixels, "labels": torch.tensor([example["label"] for example in examples])}

    def blank_batch(self, base: BaseModel, examples: int, tokens: int) -> Batch:
        height, width = image_size(base.net.config)
        return {
            "pixel_values": torch.zeros(examples, channels(base.net.config), height, width, device=base.device),
            "labels": torch.zeros(examples, dtype=torch.long, device=base.device),
        }

    def logits(self, base: BaseModel, batch: Batch) -> Tensor:
        logits: Tensor = base.net(pixel_values=batch["pixel_values"].to(base.dtype)).logits
        return logits

    def score(self, logits: Tensor, batch: Batch) -> Outputs:
        return classification_outputs(logits, batch["labels"])

    def metrics(self, loss: float, predictions: Sequence[int], references: Sequence[int]) -> dict[str, float]:
        return classification_metrics(loss, predictions, references)


def fit_channels(processor: Any, count: int) -> None:
    """Give a processor as many means and deviations as the model has channels, where it names one for all.

    Raises:
        InputError: it names several, for another number of channels.
    """
    for name in ("image_mean", "image_std"):
        given = getattr(processor, name, None)
        if not isinstance(given, list | tuple) or len(given) == count:
            continue
        if len(set(given)) > 1:
            raise InputError(
                f"model.name: its preprocessor_config.json has {len(given)} numbers in {name}, and the model takes "
                f"{count} channel{'s' * (count > 1)}: correct the file"
            )
        setattr(processor, name, list(given[:1]) * count)


def channels(config: Any) -> int:
    """Return the number of channels of the images that a model was made for."""
    return int(getattr(getattr(config, "vision_config", config), "num_channels", 3))


def image_size(config: Any) -> tuple[int, int]:
    """Return (height, width) of the images that a model was made for; 224 where its config does not say."""
    size = getattr(getattr(config, "vision_config", config), "image_size", 224)
    return (size, size) if isinstance(size, int) else (size[0], size[1])
