"""`anchorite report`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from cyclopts.validators import Number

_DEFAULT_PORT = 8765  # as of report.serve, which help must not wait for


def report(
    run: Annotated[list[Path], Parameter(help="Folder of a run; of several, to compare them.", negative="")],
    *,
    out: Annotated[
        Path | None,
        Parameter(help="New .html file; default: RUN/report.html, for several comparison.html or a number behind it."),
    ] = None,
    serve: Annotated[
        bool,
        Parameter(negative="", help="Show the page of one run, live, to browsers on this machine; Ctrl-C ends it."),
    ] = False,
    port: Annotated[
        int | None, Parameter(validator=Number(gte=0, lte=65535), help="With --serve: port; 0 for any that is free.")
    ] = None,
) -> None:
    """Write the report page of a run anew, or one that compares runs; or show it live while it trains."""
    from anchorite.cli.folders import free_page, make_folder, refuse_taken_page
    from anchorite.errors import InputError
    from anchorite.report import write_run_report

    for folder in run:
        if not (folder / "recipe.yaml").is_file():
            raise InputError(f"report {folder}: not a run folder (no recipe.yaml); name a runs/NAME folder")
    if serve:
        if out is not None or len(run) > 1:
            raise InputError("--serve: shows the page of one run and writes none; leave out --out and other runs")
        _serve(run[0], _DEFAULT_PORT if port is None else port)
        return
    if port is not None:
        raise InputError(f"--port {port}: is for --serve; add that, or leave it out")
    if out is not None:
        refuse_taken_page(out)
        make_folder(out.parent)
    if len(run) == 1:
        print(write_run_report(run[0], out))
    else:
        from anchorite.report.compare import write_comparison

        page = write_comparison(run, out or free_page(Path("comparison.html")))
        print(f"{page}: {len(run)} runs, {page.stat().st_size / 1e6:.1f} MB")


def _serve(folder: Path, port: int) -> None:
    """Serve until Ctrl-C, which is how it is meant to end and so no error."""
    from anchorite.report.serve import RunServer

    with RunServer(folder, port) as server:
        print(f"{server.address} shows {folder} while it trains, on this machine alone; end with Ctrl-C")
        try:
            server.serve_forever()
        except KeyboardInterrupt as error:
            if type(error) is not KeyboardInterrupt:  # SIGTERM, which has an exit code of its own
                raise
            print("ended")
