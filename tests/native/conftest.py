"""Runs a kernel's test once for each capability of this machine."""

from collections.abc import Iterator

import pytest

from fleetgrad.native import kernels


@pytest.fixture(params=kernels.capabilities())
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    before = kernels.capability()
    kernels.use_capability(request.param)
    yield request.param
    kernels.use_capability(before)
