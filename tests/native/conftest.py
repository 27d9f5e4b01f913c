"""Runs a kernel's test once for each capability of this machine."""

from collections.abc import Iterator

import pytest

from fleetgrad.native import binding


@pytest.fixture(params=binding.capabilities())
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    before = binding.capability()
    binding.use_capability(request.param)
    yield request.param
    binding.use_capability(before)
