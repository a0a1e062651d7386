"""An adapter knows its base: its name, where it lay, and a fingerprint of its weights."""

import logging
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from hellora.core.errors import InputError
from hellora.model.location import EMBEDDED, resolve_name
from hellora.model.resident import BaseModel
from hellora.model.settings import ModelSettings

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Origin:
    """An origin says which base an adapter was trained on. One that an older hellora wrote says nothing."""

    name: str = ""  # model.name, as it was written
    path: str | None = None  # of a local folder, from the root
    revision: str | None = None  # of a model of the hub: the commit
    fingerprint: str | None = None  # of the weights, in this format:
    dtype: str = "float32"
    quantization: str = "none"

    @staticmethod
    def of(base: BaseModel, settings: ModelSettings) -> "Origin":
        """Describe a base that is loaded."""
        folder = Path(resolve_name(settings.name))
        local = settings.name not in EMBEDDED and folder.is_dir()
        return Origin(
            name=settings.name,
            path=str(folder.resolve()) if local else None,
            revision=None if local else getattr(base.net.config, "_commit_hash", None),
            fingerprint=base.fingerprint(),
            dtype=settings.dtype,
            quantization=settings.quantization,
        )

    @staticmethod
    def from_json(values: Mapping[str, Any] | None) -> "Origin":
        return Origin(**(values or {}))

    def to_json(self) -> dict[str, Any]:
        return {name: value for name, value in asdict(self).items() if value is not None}

    @property
    def place(self) -> str:
        """Say where the base was, for a person or for transformers."""
        return self.path or resolve_name(self.name)

    def found_by(self, settings: ModelSettings) -> ModelSettings:
        """Return settings that find the base from anywhere: a local folder that is not here is where the run had it."""
        if self.path is None or settings.name != self.name or Path(settings.name).expanduser().is_dir():
            return settings
        return replace(settings, name=self.path)

    def check(self, base: BaseModel, settings: ModelSettings, load: Callable[[ModelSettings], BaseModel]) -> None:
        """Raise InputError where `base`, loaded by `settings`, is another one than this; log where that is not known.

        `load` loads it anew, where it is now asked for in another number format than the one of the fingerprint.
        """
        if self.fingerprint is None or settings.quantization != self.quantization:
            why = "its weights are packed otherwise" if self.fingerprint else "an older hellora wrote it"
            log.warning("model.name: whether %s is the base of this adapter is not known: %s", settings.name, why)
            return
        same = settings.dtype == self.dtype
        found = (base if same else load(replace(settings, dtype=self.dtype))).fingerprint()  # type: ignore[arg-type]
        if found != self.fingerprint:
            commit = f", commit {self.revision}" if self.revision else ""
            raise InputError(
                f"model.name: {settings.name} is another base than the adapter was trained on (its weights have the "
                f"fingerprint {found}, not {self.fingerprint}): name that one, {self.place}{commit} of the run, with "
                f"--set model.name=…"
            )
