"""Fuzzing for as long as one likes: `python -m tests.faults.long_fuzz --minutes 5 --seed 1 [--family yolo]`.

Runs the generators of the fuzz tests in turn and prints one line of JSON: cases tried, faults found, how fast. Each
fault is described on stderr with the seed of its case, which `--seed SEED --cases 1 --family F` repeats.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from types import FrameType
from typing import Any

from tests.faults.label_fuzz import FAMILIES as LABEL_FAMILIES
from tests.faults.label_fuzz import check_case
from tests.faults.tool_fuzz import TOOL_FAMILIES
from tests.faults.weight_fuzz import WeightFile, check_weights

FAMILIES: dict[str, tuple[Callable[[Any, Random], None], tuple[Any, ...]]] = {
    **{family: (check_case, makers) for family, makers in (LABEL_FAMILIES | TOOL_FAMILIES).items()},
    "weights": (check_weights, (WeightFile,)),
}
LONGEST_CASE_S = 10
_MOST_SHOWN = 20


class Hang(Exception):
    """A case took too long."""


def fuzz(family: str, seconds: float, seed: int, most_cases: int | None = None) -> dict[str, Any]:
    """Run cases of one family until the time is over; the figures as a dictionary."""
    faults: Counter[str] = Counter()
    started, num_cases, longest_s = time.monotonic(), 0, 0.0
    with TemporaryDirectory() as home:
        check, makers = FAMILIES[family]
        cases = [make(_new_folder(Path(home), str(number))) for number, make in enumerate(makers)]
        while time.monotonic() - started < seconds and num_cases != most_cases:
            case_seed, case_started = seed + num_cases, time.monotonic()
            signal.alarm(LONGEST_CASE_S)
            try:
                check(cases[case_seed % len(cases)], Random(case_seed))
            except Exception as error:
                _describe(error, family, case_seed, faults)
            finally:
                signal.alarm(0)
            longest_s = max(longest_s, time.monotonic() - case_started)
            num_cases += 1
    minutes = (time.monotonic() - started) / 60
    return {
        "family": family,
        "seed": seed,
        "cases": num_cases,
        "minutes": round(minutes, 2),
        "longest_case_s": round(longest_s, 2),
        "faults": sum(faults.values()),
        "kinds_of_fault": dict(faults),
    }


def _new_folder(home: Path, name: str) -> Path:
    folder = home / name
    folder.mkdir()
    return folder


def _describe(error: Exception, family: str, seed: int, faults: Counter[str]) -> None:
    place = traceback.extract_tb(error.__traceback__)[-1]
    kind = f"{type(error).__name__} in {Path(place.filename).name}:{place.lineno}"
    faults[kind] += 1
    if faults[kind] == 1 and len(faults) <= _MOST_SHOWN:
        print(f"--- {family}, seed {seed}: {kind}", file=sys.stderr)
        traceback.print_exception(error, limit=-6)


def _hang(_number: int, _frame: FrameType | None) -> None:
    raise Hang(f"longer than {LONGEST_CASE_S} s")


def main() -> None:
    """Parse, run, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=5.0, help="for each family")
    parser.add_argument("--seed", type=int, default=0, help="of the first case; the next one's is one more")
    parser.add_argument("--cases", type=int, help="stop after so many")
    parser.add_argument("--family", choices=[*FAMILIES, "all"], default="all")
    wanted = parser.parse_args()
    signal.signal(signal.SIGALRM, _hang)
    families = list(FAMILIES) if wanted.family == "all" else [wanted.family]
    results = [fuzz(family, wanted.minutes * 60, wanted.seed, wanted.cases) for family in families]
    print(json.dumps({"families": results, "faults": sum(result["faults"] for result in results)}))
    sys.exit(any(result["faults"] for result in results))


if __name__ == "__main__":
    main()
