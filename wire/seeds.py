"""Seeds of a device's own randomness, so that work repeated after a crash gives the same bytes.

    seed = first 8 bytes, little-endian, of SHA-256(label | federation | 0 | device | 0 | round u32 | attempt u16)

Names are UTF-8, integers little-endian. Each device and attempt has its own: one shared seed would make the devices'
rounding errors equal, and the average would no longer remove them.
"""

import hashlib
import struct
from typing import Literal

Purpose = Literal["fl1-seed", "fl1-codec"]  # the order of the samples, and the quantizer's rounding


def derive(purpose: Purpose, federation: str, device: str, round_: int, attempt: int) -> int:
    """The 64-bit seed for one purpose in one attempt."""
    text = purpose.encode() + federation.encode() + b"\0" + device.encode() + b"\0"
    return int.from_bytes(hashlib.sha256(text + struct.pack("<IH", round_, attempt)).digest()[:8], "little")
