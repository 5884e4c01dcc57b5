"""Signs images with a key pair and verifies the images that a cluster runs, with cosign (https://docs.sigstore.dev).

Nothing is written to or read from a public transparency log, so it works without the internet, and names of private
images stay private. What this means for a stolen key is in docs/images.md.
"""

import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from chatmetrics.components.deploy.values import image_of, image_reference
from chatmetrics.components.errors import InputError, ServiceError
from chatmetrics.components.image import image, is_built
from chatmetrics.pipelines.cluster.package import DEPLOY_IMAGES, IMAGES
from chatmetrics.pipelines.pools import load_pools

PASSWORD = "COSIGN_PASSWORD"  # read by cosign; never read or printed here
OTHERS = ("ollama", "anythingllm")  # sections of the chart's values with images of other projects
LONGEST_LINE = 300


@dataclass(frozen=True)
class Named:
    """The images that a package or the chart names: ours, which are signed, and those of other projects."""

    ours: frozenset[str]
    others: frozenset[str]


def check_signing(key: str) -> None:
    """Check that images can be signed, before hours are spent on building them.

    Raises:
        InputError: the key does not exist, or its password is not set.
        ServiceError: there is no cosign.
    """
    _check(key)
    if not _is_uri(key) and PASSWORD not in os.environ:
        raise InputError(f"{PASSWORD} is not set: set it to the password of {key}, or to nothing if it has none")


def sign(reference: str, key: str) -> None:
    """Sign an image in its registry.

    Args:
        reference: the image by digest.
        key: cosign's private key: a file, or the URI of a key in a KMS.

    Raises:
        ServiceError: cosign failed.
    """
    complaint = _cosign("sign", "--yes", "--tlog-upload=false", "--use-signing-config=false", "--key", key, reference)
    if complaint:
        raise ServiceError(f"{reference} cannot be signed: {complaint}")


def verify(named: Named, key: str) -> Iterator[tuple[str, str]]:
    """Verify images: ours have a signature of the key, and those of other projects are named by digest.

    Args:
        named: the images.
        key: cosign's public key: a file, or the URI of a key in a KMS.

    Yields:
        Each image with what is wrong, or "".

    Raises:
        InputError: the key does not exist.
        ServiceError: there is no cosign.
    """
    _check(key)
    for reference in sorted(named.ours | named.others):
        if "@" not in reference:
            yield reference, "is named by a tag, which can name another image tomorrow"
        elif reference in named.others:
            yield reference, ""
        else:
            yield reference, _cosign("verify", "--insecure-ignore-tlog", "--key", key, reference)


def named(packages: Sequence[Path]) -> Named:
    """Return the images that compiled packages name; without packages, those of `named_here`.

    Raises:
        InputError: a file is not a package.
    """
    found = [named_in(package) for package in packages] or [named_here()]
    return Named(
        frozenset().union(*(images.ours for images in found)), frozenset().union(*(images.others for images in found))
    )


def named_here() -> Named:
    """Return the images that `compile` and `deploy` name in this checkout, and the chart by default."""
    variants = {pool.image for pool in load_pools().values() if is_built(pool.image)}
    ours = {image(name) for name in {*IMAGES, "distill", "train", *DEPLOY_IMAGES, *variants}}
    return Named(frozenset(ours), _others({}))


def named_in(package: Path) -> Named:
    """Return the images that a compiled package names, and the chart with the package's values if it deploys.

    Raises:
        InputError: the file is not a package.
    """
    try:
        spec = next(yaml.safe_load_all(package.read_text("utf-8")))
        executors = spec["deploymentSpec"]["executors"].values()
        parameters = spec["root"]["inputDefinitions"]["parameters"]
        steps = {executor["container"]["image"] for executor in executors} | {parameters["train_image"]["defaultValue"]}
        ours = {reference for reference in steps if "{{" not in reference}  # not a pipeline's parameter
        deployment = parameters["deploy_settings"].get("defaultValue") or {}
        if not deployment:
            return Named(frozenset(ours), frozenset())
        values = deployment["values"]
        return Named(frozenset(ours | {image_reference(values["image"])}), _others(values))
    except (OSError, StopIteration, KeyError, TypeError, AttributeError, ValueError, yaml.YAMLError) as error:
        raise InputError(f"{package} is not a compiled package: write one with `chatmetrics compile`") from error


def _others(values: Mapping[str, Any]) -> frozenset[str]:
    return frozenset(image_of(section, values) for section in OTHERS)


def _check(key: str) -> None:
    if not _is_uri(key) and not Path(key).is_file():
        raise InputError(f"{key}: does not exist; `cosign generate-key-pair` writes cosign.key and cosign.pub")
    if not shutil.which("cosign"):
        raise ServiceError("no cosign on the PATH: install version 2.6 or newer")


def _is_uri(key: str) -> bool:
    return "://" in key


def _cosign(*arguments: str) -> str:
    """Run cosign. Return "", or its error in one line."""
    done = subprocess.run(
        ["cosign", *arguments], stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace"
    )
    lines = [line.removeprefix("Error: ") for line in done.stderr.splitlines() if line.startswith("Error: ")]
    return (lines or [f"exit status {done.returncode}"])[0][:LONGEST_LINE] if done.returncode else ""
