"""A device's certificate: renewed in time, and after a power cut anywhere there is a pair that works."""

import os
import random
import stat
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from fleetgrad.broker.registrar.authority import Authority, request_key
from fleetgrad.edge import renewing
from fleetgrad.edge.renewing import Renewing
from fleetgrad.wire import kit as kits
from fleetgrad.wire.certificates import key_pem, load_certificate, load_key, new_key, new_request
from fleetgrad.wire.kit import Kit
from fleetgrad.wire.membership import ISSUED, RENEWAL, Issued, Member, Renewal, sign_member, verify_renewal
from fleetgrad.wire.signing import PrivateKey, PublicKey, Untrusted, load_private_key, sign_message

NOW, DAY = 1_800_000_000.0, 86400.0
REGISTRAR, IDENTITY = PrivateKey.from_seed(b"r" * 32), PrivateKey.from_seed(b"i" * 32)
CA = Authority.create("fed", datetime.fromtimestamp(NOW, UTC))


class Board:
    """A device's folder, its clock, and a registrar that answers."""

    def __init__(self, root: Path) -> None:
        tls = new_key()
        certificate = CA.client("dev-1", tls.public_key(), datetime.fromtimestamp(NOW, UTC), 90)
        kit = Kit(
            federation="fed", url="mqtts://b.lan", device="dev-1", nonce="0" * 32, identity=IDENTITY.pem().decode(),
            certificate=certificate, key=key_pem(tls), ca=CA.pem, aggregator=REGISTRAR.public.pem().decode(),
            registrar=REGISTRAR.public.pem().decode(),
        )  # fmt: skip
        self.folder, self.now = root / "board", NOW
        kits.install(kit, self.folder)
        self.known = IDENTITY.public  # the device's key, as the registrar has it
        self.start()

    def start(self) -> None:
        self.key = load_private_key(self.folder / kits.IDENTITY)
        made = Renewing.of(self.folder, self.key, self.folder / kits.REGISTRAR, random.Random(1), lambda: self.now)
        assert made is not None
        self.renewing = made

    def asked(self) -> Renewal | None:
        """What the device asks on a new connection."""
        raw = self.renewing.connected(0.0).ask
        return None if raw is None else verify_renewal(self.known, raw)

    def statement(self, ask: Renewal) -> bytes:
        """The registrar's on the key that is asked for, which it knows from then on."""
        assert ask.identity
        self.known = PublicKey.from_hex(ask.identity)
        return sign_member(
            REGISTRAR, Member(federation="fed", device="dev-1", key=ask.identity, serial=ask.count + 1, not_after=0)
        )

    def answer(self, ask: Renewal, **fields: object) -> bytes:
        assert ask.request
        certificate = CA.client("dev-1", request_key(ask.request, "test"), datetime.fromtimestamp(self.now, UTC), 90)
        return issued(self.now, count=ask.count, certificate=certificate, **fields)

    def pair(self) -> datetime:
        """That certificate and key belong together; when the certificate ends."""
        text = (self.folder / kits.TLS).read_text()
        certificate = load_certificate(text, "tls.pem")
        assert certificate.public_key() == load_key(text, "tls.pem").public_key()
        return certificate.not_valid_after_utc


def issued(now: float, **fields: object) -> bytes:
    found = {"federation": "fed", "device": "dev-1", **fields}
    return sign_message(REGISTRAR, ISSUED, Issued(now=int(now), **found))  # type: ignore[arg-type]


@pytest.fixture
def board(tmp_path: Path) -> Board:
    return Board(tmp_path)


def test_a_device_says_where_it_is_and_asks_when_two_thirds_are_over(board: Board) -> None:
    first = board.asked()
    assert first is not None
    assert (first.request, first.count) == (None, 0)
    assert board.asked() is None  # said once in its life
    board.now += 60 * DAY + 3600
    ask = board.asked()
    assert ask is not None
    assert ask.request
    assert ask.count == 1
    board.start()  # a restart repeats the very same request
    again = board.asked()
    assert again is not None
    assert (again.request, again.count) == (ask.request, 1)
    step = board.renewing.take(board.answer(ask))
    assert (step.event, step.passed) == ("certificate_renewed", board.now)
    assert board.pair() == datetime.fromtimestamp(board.now + 90 * DAY, UTC)
    assert not (board.folder / renewing.NEXT).exists()
    assert stat.S_IMODE((board.folder / kits.TLS).stat().st_mode) == 0o600
    assert board.asked() is None
    assert board.renewing.take(board.answer(ask)).event == ""  # retained, it comes again


def test_a_board_without_a_clock_is_told_and_an_old_notice_says_nothing(board: Board) -> None:
    board.now = 0.0
    assert board.renewing.tick(0.0).ask is not None
    old = issued(NOW - 5 * DAY, due=True)
    assert board.renewing.take(old).event == ""
    told = board.renewing.take(issued(NOW + 61 * DAY, due=True))
    assert (told.event, told.passed) == ("renewal_due", NOW + 61 * DAY)
    raw = board.renewing.tick(1.0).ask
    assert raw is not None
    ask = verify_renewal(board.known, raw)
    assert ask.request
    board.now = NOW + 61 * DAY
    assert board.renewing.take(board.answer(ask)).event == "certificate_renewed"
    assert board.renewing.take(issued(NOW + 61 * DAY, due=True)).event == ""  # from before the renewal


