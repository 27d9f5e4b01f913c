"""A device's certificate and identity renew themselves: asked for at two thirds of its life, by a time that has passed for certain, or when the
registrar, which has a clock, says that it is due.

    tls.pem      certificate and key, replaced by one rename: after a power cut it is the old pair or the new one
    tls.next     the next key, on disk before its request leaves the board; a request that was lost is repeated with it
    device.key   the identity that signs updates; device.next takes its place, by one rename, when the registrar's statement names it:
    device.next  the next identity, which each request names; until then the old one signs, and the request is signed by both.
                 Where it is lost, another is asked for: the registrar takes the old one until it has heard the next alone

At each connection the device also says which board it is: a second one of the same kit is seen.
"""

import contextlib
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from msgspec import UNSET

from fleetgrad.wire.certificates import (
    CertificateError,
    common_name,
    key_pem,
    load_certificate,
    load_key,
    new_key,
    new_request,
    pair,
)
from fleetgrad.wire.files import PRIVATE, replace_file, sync
from fleetgrad.wire.kit import IDENTITY, TLS, Joined, joined
from fleetgrad.wire.membership import ISSUED, RENEWAL, Issued, Renewal, verify_member
from fleetgrad.wire.signing import (
    KeyRefused,
    PrivateKey,
    PublicKey,
    Untrusted,
    load_private_key,
    load_public_key,
    sign_by,
    verify_message,
)

NEXT, NEXT_IDENTITY, COUNT = "tls.next", "device.next", "renewal.json"
LIFE = 2 / 3
ASK_SECONDS = 60.0  # doubles up to the last
MOST_ASK_SECONDS = 6 * 3600.0


@dataclass(frozen=True, slots=True)
class Step:
    """What to publish on the device's `renew` topic, and what to say in the log."""

    ask: bytes | None = None
    event: str = ""
    reason: str = ""
    revoked: bool = False
    passed: float = 0.0  # a time that the registrar has signed, Unix seconds


