"""`anchorite report`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter


def report(run: Annotated[Path, Parameter(help="Folder of a run.")]) -> None:
    """Write the report page of a run anew."""
    from anchorite.errors import InputError
    from anchorite.report import write_run_report

    if not (run / "recipe.yaml").is_file():
        raise InputError(f"report {run}: not a run folder (no recipe.yaml); name a runs/NAME folder")
    print(write_run_report(run))
