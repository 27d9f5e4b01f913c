"""A spool as it was before the store: its four files are read once, and removed when the store has them."""

import msgspec

from fleetgrad.edge.link import outbox, residual
from fleetgrad.edge.link.memory import Memory
from fleetgrad.edge.link.outbox import Record
from fleetgrad.edge.link.residual import Residual
from fleetgrad.edge.link.store import Put, Row, Store
from fleetgrad.wire.files import Files
from fleetgrad.wire.strict import MALFORMED

HEAD, MEMORY, UPDATE, CARRIED = "head.jws", "state.json", "update.json", "residual.json"


def adopt(files: Files, store: Store) -> bool:
    """Whether there was such a spool. Files that can't be read are left out: the device fetches, and is asked, again."""
    found = {name: files.read(name) for name in files.names("") if name in (HEAD, MEMORY, UPDATE, CARRIED)}
    if not found:
        return False
    rows: list[Row] = []
    if not store.load().rows:  # else they are left from a crash after the commit
        try:
            rows.append(msgspec.json.decode(found[MEMORY], type=Memory).row())
            if HEAD in found:
                rows.append(Put("head", "", found[HEAD]))
            if UPDATE in found:
                rows.append(outbox.row(msgspec.json.decode(found[UPDATE], type=Record)))
            if CARRIED in found:
                rows.append(residual.row(msgspec.json.decode(found[CARRIED], type=Residual)))
        except (KeyError, *MALFORMED):
            rows = [row for row in rows if isinstance(row, Put) and row.kind == "memory"]
        store.commit(rows)
    for name in found:
        files.unlink(name)
    return True