class Renewing:
    """One device's; made by `of`, which gives None for a device that has no kit."""

    def __init__(
        self,
        folder: Path,
        joined: Joined,
        key: PrivateKey,
        registrar: PublicKey,
        dice: random.Random,
        passed: Callable[[], float],
    ) -> None:
        """`passed` gives a time, in Unix seconds, that has passed for certain. `key` becomes the next one when that holds."""
        self._folder = folder
        self._joined, self._key, self._registrar, self._dice, self._passed = joined, key, registrar, dice, passed
        self._due = self._told = False
        self._missing = ""  # the identity that the registrar names, and that isn't here
        self._ask_at, self._patience = 0.0, ASK_SECONDS

    @classmethod
    def of(
        cls, folder: Path, key: PrivateKey, registrar: Path, dice: random.Random, passed: Callable[[], float]
    ) -> "Renewing | None":
        """For the device in `folder`; None where it wasn't made by a kit. Raises KeyRefused, KitError."""
        held = joined(folder)
        return None if held is None else cls(folder, held, key, load_public_key(registrar), dice, passed)

    def connected(self, now: float) -> Step:
        """A new connection: the device says where it is, once in its life; a renewal under way is asked for again."""
        self._ask_at, self._patience = now, ASK_SECONDS
        return self.tick(now)

    def tick(self, now: float) -> Step:
        """What there is to do at `now`, monotonic seconds."""
        if now < self._ask_at:
            return Step()
        due = self._due or self._is_due()
        self._ask_at = now + self._dice.uniform(0.5, 1.0) * self._patience
        self._patience = min(self._patience * 2, MOST_ASK_SECONDS)
        if not due and self._told:
            return Step()
        try:
            request = self._request() if due else None
            self._told = True
            return Step(self._signed(request), "renewal_asked" if due else "")
        except OSError as e:
            return Step(event="renewal_failed", reason=str(e))

    def wake_at(self) -> float:
        """When `tick` is to be called next."""
        return self._ask_at

    def leaving(self) -> bytes:
        """The message by which a device ends its part."""
        return self._signed(None, leaves=True)

    def take(self, raw: bytes) -> Step:
        """The registrar's word."""
        try:
            said = verify_message(self._registrar, ISSUED, raw, Issued)
            if (said.federation, said.device) != (self._joined.federation, self._joined.device):
                raise Untrusted(f"certificate of {said.device} of {said.federation}")
            if said.certificate is None:
                return self._take_notice(said)
            return self._install(said.certificate, float(said.now))
        except (Untrusted, CertificateError) as e:
            return Step(event="certificate_dropped", reason=str(e))
        except OSError as e:
            return Step(event="renewal_failed", reason=str(e))

    def take_member(self, raw: bytes) -> Step:
        """The registrar's word on this device, which the aggregator has as well: `revoked` ends the device's part, a next identity that
        it names is the one that signs from then on, and for one that isn't here another is asked for."""
        try:
            said = verify_member(self._registrar, self._joined.federation, raw, self._joined.device)
        except Untrusted as e:
            return Step(event="statement_dropped", reason=str(e))
        if said.revoked:
            return Step(event="revoked", reason=said.reason, revoked=True)
        if said.key in (self._key.public.raw.hex(), self._missing):
            return Step()
        following = self._next_identity()
        try:
            if following is None or said.key != following.public.raw.hex():
                return self._ask_for_another(said.key)
            (self._folder / NEXT_IDENTITY).replace(self._folder / IDENTITY)
            self._key.become(following)
            sync(self._folder)
        except OSError as e:
            return Step(event="renewal_failed", reason=str(e))
        self._told, self._ask_at = False, 0.0  # signed by it, so that the one before is forgotten
        return Step(event="identity_renewed", reason=f"key {self._key.public.kid}")

    def _ask_for_another(self, missing: str) -> Step:
        """Under way again with new keys: the request that named the identity that is lost isn't repeated."""
        (self._folder / NEXT).unlink(missing_ok=True)
        self._missing, self._due, self._ask_at, self._patience = missing, True, 0.0, ASK_SECONDS
        return Step(
            event="identity_lost",
            reason=f"the registrar names key {PublicKey.from_hex(missing).kid}, which isn't on this board: another one is asked for; if no "
            "identity_renewed follows, the board needs a new kit",
        )

    def _take_notice(self, said: Issued) -> Step:
        """A retained notice may be from before the last renewal: then the certificate began after it."""
        begun = self._certificate()
        if not said.due or (begun is not None and begun.not_valid_before_utc.timestamp() + 86400 >= said.now):
            return Step(passed=float(said.now))
        if not self._due:
            self._due, self._ask_at, self._patience = True, 0.0, ASK_SECONDS
        return Step(event="renewal_due", passed=float(said.now))

    def _install(self, certificate: str, now: float) -> Step:
        if not (self._folder / NEXT).exists():
            return Step(passed=now)  # this one is in place already, or is of a key that isn't here
        key = (self._folder / NEXT).read_text()
        both = pair(certificate, key, "certificate from the registrar")
        made = load_certificate(certificate, "certificate from the registrar")
        if common_name(made) != self._joined.device:
            raise CertificateError(f"certificate from the registrar is for {common_name(made)[:64]!r}")
        replace_file(self._folder / TLS, both.encode(), PRIVATE)
        (self._folder / NEXT).unlink()
        self._due, self._patience = False, ASK_SECONDS
        until = made.not_valid_after_utc.strftime("%Y-%m-%d")
        return Step(event="certificate_renewed", reason=f"until {until}", passed=now)

    def _is_due(self) -> bool:
        held = self._certificate()
        if held is None:
            return False
        begin, end = held.not_valid_before_utc.timestamp(), held.not_valid_after_utc.timestamp()
        return self._passed() >= begin + LIFE * (end - begin)

    def _certificate(self) -> x509.Certificate | None:
        with contextlib.suppress(OSError, CertificateError, UnicodeDecodeError):
            return load_certificate((self._folder / TLS).read_text(), TLS)
        return None

    def _request(self) -> str:
        """A request by the next key, which is on disk before anybody hears of it. The same key makes another request each time:
        ECDSA draws, so the request is kept with the key."""
        path, held = self._folder / NEXT, self._certificate()
        if path.exists():
            text = path.read_text()
            with contextlib.suppress(CertificateError, ValueError):
                used = held is not None and load_key(text, NEXT).public_key() == held.public_key()
                if not used:  # else it is in tls.pem already, and what came after was cut short
                    return text[text.index("-----BEGIN CERTIFICATE REQUEST") :]
        key = new_key()
        request = new_request(key, self._joined.device)
        self._count(1)
        self._begin_identity()
        replace_file(self._folder / NEXT, (key_pem(key) + request).encode(), PRIVATE)
        return request

    def _begin_identity(self) -> None:
        """Draws the next identity, unless one waits already or the one that signs isn't in the kit's place."""
        with contextlib.suppress(KeyRefused):
            held = load_private_key(self._folder / IDENTITY)
            if held.public.raw == self._key.public.raw and self._next_identity() is None:
                replace_file(self._folder / NEXT_IDENTITY, PrivateKey.generate().pem(), PRIVATE)

    def _next_identity(self) -> PrivateKey | None:
        with contextlib.suppress(KeyRefused):
            return load_private_key(self._folder / NEXT_IDENTITY)
        return None

    def _signed(self, request: str | None, *, leaves: bool = False) -> bytes:
        following, held = self._next_identity(), self._certificate()
        ask = Renewal(
            federation=self._joined.federation, device=self._joined.device, instance=self._joined.instance,
            count=self._count(1 if leaves else 0), request=request, leaves=leaves,
            identity=following.public.raw.hex() if following else UNSET,
            until=int(held.not_valid_after_utc.timestamp()) if held else UNSET,
        )  # fmt: skip
        return sign_by([self._key, *([following] if following else [])], RENEWAL, ask)

    def _count(self, more: int) -> int:
        """How many requests this board has begun; kept on disk."""
        path = self._folder / COUNT
        try:
            held = int(path.read_text())
        except (OSError, ValueError):
            held = 0
        if more:
            held += more
            replace_file(path, str(held).encode(), PRIVATE)
        return held
