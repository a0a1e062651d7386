"""The head of a checkpoint: its classes are found by name, or taken in order, or it is drawn anew; with a word."""

from pathlib import Path
from typing import Any

import bases
import pytest
import tiny_models
import torch
import transformers
from safetensors.torch import load_file, save_file

from hellora.core.errors import InputError
from hellora.model.load import load_network
from hellora.model.own_heads import OTHER_SIZE, match
from hellora.model.settings import Kind, ModelSettings

UNNAMED = ("LABEL_0", "LABEL_1", "LABEL_2")


@pytest.mark.parametrize(
    ("theirs", "data", "rows"),
    [
        (("soil", "sky", "sea"), ("sea", "sky", "soil"), (2, 1, 0)),
        (("NEGATIVE", "POSITIVE"), ("positive", "negative"), (1, 0)),
        (("Sci/Tech", "World"), ("sci_tech", "world"), (0, 1)),
        (("tench", "goldfish", "shark"), ("goldfish", "tench"), (1, 0)),  # some of its classes
        (("A", "a"), ("a", "A"), (1, 0)),  # as written comes first
        (UNNAMED, ("0", "1", "2"), (0, 1, 2)),
        (UNNAMED, ("0", "2"), (0, 2)),
        (UNNAMED, ("LABEL_2", "LABEL_0", "LABEL_1"), (2, 0, 1)),
        (("1", "0"), ("0", "1"), (1, 0)),  # names that are numbers are names
    ],
)
def test_classes_are_found_by_name_without_a_word(
    theirs: tuple[str, ...], data: tuple[str, ...], rows: tuple[int, ...]
) -> None:
    found = match(theirs, data, len(data))
    assert (found.rows, found.word) == (rows, "")


@pytest.mark.parametrize(
    ("theirs", "data"), [(UNNAMED, ("sea", "sky", "soil")), (("soil", "sky", "sea"), ("0", "1", "2"))]
)
def test_classes_without_names_are_taken_in_order_and_that_is_said(
    theirs: tuple[str, ...], data: tuple[str, ...]
) -> None:
    found = match(theirs, data, 3)
    assert found.rows == (0, 1, 2)
    assert f"taken in order: {data[0]} = {theirs[0]}, {data[1]} = {theirs[1]}, {data[2]} = {theirs[2]}" in found.word


@pytest.mark.parametrize(
    ("theirs", "data", "lacking"),
    [
        (("soil", "sky", "lake"), ("sea", "sky", "soil"), "it has none for sea"),  # partly
        (("good", "bad"), ("sea", "sky", "soil"), "it has none for sea, sky, soil"),
        (UNNAMED, ("sea", "sky"), "it has none for sea, sky"),
        (("Sea", "SEA"), ("sea", "sky"), "it has none for sky"),  # of two the same, none is meant
    ],
)
def test_other_classes_mean_a_new_head_and_that_is_said(
    theirs: tuple[str, ...], data: tuple[str, ...], lacking: str
) -> None:
    found = match(theirs, data, len(data))
    assert found.drawn
    assert found.rows == (None,) * len(data)
    assert lacking in found.word
    assert "drawn anew" in found.word


def test_places_to_spare_are_drawn_unless_they_have_their_names() -> None:
    assert match(("b", "a"), ("a", "b", "class 2", "class 3"), 2).rows == (1, 0, None, None)
    assert match(("b", "class 2", "a"), ("a", "b", "class 2"), 2).rows == (2, 0, 1)


def named(folder: Path, kind: Kind, names: tuple[str, ...]) -> dict[str, torch.Tensor]:
    """A checkpoint of a head with these names; returns its weights as they lie in the file."""
    if kind == "image_classification":
        tiny_models.save_vit(folder)
        net: Any = transformers.ViTForImageClassification.from_pretrained(str(folder))
    else:
        tiny_models.save_bert(folder, own_head=True)
        net = transformers.BertForSequenceClassification.from_pretrained(str(folder))
    torch.nn.init.normal_(net.classifier.bias)
    net.config.id2label = dict(enumerate(names))
    net.config.label2id = {name: i for i, name in enumerate(names)}
    net.save_pretrained(str(folder))
    return load_file(folder / "model.safetensors")


