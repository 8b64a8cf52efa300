"""Classes that came after training: a new labelled class takes a free codeword, and nothing is retrained.

The codebook has M words, of which the C classes of the training hold one each. In every head a new class takes the free
sub-codeword that costs least for its photos (Eq. 7 of the paper); several new classes take those that cost least
together. The middle of its photos' codes is kept too, which is the better place to store them (docs/open_world.md).
Both are in ``enrolled.json`` beside the export. Once a class has them it keeps them, so that no stored code changes.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from crh_tune.errors import DataError, counted, printable
from crh_tune.ground import aligned, check_archive, first_line, write_json, write_whole
from crh_tune.retrieval.packing import Packed, pack_codes
from crh_tune.serving.codes import Codes
from crh_tune.serving.encoder import Encoder

CODEBOOK_FILE, ENROLLED_FILE = "codebook.npz", "enrolled.json"
Array = npt.NDArray[Any]
Place = Literal["middle", "word", "own"]
"""Where an index has the photos of enrolled classes: at the middle of the class, at its codeword, where they are."""
PLACES: tuple[Place, ...] = get_args(Place)


@dataclass(frozen=True)
class Enrolled:
    """What a class has: ``words``, the index of its codeword in each of H heads, and the ``middle`` of its codes.

    The middle, K / 8 bytes, has in each bit what most of the photos have that it was enrolled with.
    """

    words: tuple[int, ...]
    middle: bytes


@dataclass(frozen=True)
class Enrolment:
    """The codebook of an export, and who holds its words.

    ``words`` are H x M x D sub-codewords, -1 and +1; ``table`` (H x C) says which of them the classes of the training
    hold. A code of K ``bits`` has the H D bits of a word first, and behind them open bits, if any.
    """

    encoder: str
    bits: int
    words: npt.NDArray[np.int8]
    table: npt.NDArray[np.int64]
    trained: tuple[str, ...]
    classes: dict[str, Enrolled]

    @property
    def free(self) -> int:
        """How many classes can still be enrolled."""
        return self.words.shape[1] - self.table.shape[1] - len(self.classes)

    def word(self, name: str) -> npt.NDArray[np.int8]:
        """The H D bits of an enrolled class, -1 and +1."""
        return np.concatenate([words[i] for words, i in zip(self.words, self.classes[name].words, strict=True)])

    def enroll(self, codes: Codes) -> Enrolment:
        """The same, with a word and a middle for the labels of N items that have none yet.

        Raises DataError for labels that cannot be enrolled, and where too few words are free.
        """
        names, rows = np.unique(codes.labels, return_inverse=True)
        for name in names.tolist():
            if not name:
                raise DataError("photos without a class: want DIR/<class>/*.jpg, or an array with labels")
            if name in self.trained:
                raise DataError(f"class {name!r} has a word already: the encoder was trained on it")
        new = [i for i, name in enumerate(names.tolist()) if name not in self.classes]
        if len(new) > self.free:
            raise DataError(
                f"{counted(len(new), 'new class', 'new classes')}, and {counted(self.free, 'free codeword')} of "
                f"{self.words.shape[1]}: train again with these classes, or with a larger codebook_size"
            )
        bits = np.where(unpacked(codes.words, self.bits), 1.0, -1.0)
        means = np.array([bits[rows == i].mean(axis=0) for i in new]).reshape(len(new), self.bits)
        chosen = np.stack([self._cheapest(head, means) for head in range(len(self.words))], axis=1)
        middles = np.packbits(means >= 0, axis=1, bitorder="little")
        fresh = {
            str(names[i]): Enrolled(tuple(words), middle.tobytes())
            for i, words, middle in zip(new, chosen.tolist(), middles, strict=True)
        }
        return replace(self, classes={**self.classes, **fresh})

    def _cheapest(self, head: int, means: Array) -> npt.NDArray[np.int64]:
        """The free sub-codewords of a head that classes of these mean codes (N x K) take."""
        words, size = self.words[head], self.words.shape[2]
        held = {*self.table[head].tolist(), *(each.words[head] for each in self.classes.values())}
        free = np.array([i for i in range(len(words)) if i not in held], dtype=np.int64)
        own = means[:, head * size : (head + 1) * size]
        return free[least_together(2.0 * size - 2.0 * own @ words[free].T.astype(np.float64))]

    def without(self, name: str) -> Enrolment:
        """The same before a class was enrolled: its word is free again. Raises DataError for one that is not."""
        if name not in self.classes:
            raise DataError(f"class {name!r} is not enrolled: {', '.join(self.classes) or 'none'} can be undone")
        return replace(self, classes={key: value for key, value in self.classes.items() if key != name})

    def stored(self, codes: Codes, place: Place) -> Packed:
        """The packed codes of N items as an index is to have them: those of enrolled classes at their place.

        At a codeword open bits stay each photo's own; the middle has open bits too. Shorter codes have the first bits.
        """
        if place == "own":
            return codes.words
        bits, trained = unpacked(codes.words, codes.bits), self.words.shape[0] * self.words.shape[2]
        for name, each in self.classes.items():
            mine = np.flatnonzero(codes.labels == name)
            if place == "word" and len(mine):
                bits[mine, :trained] = self.word(name)[: codes.bits] > 0
            elif len(mine):
                bits[mine] = np.unpackbits(np.frombuffer(each.middle, np.uint8), count=codes.bits, bitorder="little")
        return pack_codes(bits)


def unpacked(words: Packed, bits: int) -> npt.NDArray[np.bool_]:
    """The first K bits of N packed codes: N x K, True for +1."""
    flat = np.ascontiguousarray(words).view(np.uint8)
    return np.unpackbits(flat, axis=1, count=bits, bitorder="little").astype(bool)


def least_together(cost: Array) -> npt.NDArray[np.int64]:
    """The optimal assignment: a column of its own for each of N rows of an N x M cost matrix, N <= M.

    One row after another is added by the shortest augmenting path (Kuhn, 1955; Jonker and Volgenant, 1987), as
    ``scipy.optimize.linear_sum_assignment`` does, which a service need not have.
    """
    rows, columns = cost.shape
    row_price, price = np.zeros(rows), np.zeros(columns)
    holder = np.full(columns, -1)
    for row in range(rows):
        least, before = np.full(columns, np.inf), np.full(columns, -1)
        reached, own, column = np.zeros(columns, dtype=bool), row, -1
        row_price[row] = 0.0
        while own >= 0:  # until a column that nobody holds
            reduced = cost[own] - row_price[own] - price
            closer = ~reached & (reduced < least)
            least[closer], before[closer] = reduced[closer], column
            column = int(np.where(reached, np.inf, least).argmin())
            step = least[column]
            row_price[row] += step
            row_price[holder[reached]] += step
            price[reached] -= step
            least[~reached] -= step
            reached[column] = True
            own = int(holder[column])
        while column >= 0:
            previous = int(before[column])
            holder[column] = row if previous < 0 else holder[previous]
            column = previous
    found = np.empty(rows, dtype=np.int64)
    found[holder[holder >= 0]] = np.flatnonzero(holder >= 0)
    return found


def write_codebook(folder: Path, words: npt.NDArray[np.int8], table: npt.NDArray[np.int64], encoder: str) -> None:
    """Write an export's codebook: H x M x D sub-codewords, and the H x C table of those that classes hold."""

    def write(aside: Path) -> None:
        with aside.open("wb") as file:
            np.savez_compressed(file, words=words, table=table, encoder=np.array(encoder))

    write_whole(folder / CODEBOOK_FILE, write)


