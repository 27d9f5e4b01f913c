"""A board that loses its next identity in the middle of a renewal asks for another by the one before, and the registrar takes it until
the next has signed alone."""

import os
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from fleetgrad.broker.registrar import renewing as registrar_side
from fleetgrad.broker.registrar.registrar import Registrar
from fleetgrad.edge.renewing import NEXT, NEXT_IDENTITY, Renewing, Step
from fleetgrad.wire import kit as kits
from fleetgrad.wire.kit import IDENTITY
from fleetgrad.wire.signing import Untrusted, load_private_key
from tests.broker.registrars import make_registrar

BEGIN, DAY = 1_800_000_000.0, 86400.0


class Cut(BaseException):
    """The power is gone."""


class Time:
    """What clocks show, in Unix seconds."""

    now = BEGIN


class Pair:
    """A board, its registrar, and a broker that keeps the last of what the registrar says."""

    def __init__(self, registrar: Registrar, folder: Path, time: Time) -> None:
        self.registrar, self.folder, self.device, self.time = registrar, folder, folder.name, time
        time.now = BEGIN
        kits.install(registrar.add(self.device), folder)
        self.issued: bytes | None = None
        self.events: list[str] = []
        self.answering = False
        self.start()
        self.connect()
        self.events.clear()
        time.now += 61 * DAY

    def start(self) -> None:
        self.key = load_private_key(self.folder / IDENTITY)
        made = Renewing.of(self.folder, self.key, self.folder / kits.REGISTRAR, random.Random(1), lambda: self.time.now)
        assert made is not None
        self.renewing = made

    def note(self, step: Step) -> Step:
        self.events += [step.event] if step.event else []
        return step

    def ask(self, step: Step) -> None:
        """What the board sends reaches the registrar."""
        if step.ask is not None:
            self.answering = True
            try:
                self.issued = registrar_side.answer(self.registrar, self.device, step.ask) or self.issued
            finally:
                self.answering = False

    def connect(self) -> None:
        """A connection on which all that is said arrives, the retained first."""
        step = self.note(self.renewing.connected(0.0))
        self.hear()
        try:
            self.ask(step)
        except Untrusted as e:
            self.events.append(f"dropped: {e}")
        for _ in range(3):
            self.hear()
            self.ask(self.note(self.renewing.tick(0.0)))

    def hear(self) -> None:
        device = self.registrar.register.device(self.device)
        assert device is not None
        if self.issued:
            self.note(self.renewing.take(self.issued))
        self.note(self.renewing.take_member(device.statement))

    def agreed(self) -> bool:
        device = self.registrar.register.device(self.device)
        assert device is not None
        return device.key == self.key.public.raw.hex() and not device.former


def remove(path: Path) -> None:
    path.unlink(missing_ok=True)


def spoil(path: Path) -> None:
    if path.exists():
        path.write_bytes(b"\x00" * 40)


@pytest.fixture
def pair(tmp_path: Path) -> Pair:
    time = Time()
    return Pair(make_registrar(tmp_path, lambda: time.now), tmp_path / "dev-1", time)


@pytest.mark.parametrize("lose", [remove, spoil])
@pytest.mark.parametrize("named", [False, True])
def test_a_lost_next_identity_is_replaced_whether_or_not_the_registrar_named_it(
    pair: Pair, lose: Callable[[Path], None], named: bool
) -> None:
    before = pair.key.public.raw
    step = pair.renewing.connected(0.0)
    if named:
        pair.ask(step)
    lose(pair.folder / NEXT_IDENTITY)
    pair.start()
    pair.connect()
    assert ("identity_lost" in pair.events) == named
    assert pair.agreed()
    assert (pair.key.public.raw != before) == named, "a request that names no next key renews the certificate alone"
    pair.time.now += 61 * DAY
    pair.connect()
    assert pair.agreed()
    assert pair.key.public.raw != before


@pytest.mark.parametrize("lose", [remove, spoil])
def test_a_certificate_whose_key_was_lost_before_it_came_is_followed_by_another_at_once(
    pair: Pair, lose: Callable[[Path], None]
) -> None:
    pair.ask(pair.renewing.connected(0.0))
    lose(pair.folder / NEXT)
    pair.start()
    pair.connect()
    assert pair.agreed()
    assert "certificate_renewed" in pair.events
    again = pair.renewing.connected(0.0).ask
    assert again is None, "nothing is due"


def test_the_same_loss_is_noticed_once_in_a_life_and_a_lost_answer_is_asked_for_again(pair: Pair) -> None:
    pair.ask(pair.renewing.connected(0.0))
    remove(pair.folder / NEXT_IDENTITY)
    pair.hear()
    pair.hear()
    assert pair.events.count("identity_lost") == 1
    first = pair.renewing.tick(0.0).ask
    assert first is not None
    again = pair.renewing.connected(0.0).ask
    assert again == first
    pair.ask(Step(again))
    pair.connect()
    assert pair.agreed()


def test_the_former_key_is_worth_nothing_once_the_next_has_signed(pair: Pair) -> None:
    old = (pair.folder / IDENTITY).read_bytes()
    pair.connect()
    assert pair.events == ["renewal_asked", "certificate_renewed", "identity_renewed"]
    assert pair.agreed()
    (pair.folder / IDENTITY).write_bytes(old)  # as from a backup of the card
    pair.start()
    step = pair.renewing.connected(0.0)
    with pytest.raises(Untrusted, match="signature"):
        pair.ask(step)
    pair.hear()
    assert pair.events[-1] == "identity_lost"
    with pytest.raises(Untrusted, match="signature"):
        pair.ask(pair.renewing.tick(0.0))


def test_a_power_cut_anywhere_that_takes_the_next_identity_with_it_locks_nobody_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every open, sync, rename and removal on the board is the last one once."""
    calls = {os: ("open", "fsync"), Path: ("replace", "unlink")}
    real = {(owner, name): getattr(owner, name) for owner, names in calls.items() for name in names}
    time, points = Time(), 0
    registrar = make_registrar(tmp_path, lambda: time.now)
    for cut in range(1000):
        pair, left = Pair(registrar, tmp_path / f"dev-{cut}", time), [cut]

        def counted(owner: object, name: str, left: list[int] = left, pair: Pair = pair) -> object:
            def call(*args: object, **keywords: object) -> object:
                if not pair.answering:
                    if left[0] == 0:
                        raise Cut
                    left[0] -= 1
                return real[owner, name](*args, **keywords)

            return call

        done = False
        with monkeypatch.context() as patched:
            for owner, name in real:
                patched.setattr(owner, name, counted(owner, name))
            try:
                pair.connect()
                done = True
            except Cut:
                points += 1
        remove(pair.folder / NEXT_IDENTITY)
        pair.start()
        pair.connect()
        pair.connect()
        assert pair.agreed(), pair.events
        if done:
            break
    assert points >= 10
