"""`hellora init` looks at data and at this machine, and writes an experiment file."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hellora.cli.arguments import AsJson, Overrides, Quiet
from hellora.core.errors import InputError
from hellora.runs.terminal import Voice, quieten

if TYPE_CHECKING:
    from hellora.experiments.commented import Draft

app = typer.Typer(rich_markup_mode=None)
LABELS = 22  # columns of what a line is about


@app.command()
def init(
    data: Annotated[str, typer.Argument(metavar="FILE_OR_FOLDER", help="with examples, on this machine")],
    model: Annotated[str | None, typer.Option(help="hub id or folder [default: one that fits this machine]")] = None,
    overrides: Overrides = None,
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="to write [default: NAME.toml of the data]")] = None,
    force: Annotated[bool, typer.Option("--force", help="write over a file that is there")] = False,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Write an experiment file for your own data.

    It finds task, columns, model, clients and budgets, says what it took for granted, and how to go on.
    """
    quieten()
    from hellora.data.file_names import check_here, stem_of
    from hellora.experiments.overrides import parse_settings

    say, file = Voice(quiet, as_json), out or Path(f"{stem_of(Path(data).expanduser().resolve())}.toml")
    if file.suffix != ".toml":
        raise InputError(f"--out {file}: an experiment file ends in .toml")
    if file.exists() and not force:
        raise InputError(f"{file} is there already: name another with --out, or write over it with --force")
    check_here(data)
    changes = parse_settings(overrides or ())
    changes |= {} if model is None else {"model.name": model}
    from hellora.experiments.first_draft import draft  # it imports torch, and what may be wrong is told without

    found = draft(data, changes)
    write(file, found.to_toml())
    for line in found.notes:
        say(f"data: {line}", 6)
    for label, value, why in said(found):
        say(f"{label:<{LABELS}}{value}  ({why})" if why else f"{label:<{LABELS}}{value}", LABELS)
    say.end(
        f"wrote {file}; go on with: hellora plan {file}, hellora run {file}",
        {"file": str(file), "experiment": found.table},
    )


def said(draft: "Draft") -> list[tuple[str, str, str]]:
    """Return what was found or taken for granted: setting, value, reason."""
    from hellora.experiments.commented import as_toml

    shown = []
    for section, content in draft.table.items():
        for key, value in content.items() if isinstance(content, dict) else ():
            why = draft.reason(section, key)
            if why and section in ("task", "model", "data", "fleet") and (section, key) != ("data", "name"):
                shown.append((f"{section}.{key}", as_toml(value), why))
    return shown


def write(file: Path, text: str) -> None:
    """Write the file, whole or not at all.

    Raises:
        InputError: it cannot be written.
    """
    from hellora.record.atomic import write_atomically

    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(file, text.encode())
    except OSError as error:
        raise InputError(f"--out: {file} cannot be written ({error.strerror}): name another") from error
