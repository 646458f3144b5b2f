"""Ten thousand generated label files, of which none may end in anything but a dataset or a refusal."""

from __future__ import annotations

from pathlib import Path
from random import Random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from anchorite.data import open_dataset
from anchorite.errors import InputError
from tests.faults.label_fuzz import CocoJson, VocXml, YoloConfig, YoloLabels, check_case

SEEDS = st.integers(0, 2**63 - 1)


def fuzz(kind: type, folder: Path, num_cases: int) -> None:
    """Check cases of one kind, each named by its seed, which hypothesis reports and keeps for the next time."""
    case = kind(folder)

    @given(seed=SEEDS)
    @settings(max_examples=num_cases, deadline=None, suppress_health_check=[HealthCheck.too_slow])
    def check(seed: int) -> None:
        check_case(case, Random(seed))

    check()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "num_cases"),
    [(YoloLabels, 4500), (YoloConfig, 2500), (CocoJson, 1500), (VocXml, 1500)],
    ids=["yolo rows", "data.yaml", "coco", "voc"],
)
def test_generated_label_files_are_read_or_refused_by_line(kind: type, num_cases: int, tmp_path: Path) -> None:
    fuzz(kind, tmp_path, num_cases)


@pytest.mark.parametrize("kind", [YoloLabels, YoloConfig, CocoJson, VocXml])
def test_a_few_generated_label_files_are_read_or_refused_by_line(kind: type, tmp_path: Path) -> None:
    fuzz(kind, tmp_path, 60)


@pytest.mark.parametrize("kind", [YoloLabels, YoloConfig, CocoJson, VocXml])
def test_the_generators_make_good_files_bad_ones_and_never_the_same_twice(kind: type, tmp_path: Path) -> None:
    case = kind(tmp_path)
    contents = [case.generate(Random(seed)) for seed in range(300)]
    assert contents[:20] == [case.generate(Random(seed)) for seed in range(20)]
    assert len(set(contents)) > 200
    refused = 0
    for seed in range(100):
        content = case.generate(Random(seed))
        case.file.write_bytes(content)
        case.check(content)
        refused += _is_refused(tmp_path)
    assert 10 < refused < 90, "both outcomes must be common"


def _is_refused(folder: Path) -> bool:
    try:
        open_dataset(folder)
    except InputError:
        return True
    return False