@pytest.mark.parametrize("kind", ["sequence_classification", "image_classification"])
@pytest.mark.parametrize("labels", [("sea", "sky", "soil"), ("sky", "soil"), ("Sky", "SOIL", "sea")])
def test_rows_are_put_into_the_order_of_the_data(kind: Kind, labels: tuple[str, ...], tmp_path: Path) -> None:
    theirs = ("soil", "sky", "sea")
    weights, notices = named(tmp_path, kind, theirs), list[str]()
    net, head = load_network(ModelSettings(name=str(tmp_path)), kind, labels, 0, notices=notices)
    rows = [theirs.index(label.lower()) for label in labels]
    for part in ("classifier.weight", "classifier.bias"):
        assert torch.equal(net.get_parameter(part), weights[part][rows])
    assert (head, notices) == (("classifier",), [])
    assert net.config.id2label == dict(enumerate(labels))
    assert net.num_labels == net.config.num_labels == net.classifier.out_features == len(labels)
    rest = [name for name in weights if name in net.state_dict() and not name.startswith("classifier")]
    assert all(torch.equal(net.state_dict()[name], weights[name]) for name in rest)


@pytest.mark.parametrize("kind", ["sequence_classification", "image_classification"])
@pytest.mark.parametrize("labels", [("sea", "sky", "lake"), ("lake", "hill"), ("a", "b", "c", "d")])
def test_other_names_draw_the_head_anew(kind: Kind, labels: tuple[str, ...], tmp_path: Path) -> None:
    weights, notices = named(tmp_path, kind, ("soil", "sky", "sea")), list[str]()

    def loaded(seed: int) -> Any:
        return load_network(ModelSettings(name=str(tmp_path)), kind, labels, seed, notices=notices)[0]

    net = loaded(1)
    assert net.classifier.weight.shape == (len(labels), weights["classifier.weight"].shape[1])
    assert 0.005 < net.classifier.weight.std() < 0.05
    assert not net.classifier.bias.any()
    assert torch.equal(loaded(1).classifier.weight, net.classifier.weight)
    assert not torch.equal(loaded(2).classifier.weight, net.classifier.weight)
    assert len(notices) == 3
    assert all("soil, sky, sea" in notice and "drawn anew" in notice for notice in notices)


def test_a_checkpoint_without_a_head_says_nothing(tiny_bert: Path) -> None:
    for labels in (bases.LABELS, ("0", "1", "2"), ("a", "b")):
        notices = list[str]()
        load_network(ModelSettings(name=str(tiny_bert)), "sequence_classification", labels, 0, notices=notices)
        assert notices == []


def test_places_to_spare_of_a_named_head(tmp_path: Path) -> None:
    weights = named(tmp_path, "sequence_classification", ("soil", "sky", "sea"))
    net, _ = load_network(ModelSettings(name=str(tmp_path), classes=5), "sequence_classification", ("sea", "sky"), 0)
    assert torch.equal(net.classifier.weight[:2], weights["classifier.weight"][[2, 1]])
    assert net.classifier.weight.shape[0] == 5


def test_weights_that_do_not_fit_their_config(tmp_path: Path) -> None:
    """A head of another size is drawn anew; anything else is no copy of the model."""
    weights = named(tmp_path, "sequence_classification", ("soil", "sky", "sea"))
    for part in ("classifier.weight", "classifier.bias"):
        weights[part] = weights[part][:2].clone()
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    notices = list[str]()
    load_network(ModelSettings(name=str(tmp_path)), "sequence_classification", bases.LABELS, 0, notices=notices)
    assert notices == [OTHER_SIZE]
    weights["bert.embeddings.position_embeddings.weight"] = torch.zeros(9, 32)
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match=r"do not fit its config\.json \(bert\.embeddings\.position_embeddings"):
        load_network(ModelSettings(name=str(tmp_path)), "sequence_classification", bases.LABELS, 0)
