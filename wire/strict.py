"""What every message, settings file and record on disk is made of: structs that refuse unknown fields, and what reading one may raise."""

import msgspec

MALFORMED = (msgspec.MsgspecError, UnicodeDecodeError)  # msgspec lets the latter through on a string that isn't UTF-8


class Strict(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, rename="kebab"):
    """A struct whose fields are written with '-' for '_'; what isn't a field, or isn't of a field's type, is refused."""
