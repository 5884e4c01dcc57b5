"""The SBOM of an image: the base's packages, Python's packages outside the locks, and programs of other projects."""

import hashlib
import json
import platform
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).parents[2] / "images" / "sbom.py"
LOCKED = {"name": "tomli_w", "version": "1.0", "bom-ref": "requirements-L1", "type": "library"}
DEBIAN = """\
Package: libc6
Status: install ok installed
Architecture: amd64
Multi-Arch: same
Source: glibc
Version: 2.36-9+deb12u14
Description: GNU C Library: Shared libraries
 Contains the standard libraries.
 .
 Version: not a field

Package: removed
Status: deinstall ok config-files
Architecture: amd64
Version: 1.0

Package: bsdutils
Status: hold ok installed
Architecture: amd64
Source: util-linux (2.38.1-5)
Version: 1:2.38.1-5~bpo1
"""
ALPINE = """\
C:Q1ZHbJTwXuIsG6sy2pmNGmCS0Ad1E=
P:musl
V:1.2.5-r9
A:x86_64
L:MIT
F:lib
R:ld-musl-x86_64.so.1

P:busybox
V:1.37.0-r12
A:x86_64
L:GPL-2.0-only
"""


def sbom(folder: Path, root: Path, *arguments: object) -> list[dict[str, Any]]:
    """Run the script as the build does, and return the components."""
    source, target = folder / "python.json", folder / "sbom.json"
    source.write_text(json.dumps({"bomFormat": "CycloneDX", "specVersion": "1.6", "components": [LOCKED]}))
    command = [sys.executable, "-I", SCRIPT, source, target, "--root", root, *arguments]
    subprocess.run([str(word) for word in command], check=True, capture_output=True, text=True)
    written = json.loads(target.read_bytes())
    assert written["bomFormat"] == "CycloneDX"
    references = [component["bom-ref"] for component in written["components"]]
    assert len(set(references)) == len(references)
    return list(written["components"])


def tree(root: Path, release: str, **files: str) -> Path:
    for path, text in {"etc/os-release": release, **files}.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text)
    return root


def by_kind(components: list[dict[str, Any]], kind: str) -> dict[str, dict[str, Any]]:
    return {part["name"]: part for part in components if part.get("purl", "").startswith(f"pkg:{kind}/")}


def licenses(component: dict[str, Any]) -> list[str]:
    return [entry["license"]["name"] for entry in component.get("licenses", [])]


DEBIAN_12 = 'PRETTY_NAME="Debian GNU/Linux 12 (bookworm)"\nVERSION_ID="12"\nID=debian\n'


def test_installed_packages_of_debian_are_listed(tmp_path: Path) -> None:
    files = {
        "var/lib/dpkg/status": DEBIAN,
        "usr/share/doc/libc6/copyright": "`/usr/share/common-licenses/LGPL-2.1'.\n/usr/share/common-licenses/GPL-2.\n",
        "usr/share/doc/bsdutils/copyright": "Format: https://www.debian.org/\n\nLicense: GPL-2+\n\nLicense: MIT\n",
    }
    components = sbom(tmp_path, tree(tmp_path / "root", DEBIAN_12, **files))
    packages = by_kind(components, "deb")
    assert set(packages) == {"libc6", "bsdutils"}
    assert packages["libc6"]["version"] == "2.36-9+deb12u14"
    purl = "pkg:deb/debian/libc6@2.36-9%2Bdeb12u14?arch=amd64&distro=debian-12&upstream=glibc"
    assert packages["libc6"]["purl"] == purl
    assert licenses(packages["libc6"]) == ["GPL-2", "LGPL-2.1"]
    assert packages["bsdutils"]["version"] == "1:2.38.1-5~bpo1"
    assert packages["bsdutils"]["purl"].endswith("&upstream=util-linux")
    assert licenses(packages["bsdutils"]) == ["GPL-2+", "MIT"]
    [system] = [part for part in components if part["type"] == "operating-system"]
    assert (system["name"], system["version"]) == ("debian", "12")


def test_packages_of_a_distroless_base_are_listed(tmp_path: Path) -> None:
    without_status = DEBIAN.replace("Status: install ok installed\n", "").partition("\n\n")[0] + "\n"
    files = {"var/lib/dpkg/status.d/libc6": without_status, "var/lib/dpkg/status.d/libc6.md5sums": "ab12  lib/x\n"}
    packages = by_kind(sbom(tmp_path, tree(tmp_path / "root", DEBIAN_12, **files)), "deb")
    assert [package["version"] for package in packages.values()] == ["2.36-9+deb12u14"]


def test_packages_of_alpine_are_listed(tmp_path: Path) -> None:
    release = 'NAME="Alpine Linux"\nID=alpine\nVERSION_ID=3.22.1\n'
    packages = by_kind(sbom(tmp_path, tree(tmp_path / "root", release, **{"lib/apk/db/installed": ALPINE})), "apk")
    assert {name: licenses(package) for name, package in packages.items()} == {
        "musl": ["MIT"],
        "busybox": ["GPL-2.0-only"],
    }
    assert packages["musl"]["purl"] == "pkg:apk/alpine/musl@1.2.5-r9?arch=x86_64&distro=alpine-3.22.1"


@pytest.mark.skipif(not shutil.which("dpkg-query"), reason="needs a Debian machine to compare with")
def test_a_real_systems_packages_are_those_that_dpkg_lists(tmp_path: Path) -> None:
    form = "${db:Status-Status} ${Package} ${Version} ${Architecture}\n"
    listed = subprocess.run(["dpkg-query", "-W", "-f", form], check=True, capture_output=True, text=True).stdout
    installed = {tuple(line.split()[1:]) for line in listed.splitlines() if line.startswith("installed ")}
    packages = [part for part in sbom(tmp_path, Path("/")) if part.get("purl", "").startswith("pkg:deb/")]
    found = {
        (part["name"], part["version"], part["purl"].partition("?arch=")[2].partition("&")[0]) for part in packages
    }
    assert found == installed


def test_python_and_its_packages_outside_the_locks_are_listed(tmp_path: Path) -> None:
    components = sbom(tmp_path, tree(tmp_path / "root", DEBIAN_12, **{"var/lib/dpkg/status": DEBIAN}))
    assert by_kind(components, "generic")["python"]["version"] == platform.python_version()
    assert "pytest" in by_kind(components, "pypi")  # this Python has it, and the lock does not
    assert components[0] == LOCKED


def test_programs_are_listed_with_their_sha256(tmp_path: Path) -> None:
    root = tree(tmp_path / "root", DEBIAN_12, **{"var/lib/dpkg/status": DEBIAN})
    program = tmp_path / "helm"
    program.write_bytes(b"a program")
    helm = by_kind(sbom(tmp_path, root, "--program", "pkg:github/helm/helm@v4.3.0", program), "github")["helm"]
    assert helm["version"] == "v4.3.0"
    assert helm["hashes"] == [{"alg": "SHA-256", "content": hashlib.sha256(b"a program").hexdigest()}]
    with pytest.raises(subprocess.CalledProcessError) as failed:
        sbom(tmp_path, root, "--program", "pkg:github/helm/helm@", program)
    assert f"{program}: does not print its version" in failed.value.stderr


def test_a_base_without_a_known_package_database_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(subprocess.CalledProcessError) as failed:
        sbom(tmp_path, tree(tmp_path / "root", "ID=rhel\n"))
    assert "has neither dpkg's nor apk's database" in failed.value.stderr
