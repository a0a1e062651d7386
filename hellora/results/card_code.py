"""A model card has code: as it stands, with plain transformers and peft, it gives hellora's logits."""

import inspect
import json
import re
import string
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hellora.data.images import eight_bit
from hellora.data.settings import LANGUAGE, Columns
from hellora.model.chat import TODAY, turn_ends
from hellora.model.chat import template_of as template_of_chat
from hellora.model.learned import without_end
from hellora.model.load import QUANTIZATION, first_tokens, outside_blocks
from hellora.model.location import EMBEDDED, resolve_name
from hellora.model.normalise import borrows_padding, end_ids, inseparable, text_config
from hellora.model.settings import CLASSIFIES
from hellora.model.words import word_prefix
from hellora.results.trained import Trained
from hellora.tasks import length_limit
from hellora.tasks.causal_lm import CausalLM
from hellora.tasks.image_classification import channels
from hellora.tasks.preference import Preference
from hellora.tasks.seq2seq import Seq2Seq

OF_PROMPT = """\
batch = tokenizer(
    prompt, split_special_tokens=True, return_tensors="pt", return_token_type_ids=False
)
"""
OF_TURNS = """\
batch = tokenizer.apply_chat_template(
    messages, add_generation_prompt=True, return_dict=True, return_tensors="pt",
    tokenizer_kwargs={"return_token_type_ids": False},
)
"""
WITHOUT_END = "batch = {name: ids[:, :-1] for name, ids in batch.items()}  # the answer follows, not the end\n"
ANSWERS = """\
with open({folder} + "/labels.json") as file:
    labels = json.load(file)
answers = [labels[i] for i in logits.argmax(-1).tolist()]"""
QUESTION = "What is federated learning?"
PACKAGES = {name: name for name in ("torch", "transformers", "peft", "safetensors", "numpy")} | {"PIL": "pillow"}


def code(trained: Trained, folder: Path, merged: bool) -> str:
    """Write Python that loads what is in `folder` and uses it. `merged`: the weights are whole, peft is not needed."""
    base, task = trained.base, trained.experiment.task
    if not task.usage:
        return f"# hellora predict {folder} FILE"
    pairs = bool(trained.experiment.data.text_pair)
    sides = tokenizing(base.processor, () if trained.turns else variables(task.columns, pairs))
    more: dict[str, Any] = {}
    if task.columns in LANGUAGE:
        more = of_language(trained, sides["splitting"])
    elif task.columns == "image":
        more = {"eight_bit": inspect.getsource(eight_bit), "channels": channels(base.net.config)}
    return task.usage.format(
        **loading(trained, folder, merged),
        max_length=length_limit(base, task.max_tokens) if task.max_tokens > 1 else None,
        texts=example_texts(pairs, base.one_length, task.columns == "tokens"),
        inputs="texts, pairs" if pairs else "texts",
        **sides,
        **more,
    )


def loading(trained: Trained, folder: Path, merged: bool) -> dict[str, str]:
    """Return what the code names of where the model is, and how it is loaded."""
    model, where = trained.experiment.model, "model_folder" if merged else "adapter"
    trust = ", trust_remote_code=True" if model.trust_remote_code else ""
    quantized = model.quantization != "none"
    arguments = f"dtype=torch.{model.dtype}{trust}"
    arguments += ', quantization_config=quantization, device_map={"": "cpu"}' if quantized else ""
    if trained.experiment.task.kind() in CLASSIFIES and not merged:
        arguments += f", num_labels={len(trained.classes)}, ignore_mismatched_sizes=True"
    places = f"{where} = {str(folder)!r}"
    if not merged:
        places = f"base = {trained.origin.path or resolve_name(model.name)!r}{also_on_hub(model.name)}\n{places}"
    return {
        "imports": "import torch\n" + ("" if merged else "from peft import PeftModel\n"),
        "quantizer": ", BitsAndBytesConfig" if quantized else "",
        "quantization": f"quantization = {quantization(trained)}\n" if quantized else "",
        "places": places,
        "source": where if merged else "base",
        "folder": where,
        "trust": trust,
        "arguments": arguments,
        "wrapped": "model = model.eval()\n"
        if merged
        else f"model = PeftModel.from_pretrained(model, {where}).eval()\n",
        "answers": ANSWERS.format(folder=where),
    }


def variables(columns: Columns, pairs: bool) -> tuple[str, ...]:
    """Name the variables of the code that hold texts; `pairs` says if each has a partner."""
    if columns in LANGUAGE:
        return ("prompt",)
    return ("words",) if columns == "tokens" else ("texts", "pairs")[: 1 + pairs]


