"""Hypothesis for this suite: no deadline (machines differ), seeded by the commit's sample, more examples in a full run."""

import hashlib
import os

import hypothesis
import pytest

SAMPLE = os.environ.get("FLEETGRAD_SAMPLE", "none")

hypothesis.settings.register_profile(
    "wire", max_examples=2000 if SAMPLE == "full" else 100, deadline=None, database=None, print_blob=True
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Loads the profile and seeds each property from the sample: the same commit draws the same examples."""
    hypothesis.settings.load_profile("wire")
    seed = int.from_bytes(hashlib.sha256(SAMPLE.encode()).digest()[:4], "little")
    for item in items:
        if SAMPLE != "full" and isinstance(item, pytest.Function) and hypothesis.is_hypothesis_test(item.obj):
            hypothesis.seed(seed)(item.obj)
