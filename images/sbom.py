"""Adds to an SBOM of locked Python packages what else is in the image: packages of the operating system, Python,
packages of the base's Python, and programs of other projects.

Usage: python3 -I sbom.py IN OUT [--root FOLDER] [--program PURL FILE]...

IN and OUT are CycloneDX in JSON. It runs while an image is built, in the image's own base, so it needs the standard
library only. Package databases: dpkg's (deb-control(5), dpkg-query(1)), also as distroless images have it, and apk's
(https://wiki.alpinelinux.org/wiki/Apk_spec). Package URLs: https://github.com/package-url/purl-spec.
"""

import argparse
import hashlib
import json
import platform
import re
from collections.abc import Iterable, Iterator
from importlib.metadata import distributions
from pathlib import Path
from typing import Any
from urllib.parse import quote

Component = dict[str, Any]

COMMON_LICENSE = re.compile(r"/usr/share/common-licenses/([A-Za-z][\w.+-]*\w)")


def os_components(root: Path) -> Iterator[Component]:
    """Yield the operating system in the folder `root` and its packages, ordered by name.

    Raises:
        SystemExit: there is no package database that is known here.
    """
    release = root / "etc" / "os-release"
    facts = dict(re.findall(r"""(?m)^(\w+)=["']?([^"'\n]*)["']?$""", release.read_text("utf-8")))
    system, version = facts["ID"], facts.get("VERSION_ID", "")
    yield {"type": "operating-system", "bom-ref": f"{system}-{version}", "name": system, "version": version}
    packages = [*_dpkg(root, system, version), *_apk(root, system, version)]
    if not packages:
        raise SystemExit(f"{root}: has neither dpkg's nor apk's database, so its SBOM would lack its packages")
    yield from sorted(packages, key=lambda package: str(package["purl"]))


def python_components(known: Iterable[Component]) -> Iterator[Component]:
    """Yield Python, and those packages that it finds and that are not `known`: the base's, such as pip."""
    yield _component("application", f"pkg:generic/python@{platform.python_version()}")
    listed = {(_normal(package["name"]), package["version"]) for package in known}
    found = {(_normal(package.name), package.version) for package in distributions()}
    for name, version in sorted(found - listed):
        yield _component("library", f"pkg:pypi/{name}@{quote(version)}")


def program(purl: str, file: Path) -> Component:
    """Return a program that was copied into the image, with its sha256.

    Raises:
        SystemExit: the package URL has no version.
    """
    if purl.endswith("@"):
        raise SystemExit(f"{file}: does not print its version")
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    return _component("application", purl) | {"hashes": [{"alg": "SHA-256", "content": digest}]}


def _dpkg(root: Path, system: str, version: str) -> Iterator[Component]:
    folder = root / "var" / "lib" / "dpkg"
    for path in (folder / "status", *sorted(folder.glob("status.d/*"))):
        for record in _records(path):
            # A removed package can still have a record, because of its configuration. A distroless one has no status.
            if "Package" not in record or not record.get("Status", "installed").endswith("installed"):
                continue
            name, source = record["Package"], record.get("Source", "").partition(" ")[0]
            qualifiers = f"arch={record['Architecture']}&distro={system}-{version}"
            # Advisories name the source package.
            qualifiers += f"&upstream={quote(source)}" if source else ""
            purl = f"pkg:deb/{system}/{quote(name)}@{quote(record['Version'], safe=':~')}?{qualifiers}"
            yield _component("library", purl, name, record["Version"], _debian_licenses(root, name))


def _apk(root: Path, system: str, version: str) -> Iterator[Component]:
    for record in _records(root / "lib" / "apk" / "db" / "installed"):
        if "P" in record:
            qualifiers = f"arch={record['A']}&distro={system}-{version}"
            purl = f"pkg:apk/{system}/{quote(record['P'])}@{quote(record['V'])}?{qualifiers}"
            yield _component("library", purl, record["P"], record["V"], [record["L"]] if record.get("L") else [])


def _records(path: Path) -> Iterator[dict[str, str]]:
    """Yield the paragraphs of `Key: value` lines in a file. Of a value with more lines only the first is read."""
    text = path.read_text("utf-8", "replace") if path.is_file() else ""
    for paragraph in re.split(r"\n[ \t]*\n", text):
        yield {key: value.strip() for key, value in re.findall(r"(?m)^([\w-]+):(.*)$", paragraph)}


def _debian_licenses(root: Path, package: str) -> list[str]:
    """Names of licenses in a package's copyright file, which has a format for machines or refers to common licenses."""
    path = root / "usr" / "share" / "doc" / package / "copyright"
    text = path.read_text("utf-8", "replace") if path.is_file() else ""
    found = re.findall(r"(?m)^License:[ \t]*(\S.*?)[ \t]*$", text) if text.startswith("Format:") else []
    return sorted(set(found or COMMON_LICENSE.findall(text)))


def _component(kind: str, purl: str, name: str = "", version: str = "", licenses: Iterable[str] = ()) -> Component:
    path, _, purl_version = purl.partition("?")[0].rpartition("@")
    component = {
        "type": kind,
        "bom-ref": purl,
        "name": name or path.rpartition("/")[2],
        "version": version or purl_version,
        "purl": purl,
        "licenses": [{"license": {"name": license}} for license in licenses],
    }
    return {key: value for key, value in component.items() if value}


def _normal(name: str) -> str:
    """A package's name as PyPI normalizes it (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


def main() -> None:
    """Read the arguments and write the SBOM."""
    parser = argparse.ArgumentParser()
    parser.add_argument("source", type=Path)
    parser.add_argument("target", type=Path)
    parser.add_argument("--root", type=Path, default=Path("/"))
    parser.add_argument("--program", nargs=2, action="append", default=[], metavar=("PURL", "FILE"))
    given = parser.parse_args()
    sbom = json.loads(given.source.read_text("utf-8"))
    components = sbom.setdefault("components", [])
    components += python_components(components)
    components += (program(purl, Path(file)) for purl, file in given.program)
    components += os_components(given.root)
    given.target.write_text(json.dumps(sbom, indent=2, ensure_ascii=False) + "\n", "utf-8")


if __name__ == "__main__":
    main()
