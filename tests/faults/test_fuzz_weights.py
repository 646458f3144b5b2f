"""Generated weight files: refused by name, or the detector that they describe."""

from __future__ import annotations

from pathlib import Path
from random import Random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from anchorite.errors import InputError
from anchorite.model import load_weights
from tests.faults.weight_fuzz import WeightFile, check_weights


@pytest.mark.slow
def test_generated_weight_files_are_loaded_or_refused_by_name(tmp_path: Path) -> None:
    case = WeightFile(tmp_path)

    @given(seed=st.integers(0, 2**63 - 1))
    @settings(max_examples=700, deadline=None, suppress_health_check=[HealthCheck.too_slow])
    def check(seed: int) -> None:
        check_weights(case, Random(seed))

    check()


def test_the_generator_makes_files_of_both_kinds(tmp_path: Path) -> None:
    case, loaded = WeightFile(tmp_path), 0
    for seed in range(60):
        start, body = case.generate(Random(seed))
        case.file.write_bytes(start + body)
        case.check()
        try:
            load_weights(case.file)
            loaded += 1
        except InputError:
            continue
    assert 2 < loaded < 50
