"""Choose a model for data of which nobody says what shall learn them: one that is on this machine, and fits into it.

Nothing is fetched: of a model of the hub that was not downloaded before, its name is all that is known here.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from hellora.core.errors import InputError
from hellora.core.units import in_bytes
from hellora.experiments.commented import SAID
from hellora.model.family import Family, family_of
from hellora.model.location import is_here

HOLDS = 4  # times the weights in float32: a copy with the adapter merged, and activations
MOST_ON_A_CPU = 150e6  # parameters; with more a round takes hours


@dataclass(frozen=True)
class Candidate:
    """A model that is known to learn with these settings; `lr` is of an adapter with the scale 1."""

    name: str
    family: Family
    parameters: float
    lr: float

    @property
    def bytes(self) -> float:
        return 4 * self.parameters * HOLDS


CANDIDATES = (
    Candidate("minilm", "encoder", 22.7e6, 1.2e-2),
    Candidate("FacebookAI/roberta-base", "encoder", 125e6, 1e-3),
    Candidate("smollm2", "decoder", 134.515e6, 2e-3),
    Candidate("HuggingFaceTB/SmolLM2-135M-Instruct", "decoder", 134.515e6, 2e-3),
    Candidate("Qwen/Qwen2.5-0.5B-Instruct", "decoder", 494e6, 2e-4),
    Candidate("google-t5/t5-small", "encoder-decoder", 60.5e6, 1e-3),
    Candidate("facebook/deit-tiny-patch16-224", "images", 5.7e6, 5e-3),
    Candidate("google/vit-base-patch16-224-in21k", "images", 86e6, 5e-3),
)
USUAL_LR: Mapping[Family, float] = {"decoder": 2e-4, "images": 5e-3}  # of other models; else 1e-3
LEARNS: Mapping[str, Family] = {
    "image_classification": "images",
    "causal_lm": "decoder",
    "preference": "decoder",
    "seq2seq": "encoder-decoder",
}  # the family that a task needs; any that reads texts where it is not here


@dataclass(frozen=True)
class Choice:
    """A chosen model: why it is this one, and the learning rate to begin with."""

    name: str
    why: str
    lr: float


def chosen_model(task: str, named: str | None, free_bytes: int, gpu: bool) -> Choice:
    """Choose the model for a task, `named` where somebody names one.

    Raises:
        InputError: the model that is named cannot learn the task.
    """
    family: Family = LEARNS.get(task, "encoder")
    if named is not None:
        check_family(named, task, family)
        known = next((each.lr for each in CANDIDATES if each.name == named), USUAL_LR.get(family, 1e-3))
        return Choice(named, SAID, known)
    known_here = [each for each in CANDIDATES if each.family == family]
    fitting = [each for each in known_here if each.bytes <= free_bytes and (gpu or each.parameters <= MOST_ON_A_CPU)]
    small = min(known_here, key=lambda each: (each.parameters, not is_here(each.name)))
    size = 1 if gpu else -1  # a GPU takes the largest, a CPU the smallest: rounds take minutes there
    rank = {each: (is_here(each.name), size * each.parameters, each.name != "smollm2") for each in fitting}
    best = max(fitting, key=rank.__getitem__, default=small)
    where = "on this machine" if is_here(best.name) else "fetched from the hub when the run begins"
    others = [each.name for each in fitting if each.name != best.name and each.parameters != best.parameters]
    also = f"; {others[-1]} would fit, too" if others else ""
    tight = "" if fitting else f", the smallest one known for {in_bytes(free_bytes)}"
    return Choice(best.name, f"{best.parameters / 1e6:.0f} M parameters, {where}{tight}{also}", best.lr)


def check_family(name: str, task: str, family: Family) -> None:
    """Raise InputError where a model is of another family than a task needs; not all are known here."""
    found = family_of(name)
    reads_texts = family == "encoder" and found != "images"
    if found in ("", family) or reads_texts:
        return
    needs = {"images": "a model of images", "decoder": "a language model", "encoder": "a model of texts"}
    what = {"encoder-decoder": "encodes and decodes texts", "images": "reads images", "decoder": "is a language model"}
    raise InputError(
        f"model.name: {name} {what.get(found, 'is an encoder')}, and the data are for {task}, which takes "
        f"{needs.get(family, 'a model that encodes and decodes')}: name another, or another --set task.name"
    )