def open_enrolment(folder: Path, encoder: Encoder) -> Enrolment:
    """The enrolment of an export, and of its encoder.

    Raises DataError where there is no codebook, or a file is broken or of another encoder.
    """
    words, table = _read_codebook(folder / CODEBOOK_FILE, encoder)
    path, name = folder / ENROLLED_FILE, encoder.name
    blank = Enrolment(name, encoder.bits, words, table, encoder.class_names, {})
    if not path.exists():
        return blank
    try:
        content = json.loads(path.read_bytes())
        if content["encoder"] != name:
            raise ValueError("it is of another encoder than this export's")
        classes = {
            str(key): Enrolled(tuple(each["words"]), bytes.fromhex(each["middle"]))
            for key, each in content["classes"].items()
        }
        _check(blank, classes)
    except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
        raise DataError(f"{path}: not what crh-tune enroll writes: {first_line(error)}") from None
    return replace(blank, classes=classes)


def _read_codebook(path: Path, encoder: Encoder) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.int64]]:
    if not path.exists():
        raise DataError(
            f"{path}: there is no such file: enrolling takes free words of a codebook (method crh, codebook_size not "
            "full); an export of an older version is written again by crh-tune export"
        )
    try:
        check_archive(path)
        with np.load(path, allow_pickle=False) as arrays:
            words, table, name = arrays["words"], arrays["table"], str(arrays["encoder"])
        if words.dtype != np.int8 or words.ndim != 3 or not np.isin(words, (-1, 1)).all():
            raise ValueError(f"words of type {words.dtype} and shape {words.shape}")
        if words.shape[0] * words.shape[2] > encoder.bits:
            raise ValueError(f"words of {words.shape[0]} x {words.shape[2]} bits, codes have {encoder.bits}")
        classes = len(encoder.class_names)
        if table.dtype != np.int64 or table.shape != (len(words), classes):
            raise ValueError(f"a table of type {table.dtype} and shape {table.shape} for {classes} classes")
        if not ((table >= 0) & (table < words.shape[1])).all():
            raise ValueError("a table of other words than there are")
    except Exception as error:  # whatever zipfile and NumPy raise on a broken file
        raise DataError(f"{path}: not a readable codebook: {first_line(error)}") from None
    if name != encoder.name:
        raise DataError(f"{path}: of another encoder than this export's: export it again")
    return words, table