def of_language(trained: Trained, splitting: str) -> dict[str, Any]:
    """Return what the code of a language model names besides; `splitting` keeps special tokens out of a prompt."""
    base, task, data = trained.base, trained.experiment.task, trained.experiment.data
    configs = text_config(base.net.config), getattr(base.net, "generation_config", None)
    if trained.turns:
        turns = [{"role": "system", "content": data.system}] if data.system and "{" not in data.system else []
        asked = f"messages = {[*turns, {'role': 'user', 'content': QUESTION}]!r}"
        encoding = own_template(trained) + OF_TURNS
    else:
        asked = f"prompt = {filled_in(data.prompt or '{prompt}')}"
        encoding = splitting + OF_PROMPT + (WITHOUT_END if appends_end(base.processor) else "")
    return {
        "ends": list(dict.fromkeys([*end_ids(base.processor, *configs), *turn_ends(base.processor)])) or None,
        "asked": asked,
        "encoding": encoding,
        "new_tokens": task.new_tokens(base) if isinstance(task, CausalLM | Preference | Seq2Seq) else None,
        "begins": "".join(f", {name}={token}" for name, token in first_tokens(base.net).items()),
    }


def own_template(trained: Trained) -> str:
    """Write code that gives the tokenizer the chat template of the run, where its files have another, or one that asks
    for the day."""
    template = template_of_chat(trained.base.processor)
    if "strftime_now" in template:
        template = TODAY + template
    elif not getattr(trained.experiment.task, "chat_template", ""):
        return ""
    return f"tokenizer.chat_template = {template!r}\n"


def packages(code: str) -> str:
    """Say what has to be installed for code in a card, as pip takes it."""
    modules = dict.fromkeys(re.findall(r"^(?:import|from) (\w+)", code, re.MULTILINE))
    quantizer = ["bitsandbytes", "accelerate"] if "BitsAndBytesConfig" in code else []
    return " ".join([PACKAGES[module] for module in modules if module in PACKAGES] + quantizer)


def also_on_hub(name: str) -> str:
    """Write a comment for a base that has a name on the hub, and is taken from this machine."""
    hub = EMBEDDED.get(name)
    return f"  # on the Hub: {hub}" if hub and resolve_name(name) != hub else ""


def quantization(trained: Trained) -> str:
    """Write code for how the base was quantised."""
    model = trained.experiment.model
    said = ", ".join(f"{name}={value!r}" for name, value in QUANTIZATION[model.quantization].items())
    return (
        f"BitsAndBytesConfig(\n    {said}, bnb_4bit_compute_dtype=torch.{model.dtype},\n"
        f"    llm_int8_skip_modules={outside_blocks(trained.base.net)!r},\n)"
    )


def tokenizing(tokenizer: Any, names: Sequence[str]) -> dict[str, str]:
    """Write code that makes the tokenizer do as hellora's: pad and cut on the same sides, with the same token, and take
    the texts in the variables `names` as texts. An image processor needs none."""
    if not hasattr(tokenizer, "pad_token"):
        return {"sides": "", "padding": "", "splitting": ""}
    splitting = ""
    if "words" in names and word_prefix(tokenizer):
        splitting = 'words = [[" " + word for word in text] for text in words]  # by which it tells words\n'
    if tokens := inseparable(tokenizer):
        spaced = '{}.replace(token, " ".join(token))'
        lines = [f"for token in {tokens!r}:  # in a text they are text"]
        for name in names:
            each = f"[{spaced.format('text')} for text in {name}]" if name != "prompt" else spaced.format(name)
            each = f"[[{spaced.format('word')} for word in text] for text in words]" if name == "words" else each
            lines.append(f"    {name} = {each}")
        splitting += "".join(f"{line}\n" for line in lines)
    return {
        "sides": f", padding_side={tokenizer.padding_side!r}, truncation_side={tokenizer.truncation_side!r}",
        "padding": f"tokenizer.pad_token = {tokenizer.pad_token!r}\n" if borrows_padding(tokenizer) else "",
        "splitting": splitting,
    }


def appends_end(tokenizer: Any) -> bool:
    """Tell whether a tokenizer ends every text with an end-of-text token."""
    tokens = tokenizer("a")["input_ids"]
    return len(without_end(tokenizer, [tokens])[0]) < len(tokens)


def example_texts(pairs: bool, one_length: bool, words: bool) -> str:
    """Write code for two texts, their pairs, or their words; or for one, where the model lets padding act on texts."""
    texts = ["a text to classify"] if one_length else ["a text to classify", "another one"]
    partners = ["its partner", "its own"][: len(texts)]
    why = "  # of one length: padding would change what the model says" if one_length else ""
    if words:
        return f"words = {json.dumps([text.split() for text in texts])}{why}"
    return f"texts = {json.dumps(texts)}{why}" + (f"\npairs = {json.dumps(partners)}" if pairs else "")


def filled_in(template: str) -> str:
    """Write Python code for a prompt of the form that the model was trained on."""
    columns = [column for _, column, _, _ in string.Formatter().parse(template) if column]
    values = {column: "" if i else QUESTION for i, column in enumerate(dict.fromkeys(columns))}
    return f"{template!r}.format(**{values!r})"
