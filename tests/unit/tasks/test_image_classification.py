"""Images: processing, the loss."""

from pathlib import Path
from typing import Any

import bases
import numpy as np
import pytest
import torch
from datasets import Dataset, Features, Image, Value
from PIL import Image as Pillow
from torch.testing import assert_close

from hellora.core.errors import InputError
from hellora.model.resident import BaseModel
from hellora.tasks.image_classification import ImageClassification

TASK = ImageClassification()


@pytest.fixture(scope="module")
def vit(tiny_vit: Path) -> BaseModel:
    return bases.load(tiny_vit, TASK)


@pytest.fixture(scope="module")
def rows() -> Dataset:
    """Images of unequal sizes and modes."""
    rng = np.random.default_rng(0)

    def image(mode: str, *shape: int) -> Any:
        return Pillow.fromarray(rng.integers(0, 255, shape, dtype=np.uint8)).convert(mode)

    images = [image("RGB", 8, 8, 3), image("L", 12, 10), image("RGBA", 8, 8, 4), image("P", 9, 9)]
    features = Features({"image": Image(), "label": Value("int64")})
    return Dataset.from_dict({"image": images, "label": [0, 1, 2, 1]}, features=features)


def test_images_are_processed_batch_by_batch(vit: BaseModel, rows: Dataset) -> None:
    encoded = TASK.encode(vit, rows)
    assert len(encoded) == 4
    assert encoded.lengths is None, "images are all alike"
    batch = TASK.collate(vit, [encoded.examples[i] for i in range(4)])
    assert batch["pixel_values"].shape == (4, 3, 8, 8)
    assert batch["labels"].tolist() == [0, 1, 2, 1]
    pixels = torch.tensor(np.array(rows[0]["image"])).permute(2, 0, 1) / 255  # the processor's mean and std are 0.5
    assert_close(batch["pixel_values"][0], (pixels - 0.5) / 0.5, atol=1e-5, rtol=1e-5)
    grey = batch["pixel_values"][1]
    assert torch.equal(grey[0], grey[1])


def test_a_broken_image_is_named(vit: BaseModel, rows: Dataset) -> None:
    """By its file, else by its row in the source, of which the rows at hand may be a selection."""
    whole = rows.cast_column("image", Image(decode=False))[0]["image"]["bytes"]
    images = [{"bytes": cut, "path": path} for cut, path in ((whole, None), (whole[:60], None), (b"", "x/y.png"))]
    broken = Dataset.from_dict({"image": images, "label": [0, 1, 2]}).cast_column("image", Image())
    for selection, row, name in ((broken, 1, "row 1 of the data"), (broken.select([2, 1]), 1, "row 1 of the data"),
                                 (broken.select([0, 2]), 1, "x/y.png")):  # fmt: skip
        examples = TASK.encode(vit, selection).examples
        with pytest.raises(InputError, match=rf"^data\.image: {name} is no image \(\w+: .*\): mend the data$"):
            examples[row]


def test_the_loss_is_hugging_faces(vit: BaseModel, rows: Dataset) -> None:
    batch = TASK.collate(vit, list(TASK.encode(vit, rows).examples))
    with torch.no_grad():
        theirs = vit.net(**batch)
        outputs = TASK.outputs(vit, batch)
    assert_close(outputs.loss_sums.sum() / outputs.weights.sum(), theirs.loss, atol=1e-6, rtol=1e-6)
    assert outputs.weights.tolist() == [1] * 4
    assert outputs.predictions is not None
    assert outputs.predictions.tolist() == theirs.logits.argmax(-1).tolist()


def test_the_head_is_the_models_own(vit: BaseModel) -> None:
    assert vit.head is None
    assert vit.head_names == ("classifier.weight", "classifier.bias")
    assert vit.net.config.id2label == dict(enumerate(bases.LABELS))
