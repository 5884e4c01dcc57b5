"""Bring images from buildah's store to a cluster without a registry: one archive, in which shared layers are once.

Usage: python -m tests.e2e.load_images IMAGE... (IMAGE_LOAD_COMMAND takes the archive as its argument)
"""

import json
import os
import shlex
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

NAME = "io.containerd.image.name"


def archive(images: list[str], folder: Path) -> Path:
    """An OCI archive of several images, as containerd imports it."""
    layout = folder / "layout"
    for number, image in enumerate(images):
        # Uncompressed: the archive does not leave the machine, and packing gigabytes takes minutes.
        push = ["buildah", "push", "--quiet", "--disable-compression", image, f"oci:{layout}:{number}"]
        subprocess.run(push, check=True)
        print(f"loading: {number + 1}/{len(images)} images packed", flush=True)
    index = json.loads((layout / "index.json").read_bytes())
    for manifest in index["manifests"]:
        number = int(manifest["annotations"]["org.opencontainers.image.ref.name"])
        manifest["annotations"] = {NAME: images[number]}
    (layout / "index.json").write_text(json.dumps(index))
    packed = folder / "images.tar"
    with tarfile.open(packed, "w") as tar:
        for path in sorted(layout.rglob("*")):
            if path.is_file():
                tar.add(path, path.relative_to(layout).as_posix())
                path.unlink()  # so that gigabytes are on the disk twice for one layer only
    return packed


def main() -> None:
    """Pack and load."""
    with tempfile.TemporaryDirectory(prefix="images-") as folder:
        packed = archive(sys.argv[1:], Path(folder))
        subprocess.run([*shlex.split(os.environ["IMAGE_LOAD_COMMAND"]), str(packed)], check=True)


if __name__ == "__main__":
    main()
