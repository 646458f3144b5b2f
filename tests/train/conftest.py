"""Settings of the tests of training."""

from tests.cli.conftest import plots_of_one_pixel

__all__ = ["plots_of_one_pixel"]
