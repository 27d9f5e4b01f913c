"""TLS 1.3 to a broker: its certificate is always verified, and where there is a client certificate it is shown.

The time in certificates is checked here and not by OpenSSL, because boards without a battery start in 1970: `Floor` is
a time that has passed for certain, and a clock that is behind it isn't believed. Then only what had ended before the
floor has expired, and nothing is not yet valid.
"""

import contextlib
import ssl
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from cryptography import x509

from fleetgrad.wire.address import Address

BUILT = 1_767_225_600.0  # 2026-01-01, Unix seconds: this version is younger than that
NO_CHECK_TIME = 0x200000  # X509_V_FLAG_NO_CHECK_TIME of openssl/x509_vfy.h, which Python doesn't name
ADVICE = {  # by the alert of a broker that refuses a client's certificate
    "certificate expired": "a device needs a new kit, a role 'fleetgrad registrar login'; or the broker's clock is wrong",
    "bad certificate": "by the broker's clock it isn't valid yet: that is behind, or the registrar's was ahead; 'fleetgrad device add' makes a new kit then",
    "certificate revoked": "the registrar has revoked this device: a new kit, of another name, would let it in again",
    "unknown ca": "it was issued for another fleet",
}
UNKNOWN_ISSUER = (2, 18, 19, 20, 21)  # X509_V_ERR_*: no issuer's certificate, self-signed, first one unverifiable
WRONG_NAME = (62, 64)  # X509_V_ERR_HOSTNAME_MISMATCH, X509_V_ERR_IP_ADDRESS_MISMATCH
NO_TLS = ("WRONG_VERSION_NUMBER", "HTTP_REQUEST", "RECORD_LAYER_FAILURE", "UNEXPECTED_EOF_WHILE_READING")
TOO_OLD = ("UNSUPPORTED_PROTOCOL", "TLSV1_ALERT_PROTOCOL_VERSION", "NO_PROTOCOLS_AVAILABLE")


class CredentialsRefused(ValueError):
    """Certificates or a key that can't be used; the message names the file and says why."""


class CertificateRefused(OSError):
    """The broker's certificate isn't valid now; the message gives the times."""


@dataclass(frozen=True, slots=True)
class Credentials:
    """Paths of PEM files: who may have signed the broker's certificate (None: whom the system trusts), our own certificate, its key."""

    ca: Path | None = None
    certificate: Path | None = None
    key: Path | None = None


class Floor:
    """A time, in Unix seconds, that has passed: the latest of build time, our certificates' beginnings and what was saved."""

    def __init__(self, path: Path | None = None) -> None:
        self._path, self.time = path, BUILT
        if path:
            with contextlib.suppress(OSError, ValueError):
                self.time = max(self.time, float(path.read_text("ascii")))

    def raise_to(self, seconds: float) -> None:
        """Takes in a time that is proven to have passed; saved at most once a day, which spares an SD card."""
        if seconds > self.time:
            saved, self.time = self.time, seconds
            if self._path and seconds - saved >= 86400:
                with contextlib.suppress(OSError):  # without it the next start only knows less
                    temporary = self._path.with_suffix(".tmp")
                    temporary.write_text(f"{seconds:.0f}", "ascii")
                    temporary.replace(self._path)


def context(credentials: Credentials, floor: Floor | None = None) -> ssl.SSLContext:
    """A client's context: TLS 1.3 at least, chain and name verified; call `check_time` after the handshake. Raises CredentialsRefused."""
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    made.minimum_version = ssl.TLSVersion.TLSv1_3
    made.verify_flags |= ssl.VerifyFlags(NO_CHECK_TIME)
    if credentials.ca is None:
        made.load_default_certs()
    else:
        with _named(credentials.ca, "CA certificate"):
            made.load_verify_locations(credentials.ca)
    if credentials.certificate is None:
        if credentials.key:
            raise CredentialsRefused(f"key {credentials.key} is of no use without its certificate")
        return made
    with _named(credentials.certificate, "client certificate"):
        ours = x509.load_pem_x509_certificate(credentials.certificate.read_bytes())
    if credentials.key:
        with _named(credentials.key, "key"):
            credentials.key.open("rb").close()
    try:
        made.load_cert_chain(credentials.certificate, credentials.key, password=_no_password)
    except ssl.SSLError as e:
        if e.reason == "KEY_VALUES_MISMATCH":
            raise CredentialsRefused(
                f"key {credentials.key} isn't the one of certificate {credentials.certificate}"
            ) from e
        raise CredentialsRefused(
            f"key {credentials.key or credentials.certificate}: holds no private key that OpenSSL reads"
        ) from e
    if floor:
        floor.raise_to(ours.not_valid_before_utc.timestamp())
    return made


