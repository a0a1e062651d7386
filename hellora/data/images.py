"""Read rows with an image, which is decoded when its row is read, and make of any image what models see."""

import io
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageOps

from hellora.core.errors import InputError, one_line

if TYPE_CHECKING:
    from datasets import Dataset

END_OF_JPEG = b"\xff\xd9"
warnings.filterwarnings("error", category=Image.DecompressionBombWarning)  # a small file may fill the memory


def eight_bit(image: Image.Image, channels: int = 3) -> Image.Image:
    """Return an image upright, as its EXIF says, with 8 bits in each of 3 channels (RGB) or of 1 (grey).

    Modes with more bits are scaled by what they mean: 16-bit grey by its upper byte, floats from 0 to 1. The code in a
    model card has this function, too.

    Raises:
        ValueError: the mode has another range of values, or the number of channels is neither 1 nor 3.
    """
    if image.mode == "I" and image.format != "PNG":  # whose 16 bits some versions of Pillow call so
        raise ValueError("its mode I has 32 bits, whose range nobody knows: save it with 8 or 16 bits")
    image = ImageOps.exif_transpose(image)
    if image.mode == "F" or image.mode.startswith("I"):
        values = np.asarray(image)
        most = 1 if image.mode == "F" else 65535
        if not (values.min() >= 0 and values.max() <= most):
            raise ValueError(f"its mode {image.mode} has values from {values.min()} to {values.max()}, not 0 to {most}")
        image = Image.fromarray((values * 255 + 0.5 if image.mode == "F" else values // 256).astype(np.uint8))
    if channels not in (1, 3):
        raise ValueError(f"the model takes images of {channels} channels, not 1 or 3")
    return image.convert("RGB" if channels == 3 else "L")


class ImageRows(Sequence[Any]):
    """Image rows are the rows of a data set; one whose image cannot be read raises an InputError that names it."""

    def __init__(self, data: "Dataset", channels: int = 3) -> None:
        self.data, self.channels = data, channels

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, row: Any) -> Any:
        try:
            found = self.data[row]
            return {**found, "image": eight_bit(found["image"], self.channels)}
        except Exception as error:  # decoders raise almost anything
            raise InputError(
                f"data.image: {self.named(row)} is no image ({type(error).__name__}: "
                f"{one_line(error)[:200]}): mend the data"
            ) from error

    def named(self, row: int) -> str:
        """Name an image by its file, or one without a file by its row in the source."""
        if path := undecoded(self.data.select([row]))[0]["image"]["path"]:
            return str(path)
        drawn = self.data._indices  # of a selection, the rows of its source; None for all of them
        return f"row {row if drawn is None else drawn.column(0)[row].as_py()} of the data"


def undecoded(data: "Dataset") -> "Dataset":
    """Return the rows with their images as they are stored: bytes and path."""
    from datasets import Image as ImageFeature

    return data.cast_column("image", ImageFeature(decode=False))


def unreadable(data: "Dataset") -> dict[int, str]:
    """Return why the image of a row cannot be read, for the rows where that is so.

    `data` has the column `image`. Of a PNG with 8 bits the checksums are looked at, of a JPEG header and end; what is
    wrong in the middle of a JPEG is an error when the row is read. Other images are decoded.
    """
    stored = undecoded(data.select_columns(["image"]))["image"]
    with ThreadPoolExecutor() as pool:
        return {row: why for row, why in enumerate(pool.map(fault_of, stored)) if why}


def fault_of(stored: dict[str, Any] | None) -> str:
    """Return why an image cannot be read, as far as a quick look tells; "" where nothing is wrong."""
    if stored is None or (stored["bytes"] is None and not stored["path"]):
        return "no image"
    try:
        data = stored["bytes"] if stored["bytes"] is not None else Path(stored["path"]).read_bytes()
        with Image.open(io.BytesIO(data)) as image:
            plain = image.mode != "F" and not image.mode.startswith("I")
            seen = image.format == "PNG" or (image.format == "JPEG" and END_OF_JPEG in data[-64:])
            image.verify()
        if not (plain and seen):  # only decoding all of it tells
            with Image.open(io.BytesIO(data)) as image:
                eight_bit(image)
    except FileNotFoundError:
        return "there is no such file"
    except ValueError as error:  # of `eight_bit`
        return one_line(error)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        return f"its image has more than {(Image.MAX_IMAGE_PIXELS or 0) // 10**6} million pixels"
    except Exception:  # decoders raise almost anything
        return "its image cannot be read"
    return ""
