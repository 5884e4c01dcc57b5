"""The commands `images build`, `images list` and `images verify`: the container images of the steps."""

import shlex
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(help="Build, list and verify the container images of the steps.", no_args_is_help=True)

DigestsOption = Annotated[
    Path | None, typer.Option("--digests", help="File that records the built images; default: images/digests.json")
]
ToolOption = Annotated[str, typer.Option(help="Build tool: docker, podman or buildah; default: the first that works")]


@app.command(epilog="Example: chatmetrics images build --registry registry.example.com/chatmetrics --push")
def build(
    steps: Annotated[
        list[str] | None, typer.Argument(metavar="[STEP]...", help="Steps whose images are built; default: all")
    ] = None,
    registry: Annotated[str, typer.Option(help="Registry and path that the images' names begin with")] = "chatmetrics",
    push: Annotated[bool, typer.Option("--push", help="Push each image, and record its digest")] = False,
    base: Annotated[
        str, typer.Option(help="Base image, Debian with Python 3.11 and pip; default: python:3.11-slim-bookworm")
    ] = "",
    build_arg: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY=VALUE", help="Build argument, for example PIP_INDEX_URL or PIP_CERT; may be repeated"
        ),
    ] = None,
    option: Annotated[
        list[str] | None,
        typer.Option(
            metavar="ARG", help="Option of the tool's build command, for example '--isolation chroot'; may be repeated"
        ),
    ] = None,
    platform: Annotated[
        str, typer.Option(help="Platform of the images, for example linux/arm64; default: this machine's")
    ] = "",
    sign_key: Annotated[
        str,
        typer.Option(metavar="KEY", help="Sign each pushed image: cosign's private key, a file or the URI of a KMS"),
    ] = "",
    tool: ToolOption = "",
    digests: DigestsOption = None,
) -> None:
    """Build the images of the steps. Each is tagged with hashes of its source and of what it is built on and with."""
    from chatmetrics.components.image import digests_file
    from chatmetrics.pipelines import images

    options = [word for text in option or () for word in shlex.split(text)]
    builder = images.Builder(
        images.find_tool(tool),
        registry.rstrip("/"),
        base or images.BASE,
        build_arg or (),
        options,
        push,
        platform,
        sign_key,
    )
    for built in images.build(steps or (), builder, digests or digests_file()):
        print(f"{built.name}: {built.reference}", flush=True)


@app.command("list", epilog="Example: chatmetrics images list")
def list_images(tool: ToolOption = "", digests: DigestsOption = None) -> None:
    """List the images built from the current source, with their digests and, if they are here, their sizes."""
    from rich.console import Console
    from rich.table import Table

    from chatmetrics.components.errors import ServiceError
    from chatmetrics.components.image import digests as read_digests
    from chatmetrics.components.image import digests_file, source_hash
    from chatmetrics.pipelines import images

    recorded = read_digests(digests or digests_file())
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


@app.command(epilog="Example: chatmetrics images verify --key cosign.pub package.yaml")
def verify(
    packages: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="[PACKAGE]...",
            help="Compiled packages; default: the images that `compile` names here, and the chart's",
        ),
    ] = None,
    key: Annotated[str, typer.Option(help="cosign's public key, a file or the URI of a KMS")] = "cosign.pub",
) -> None:
    """Verify the signatures of all images that packages and the chart name; other projects' have to be by digest."""
    from chatmetrics.components.errors import ServiceError
    from chatmetrics.pipelines import signatures

    named = signatures.named(packages or ())
    failed = []
    for reference, complaint in signatures.verify(named, key):
        result = "of another project, by digest" if reference in named.others else "verified"
        print(f"{reference}: {complaint or result}", flush=True)
        failed += [reference] if complaint else []
    if failed:
        raise ServiceError(f"not verified: {', '.join(failed)}")
