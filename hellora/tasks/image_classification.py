"""Classify an image with a vision transformer's own classification head."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from hellora.core.exchange import Outputs
from hellora.data.images import ImageRows
from hellora.model.load import Kind, ModelSettings, adapter_spec, load_image_processor, load_network
from hellora.model.resident import BaseModel
from hellora.tasks import Batch, Columns, Encoded, Example, Task, classification_metrics, classification_outputs


@dataclass(frozen=True)
class ImageClassification(Task):
    """Classifies images, which are decoded and processed batch by batch."""

    columns: ClassVar[Columns] = "image"

    def kind(self) -> Kind:
        return "image_classification"

    def load(self, settings: ModelSettings, labels: Sequence[str], seed: int, weights: bool = True) -> BaseModel:
        notices: list[str] = []
        net, head_modules = load_network(settings, self.kind(), labels, seed, weights, notices)
        processor = load_image_processor(settings) if weights else None
        spec = adapter_spec(net, settings)
        base = BaseModel(net, spec, processor, dropout=settings.dropout, head_modules=head_modules)
        base.notices = tuple(notices)
        return base

    def encode(self, base: BaseModel, rows: Any) -> Encoded:
        return Encoded(ImageRows(rows))

    def collate(self, base: BaseModel, examples: Sequence[Example]) -> Batch:
        images = [example["image"].convert("RGB") for example in examples]
        pixels = base.processor(images, return_tensors="pt")["pixel_values"]
        return {"pixel_values": pixels, "labels": torch.tensor([example["label"] for example in examples])}

    def blank_batch(self, base: BaseModel, examples: int, tokens: int) -> Batch:
        height, width = image_size(base.net.config)
        channels = getattr(base.net.config, "num_channels", 3)
        return {
            "pixel_values": torch.zeros(examples, channels, height, width, device=base.device),
            "labels": torch.zeros(examples, dtype=torch.long, device=base.device),
        }

    def logits(self, base: BaseModel, batch: Batch) -> Tensor:
        logits: Tensor = base.net(pixel_values=batch["pixel_values"].to(base.dtype)).logits
        return logits

    def score(self, logits: Tensor, batch: Batch) -> Outputs:
        return classification_outputs(logits, batch["labels"])

    def metrics(self, loss: float, predictions: Sequence[int], references: Sequence[int]) -> dict[str, float]:
        return classification_metrics(loss, predictions, references)


def image_size(config: Any) -> tuple[int, int]:
    """Return (height, width) of the images that a model was made for; 224 where its config does not say."""
    size = getattr(getattr(config, "vision_config", config), "image_size", 224)
    return (size, size) if isinstance(size, int) else (size[0], size[1])
