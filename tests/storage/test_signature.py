"""Manifests that the gate signs, with keys that openssl made."""

import subprocess
import sys
from base64 import b64decode
from pathlib import Path

import pytest

from chatmetrics.components.errors import InputError, StorageError
from chatmetrics.components.storage.manifest import check_signed, manifest_bytes, publish, sign_manifest, stage
from chatmetrics.components.storage.signature import sign, verify
from tests.storage.keys import key_pair, run

MANIFEST = b'{"name": "hotel"}'


@pytest.fixture
def keys(tmp_path: Path) -> tuple[str, str]:
    return key_pair(tmp_path / "keys")


def test_a_signature_is_of_one_manifest_by_one_key(keys: tuple[str, str], tmp_path: Path) -> None:
    private, public = keys
    signature = sign(MANIFEST, private, "KEY")
    verify(MANIFEST, signature, public, "m")
    for manifest, given, key in (
        (MANIFEST + b" ", signature, public),
        (MANIFEST, signature, key_pair(tmp_path / "other")[1]),
        (MANIFEST, sign(b"other", private, "KEY"), public),
        *((MANIFEST, damaged, public) for damaged in (b"", b"x", signature[:-4], signature + b"AAAA", b"\xff")),
    ):
        with pytest.raises(StorageError, match=r"^m is not signed with the key of manifestKey"):
            verify(manifest, given, key, "m")


def test_openssl_verifies_a_signature(keys: tuple[str, str], tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_bytes(MANIFEST)
    (tmp_path / "signature").write_bytes(b64decode(sign(MANIFEST, keys[0], "KEY")))
    (tmp_path / "public.der").write_bytes(b64decode(keys[1]))
    key = ["-pubin", "-keyform", "DER", "-inkey", str(tmp_path / "public.der")]
    files = ["-rawin", "-in", str(tmp_path / "manifest.json"), "-sigfile", str(tmp_path / "signature")]
    assert b"Verified Successfully" in run(["openssl", "pkeyutl", "-verify", *key, *files])


def test_a_key_that_cannot_be_used_is_named_but_a_private_one_is_not_shown(
    keys: tuple[str, str], tmp_path: Path
) -> None:
    private, public = keys
    rsa_private, rsa_public = key_pair(tmp_path / "rsa", "RSA")
    for bad in ("", "x", "a-b", public, rsa_private, private[:-4], "-----BEGIN PRIVATE KEY-----"):
        with pytest.raises(InputError, match=r"^KEY: not a private Ed25519 key") as caught:
            sign(MANIFEST, bad, "KEY")
        assert private[:-4] not in str(caught.value)
    for bad in ("x", private, rsa_public, public[:-4]):
        with pytest.raises(InputError, match=r"^manifestKey: not a public Ed25519 key"):
            verify(MANIFEST, sign(MANIFEST, private, "KEY"), bad, "m")


@pytest.mark.parametrize("store", ["folder", "bucket"])
def test_a_published_model_is_signed_next_to_its_manifest(
    store: str, keys: tuple[str, str], tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    models = str(tmp_path / "models") if store == "folder" else f"s3://{request.getfixturevalue('bucket')}/models"
    (tmp_path / "hotel.gguf").write_bytes(b"weights")
    uri = publish(stage(models, "hotel", "1", [tmp_path / "hotel.gguf"], {}))
    folder = uri.removesuffix("/manifest.json")
    for place in (uri, folder):
        with pytest.raises(StorageError, match=r"is not signed: .*hotel/1/manifest\.sig does not exist"):
            check_signed(place, "", keys[1])
    sign_manifest(uri, manifest_bytes(uri), keys[0], "KEY")
    sign_manifest(uri, manifest_bytes(uri), keys[0], "KEY")  # a repeated gate
    for place in (uri, folder):
        check_signed(place, "", keys[1])
    with pytest.raises(StorageError, match="is not the manifest that passed the gate"):
        check_signed(uri, "0" * 64, keys[1])


def test_without_a_key_cryptography_is_not_imported() -> None:
    code = "import sys, chatmetrics.components.serve.volume.fetch; sys.exit('cryptography' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
