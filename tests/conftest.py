"""What holds for all tests: which examples properties are tried on, and which tests start first."""

import os

import pytest
from hypothesis import settings
from tests.examples import declare_profiles

declare_profiles()
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "fast"))


@pytest.hookimpl(trylast=True)  # after the shuffle
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Start what has a time limit of its own first: nobody waits in the end for the one long test that came last."""
    items.sort(key=lambda item: item.get_closest_marker("timeout") is None)
