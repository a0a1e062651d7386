"""What models see of an image: upright, of 8 bits, in the model's channels; what cannot be read is named."""

import io
from pathlib import Path

import numpy as np
import pytest
from datasets import Dataset
from datasets import Image as ImageFeature
from PIL import Image

from hellora.core.errors import InputError
from hellora.data.images import ImageRows, eight_bit, unreadable
from hellora.data.settings import DataSettings
from hellora.data.sources import load_corpus


@pytest.mark.parametrize("kind", ["<u2", ">u2"])
def test_sixteen_bits_count_by_their_upper_byte(kind: str) -> None:
    """257, 10000 and 40000 were all white (255)."""
    image = Image.fromarray(np.array([[0, 257, 10000, 40000, 65535]], dtype=kind))
    assert np.asarray(eight_bit(image))[0, :, 0].tolist() == [0, 1, 39, 156, 255]


def test_floats_go_from_0_to_1() -> None:
    image = Image.fromarray(np.array([[0, 0.5, 1]], dtype=np.float32))
    assert np.asarray(eight_bit(image))[0].tolist() == [[0] * 3, [128] * 3, [255] * 3]


def test_a_range_that_no_mode_means_is_refused() -> None:
    """A TIFF of 32 bits may hold 8 of them: taken for 16 it is black."""
    with pytest.raises(ValueError, match="its mode I has 32 bits, whose range nobody knows"):
        eight_bit(Image.fromarray(np.array([[0, 255]], dtype=np.int32)))
    with pytest.raises(ValueError, match=r"its mode F has values from 0\.0 to 255\.0, not 0 to 1"):
        eight_bit(Image.fromarray(np.array([[0, 255]], dtype=np.float32)))


def test_the_channels_are_the_models() -> None:
    image = Image.new("RGB", (2, 2), (255, 0, 0))
    assert eight_bit(image, 1).mode == "L"
    assert eight_bit(Image.new("LA", (2, 2)), 3).mode == eight_bit(Image.new("P", (2, 2)), 3).mode == "RGB"
    with pytest.raises(ValueError, match="takes images of 4 channels, not 1 or 3"):
        eight_bit(image, 4)


def lying(path: Path) -> None:
    """An image of a dark left half, stored with its left side up."""
    pixels = np.full((4, 4), 255, dtype=np.uint8)
    pixels[:2] = 0
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees to the right
    Image.fromarray(pixels).save(path, exif=exif)


def test_an_image_stands_upright_by_its_exif(tmp_path: Path) -> None:
    lying(tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as image:
        by_card = np.asarray(eight_bit(image))
    rows = Dataset.from_dict({"image": [str(tmp_path / "a.png")]}).cast_column("image", ImageFeature())
    by_training = np.asarray(ImageRows(rows)[0]["image"])
    assert np.array_equal(by_card, by_training)
    assert by_card[0, :, 0].tolist() == [255, 255, 0, 0]


def jpeg() -> bytes:
    buffer = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(buffer, "jpeg")
    return buffer.getvalue()


def test_what_cannot_be_read_shows_before_a_run() -> None:
    cells = [jpeg(), jpeg()[:-100], b"text", b"", None]
    data = Dataset.from_dict({"image": cells}).cast_column("image", ImageFeature())
    assert unreadable(data) == {
        1: "its image cannot be read",
        2: "its image cannot be read",
        3: "its image cannot be read",
        4: "no image",
    }


def test_an_image_that_would_fill_the_memory_is_not_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    """The file says its size; a few kB may stand for gigabytes. Pillow warns of one, and refuses twice as many."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 3)
    cells = []
    for side in (1, 2, 3):
        buffer = io.BytesIO()
        Image.new("L", (side, side)).save(buffer, "png")
        cells.append(buffer.getvalue())
    data = Dataset.from_dict({"image": cells}).cast_column("image", ImageFeature())
    assert unreadable(data) == dict.fromkeys((1, 2), "its image has more than 0 million pixels")
    for row in (1, 2):
        with pytest.raises(InputError, match=r"is no image \(DecompressionBomb.*mend the data$"):
            ImageRows(data)[row]


def folder_of(tmp_path: Path, broken: int) -> Path:
    """Two classes of 30 images, some of them of one class broken."""
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir(parents=True)
        for number in range(30):
            Image.new("L", (4, 4), number).save(tmp_path / name / f"{number:02}.png")
    for number in range(broken):
        (tmp_path / "cat" / f"{number:02}.png").write_bytes(b"no image")
    (tmp_path / "dog" / "scan.dcm").write_bytes(b"DICM")
    return tmp_path


def test_unreadable_images_are_left_out_and_named(tmp_path: Path) -> None:
    corpus = load_corpus(DataSettings(name=str(folder_of(tmp_path, 2)), proxy_examples=0), "image", 0)
    assert len(corpus.train) + len(corpus.test) == 58
    left_out = next(note for note in corpus.notes if note.startswith("left out"))
    assert "2 of the 60 rows" in left_out
    assert "2: its image cannot be read, class 'cat', " in left_out
    assert f"{tmp_path.name}/cat/00.png, {tmp_path.name}/cat/01.png" in left_out
    assert "not used: dog/scan.dcm (no image)" in corpus.notes
    with pytest.raises(InputError, match=r"data\.name: .*cat/00\.png: its image cannot be read"):
        load_corpus(DataSettings(name=str(tmp_path), strict=True), "image", 0)


def test_a_class_that_would_vanish_is_an_error(tmp_path: Path) -> None:
    folder_of(tmp_path, 30)
    with pytest.raises(InputError, match=r"data\.unusable: 30 of the 60 rows"):
        load_corpus(DataSettings(name=str(tmp_path)), "image", 0)
    with pytest.raises(InputError, match=r"data\.name: of the class 'cat' .* no row can be used"):
        load_corpus(DataSettings(name=str(tmp_path), unusable=0.9), "image", 0)
    (tmp_path / "xray").mkdir()
    (tmp_path / "xray" / "a.dcm").write_bytes(b"DICM")
    with pytest.raises(InputError, match=r"the class 'xray' in .* has no image that can be read, only files such as a"):
        load_corpus(DataSettings(name=str(tmp_path), unusable=0.9), "image", 0)


def test_paths_count_from_the_folder_of_their_table(tmp_path: Path) -> None:
    """Wherever the command runs; a path to nothing is named by its line."""
    folder_of(tmp_path / "scans", 0)
    names = [f"scans/{name}/{number:02}.png" for name in ("cat", "dog") for number in range(30)]
    names[3], names[40] = str(tmp_path / names[3]), "scans/none.png"
    lines = [f"{name},{'cat' if 'cat' in name else 'dog'}" for name in names]
    (tmp_path / "rows.csv").write_text("\n".join(["image,label", *lines]))
    corpus = load_corpus(DataSettings(name=str(tmp_path / "rows.csv"), proxy_examples=0), "image", 0)
    assert len(corpus.train) + len(corpus.test) == 59
    assert any("there is no such file" in note and "rows.csv, line 42" in note for note in corpus.notes)
