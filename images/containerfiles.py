"""Writes the images' Containerfiles from their templates. Usage: python images/containerfiles.py

Containerfiles have no include. What the images have in common is therefore in images/Containerfile.jinja; the generated
files are committed, so that `docker build --file` works without any other tool.
"""

from collections.abc import Iterator
from pathlib import Path

from jinja2 import Environment, FileSystemLoader

IMAGES = Path(__file__).parent


def containerfiles() -> Iterator[tuple[Path, str]]:
    """Yield the path and the text of each Containerfile."""
    environment = Environment(
        loader=FileSystemLoader(IMAGES), trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
    )
    for template in sorted(IMAGES.glob("*/Containerfile.jinja")):
        name = template.relative_to(IMAGES).as_posix()
        yield template.with_suffix(""), environment.get_template(name).render(image=template.parent.name)


if __name__ == "__main__":
    for path, text in containerfiles():
        path.write_text(text, "utf-8")
