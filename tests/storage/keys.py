"""Key pairs made by the commands of docs/deploy.md."""

import subprocess
from base64 import b64encode
from pathlib import Path


def key_pair(folder: Path, algorithm: str = "ed25519") -> tuple[str, str]:
    """A private and a public key, as CHATMETRICS_SIGNING_KEY and the chart's manifestKey have them."""
    folder.mkdir(parents=True, exist_ok=True)
    private = folder / "signing.der"
    run(["openssl", "genpkey", "-algorithm", algorithm, "-outform", "DER", "-out", str(private)])
    public = run(["openssl", "pkey", "-inform", "DER", "-in", str(private), "-pubout", "-outform", "DER"])
    return b64encode(private.read_bytes()).decode(), b64encode(public).decode()


def run(command: list[str]) -> bytes:
    return subprocess.run(command, check=True, capture_output=True).stdout
