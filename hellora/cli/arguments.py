"""Several commands share these arguments and options."""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from hellora.experiments.presets import presets


def sources(incomplete: str) -> Iterator[str]:
    """Yield what an argument PRESET_OR_FILE may become: presets, experiment files, and folders on the way to one."""
    yield from (name for name in presets() if name.startswith(incomplete))
    for path in sorted(Path().glob(f"{incomplete}*")) if not incomplete.startswith("/") else []:
        if path.suffix == ".toml" or path.is_dir():
            yield f"{path}/" if path.is_dir() else str(path)


Source = Annotated[
    str,
    typer.Argument(
        metavar="PRESET_OR_FILE", help="a preset's name, or an experiment file (TOML)", autocompletion=sources
    ),
]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="SECTION.KEY=VALUE", help="change a setting, such as train.lr=1e-3; repeat"),
]
Allow = Annotated[
    list[str] | None,
    typer.Option(metavar="CODE|remote-code", help="code that a file names may run, FILE.py:CLASS; repeat"),
]
Quiet = Annotated[bool, typer.Option("--quiet", help="say nothing but where the result is, and errors")]
AsJson = Annotated[bool, typer.Option("--json", help="the result as one JSON object; all else goes to standard error")]
Federation = Annotated[
    Path | None,
    typer.Option(metavar="FOLDER", help="of the `hellora server` whose clients train; --out is a name there"),
]
Certificate = Annotated[Path | None, typer.Option(metavar="FILE", help="the server's ca.crt")]
Insecure = Annotated[bool, typer.Option("--insecure", help="plain text, and no keys: only on a machine of your own")]
