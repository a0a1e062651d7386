"""A report shows a run, or compares several; of one, it says what it is, how far it has come, and has all sections."""

from pathlib import Path

from hellora.core.errors import InputError
from hellora.core.given import in_words
from hellora.core.units import in_bytes
from hellora.reporting.answers import answers
from hellora.reporting.classes import classes
from hellora.reporting.clients import drift, failures, labels, served
from hellora.reporting.page import write
from hellora.reporting.parts import Page
from hellora.reporting.quality import quality_sections
from hellora.reporting.record import ERROR, RunRecord, read_run
from hellora.reporting.several import page_of_several, run_folders
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
    """Show all that is known of a run, in the order in which one asks for it."""
    if not run.lines:
        note = "No round has ended yet: what there is to see of them comes with the first one."
        return Page(run.name, facts(run), [labels(run)], [note], ended=run.summary is not None)
    sections = [
        *quality_sections(run),
        *answers(run),
        allocation(run),
        layer_scores(run),
        spectrum(run),
        memory(run),
        traffic(run),
        *classes(run),
        served(run),
        labels(run),
        drift(run),
        failures(run),
    ]
    return Page(run.name, facts(run), sections, ended=run.summary is not None)


def short(name: str) -> str:
    """Return the last part of a path, which is of one machine only; a name on the Hub is whole."""
    return Path(name).name if Path(name).is_absolute() or name.startswith((".", "~")) else in_words(name)


def facts(run: RunRecord) -> list[tuple[str, str]]:
    """Say what one wants to know first."""
    table, last = run.table, next((line["metrics"] for line in reversed(run.lines) if line["metrics"]), None)
    method, metric = table.get("method", {}), run.metric
    stopped = [("stopped by", f"{run.error} (the whole is in {ERROR})")] if run.error and not run.summary else []
    stopped += [("stopped early", run.summary["stopped"]["why"])] if run.summary and "stopped" in run.summary else []
    found = [
        ("state", f"{len(run.lines)} of {table['rounds']} rounds" + ("" if run.summary else ", not ended")),
        *stopped,
        ("model", f"{short(table['model']['name'])}, rank {table['model'].get('rank', '–')}"),
        ("data", f"{short(table['data']['name'])}, {len(run.names)} clients, {table['cohort']} in a round"),
        ("method", ", ".join(str(method[key]) for key in ("allocator", "dispatcher", "aggregator") if key in method)),
    ]
    if last and metric in last:
        before = f"{run.initial[metric]:.3f} → " if metric in run.initial else ""
        found.append((metric, f"{before}{last[metric]:.3f}"))
    if run.summary and run.summary.get("worst_client") is not None:
        found.append(("worst client", f"{run.summary['worst_client']:.3f}"))
    if run.lines:
        up, down = (in_bytes(int(run.total(name)[-1])) for name in ("uplink_bytes", "downlink_bytes"))
        found += [("sent", f"{up} up, {down} down"), ("time", f"{run.total('seconds')[-1]:.0f} s")]
    if run.timed:
        found.append(("simulated time", f"{run.lines[-1]['simulated_clock']:.0f} s"))
    return [*found, ("seed", str(table["seed"]))]
