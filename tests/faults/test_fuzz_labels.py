"""Some thousand generated label files, of which none may end in anything but a dataset or a refusal.

tests/faults/long_fuzz.py makes as many as one has time for.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from anchorite.data import open_dataset
from anchorite.errors import InputError
from tests.faults.label_fuzz import (
    BoxTable,
    CocoJson,
    Darknet,
    SourcesYaml,
    ViaFile,
    VocXml,
    YoloConfig,
    YoloLabels,
    check_case,
)
from tests.faults.tool_fuzz import CvatXml, LabelMeJson, LabelStudioJson


@pytest.mark.slow
@pytest.mark.parametrize(
    ("case_of", "num_cases"),
    [
        (partial(YoloLabels, num_files=25), 100),
        (partial(YoloLabels, num_files=25, num_points=2), 30),
        (YoloConfig, 300),
        (SourcesYaml, 300),
        (Darknet, 80),
        (CocoJson, 300),
        (partial(VocXml, num_files=30), 80),  # three cases of five are xmls
        (BoxTable, 120),
        (ViaFile, 120),
        (CvatXml, 100),
        (LabelStudioJson, 100),
        (LabelMeJson, 100),
    ],
    ids=[
        *("yolo rows", "yolo poses", "data.yaml", "sources", "darknet", "coco", "voc", "csv", "via"),
        *("cvat", "label studio", "labelme"),
    ],
)
def test_generated_label_files_are_read_or_refused_by_line(
    case_of: Callable[[Path], Any], num_cases: int, tmp_path: Path
) -> None:
    case = case_of(tmp_path)

    @given(seed=st.integers(0, 2**63 - 1))  # hypothesis reports the seed of a case that fails, and keeps it
    @settings(max_examples=num_cases, deadline=None, suppress_health_check=[HealthCheck.too_slow])
    def check(seed: int) -> None:
        check_case(case, Random(seed))

    check()


@pytest.mark.parametrize(
    "kind",
    [
        YoloLabels,
        YoloConfig,
        SourcesYaml,
        Darknet,
        CocoJson,
        VocXml,
        BoxTable,
        ViaFile,
        CvatXml,
        LabelStudioJson,
        LabelMeJson,
    ],
)
def test_the_generators_make_good_files_bad_ones_and_never_the_same_twice(kind: type, tmp_path: Path) -> None:
    case = kind(tmp_path)
    contents = [tuple(case.generate(Random(seed)).values()) for seed in range(300)]
    assert contents[:20] == [tuple(case.generate(Random(seed)).values()) for seed in range(20)]
    assert len(set(contents)) > 200
    refused = 0
    for seed in range(50):
        check_case(case, Random(seed))
        refused += _is_refused(tmp_path)
    assert 5 < refused < 45, "both outcomes must be common"


def _is_refused(folder: Path) -> bool:
    try:
        open_dataset(folder)
    except InputError:
        return True
    return False
