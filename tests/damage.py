"""Harm to files, drawn by hypothesis, and how often: for every test that damages some."""

import os

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

EXAMPLES = int(os.environ.get("SUBSPACE_FUZZ", "60"))
fuzz = settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))


def damaged(data: st.DataObject, whole: bytes) -> bytes:
    """The same bytes after some harm, or by chance unharmed."""
    harmed = bytearray(whole)
    for _ in range(data.draw(st.integers(1, 3))):
        place, other = (data.draw(st.integers(0, len(harmed) - 1)) for _ in range(2))
        kind = data.draw(st.sampled_from(["flip", "byte", "cut", "swap", "insert", "end"]))
        if kind == "flip":
            harmed[place] ^= 1 << data.draw(st.integers(0, 7))
        elif kind == "byte":
            harmed[place] = data.draw(st.integers(0, 255))
        elif kind == "cut":
            del harmed[place : place + data.draw(st.integers(1, 64))]
        elif kind == "swap":
            harmed[place], harmed[other] = harmed[other], harmed[place]
        elif kind == "insert":
            harmed[place:place] = data.draw(st.binary(min_size=1, max_size=8))
        else:
            del harmed[max(place, 1) :]
        harmed = harmed or bytearray(b"0")
    return bytes(harmed)
