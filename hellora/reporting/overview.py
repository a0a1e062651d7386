"""A report shows a run, or compares several; of one, it tells its story, says what it is, and has all sections."""

from pathlib import Path

from hellora.core.errors import InputError
from hellora.reporting.answers import answers
from hellora.reporting.classes import classes
from hellora.reporting.clients import drift, failures, labels, served
from hellora.reporting.page import write
from hellora.reporting.parts import Page, Section, missing
from hellora.reporting.quality import about_time, quality_sections
from hellora.reporting.record import ERROR, RunRecord, read_run
from hellora.reporting.several import page_of_several, run_folders
from hellora.reporting.story import story
from hellora.reporting.training import allocation, layer_scores, memory, spectrum, traffic


def write_report(folders: list[Path], out: Path | None) -> Path:
    """Write the page of the runs in these folders into `out`, or report.html in the first of them; returns the file.

    Raises:
        InputError: there is no folder, or one that holds no run, or a damaged one; or the file cannot be written.
    """
    if not folders:
        raise InputError("no run was named: say which folders of runs the report is of")
    file = folders[0] / "report.html" if out is None else out
    write(page_of(folders), file)
    return file


def page_of(paths: list[Path]) -> Page:
    """Make the page of one run, or of the comparison of several.

    Raises:
        InputError: a folder holds no run, or a damaged one.
    """
    folders = run_folders(paths)
    return page_of_run(read_run(folders[0])) if len(folders) == 1 else page_of_several(folders)


def page_of_run(run: RunRecord) -> Page:
    """Show all that is known of a run: its story first, then the sections in the order in which one asks for them."""
    if not run.lines:
        note = "No round has ended yet: what there is to see of them comes with the first one."
        return Page(run.name, facts(run), [labels(run)], [note], ended=run.summary is not None)
    sections = [
        *quality_sections(run),
        *answers(run),
        *classes(run),
        served(run),
        allocation(run),
        layer_scores(run),
        spectrum(run),
        memory(run),
        traffic(run),
        labels(run),
        drift(run),
        failures(run),
        *untimed(run),
    ]
    return Page(run.name, facts(run), sections, ended=run.summary is not None, story=story(run))


def untimed(run: RunRecord) -> list[Section]:
    """Say once why nothing is held against time; [] where it is."""
    return [missing("time", "Quality over time", why)] if (why := about_time([run])) else []


def short(name: str) -> str:
    """Return the last part of a path, which is of one machine only; a name on the Hub is whole."""
    return Path(name).name if Path(name).is_absolute() or name.startswith((".", "~")) else name


def facts(run: RunRecord) -> list[tuple[str, str]]:
    """Say what run this is, and how far it has come."""
    table = run.table
    method = table.get("method", {})
    stopped = [("stopped by", f"{run.error} (the whole is in {ERROR})")] if run.error and not run.summary else []
    return [
        ("state", f"{len(run.lines)} of {table['rounds']} rounds" + ("" if run.summary else ", not ended")),
        *stopped,
        ("model", f"{short(table['model']['name'])}, rank {table['model'].get('rank', '–')}"),
        ("data", short(table["data"]["name"])),
        ("method", ", ".join(str(method[key]) for key in ("allocator", "dispatcher", "aggregator") if key in method)),
        ("seed", str(table["seed"])),
    ]
