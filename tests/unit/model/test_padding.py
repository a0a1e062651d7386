"""Padding: its side is found by trying, and a model that lets it act takes texts of one length."""

import json
from pathlib import Path
from typing import Any

import bases
import pytest
import tiny_models
import torch
import transformers
from torch.testing import assert_close

from hellora.core.errors import InputError
from hellora.model.load import AUTO_CLASSES
from hellora.model.resident import BaseModel
from hellora.model.settings import ModelSettings
from hellora.tasks.sequence_classification import SequenceClassification

MEAN, OWN = SequenceClassification(), SequenceClassification(head_type="own")
CONVBERT = transformers.ConvBertConfig(
    vocab_size=40, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=48,
    embedding_size=32, conv_kernel_size=3, max_position_embeddings=40,
)  # fmt: skip
XLNET = transformers.XLNetConfig(vocab_size=40, d_model=32, n_layer=2, n_head=2, d_inner=48)


def loaded(config: Any, task: SequenceClassification, folder: Path, side: str, **settings: Any) -> BaseModel:
    config.num_labels = 3
    torch.manual_seed(0)
    net = AUTO_CLASSES[task.kind()].from_config(config)
    for parameter in net.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.2)
    net.save_pretrained(str(folder))
    tiny_models.save_tokenizer(folder)
    said = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(said | {"padding_side": side}))
    return task.load(ModelSettings(name=str(folder), **settings), bases.LABELS, 0)


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_head_that_reads_the_last_place_gets_padding_on_the_left(side: str, tmp_path: Path) -> None:
    base = loaded(XLNET, OWN, tmp_path, side, targets=("layer_1",))
    assert (base.processor.padding_side, base.one_length) == ("left", False)
    examples = OWN.encode(base, bases.rows_of(["rain", "the old boat near a wave"])).examples
    with torch.no_grad():
        alone = torch.cat([OWN.logits(base, OWN.collate(base, [example])) for example in examples])
        assert_close(OWN.logits(base, OWN.collate(base, examples)), alone, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("task", [MEAN, OWN])
def test_where_padding_acts_texts_of_one_length_go_together(task: SequenceClassification, tmp_path: Path) -> None:
    base = loaded(CONVBERT, task, tmp_path, "right")
    assert base.one_length
    examples = task.encode(base, bases.rows_of(["rain", "wind", "the old boat"])).examples
    assert task.collate(base, examples[:2])["input_ids"].shape == (2, 3)
    with pytest.raises(InputError, match=r"kind convbert lets padding act on texts.*set train\.batch_size = 1"):
        task.collate(base, examples)


def test_an_encoder_decoder_that_needs_more_is_refused_when_it_is_loaded(tmp_path: Path) -> None:
    folder = tiny_models.save_t5(tmp_path)
    with pytest.raises(InputError, match=r"task\.head_type: .* \(t5\) has a decoder .*set task\.head_type = 'own'"):
        bases.load(folder)
    assert bases.load(folder, OWN).processor.padding_side == "right"


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_coarse_format_is_no_padding_that_acts(dtype: str, tmp_path: Path) -> None:
    for config, task in ((CONVBERT, MEAN), (tiny_models.bert_config(max_position_embeddings=40), OWN)):
        base = loaded(config, task, tmp_path / config.model_type, "left", dtype=dtype)
        assert (base.processor.padding_side, base.one_length) == ("right", False)


def test_weights_that_are_no_numbers_are_no_padding_that_acts(tmp_path: Path) -> None:
    folder = tiny_models.save_bert(tmp_path)
    net = transformers.AutoModel.from_pretrained(str(folder))
    with torch.no_grad():
        net.encoder.layer[1].output.dense.weight[0, 0] = torch.nan
    net.save_pretrained(str(folder))
    assert not bases.load(folder).one_length
