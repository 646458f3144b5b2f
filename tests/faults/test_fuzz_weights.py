"""Generated weight files: refused by name, or the detector that they describe."""

from __future__ import annotations

from pathlib import Path
from random import Random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.faults.weight_fuzz import WeightFile, check_weights


@pytest.mark.slow
def test_generated_weight_files_are_loaded_or_refused_by_name(tmp_path: Path) -> None:
    case = WeightFile(tmp_path)

    @given(seed=st.integers(0, 2**63 - 1))
    @settings(max_examples=250, deadline=None, suppress_health_check=[HealthCheck.too_slow])
    def check(seed: int) -> None:
        check_weights(case, Random(seed))

    check()


def test_the_generator_makes_files_of_both_kinds(tmp_path: Path) -> None:
    case = WeightFile(tmp_path)
    assert 1 < sum(check_weights(case, Random(seed)) for seed in range(40)) < 35
