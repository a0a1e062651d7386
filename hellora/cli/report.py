"""These commands show runs in a browser: as a file, and live."""

from pathlib import Path
from typing import Annotated

import typer

from hellora.runs.terminal import Voice, quieten

app = typer.Typer(rich_markup_mode=None)


@app.command()
def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN…", help="folders of runs, or of a comparison")],
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="[default: report.html in the first folder]")] = None,
) -> None:
    """Write a run, or several compared, as one HTML file.

    It needs no network.
    """
    quieten()
    from hellora.core.units import in_bytes
    from hellora.reporting.overview import write_report

    file = write_report(runs, out)
    Voice()(f"report: {file}, {in_bytes(file.stat().st_size)}: open it in a browser")


@app.command()
def watch(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="the folder of a run, which may be in progress")],
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: a free one")] = 0,
) -> None:
    """Serve the report of a run live. Ctrl-C ends it.

    Browsers on this machine can see it, no others.
    """
    quieten()
    from hellora.reporting.watch import HOST, server_of

    with server_of(run, port) as server:
        try:
            # Not by rich, which writes a line again where Ctrl-C comes just after it.
            print(f"{run}: http://{HOST}:{server.server_address[1]}/ (Ctrl-C ends it)", flush=True)
            server.serve_forever()
        except KeyboardInterrupt:
            print("stopped", flush=True)
