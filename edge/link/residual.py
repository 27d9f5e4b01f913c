"""What error feedback carries from one update to the next, on disk: a row of the store names it, its floats lie in `residuals/`.

An update's own residual is written before the update's record (outbox.py), which names it: the record's commit makes both exist at once.
It waits there until the update's fate is known; then, in the transaction that removes the record, it becomes what is carried:

    published with the update accepted        the update's residual
    late, stale, refused, abandoned           the whole of what wasn't delivered: the update's residual and its payload
    duplicate (another update was counted)    what was carried before: that one had this training in it

Files that no row names are swept away.
"""

import msgspec

from fleetgrad.edge.link.store import Drop, Held, Put, Row
from fleetgrad.wire.coding.spec import CodecSpec
from fleetgrad.wire.events import Log
from fleetgrad.wire.messages import Attempt, Round, Sha256
from fleetgrad.wire.seeds import Keys
from fleetgrad.wire.strict import Strict

CARRIED = "carried"
FOLDER = "residuals"


class Residual(Strict, frozen=True, kw_only=True):
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
    codec: CodecSpec
    keys: Keys
    undelivered: bool = False


def residual_name(round_: int, attempt: int) -> str:
    """File name of an attempt's residual."""
    return f"{FOLDER}/{round_}-{attempt}.f32"


def row(residual: Residual | None) -> Row:
    """Makes this what is carried, or nothing."""
    return Put(CARRIED, "", msgspec.json.encode(residual)) if residual else Drop(CARRIED, "")


def load(held: Held) -> tuple[Residual | None, list[Log]]:
    """What is carried. The floats are checked by whoever reads them."""
    found = held.all(CARRIED, Residual).get("")
    lost = held.lost(CARRIED)
    return found, [Log("residual_lost", {"reason": f"what is carried: {lost['']}"})] if lost else []
