"""How inner loops are compiled and kept, and threads for them: compiled loops let go of Python's lock.

A module with kernels is imported inside the functions that call them: numba takes a third of a second to load.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any


def usable_threads() -> int:
    """The cores this process may use, at most ``OMP_NUM_THREADS``, which Ray sets to a process's share."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    wanted = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()
    return min(cores, int(wanted)) if wanted.isdigit() and int(wanted) > 0 else cores


def in_parts(work: Callable[[int, int], Any], size: int, threads: int | None, per_thread: int = 8) -> None:
    """Call ``work(start, stop)`` for parts that make up ``range(size)``, in several threads (None: all usable).

    More than one part per thread evens out parts that take longer than others.
    """
    threads = min(threads or usable_threads(), size)
    if threads <= 1:
        work(0, size)
        return
    step = -(-size // (threads * per_thread))
    starts = range(0, size, step)
    with ThreadPoolExecutor(threads) as pool:
        try:
            for done in [pool.submit(work, start, min(start + step, size)) for start in starts]:
                done.result()
        except BaseException:  # Ctrl-C waits for the parts that have begun, and not for all
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def kernel(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile with numba, once a machine where a folder for the result can be written: beside the source, in the
    user's cache folder, or in ``NUMBA_CACHE_DIR``. Elsewhere it is compiled in every process, and a warning says so.
    """
    import numba  # noqa: PLC0415

    try:
        return numba.njit(nogil=True, cache=True)(function)
    except RuntimeError:
        warnings.warn(
            "compiled kernels are not kept, which costs each process seconds: neither the folder of "
            f"{function.__module__} nor the user's cache folder can be written. Set NUMBA_CACHE_DIR to one that can",
            stacklevel=2,
        )
        return numba.njit(nogil=True)(function)
