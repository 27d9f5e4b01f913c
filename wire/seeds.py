"""Keys of all randomness, derived on both sides, so that work repeated after a crash gives the same bytes.

    key = first 8 bytes, little-endian, of SHA-256(purpose | federation | 0 | device | 0 | round u32 | attempt u16)

Names are UTF-8, integers little-endian. Each (purpose, federation, device, round, attempt) has its own key: one shared key would
make the devices' rounding errors equal, and the average would no longer remove them. Within an update, what tells one tensor's
random numbers from another's is the coordinate's place in the coded vector: it is part of Philox's counter, beside a stream number (0)
and the kernel's purpose (native/src/codecs/philox.inc.h).

The ring codec's rotation is shared by intent, since only equal rotations can be added; its key has an empty device and attempt 0.
The rounding in it is each device's own.
"""

import hashlib
import struct
from dataclasses import dataclass
from typing import Literal

Purpose = Literal["fl1-seed", "fl1-codec", "fl1-ring"]  # order of the samples; quantizers; the ring's shared rotation


@dataclass(frozen=True, slots=True)
class Keys:
    """What a codec draws from: `own` is nobody else's, `shared` is the round's."""

    own: int
    shared: int


def derive(purpose: Purpose, federation: str, device: str, round_: int, attempt: int) -> int:
    """The 64-bit key for one purpose in one attempt."""
    text = purpose.encode() + federation.encode() + b"\0" + device.encode() + b"\0"
    return int.from_bytes(hashlib.sha256(text + struct.pack("<IH", round_, attempt)).digest()[:8], "little")


def codec_keys(federation: str, device: str, round_: int, attempt: int) -> Keys:
    """The keys under which a device codes an attempt's update, and the aggregator decodes it."""
    return Keys(derive("fl1-codec", federation, device, round_, attempt), derive("fl1-ring", federation, "", round_, 0))
