"""Set before any test: plots without a window, property tests that draw the same examples every time; a browser."""

import os
from collections.abc import Callable

import matplotlib
import pytest
from hypothesis import settings

matplotlib.use("Agg")
settings.register_profile("repeatable", derandomize=True, deadline=None, max_examples=30)
settings.load_profile("repeatable")


@pytest.fixture(scope="session")
def missing() -> Callable[[str], None]:
    """Skip, or fail where everything has to be there."""
    return pytest.fail if os.environ.get("CI") == "true" else pytest.skip


@pytest.fixture(scope="session")
def chromium(missing: Callable[[str], None]) -> str:
    """Where Chromium is."""
    from subspace_lib.press.pages import find_browser

    executable = find_browser()
    if executable is None:
        missing("no Chromium on the PATH: install the package `chromium`")
    return executable
