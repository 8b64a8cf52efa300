"""The same content more than once: queries that are also elsewhere, and training samples that are there again."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from crh_tune.data.store.stored import Rows
from crh_tune.errors import counted, printable

QUERIES_ALSO = ("among the training samples", "in the database")
"""Where queries should not be."""
Named = tuple[Rows, Callable[[int], str]]
"""N numbers, equal for equal content (``content_ids``), and what each of the N is called."""


def twins(queries: Mapping[str, bytes], others: Mapping[str, bytes], where: str, kind: str = "") -> str | None:
    """A line on the queries whose digest is that of one of ``others``, both by name; None where there are none.

    ``kind`` is what comes before their name, as in ``validation queries``.
    """
    names: dict[bytes, str] = {}
    for name, digest in others.items():
        names.setdefault(digest, name)
    pairs = [(name, names[digest]) for name, digest in queries.items() if digest in names]
    return _line(pairs, f"{kind}query is", f"{kind}queries are", f"also {where}")


def row_twins(queries: Named, others: Named, where: str, kind: str = "") -> str | None:
    """The line of ``twins`` on queries and others whose content is told by numbers."""
    found, theirs = (
        {name(row): ids[row].tobytes() for row in np.flatnonzero(np.isin(ids, known)).tolist()}
        for (ids, name), (known, _) in ((queries, others), (others, queries))
    )
    return twins(found, theirs, where, kind)


def copies_line(train: Named) -> str | None:
    """A line on the training samples with the content of an earlier one; None where there are none."""
    ids, name = train
    _, first, of = np.unique(ids, return_index=True, return_inverse=True)
    again = np.flatnonzero(first[of] != np.arange(len(ids)))
    pairs = [(name(row), name(first[of[row]])) for row in again.tolist()]
    return _line(pairs, "training sample has", "training samples have", "the content of another")


def _line(pairs: Sequence[tuple[str, str]], one: str, several: str, what: str) -> str | None:
    shown = "; ".join(f"{name} = {other}" for name, other in pairs[:3]) + ("; ..." if len(pairs) > 3 else "")
    return printable(f"{counted(len(pairs), one, several)} {what}: {shown}") if pairs else None


def duplicate_lines(found: Sequence[str], parts: int, copies: str | None) -> list[tuple[str, str]]:
    """What is known of queries that are elsewhere, too, where so many parts were looked through, and of copies."""
    none = f"no query is also {' or '.join(QUERIES_ALSO[:parts])}"
    lines = [("duplicates", line) for line in found or [none]]
    return lines if copies is None else [*lines, ("copies", f"{copies}: one may be held out to ask for the other")]
