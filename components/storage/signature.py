"""Signatures of manifests: the gate signs what passed, and whoever serves it verifies.

Keys are Ed25519 keys, as Base64 of their DER form in one line, so that they fit into an environment variable and a
value of the chart. docs/deploy.md has the commands that make them.
"""

from base64 import b64decode, b64encode
from typing import TYPE_CHECKING

from chatmetrics.components.errors import InputError, StorageError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

SIGNATURE = "manifest.sig"  # next to the manifest
SIGNING_KEY = "CHATMETRICS_SIGNING_KEY"  # environment variable with the gate's private key


def sign(manifest: bytes, private_key: str, name: str) -> bytes:
    """Return the signature of a manifest, as the content of `manifest.sig`.

    Args:
        manifest: the manifest's bytes.
        private_key: the private key.
        name: where the key was read, for the error, which never shows it.

    Raises:
        InputError: the key cannot be used.
    """
    return b64encode(_private(private_key, name).sign(manifest))


def verify(manifest: bytes, signature: bytes, public_key: str, where: str) -> None:
    """Check a manifest's signature.

    Args:
        manifest: the manifest's bytes.
        signature: the content of `manifest.sig`.
        public_key: the public key.
        where: the manifest's location, for the error.

    Raises:
        InputError: the key cannot be used.
        StorageError: the signature is not one of this manifest by the key's owner.
    """
    from cryptography.exceptions import InvalidSignature

    key = _public(public_key)
    try:
        key.verify(b64decode(signature, validate=True), manifest)
    except (InvalidSignature, ValueError) as error:
        raise StorageError(
            f"{where} is not signed with the key of manifestKey; find out who changed it or {SIGNATURE}, and let the "
            "gate publish the model again"
        ) from error


def _private(text: str, name: str) -> "Ed25519PrivateKey":
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_der_private_key

    try:
        key = load_der_private_key(b64decode(text, validate=True), password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        key = None  # the error could show a part of the key
    if not isinstance(key, Ed25519PrivateKey):
        raise InputError(f"{name}: not a private Ed25519 key in Base64 of its DER form; see docs/deploy.md")
    return key


def _public(text: str) -> "Ed25519PublicKey":
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.hazmat.primitives.serialization import load_der_public_key

    try:
        key = load_der_public_key(b64decode(text, validate=True))
    except (ValueError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, Ed25519PublicKey):
        raise InputError(f"manifestKey: not a public Ed25519 key in Base64 of its DER form, but {text[:80]!r}")
    return key
