"""What a device remembers over a restart, beside its head, its update and what it carries: `state.json`."""

import random

import msgspec

from fleetgrad.edge.events import Effect, Log
from fleetgrad.wire.files import Files, put

MEMORY = "state.json"
FIRST_NEW_BOOT = 1 << 32  # above any boot that was counted from 1


class Memory(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """`ended` says that (round, attempt) needs nothing more of us."""

    boot: int = 0
    round: int = 0
    attempt: int = 0
    ended: bool = True

    def save(self, files: Files) -> None:
        put(files, MEMORY, msgspec.json.encode(self))


def load(files: Files, random: random.Random) -> tuple[Memory, list[Effect]]:
    """The memory; a damaged one is set aside and begun anew."""
    try:
        return msgspec.json.decode(files.read(MEMORY), type=Memory), []
    except FileNotFoundError:
        return Memory(), []
    except (msgspec.MsgspecError, UnicodeDecodeError) as e:
        files.rename(MEMORY, f"{MEMORY}.bad")
        # The aggregator drops births whose boot is older than the last it saw: this one has to be above.
        boot = FIRST_NEW_BOOT + random.getrandbits(48)
        return Memory(boot=boot), [Log("memory_quarantined", {"reason": str(e)})]
