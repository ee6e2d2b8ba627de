"""Set before any test: plots without a window, and property tests that draw the same examples every time."""

import matplotlib
from hypothesis import settings

matplotlib.use("Agg")
settings.register_profile("repeatable", derandomize=True, deadline=None, max_examples=30)
settings.load_profile("repeatable")
