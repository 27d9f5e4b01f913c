"""Sizes of memory and files as people write them."""

import re

SUFFIXES = {"": 1, "B": 1, "KB": 1000, "MB": 1000**2, "GB": 1000**3, "KIB": 1024, "MIB": 1024**2, "GIB": 1024**3}
MOST_BYTES = 1 << 53  # a JSON number holds it exactly


def parse_size(text: str) -> int:
    """'400KB' as 400000; raises ValueError."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMG]?I?B?)", text.strip().upper().replace("_", ""))
    unit = found.group(2) if found else "?"
    factor = SUFFIXES.get(unit if unit.endswith("B") or not unit else unit + "B")
    if found is None or factor is None:
        raise ValueError(f"{text!r}: expected a size as 400KB, 1.5MB or 65536")
    size = float(found.group(1)) * factor
    if size > MOST_BYTES:
        raise ValueError(f"{text[:20]!r}: at most {MOST_BYTES} bytes are possible")
    return round(size)


def megabytes(count: float) -> str:
    """123456789 as '123.5 MB'."""
    return f"{count / 1e6:.1f} MB"
