"""Build the steps' images for a test cluster and push them, or load them onto its nodes without a registry.

Usage: python -m tests.e2e.images DIGESTS_FILE. Environment variables: IMAGE_REGISTRY, the registry to push to; else
IMAGE_LOAD_COMMAND, which gets the path of an archive as its argument; IMAGE_BASE and IMAGE_OPTIONS, for
`chatmetrics images build`; HELM_IMAGE, the image that `deploy` copies Helm from, by digest. Without HELM_IMAGE and
without a registry, an image is built from the helm on the PATH.
"""

import hashlib
import json
import os
import shlex
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

from chatmetrics.components.image import digests as read_digests
from chatmetrics.components.image import source_hash
from tests.command import command_line

IMAGES = ("preprocess", "distill", "train", "merge", "convert", "evaluate", "deploy", "serve")
HELM = "localhost/helm:local"
NAME = "io.containerd.image.name"


def build(digests: Path, *options: str) -> list[str]:
    """Build the images, and return their references."""
    base = ["--base", os.environ["IMAGE_BASE"]] if os.environ.get("IMAGE_BASE") else []
    more = shlex.split(os.environ.get("IMAGE_OPTIONS", ""))
    if helm := os.environ.get("HELM_IMAGE"):
        more += ["--build-arg", f"HELM={helm}"]
    arguments = ["build", *IMAGES, "--digests", digests, *base, *options, *more]
    subprocess.run(command_line("images", *arguments), check=True)
    recorded = json.loads(digests.read_bytes())
    return [recorded[name]["reference"] for name in IMAGES]


def make_helm_image() -> list[str]:
    """Build an image that contains only the helm on the PATH, for machines that cannot pull the official image.

    Returns:
        The options by which `chatmetrics images build` uses it.
    """
    program = shutil.which("helm")
    if program is None:
        raise SystemExit("helm is not on the PATH: install it, or set HELM_IMAGE to an image that has it")

    def buildah(*words: str) -> str:
        return subprocess.run(["buildah", *words], check=True, capture_output=True, text=True).stdout.strip()

    container = buildah("from", "scratch")
    buildah("copy", "--chmod", "755", container, program, "/usr/bin/helm")
    buildah("commit", "--quiet", "--rm", container, HELM)
    sha256 = hashlib.sha256(Path(program).read_bytes()).hexdigest()
    return ["--build-arg", f"HELM={HELM}", "--build-arg", f"HELM_SHA256={sha256}"]


def load(images: list[str], folder: Path) -> None:
    """Load all images in one archive, which contains shared layers once."""
    layout = folder / "layout"
    for number, image in enumerate(images):
        pack = ["--compression-format", "zstd", "--compression-level", "1"]
        subprocess.run(["buildah", "push", "--quiet", *pack, image, f"oci:{layout}:{number}"], check=True)
        print(f"packing: {number + 1}/{len(images)} images", flush=True)
    index = json.loads((layout / "index.json").read_bytes())
    for manifest in index["manifests"]:
        manifest["annotations"] = {NAME: images[int(manifest["annotations"]["org.opencontainers.image.ref.name"])]}
    (layout / "index.json").write_text(json.dumps(index))
    archive = folder / "images.tar"
    with tarfile.open(archive, "w") as tar:
        for path in sorted(path for path in layout.rglob("*") if path.is_file()):
            tar.add(path, path.relative_to(layout).as_posix())
            path.unlink()  # so that only one layer at a time, of gigabytes, takes twice its space on disk
    subprocess.run([*shlex.split(os.environ["IMAGE_LOAD_COMMAND"]), str(archive)], check=True)


def are_delivered(digests: Path) -> bool:
    """Whether the images of this very code were pushed or loaded before."""
    delivered = read_digests(stamp_of(digests))
    return all(delivered.get(name, {}).get("hash") == source_hash(name) for name in IMAGES)


def stamp_of(digests: Path) -> Path:
    """A copy of the digests, written after the images were delivered; delete it to deliver them again."""
    return digests.with_suffix(".delivered.json")


def main() -> None:
    """Build, then push or load."""
    digests = Path(sys.argv[1])
    digests.parent.mkdir(parents=True, exist_ok=True)
    if are_delivered(digests):
        print(f"the images of this code were delivered before; delete {stamp_of(digests)} to deliver them again")
        return
    deliver(digests)
    shutil.copyfile(digests, stamp_of(digests))


def deliver(digests: Path) -> None:
    """Build the images, then push or load them."""
    if registry := os.environ.get("IMAGE_REGISTRY"):
        build(digests, "--registry", registry, "--push")
        return
    helm = [] if os.environ.get("HELM_IMAGE") else make_helm_image()
    images = build(digests, "--registry", "localhost/chatmetrics", "--tool", "buildah", *helm)
    with tempfile.TemporaryDirectory(prefix="images-") as folder:
        load(images, Path(folder))


if __name__ == "__main__":
    main()
