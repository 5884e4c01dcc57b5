"""`chatmetrics images`: building the images of the steps, and saying which there are."""

import shlex
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(help="Build the container images of the steps.", no_args_is_help=True, add_completion=False)

DigestsOption = Annotated[
    Path | None, typer.Option("--digests", help="File of what was built; images/digests.json where left out.")
]
ToolOption = Annotated[str, typer.Option(help="docker, podman or buildah; the first that works where left out.")]


@app.command(epilog="Example: chatmetrics images build --registry registry.example.com/chatmetrics --push")
def build(
    steps: Annotated[list[str] | None, typer.Argument(metavar="[STEP]...", help="All where left out.")] = None,
    registry: Annotated[str, typer.Option(help="First part of the images' names.")] = "chatmetrics",
    push: Annotated[bool, typer.Option("--push", help="Push each image, and record its digest.")] = False,
    base: Annotated[str, typer.Option(help="What they stand on: Debian with Python 3.11 and pip.")] = "",
    build_arg: Annotated[
        list[str] | None, typer.Option(metavar="KEY=VALUE", help="PIP_INDEX_URL, PIP_CERT, ...; may be repeated.")
    ] = None,
    option: Annotated[
        list[str] | None, typer.Option(metavar="ARG", help="For the tool's build command: '--isolation chroot'.")
    ] = None,
    tool: ToolOption = "",
    digests: DigestsOption = None,
) -> None:
    """Build the images of the steps, each tagged with the hash of its source, which `compile` then finds."""
    from chatmetrics.components.image import digests_file
    from chatmetrics.pipelines import images

    options = [word for words in option or () for word in shlex.split(words)]
    builder = images.Builder(
        images.find_tool(tool), registry.rstrip("/"), base or images.BASE, build_arg or (), options, push
    )
    for built in images.build(steps or (), builder, digests or digests_file()):
        print(f"{built.name}: {built.reference}", flush=True)


@app.command("list", epilog="Example: chatmetrics images list")
def list_images(tool: ToolOption = "", digests: DigestsOption = None) -> None:
    """List the images: what this very source's was built as, and its size where this machine has it."""
    from rich.console import Console
    from rich.table import Table

    from chatmetrics.components.errors import ServiceError
    from chatmetrics.components.image import digests as read
    from chatmetrics.components.image import digests_file, source_hash
    from chatmetrics.pipelines import images

    recorded = read(digests or digests_file())
    try:
        found = images.find_tool(tool)
    except ServiceError:
        found = ""
    table = Table("image", "reference", "digest", "size", box=None, pad_edge=False)
    for name in images.image_names():
        entry = recorded.get(name, {})
        if entry.get("hash") == source_hash(name):
            reference = entry["reference"]
            table.add_row(
                name, reference, entry["digest"] or "not pushed", images.size(found, reference) if found else ""
            )
        else:
            table.add_row(name, f"not built from this source ({source_hash(name)})", "", "")
    Console(soft_wrap=True).print(table)
