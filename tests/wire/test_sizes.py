"""Sizes as people write them: units, and what is no size or more than any machine has."""

import pytest

from fleetgrad.wire.sizes import parse_size


@pytest.mark.parametrize(
    ("text", "size"),
    [("400KB", 400_000), ("1.5MB", 1_500_000), ("1_000", 1000), ("2 GiB", 2 << 30), ("0", 0), ("8k", 8000)],
)
def test_a_size_has_a_unit_or_none(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "much", "1GBx", "-1", "1e6", "KB", "nan"])
def test_what_is_no_size_is_named(text: str) -> None:
    with pytest.raises(ValueError, match=f"'{text}': expected a size as 400KB"):
        parse_size(text)


@pytest.mark.parametrize("text", ["9" * 400, "9" * 400 + "GB", "100000000000GB"])
def test_a_size_that_no_number_of_json_holds_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="at most 9007199254740992 bytes"):
        parse_size(text)
