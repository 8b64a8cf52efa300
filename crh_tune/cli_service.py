"""The commands of ``crh-tune`` for what comes after a search: encode, enroll, index, query, dedupe, handover, demo."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from crh_tune.command import ending

Export = Annotated[Path, typer.Argument(help="Folder of an export, such as crh_runs/photos-001/export.")]
OfIndex = Annotated[
    Path | None, typer.Option("--index", metavar="DIR", help="Folder of an index.", show_default="the export's own")
]
Photos = Annotated[
    Path | None,
    typer.Option(metavar="DIR", help="Where the indexed photos lie.", show_default="where they were indexed"),
]


def add_service(app: typer.Typer) -> None:
    """Add the commands to the command line."""
    for command, examples in (
        (encode, "crh-tune encode crh_runs/photos-001/export photos/ -o codes.npz"),
        (enroll, "crh-tune enroll crh_runs/photos-001/export new_species/"),
        (index, "crh-tune index crh_runs/photos-001/export codes.npz -o index"),
        (query, "crh-tune query crh_runs/photos-001/export index new.jpg"),
        (dedupe, "crh-tune dedupe crh_runs/photos-001/export photos/"),
        (handover, "crh-tune handover crh_runs/photos-001/export --to pgvector -o for_postgres"),
        (demo, "crh-tune demo crh_runs/photos-001/export"),
    ):
        name = command.__name__
        app.command(name, epilog=f"Examples:\n\n{examples}")(ending(f"crh-tune {name}")(command))


def encode(
    export: Export,
    source: Annotated[Path, typer.Argument(help="Folder of photos, text file with a path a line, .npy or .npz.")],
    output: Annotated[Path, typer.Option("-o", "--output", metavar="FILE", help="The codes.")] = Path("codes.npz"),
    bits: Annotated[
        int | None,
        typer.Option(help="A shorter length that it was trained for (trial.nested).", show_default="the whole codes"),
    ] = None,
) -> None:
    """Encode photos or an array; the same command goes on where it was interrupted."""
    from crh_tune.serving import commands

    commands.encode(export, source, output, bits)


def enroll(
    export: Export,
    source: Annotated[Path | None, typer.Argument(help="Folder of class folders; list or .npz with labels.")] = None,
    output: Annotated[Path, typer.Option("-o", "--output", metavar="FILE", help="The codes.")] = Path("enrolled.npz"),
    undo: Annotated[str | None, typer.Option(metavar="NAME", help="Take the codeword of this class back.")] = None,
) -> None:
    """Add classes that came after training, without retraining; the photos have to be labelled."""
    from crh_tune.serving import commands

    commands.enroll(export, source, output, undo)


def index(
    export: Export,
    codes: Annotated[list[Path], typer.Argument(help="What crh-tune encode or enroll has written.")],
    output: Annotated[Path, typer.Option("-o", "--output", metavar="DIR", help="The index.")] = Path("index"),
    enrolled: Annotated[
        Literal["middle", "word", "own"], typer.Option(help="Where photos of enrolled classes are stored.")
    ] = "middle",
) -> None:
    """Make an index out of codes."""
    from crh_tune.serving import commands

    commands.index(export, codes, output, enrolled)


def query(
    export: Export,
    index: Annotated[Path, typer.Argument(help="Folder of an index; the export's own is in the export.")],
    images: Annotated[list[Path], typer.Argument(help="Photos to search with.")],
    count: Annotated[int, typer.Option(help="How many neighbours.")] = 10,
    sheet: Annotated[Path, typer.Option(metavar="FILE", help="The contact sheet, a PNG.")] = Path("query.png"),
    photos: Photos = None,
    by: Annotated[Literal["bits", "outputs"], typer.Option(help="Rank by bits, or by the query's outputs.")] = "bits",
) -> None:
    """Print the nearest items of photos, and write a contact sheet of them."""
    from crh_tune.serving import commands

    commands.query(export, index, images, count, sheet, photos, by)


def dedupe(export: Export, folder: Annotated[Path, typer.Argument(help="Folder of photos.")]) -> None:
    """Print the groups of near-identical photos in a folder; nothing is changed."""
    from crh_tune.serving import commands

    commands.dedupe(export, folder)


def handover(
    export: Export,
    to: Annotated[str, typer.Option(help="One of faiss, pgvector, milvus, qdrant, numpy.")],
    output: Annotated[Path, typer.Option("-o", "--output", metavar="DIR", help="Folder to write.")] = Path("handover"),
    index: OfIndex = None,
    graph: Annotated[bool, typer.Option("--graph", help="With a graph (HNSW): not exact; measured first.")] = False,
) -> None:
    """Write codes, ids and labels as a store loads them, with a README of the commands."""
    from crh_tune.serving import commands

    commands.handover(export, to, output, index, graph)


def demo(
    export: Export,
    index: OfIndex = None,
    photos: Photos = None,
    port: Annotated[int, typer.Option(help="Port on 127.0.0.1.")] = 8000,
) -> None:
    """Serve a page on this machine alone, on which a photo is dropped and its neighbours are seen."""
    from crh_tune.serving import commands

    commands.demo(export, index, photos, port)
