"""The packages in the locks of the images."""

import re

from packaging.utils import canonicalize_name

from chatmetrics.components.image import IMAGES, parent_image


def locked(*names: str) -> dict[str, str]:
    """Versions by package name in the locks of some images."""
    texts = [(IMAGES / name / "requirements.lock").read_text("utf-8") for name in names if name]
    return {
        canonicalize_name(name): version for text in texts for name, version in re.findall(r"(?m)^(\S+)==(\S+)", text)
    }


def installed(image: str) -> set[str]:
    """Names of the packages in an image: those of its lock, of its parent image, and of KFP's runtime."""
    runtime = re.findall(r"(?m)^(\S+)==", (IMAGES / "runtime.lock").read_text("utf-8"))
    return {*locked(image, parent_image(image)), *map(canonicalize_name, runtime)}
