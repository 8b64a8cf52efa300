"""What a user types once there is an export: encode, enroll, index, query, dedupe, handover, demo.

``python -m crh_tune.serving`` has them where neither torch nor Ray is installed.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from crh_tune.errors import DataError, counted, printable, unless_hung_up
from crh_tune.serving.answers import WAYS, By, open_answers, want_own
from crh_tune.serving.codes import Codes, encode_source, find_source, joined, read_codes
from crh_tune.serving.duplicates import near_identical
from crh_tune.serving.encoder import load_encoder
from crh_tune.serving.enrolment import (
    PLACES,
    Place,
    enrolled_lines,
    is_enrolling,
    open_enrolment,
    write_enrolled,
)
from crh_tune.serving.handover import STORES, hand_over
from crh_tune.serving.index import About, Index, write_index
from crh_tune.serving.photos import contact_sheet

PARTIAL = Path("dedupe.partial")
SHOWN = 20
"""How many unreadable files are printed; the others are in the file of codes."""
_BITS = "bits: how many bits of the codes differ, 0 is nearest"
_SCORE = "score: the query's outputs, added where the stored bit has their sign, else taken away: highest is nearest"


def encode(export: Path, source: Path, output: Path = Path("codes.npz"), bits: int | None = None) -> None:
    """Encode a folder of photos, a list of files, or an array; the same command goes on where it was interrupted.

    ``bits``: a shorter length that the encoder was trained for (``trial.nested``).
    """
    encoder = load_encoder(export, bits=bits)
    codes = encode_source(encoder, find_source(source.expanduser()), output, _say)
    _list_unreadable(codes, output)
    _say(f"{len(codes.words):,} codes of {codes.bits} bits written to {output}")


def enroll(
    export: Path, source: Path | None = None, output: Path = Path("enrolled.npz"), undo: str | None = None
) -> None:
    """Add classes that came after training, from labelled photos; ``undo`` names one to take back."""
    if (source is None) == (undo is None):
        raise DataError("give labelled photos, DIR/<class>/*.jpg, or --undo NAME")
    encoder = load_encoder(export)
    before = open_enrolment(export, encoder)
    if source is None:
        write_enrolled(export, before.without(str(undo)))
        _say(printable(f"{undo} is not enrolled any more, and its codeword is free"))
        return
    found = find_source(source.expanduser())
    if found.several:
        raise DataError(f"{source}: has several labels a row: a class is enrolled by rows that have its label alone")
    codes = encode_source(encoder, found, output, _say)
    _list_unreadable(codes, output)
    after = before.enroll(codes)
    write_enrolled(export, after)
    for line in enrolled_lines(before, after, codes):
        _say(line)


def index(export: Path, codes: Sequence[Path], output: Path = Path("index"), enrolled: Place = "middle") -> None:
    """Make an index, a folder, out of one or more files of codes.

    ``enrolled``: where items of enrolled classes are stored.
    """
    if enrolled not in PLACES:
        raise DataError(f"--enrolled: expected one of {', '.join(PLACES)}, got {enrolled!r}")
    encoder = load_encoder(export)
    found = joined([(path, read_codes(path)) for path in codes])
    want_own(encoder, found.encoder, codes[0])
    words = open_enrolment(export, encoder).stored(found, enrolled) if is_enrolling(export) else found.words
    try:
        write_index(output, Index(words, found.labels, found.items), About(encoder.name, found.root, bits=found.bits))
    except OSError as error:
        raise DataError(f"{output}: cannot be written: {error.strerror}") from None
    _say(f"{counted(len(found.words), 'item')} indexed in {output}")


def query(
    export: Path,
    index: Path,
    images: Sequence[Path],
    count: int = 10,
    sheet: Path = Path("query.png"),
    photos: Path | None = None,
    by: By = "bits",
) -> None:
    """Find the nearest items of photos: a table, and a contact sheet. ``photos``: where the indexed photos lie now."""
    if count < 1:
        raise DataError(f"--count: expected at least 1, got {count}")
    if by not in WAYS:
        raise DataError(f"--by: expected one of {', '.join(WAYS)}, got {by!r}")
    answers = open_answers(export, index)
    try:
        found = answers.near_files(images, count, by)
    except ValueError as error:
        raise DataError(str(error)) from None
    root = str(photos.expanduser().absolute()) if photos is not None else answers.about.root
    rows = [(image, neighbours) for image, (neighbours, _) in zip(images, found, strict=True)]
    for image, neighbours in rows:
        _say(f"{image}\n  {'score  ' if by == 'outputs' else ''}{'bits':>4}  {'label':<20}  item")
        for each in neighbours:
            score = "" if each.score is None else f"{each.score:>6.2f} "
            _say(f"  {score}{each.distance:>4}  {printable(each.label):<20}  {printable(each.item)}")
    _say(_BITS if by == "bits" else f"{_SCORE}\n{_BITS}")
    if answers.reach is not None:
        _say(answers.reach.line([nearest for _, nearest in found]))
    try:
        contact_sheet(rows, root).save(sheet, "PNG")
    except OSError as error:
        raise DataError(f"{sheet}: cannot be written: {error.strerror or error}") from None
    _say(f"contact sheet {sheet}")


def dedupe(export: Path, folder: Path) -> None:
    """Print the groups of near-identical photos in a folder: resized, saved again. Nothing is changed or removed.

    The same command goes on where it was interrupted: until it is done, ``dedupe.partial`` lies in the current folder.
    """
    encoder, source = load_encoder(export), find_source(folder.expanduser())
    if source.array is not None:
        raise DataError(f"{folder}: is an array: give a folder of photos")
    try:
        found, read = near_identical(encoder, source, PARTIAL, _say)
    except OSError as error:
        raise DataError(f"{PARTIAL}: cannot be written: {error.strerror}") from None
    for line in read.unreadable:
        _say(f"cannot be read: {line}")
    for number, names in enumerate(found, 1):
        _say("\n  ".join([f"group {number}", *map(printable, names)]))
    many = sum(len(names) for names in found)
    _say(
        f"{counted(len(found), 'group')} of near-identical photos, {many} of {counted(len(read.rows), 'photo')} in them"
    )


def handover(
    export: Path, to: str, output: Path = Path("handover"), index: Path | None = None, graph: bool = False
) -> None:
    """Write codes, ids and labels as faiss, pgvector, milvus, qdrant or numpy load them, with a README of commands.

    ``graph``: with a graph index (HNSW), whose recall is measured, printed and written into the README.
    """
    answers = open_answers(export, index)
    for line in hand_over(answers.index, answers.about, answers.encoder.bits, to, output, graph):
        _say(line)
    many = counted(len(answers.index), "code")
    _say(f"{many} for {to} written to {output}: {output / 'README.md'} says how to load them")


def demo(export: Path, index: Path | None = None, photos: Path | None = None, port: int = 8000) -> None:
    """Serve a page on this machine alone, on which a photo is dropped and its ten nearest neighbours are seen."""
    answers = open_answers(export, index)
    try:
        import uvicorn  # noqa: PLC0415

        from crh_tune.serving.demo import make_app  # noqa: PLC0415
    except ImportError as error:
        raise DataError(f"{error.name} is not installed: pip install 'crh-tune[demo]'") from None
    if not 0 < port < 2**16:
        raise DataError(f"--port: expected 1 to 65535, got {port}")
    try:
        app = make_app(answers, str(photos.expanduser().absolute()) if photos is not None else answers.about.root)
    except ValueError as error:
        raise DataError(str(error)) from None
    _say(f"http://127.0.0.1:{port}/  (Ctrl-C ends it)")
    try:
        uvicorn.run(app, host="127.0.0.1", port=port, log_level="warning", timeout_keep_alive=30)
    except SystemExit:  # what uvicorn does where the port is taken, after saying so
        raise DataError(f"--port {port}: cannot be listened on: name another") from None


def _list_unreadable(codes: Codes, output: Path) -> None:
    if codes.unreadable:
        _say(f"{counted(len(codes.unreadable), 'file')} could not be read:")
        for line in codes.unreadable[:SHOWN]:
            _say(f"  {line}")
        if len(codes.unreadable) > SHOWN:
            _say(f"  ... and {len(codes.unreadable) - SHOWN} more: all are listed in {output}, about.unreadable")


def _say(line: str) -> None:
    with unless_hung_up():
        print(line, flush=True)


def add_commands(commands: Any) -> None:
    """Add the commands to argparse's subparsers; each sets ``run``, which takes the parsed arguments."""

    def command(run: Any, name: str) -> argparse.ArgumentParser:
        parser: argparse.ArgumentParser = commands.add_parser(name, help=run.__doc__.splitlines()[0].replace("``", ""))
        parser.add_argument("export", type=Path, help="folder of an export, such as crh_runs/photos-001/export")
        own = [each for each in run.__annotations__ if each != "return"]
        parser.set_defaults(run=lambda arguments: run(**{each: getattr(arguments, each) for each in own}))
        return parser

    of_encode = command(encode, "encode")
    of_encode.add_argument("source", type=Path, help="folder of photos, text file of paths, .npy or .npz")
    of_encode.add_argument("--bits", type=int, help="a shorter length that it was trained for (trial.nested)")
    of_encode.add_argument("-o", "--output", type=Path, default=Path("codes.npz"), help="file of the codes")
    of_enroll = command(enroll, "enroll")
    of_enroll.add_argument("source", type=Path, nargs="?", help="folder of class folders of photos, list, or .npz")
    of_enroll.add_argument("-o", "--output", type=Path, default=Path("enrolled.npz"), help="file of the codes")
    of_enroll.add_argument("--undo", help="name of a class whose codeword is taken back", metavar="NAME")
    of_index = command(index, "index")
    of_index.add_argument("codes", type=Path, nargs="+", help="what crh-tune encode has written")
    of_index.add_argument("-o", "--output", type=Path, default=Path("index"), help="folder of the index")
    of_index.add_argument("--enrolled", default="middle", help=f"where enrolled classes are: {', '.join(PLACES)}")
    of_query = command(query, "query")
    of_query.add_argument("index", type=Path, help="folder of an index; the export's own is in the export")
    of_query.add_argument("images", type=Path, nargs="+", help="photos to search with")
    of_query.add_argument("--count", type=int, default=10, help="how many neighbours (default 10)")
    of_query.add_argument("--sheet", type=Path, default=Path("query.png"), help="the contact sheet (query.png)")
    of_query.add_argument("--photos", type=Path, help="where the indexed photos lie, if not where they were")
    of_query.add_argument("--by", default="bits", help="rank by bits (default) or by the query's real outputs")
    of_handover = command(handover, "handover")
    of_handover.add_argument("--to", required=True, help=f"one of {', '.join(STORES)}")
    of_handover.add_argument("-o", "--output", type=Path, default=Path("handover"), help="folder to write")
    of_handover.add_argument("--index", type=Path, help="folder of an index (default: the export's own)")
    of_handover.add_argument("--graph", action="store_true", help="with a graph (HNSW): not exact, measured first")
    of_dedupe = command(dedupe, "dedupe")
    of_dedupe.add_argument("folder", type=Path, help="folder of photos")
    of_demo = command(demo, "demo")
    of_demo.add_argument("--index", type=Path, help="folder of an index (default: the export's own)")
    of_demo.add_argument("--photos", type=Path, help="where the indexed photos lie, if not where they were")
    of_demo.add_argument("--port", type=int, default=8000, help="port on 127.0.0.1 (default 8000)")