def test_a_device_hears_that_it_was_revoked_by_the_registrar_alone(board: Board) -> None:
    member = Member(federation="fed", device="dev-1", key=board.known.raw.hex(), serial=1, not_after=0)
    revoked = Member(federation="fed", device="dev-1", key="0" * 64, serial=2, not_after=0, revoked=True, reason="lost")
    assert board.renewing.take_member(sign_member(REGISTRAR, member)) == renewing.Step()
    step = board.renewing.take_member(sign_member(REGISTRAR, revoked))
    assert (step.event, step.reason, step.revoked) == ("revoked", "lost", True)
    forged = board.renewing.take_member(sign_member(IDENTITY, revoked))
    assert (forged.event, forged.revoked) == ("statement_dropped", False)


def test_the_next_identity_signs_once_the_registrar_names_it_and_the_old_until_then(board: Board) -> None:
    board.now += 61 * DAY
    raw = board.renewing.tick(0.0).ask
    assert raw is not None
    ask = verify_renewal(IDENTITY.public, raw)
    assert verify_renewal(PublicKey.from_hex(ask.identity or ""), raw) == ask  # a repeated one holds as well
    with pytest.raises(Untrusted, match="signature"):
        verify_renewal(PrivateKey.generate().public, raw)
    unproven = msgspec.structs.replace(ask, identity=PrivateKey.generate().public.raw.hex())
    with pytest.raises(Untrusted, match="2 must"):
        verify_renewal(IDENTITY.public, sign_message(IDENTITY, RENEWAL, unproven))
    board.renewing.take(board.answer(ask))
    assert board.key.public.raw == IDENTITY.public.raw
    old = Member(federation="fed", device="dev-1", key=IDENTITY.public.raw.hex(), serial=1, not_after=0)
    assert board.renewing.take_member(sign_member(REGISTRAR, old)) == renewing.Step()
    said = board.statement(ask)
    assert board.renewing.take_member(said).event == "identity_renewed"
    assert board.renewing.take_member(said) == renewing.Step()  # retained, it comes again
    assert board.key.public.raw.hex() == ask.identity
    assert stat.S_IMODE((board.folder / kits.IDENTITY).stat().st_mode) == 0o600
    assert not verify_renewal(board.known, board.renewing.leaving()).identity


def test_an_ask_is_repeated_ever_more_slowly(board: Board) -> None:
    board.now += 61 * DAY
    now, gaps = 0.0, []
    for _ in range(12):
        assert board.renewing.tick(now).ask is not None
        gaps.append(board.renewing.wake_at() - now)
        assert board.renewing.tick(now).ask is None
        now = board.renewing.wake_at()
    assert 30 <= gaps[0] <= 60
    assert gaps[-1] > 3600
    assert max(gaps) <= 6 * 3600


@pytest.mark.parametrize("what", ["signature", "device", "name", "key", "noise"])
def test_what_is_not_the_registrars_answer_to_this_board_changes_nothing(board: Board, what: str) -> None:
    board.now += 61 * DAY
    ask = board.asked()
    assert ask is not None
    before = (board.folder / kits.TLS).read_bytes()

    def named(name: str, key: ec.EllipticCurvePublicKey) -> bytes:
        return issued(NOW, certificate=CA.client(name, key, datetime.fromtimestamp(NOW, UTC), 90))

    due = Issued(federation="fed", device="dev-1", now=1, due=True)
    raw = {
        "signature": sign_message(IDENTITY, ISSUED, due),
        "device": board.answer(ask, device="dev-2"),
        "name": named("dev-2", request_key(ask.request or "", "test")),
        "key": named("dev-1", new_key().public_key()),
        "noise": b"noise",
    }[what]
    assert board.renewing.take(raw).event == "certificate_dropped"
    assert (board.folder / kits.TLS).read_bytes() == before


class Cut(BaseException):
    """The power is gone."""


def test_power_cut_anywhere_in_a_renewal_leaves_a_pair_that_works_and_the_renewal_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every open, sync, rename and removal is the last one once."""
    calls = {os: ("open", "fsync"), Path: ("replace", "unlink")}
    real = {(owner, name): getattr(owner, name) for owner, names in calls.items() for name in names}
    points = 0
    for cut in range(1000):
        left = [cut]

        def counted(owner: object, name: str, left: list[int] = left) -> object:
            def call(*args: object, **keywords: object) -> object:
                if left[0] == 0:
                    raise Cut
                left[0] -= 1
                return real[owner, name](*args, **keywords)

            return call

        (tmp_path / str(cut)).mkdir()
        board = Board(tmp_path / str(cut))
        board.now += 61 * DAY
        done = False
        with monkeypatch.context() as patched:
            for owner, name in real:
                patched.setattr(owner, name, counted(owner, name))
            try:
                ask = board.asked()
                assert ask is not None
                board.renewing.take(board.answer(ask))
                board.renewing.take_member(board.statement(ask))
                done = True
            except Cut:
                points += 1
        board.pair()
        board.start()
        if (ask := board.asked()) is not None and ask.request is not None:
            assert board.renewing.take(board.answer(ask)).event == "certificate_renewed"
        if (board.folder / renewing.NEXT_IDENTITY).exists():  # the statement is retained: it comes again
            assert ask is not None
            assert board.renewing.take_member(board.statement(ask)).event == "identity_renewed"
        assert board.pair() == datetime.fromtimestamp(board.now + 90 * DAY, UTC)
        assert board.key.public.raw == board.known.raw != IDENTITY.public.raw
        board.start()
        assert board.key.public.raw == board.known.raw
        board.now += 61 * DAY  # and the one after that
        ask = board.asked()
        assert ask is not None
        assert board.renewing.take(board.answer(ask)).event == "certificate_renewed"
        assert board.renewing.take_member(board.statement(ask)).event == "identity_renewed"
        if done:
            break
    assert points >= 10


def test_a_request_proves_its_key_and_noise_is_refused() -> None:
    assert request_key(new_request(new_key(), "x"), "test")
    with pytest.raises(ValueError, match="isn't a certificate request"):
        request_key("noise", "test")