def check_time(socket: ssl.SSLSocket, credentials: Credentials, floor: Floor, now: float | None = None) -> None:
    """Raises CertificateRefused unless the peer's certificate and its issuer in `ca` are valid at `now`, Unix seconds."""
    raw = socket.getpeercert(binary_form=True)
    if raw is None:
        raise CertificateRefused("the broker showed no certificate")
    leaf = x509.load_der_x509_certificate(raw)
    chain = [leaf]
    if credentials.ca:
        chain += [c for c in x509.load_pem_x509_certificates(credentials.ca.read_bytes()) if c.subject == leaf.issuer]
    verify_times([leaf, *chain[1:2]], floor, time.time() if now is None else now)
    floor.raise_to(leaf.not_valid_before_utc.timestamp())


def verify_times(chain: list[x509.Certificate], floor: Floor, now: float) -> None:
    """Raises CertificateRefused if one has expired, or begins later than a clock says that may be believed."""
    believed = now >= floor.time
    for each in chain:
        begin, end = each.not_valid_before_utc.timestamp(), each.not_valid_after_utc.timestamp()
        if max(now, floor.time) > end:
            raise CertificateRefused(
                f"the broker's certificate ({_subject(each)}) expired on {_day(end)}"
                + (
                    f"; this machine's clock says {_day(now)}"
                    if believed
                    else f", and it is {_day(floor.time)} or later"
                )
            )
        if believed and now < begin:
            raise CertificateRefused(
                f"the broker's certificate ({_subject(each)}) isn't valid before {_day(begin)}, and this machine's clock says "
                f"{_day(now)}: is it right?"
            )


def explain(error: OSError, address: Address, credentials: Credentials) -> str:
    """A TLS fault in words, with what to do; other errors as the system says them."""
    ca = str(credentials.ca) if credentials.ca else "this system's CAs"
    if isinstance(error, ssl.SSLCertVerificationError):
        if error.verify_code in UNKNOWN_ISSUER:
            return f"the broker's certificate isn't signed by {ca}"
        if error.verify_code in WRONG_NAME:
            return f"the broker's certificate isn't for {address.host!r}: {error.verify_message}"
        return f"the broker's certificate is refused: {error.verify_message}"
    if isinstance(error, ssl.SSLError):
        reason = error.reason or str(error)
        if "CERTIFICATE_REQUIRED" in reason:
            return "the broker wants a client certificate: give certificate and key"
        if "ALERT" in reason and any(
            word in reason for word in ("CERTIFICATE", "UNKNOWN_CA", "ACCESS_DENIED", "DECRYPT_ERROR")
        ):
            said = reason.partition("ALERT_")[2].replace("_", " ").lower() or reason
            advice = f" ({ADVICE[said]})" if said in ADVICE else ""
            return (
                f"the broker refused the client certificate {credentials.certificate or '(none given)'}: {said}{advice}"
            )
        if any(word in reason for word in TOO_OLD):
            return "the broker doesn't speak TLS 1.3"
        if any(word in reason for word in NO_TLS):
            return f"no TLS is spoken on port {address.port}"
        return f"TLS: {reason.replace('_', ' ').lower()}"
    return error.strerror or str(error) or type(error).__name__


@contextlib.contextmanager
def _named(path: Path, what: str) -> Iterator[None]:
    try:
        yield
    except ssl.SSLError as e:
        raise CredentialsRefused(f"{what} {path}: holds no certificate in PEM") from e
    except OSError as e:
        raise CredentialsRefused(f"{what} {path}: {e.strerror}") from e
    except ValueError as e:
        raise CredentialsRefused(f"{what} {path}: no certificate in PEM") from e


def _no_password() -> str:
    raise CredentialsRefused("the key is encrypted: a daemon can't be asked for its pass phrase")


def _subject(certificate: x509.Certificate) -> str:
    return certificate.subject.rfc4514_string() or "no subject"


def _day(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M UTC")
