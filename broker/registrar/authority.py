"""The fleet's certificate authority: X.509, EC P-256, for the broker (by host name), the federation's roles and its devices
(common name = device id). Certificates of devices are short and renew themselves; a list says which were revoked.

Clocks of boards may be behind: a certificate begins a day before it is made.
"""

import ipaddress
import re
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID

from fleetgrad.wire.certificates import (
    UNREADABLE,
    CertificateError,
    key_pem,
    load_certificate,
    load_key,
    new_key,
    subject,
)
from fleetgrad.wire.signing import save_private

CA_KEY, CA = "ca.key", "ca.pem"
CA_DAYS, SERVER_DAYS, ROLE_DAYS = 3650, 3650, 3650  # the operator's own machines; a device's are registrar.toml's
EARLIER = timedelta(days=1)
HOST = re.compile(r"[A-Za-z0-9_.-]{1,253}")


class Authority:
    """Signs for one fleet."""

    def __init__(self, certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> None:
        self.certificate, self._key = certificate, key

    @classmethod
    def create(cls, federation: str, now: datetime) -> "Authority":
        """A new CA, self-signed."""
        key = new_key()
        name = subject(f"fleetgrad CA of {federation}"[:64])
        usage = x509.KeyUsage(
            digital_signature=False, content_commitment=False, key_encipherment=False, data_encipherment=False,
            key_agreement=False, key_cert_sign=True, crl_sign=True, encipher_only=False, decipher_only=False,
        )  # fmt: skip
        builder = (
            _builder(name, name, key.public_key(), now, CA_DAYS)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(usage, critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        )
        return cls(builder.sign(key, hashes.SHA256()), key)

    def save(self, folder: Path) -> None:
        """Writes ca.pem and, readable by its owner alone, ca.key."""
        save_private(key_pem(self._key).encode(), folder / CA_KEY)
        (folder / CA).write_text(self.pem)

    @classmethod
    def load(cls, folder: Path) -> "Authority":
        """The CA of a registrar's folder; raises CertificateError."""
        try:
            key = load_key((folder / CA_KEY).read_text(), str(folder / CA_KEY))
            return cls(load_certificate((folder / CA).read_text(), str(folder / CA)), key)
        except OSError as e:
            raise CertificateError(f"the fleet's CA: {e.strerror}: {e.filename}") from e

    @property
    def pem(self) -> str:
        return self.certificate.public_bytes(serialization.Encoding.PEM).decode()

    def server(self, hosts: list[str], key: ec.EllipticCurvePublicKey, now: datetime, days: int = SERVER_DAYS) -> str:
        """A broker's certificate in PEM for `hosts`, names or IP addresses; the first is its common name."""
        names: list[x509.GeneralName] = []
        for host in hosts:
            try:
                names.append(x509.IPAddress(ipaddress.ip_address(host)))
            except ValueError:
                if not HOST.fullmatch(host):
                    raise CertificateError(
                        f"host {host[:80]!r} refused: a name of letters a-z, digits, '-' and '.', or an address"
                    ) from None
                names.append(x509.DNSName(host))
        builder = _builder(subject(hosts[0]), self.certificate.subject, key, now, days)
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        return self._leaf(builder, key, ExtendedKeyUsageOID.SERVER_AUTH)

    def client(self, name: str, key: ec.EllipticCurvePublicKey, now: datetime, days: int) -> str:
        """A certificate in PEM by which `name`, a device or a role, logs in at the broker."""
        builder = _builder(subject(name), self.certificate.subject, key, now, days)
        return self._leaf(builder, key, ExtendedKeyUsageOID.CLIENT_AUTH)

    def _leaf(
        self, builder: x509.CertificateBuilder, key: ec.EllipticCurvePublicKey, use: x509.ObjectIdentifier
    ) -> str:
        issuer = x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key())
        made = (
            builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(x509.ExtendedKeyUsage([use]), critical=False)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
            .add_extension(issuer, critical=False)
            .sign(self._key, hashes.SHA256())
        )
        return made.public_bytes(serialization.Encoding.PEM).decode()

    def revoked(self, serials: list[int]) -> str:
        """The list of revoked certificates (CRL) in PEM, by their serial numbers; it holds as long as the CA does.

        A broker refuses everyone while its list is one of the future or out of date: so its dates don't hang on this machine's clock.
        """
        begins = self.certificate.not_valid_before_utc
        builder = (
            x509.CertificateRevocationListBuilder()
            .issuer_name(self.certificate.subject)
            .last_update(begins)
            .next_update(self.certificate.not_valid_after_utc)
        )
        for serial in serials:
            one = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(begins).build()
            builder = builder.add_revoked_certificate(one)
        return builder.sign(self._key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM).decode()


def request_key(pem: str, where: str) -> ec.EllipticCurvePublicKey:
    """The key of a certificate request whose signature holds; nothing else that it says is used. Raises CertificateError."""
    try:
        request = x509.load_pem_x509_csr(pem.encode())
        holds = request.is_signature_valid
        key = request.public_key()
    except UNREADABLE as e:
        raise CertificateError(f"{where} isn't a certificate request that can be used: {e}") from e
    if not holds or not isinstance(key, ec.EllipticCurvePublicKey) or key.curve.name != "secp256r1":
        raise CertificateError(f"{where}: a request signed by an EC P-256 key is needed")
    return key


def utc(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)


def _builder(
    name: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, now: datetime, days: int
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - EARLIER)
        .not_valid_after(now + timedelta(days=days))
    )
