"""A client keeps something of a run for itself: named tensors of its rules of local training, in versions.

A version is named by the round that made it. The server says from which version to begin: that of the last round in
which this client counted. So an answer that did not count (it came too late, it was rejected, the server went back a
round) leaves nothing behind: what is newer than the version to begin from is removed. One version more is kept than the
server keeps states (`keep`), so that it can go back to each of them.
"""

from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from hellora.core.errors import InputError
from hellora.core.exchange import Named
from hellora.record.atomic import write_atomically
from hellora.record.sealed import sealed_bytes, unsealed_bytes

SUFFIX = ".safetensors"


@dataclass(frozen=True)
class KeptTensors:
    """Holds one client's kept tensors of one run, in a folder."""

    folder: Path
    versions_kept: int = 2

    def load(self, version: int | None) -> dict[str, Tensor]:
        """Load what was kept in the round `version`, {} for None; newer versions are removed.

        Raises:
            InputError: there is no such version here, or it is damaged.
        """
        for newer in [v for v in self.versions() if version is None or v > version]:
            self.file(newer).unlink()  # these files and no others: the folder's name comes from a server
        if version is None:
            return {}
        try:
            tensors: dict[str, Tensor] = load(unsealed_bytes(self.file(version).read_bytes()))
            return tensors
        except (OSError, SafetensorError, ValueError) as error:
            raise InputError(
                f"what this client kept in round {version} is not in {self.folder} ({type(error).__name__}): put it "
                f"back, or start the run again"
            ) from error

    def save(self, version: int, tensors: Named) -> None:
        """Keep the tensors of a round, and of the older versions the last ones."""
        self.folder.mkdir(parents=True, exist_ok=True)
        data = save({name: tensor.contiguous() for name, tensor in tensors.items()})
        write_atomically(self.file(version), sealed_bytes(data))
        for old in self.versions()[: -self.versions_kept]:
            self.file(old).unlink()

    def versions(self) -> list[int]:
        """List the rounds of which something is kept, ascending."""
        return sorted(int(file.stem) for file in self.folder.glob(f"*{SUFFIX}") if file.stem.isdecimal())

    def file(self, version: int) -> Path:
        return self.folder / f"{version:06d}{SUFFIX}"
