"""Settings of the tests of faults."""

from tests.cli.conftest import plots_of_one_pixel

__all__ = ["plots_of_one_pixel"]
