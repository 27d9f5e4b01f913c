"""What error feedback carries from one update to the next, on disk: `residual.json` names it, its floats lie in `residuals/`.

An update's own residual is written before the update's record (outbox.py), which names it: the record's rename makes both exist at once.
It waits there until the update's fate is known; then it becomes what is carried, by one rename of residual.json:

    published with the update accepted        the update's residual
    late, stale, refused, abandoned           the whole of what wasn't delivered: the update's residual and its payload
    duplicate (another update was counted)    what was carried before: that one had this training in it

What is carried is named by the payload it came from, so that a crash between two steps is seen and the rest of them done again.
"""

import msgspec

from fleetgrad.edge.events import Effect, Log
from fleetgrad.wire.coding.spec import CodecSpec
from fleetgrad.wire.files import Files, put
from fleetgrad.wire.messages import Attempt, Count, Round, Sha256
from fleetgrad.wire.seeds import Keys

LEDGER = "residual.json"
FOLDER = "residuals"


class Residual(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, rename="kebab"):
    """What an update left out: float32 in the file `name`; with `undelivered`, also what its payload says.

    `plan` is the only plan that it means anything for; codec and keys are those that the payload is read with.
    """

    plan: Sha256
    round: Round
    attempt: Attempt
    name: str
    sha256: Sha256
    payload_name: str
    payload: Sha256
    payload_size: Count
    codec: CodecSpec
    keys: Keys
    undelivered: bool = False


def residual_name(round_: int, attempt: int) -> str:
    """File name of an attempt's residual."""
    return f"{FOLDER}/{round_}-{attempt}.f32"


def carry(files: Files, residual: Residual) -> None:
    """Makes this what is carried."""
    put(files, LEDGER, msgspec.json.encode(residual))


def drop(files: Files) -> None:
    """Carries nothing from here on; durably, or a power cut would bring back what training has gone on without."""
    files.unlink(LEDGER)
    files.fsync_directory("")


def load(files: Files) -> tuple[Residual | None, list[Effect]]:
    """What is carried; a damaged ledger is set aside. The floats are checked by whoever reads them."""
    try:
        return msgspec.json.decode(files.read(LEDGER), type=Residual), []
    except FileNotFoundError:
        return None, []
    except (msgspec.MsgspecError, UnicodeDecodeError) as e:
        files.rename(LEDGER, f"{LEDGER}.bad")
        return None, [Log("residual_lost", {"reason": f"{LEDGER}: {e}"})]
