"""Settings of all tests."""

from __future__ import annotations

from hypothesis import settings

# A busy machine must not fail a property: speed is not what these tests are about.
settings.register_profile("anchorite", deadline=None)
settings.load_profile("anchorite")