def _check(blank: Enrolment, classes: dict[str, Enrolled]) -> None:
    """Raises ValueError where enrolled classes hold what there is not, or what another class holds."""
    heads, size, _ = blank.words.shape
    for name, each in classes.items():
        if len(each.words) != heads or not all(type(i) is int and 0 <= i < size for i in each.words):
            raise ValueError(f"class {name!r} has words {list(each.words)}")
        if len(each.middle) != -(-blank.bits // 8):
            raise ValueError(f"class {name!r} has a middle of {len(each.middle)} bytes")
    for head in range(heads):
        held = [*blank.table[head].tolist(), *(each.words[head] for each in classes.values())]
        if len(set(held)) < len(held):
            raise ValueError("two classes have the same word")


def write_enrolled(folder: Path, enrolment: Enrolment) -> None:
    """Write down who was enrolled; the file is whole or as it was. Raises DataError where it cannot be written."""
    path = folder / ENROLLED_FILE
    try:
        classes = {name: {"words": each.words, "middle": each.middle.hex()} for name, each in enrolment.classes.items()}
        write_json(path, {"encoder": enrolment.encoder, "classes": classes}, indent=1)
    except OSError as error:
        raise DataError(f"{path}: cannot be written: {error.strerror}") from None


def is_enrolling(folder: Path) -> bool:
    """Whether classes were enrolled with this export."""
    return (folder / ENROLLED_FILE).exists()


def enrolled_lines(before: Enrolment, after: Enrolment, codes: Codes) -> list[str]:
    """What enrolling these codes has done: a table of their classes, and how many are new."""
    rows = [("class", "photos", "codeword")]
    for name, count in zip(*np.unique(codes.labels, return_counts=True), strict=True):
        rows.append((printable(name), f"{count:>6,}", "kept" if name in before.classes else "new"))
    new = len(after.classes) - len(before.classes)
    return [*aligned(rows), f"{counted(new, 'class', 'classes')} enrolled; {counted(after.free, 'codeword')} left"]
