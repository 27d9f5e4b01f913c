"""Keys and requests for TLS certificates (X.509, EC P-256), as a device makes them; broker/registrar/authority.py signs them.

A party's certificate and key lie in one PEM file, so that one rename replaces both: whatever a power cut leaves is a pair.
"""

from cryptography import x509
from cryptography.exceptions import InternalError, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

MAX_NAME = 64  # X.520's upper bound on a common name
UNREADABLE = (
    ValueError,
    TypeError,
    UnsupportedAlgorithm,
    InternalError,
    x509.InvalidVersion,
)  # what strangers' certificates and requests raise


class CertificateError(ValueError):
    """A certificate, a request or a key that can't be used; the message says why."""


def new_key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


def key_pem(key: ec.EllipticCurvePrivateKey) -> str:
    """PKCS #8 in PEM, not encrypted."""
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    ).decode()


def load_key(pem: str, where: str) -> ec.EllipticCurvePrivateKey:
    """The EC key in a PEM text; `where` names it in the error."""
    try:
        key = serialization.load_pem_private_key(pem.encode(), password=None)
    except UNREADABLE as e:
        raise CertificateError(f"{where} isn't an unencrypted private key in PEM: {e}") from e
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise CertificateError(f"{where} holds a {type(key).__name__}, an EC key is needed")
    return key


def subject(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name[:MAX_NAME])])


def new_request(key: ec.EllipticCurvePrivateKey, common_name: str) -> str:
    """A certificate request (PKCS #10) in PEM, which proves that its sender holds the key."""
    builder = x509.CertificateSigningRequestBuilder().subject_name(subject(common_name))
    return builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM).decode()


def load_certificate(pem: str, where: str) -> x509.Certificate:
    """The first certificate in a PEM text, whose key and names can be read; `where` names it in the error."""
    try:
        found = x509.load_pem_x509_certificate(pem.encode())
        found.public_key(), found.subject
    except UNREADABLE as e:
        raise CertificateError(f"{where} holds no certificate in PEM that can be used: {e}") from e
    return found


def common_name(certificate: x509.Certificate | x509.CertificateSigningRequest) -> str:
    found = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    return str(found[0].value) if found else ""


def pair(certificate: str, key: str, where: str) -> str:
    """Certificate and key as one PEM text; raises CertificateError unless they belong together."""
    loaded, private = load_certificate(certificate, where), load_key(key, where)
    if loaded.public_key() != private.public_key():
        raise CertificateError(f"{where}: the certificate isn't of this key")
    return certificate.rstrip("\n") + "\n" + key.rstrip("\n") + "\n"
