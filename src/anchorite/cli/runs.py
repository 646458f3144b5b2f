"""`anchorite runs` and `anchorite recipes`: what there is to resume, and to start from."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from anchorite.errors import InputError

if TYPE_CHECKING:
    from anchorite.train.run_folder import RunStatus


def runs(
    run: Annotated[Path, Parameter(help="Folder of a run, or one whose folders are runs.")] = Path("runs"),
) -> None:
    """Show a run's state, its checkpoints, each verified, and what a resume would do."""
    from anchorite.train.run_folder import read_run_status

    if (run / "recipe.yaml").is_file() or not run.is_dir():
        print(_described(read_run_status(run)))
        return
    folders = sorted(path.parent for path in run.glob("*/recipe.yaml"))
    if not folders:
        raise InputError(f"runs {run}: holds no run (no */recipe.yaml); name a runs/NAME folder, or train one")
    width = max(len(folder.name) for folder in folders)
    for folder in folders:
        state = read_run_status(folder)
        print(f"{folder.name:<{width}}  {_progress(state)}; resume: {state.would_resume()}")


def _progress(state: RunStatus) -> str:
    best = "" if state.best_epoch is None else f", best mAP {state.best_map:.4f} at epoch {state.best_epoch}"
    return f"model {state.model}, {state.epochs} of {state.num_epochs} epochs{best}"


def _described(state: RunStatus) -> str:
    lines = [f"run:         {state.path}", f"data:        {state.data}", f"state:       {_progress(state)}"]
    lines.append(f"ended:       {state.reason or ('no, it is being trained' if state.in_use else 'no')}")
    for one in state.checkpoints:
        verdict = f"damaged: {one.fault}" if one.progress is None else f"whole, after {one.progress.describe()}"
        lines.append(f"checkpoint:  {one.path.name}: {verdict}")
    if not state.checkpoints:
        lines.append("checkpoint:  none")
    if state.num_skipped:
        lines.append(f"skipped:     {state.num_skipped} steps were not finite; see {state.path / 'skipped.jsonl'}")
    lines += [f"post-mortem: {path}" for path in state.post_mortems]
    lines += [f"left over:   {path.name}, by a crash; a resume removes it" for path in state.leftovers]
    lines.append(f"a resume would {state.would_resume()}".replace("would nothing", "would do nothing"))
    return "\n".join(lines)


def recipes(
    name: Annotated[str | None, Parameter(help="Recipe to print whole; without it, all are listed.")] = None,
) -> None:
    """List the built-in recipes, or print one as YAML to start your own from."""
    from anchorite.recipe_names import built_in_recipes

    texts = built_in_recipes()
    if name is None:
        for known, text in texts.items():
            head = [line.lstrip("# ") for line in text.splitlines() if line.startswith("#")]
            print(f"{known}\n" + "\n".join(f"    {line}" for line in head))
    elif name in texts:
        print(texts[name], end="")
    else:
        close = difflib.get_close_matches(name, texts, n=1)
        meant = f"; did you mean {close[0]}?" if close else ""
        raise InputError(f"recipes {name}: no such recipe; there are {', '.join(texts)}{meant}")
