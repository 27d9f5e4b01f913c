"""`fleetgrad registrar serve`: the registrar on the broker. It tells the aggregator who belongs (retained, signed), and answers boards
that enrol and members that renew. All it knows is in the register: the commands beside it work on the same.
"""

import os
import time
from pathlib import Path

from fleetgrad.broker.registrar import enrolling, recovery, renewing
from fleetgrad.broker.registrar.registrar import Registrar, RegistrarError
from fleetgrad.wire.events import Connected, Message
from fleetgrad.wire.files import lock
from fleetgrad.wire.log import Sparing, log
from fleetgrad.wire.loop import Loop, Stop
from fleetgrad.wire.pace import Pace
from fleetgrad.wire.signing import Untrusted
from fleetgrad.wire.topics import Topics

LOOK_SECONDS = 5.0  # how often the register is read for what the commands have changed
SETTLE_SECONDS = 2.0  # after connecting, to hear what is retained before it is said anew
MEMBERS_PER_SECOND, MEMBERS_AT_ONCE = 0.2, 5.0  # asks of one member, which may repeat one every half minute
ASKS_PER_SECOND, ASKS_AT_ONCE = 20.0, 100.0  # of boards that enrol, and of members: strangers can't use up the latter's
FAULTS = (Untrusted, ValueError, OSError)  # of an ask or of this machine; the next one may be better


class Server:
    """One registrar's connection, and which statements it has published on it."""

    def __init__(self, directory: Path, *, insecure: bool, timeout: float) -> None:
        self._registrar = Registrar(directory)
        try:
            self._lock = lock(self._registrar.folder / "lock")
        except BlockingIOError:
            raise RegistrarError(
                f"registrar {self._registrar.folder}: another 'fleetgrad registrar serve' is running on this folder"
            ) from None
        broker = self._registrar.settings.broker.endpoint(self._registrar.folder, insecure=insecure)
        self._address = broker.address
        self._topics = Topics(self._registrar.federation)
        self._loop = Loop(
            broker, self._registrar.key.client_id(f"registrar-{self._registrar.federation}"), timeout, log
        )
        self._session = self._loop.session
        self._told: dict[str, bytes] = {}
        self._due: set[str] = set()
        self._asks = {kind: Pace(ASKS_PER_SECOND, ASKS_AT_ONCE) for kind in ("enrol", "renew")}
        self._members: dict[str, Pace] = {}
        self._fault = ""
        self._sparing = Sparing()
        self._look_at = self._settled_at = 0.0

    def run(self) -> int:
        """Serves until stopped; the exit code."""
        log("registrar_started", broker=self._address, pid=os.getpid())
        try:
            for name in recovery.retell(self._registrar):
                log("member_adopted", device=name)
        except FAULTS as e:
            self._say_fault(e)
        try:
            return self._loop.run(self._serve)
        finally:
            self._lock.close()

    def _serve(self) -> int:
        while True:
            item = self._loop.next(self._look_at)
            now = time.monotonic()
            match item:
                case Stop(code):
                    log("registrar_stopped")
                    return code
                case Connected():
                    self._told.clear()
                    self._due.clear()
                    self._session.subscribe([self._topics.every(row) for row in ("enrol", "renew", "member")])
                    self._look_at = self._settled_at = now + SETTLE_SECONDS
                case Message():
                    self._on_message(item, now)
            if now >= self._look_at and self._loop.connected:
                try:
                    self._look()
                    self._fault = ""
                except FAULTS as e:  # the register is busy or damaged, the clock is wrong
                    self._say_fault(e)
            if now >= self._look_at:
                self._look_at = now + LOOK_SECONDS

    def _may_ask(self, device: str, now: float) -> bool:
        """Whether a member isn't taking the others' turns."""
        if device not in self._members:
            if self._registrar.register.device(device) is None:
                return False
            self._members[device] = Pace(MEMBERS_PER_SECOND, MEMBERS_AT_ONCE)
        return self._members[device].take(1, now)

    def _say_fault(self, error: BaseException) -> None:
        if self._fault != (said := str(error)):
            self._fault = said
            log("registrar_failed", reason=said)

    def _on_message(self, message: Message, now: float) -> None:
        kind, last = self._topics.parts(message.topic)
        try:
            if kind == "reg":
                if recovery.adopt(self._registrar, last, message.payload):
                    log("member_adopted", device=last)
                return
            if kind == "enrol" and self._registrar.register.code(last) is None:
                return  # whoever makes ids up uses nobody's turn
            if kind == "renew" and not self._may_ask(last, now):
                return
            if kind not in self._asks or not self._asks[kind].take(1, now):
                return
            if kind == "enrol":
                raw = enrolling.answer(self._registrar, last, message.payload)
                self._session.publish(self._topics.enrolled(last), raw)
            elif kind == "renew":
                issued = renewing.answer(self._registrar, last, message.payload)
                if issued is not None:
                    self._session.publish(self._topics.issued(last), issued, retain=True)
        except FAULTS as e:
            self._sparing("ask_dropped", topic=message.topic, reason=str(e))
        self._look_at = max(now, self._settled_at)  # a statement may have changed

    def _look(self) -> None:
        """Publishes the statements that aren't on the broker yet, and tells who must renew."""
        for device in self._registrar.register.devices():
            if self._told.get(device.name) == device.statement:
                continue
            if not self._session.publish(self._topics.member(device.name), device.statement, retain=True):
                return  # the rest follows at the next look
            if self._told:
                log("member_published", device=device.name, serial=device.serial, revoked=device.revoked)
            self._told[device.name] = device.statement
        due = renewing.due(self._registrar)
        self._due &= due
        for name in sorted(due - self._due):
            if not self._session.publish(
                self._topics.issued(name), renewing.notice(self._registrar, name), retain=True
            ):
                return
            log("renewal_due", device=name)
            self._due.add(name)


def serve(directory: Path, *, insecure: bool = False, timeout: float = 0.0) -> int:
    """Runs a registrar until SIGTERM or SIGINT; returns the exit code. Raises ValueError where its folder doesn't let it begin, DiskError
    where the disk doesn't."""
    return Server(directory, insecure=insecure, timeout=timeout).run()
