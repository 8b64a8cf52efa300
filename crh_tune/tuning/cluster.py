"""Ray as a search finds or starts it: the connection, the signals it must leave alone, the life of its node process."""

from __future__ import annotations

import logging
import os
import signal
import socket
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import ray
import torch
from ray import tune
from ray.util.placement_group import remove_placement_group

from crh_tune.errors import counted
from crh_tune.settings.base import SettingsError
from crh_tune.settings.course import BudgetSettings
from crh_tune.settings.trial import ScalingSettings
from crh_tune.tuning.ray_private import end_at_once, groups_of, node_socket, quiet_signals

_ADDRESS_SECONDS = 15.0
"""A head that is busy takes its time."""
_HTTP2_SETTINGS = 4
_HTTP2_GREETING = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes((0, 0, 0, _HTTP2_SETTINGS, 0, 0, 0, 0, 0))
"""What a client says first, and the kind of the frame that a server answers with at once (RFC 9113, 3.4)."""
_LOOK_SECONDS = 0.05
_PROC = Path("/proc")


def cluster_runs() -> bool:
    """Whether ``connect_ray`` finds a cluster that is running, and does not start Ray on this machine."""
    address = os.environ.get("RAY_ADDRESS", "")
    return ray.is_initialized() or address not in ("", "local") or (not address and _left_behind() == "answers")


def _left_behind() -> str:
    """Whether the cluster whose address lies on this machine ``answers`` or is ``gone``; empty without an address."""
    left = Path(os.environ.get("RAY_TMPDIR") or tempfile.gettempdir()) / "ray" / "ray_current_cluster"
    if not left.is_file():
        return ""
    return "answers" if _is_cluster(left.read_text(encoding="utf-8").strip()) else "gone"


def connect_ray() -> None:
    """Connect to the cluster of this machine, or start Ray here where there is none.

    A cluster that was killed leaves its address behind, which Ray would try for minutes. Signals stay with the handlers
    they have: Ray's own ones would end the process in the middle of everything. Raises SettingsError where Ray refuses.
    """
    if ray.is_initialized():
        return
    address = os.environ.get("RAY_ADDRESS", "")
    if ":" in address and not _is_cluster(address.rpartition("://")[2]):
        raise SettingsError(f"RAY_ADDRESS: no cluster answers at {address}: start one there, or unset RAY_ADDRESS")
    stale = address in ("", "auto") and _left_behind() == "gone"
    if stale and address:
        raise SettingsError("RAY_ADDRESS: no cluster answers on this machine: start one, or unset RAY_ADDRESS")
    try:
        with quiet_signals(), _children_deaf():
            ray.init(address="local" if stale else None, log_to_driver=False, logging_level=logging.ERROR)
        end_at_once()
    except Exception as error:  # of a node that takes too long to start, Ray raises a bare one
        raise SettingsError(_refusal(error, address)) from None


def _refusal(error: Exception, address: str) -> str:
    """Why Ray does not start, with the variable to change, in one line."""
    said = " ".join(str(error).split()) or type(error).__name__
    if "AF_UNIX path length" in said:
        name = next((each for each in ("RAY_TMPDIR", "TMPDIR") if os.environ.get(each)), "TMPDIR")
        return f"{name}: {os.environ.get(name)} is too long a path for Ray's sockets: set RAY_TMPDIR=/tmp"
    if address:
        return f"RAY_ADDRESS: no cluster can be joined with {address!r}: start one, or unset RAY_ADDRESS ({said})"
    return f"Ray does not start on this machine: {said}"


@contextmanager
def _children_deaf() -> Iterator[None]:
    """Within it, what this thread starts, and what that starts, never receives SIGTERM or SIGHUP.

    systemd, ``kill -- -PGID`` and a terminal that goes send them to Ray's processes too. Once they are gone, Ray ends
    this process without a word; if they stay, it ends in order, and ends them.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGHUP})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _is_cluster(address: str) -> bool:
    """Whether what listens there speaks HTTP/2, as Ray does and nearly nothing else; with TLS, whether anything does.

    Ray itself would try for minutes with a port that is silent, or that another service listens on.
    """
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host, int(port)), timeout=_ADDRESS_SECONDS) as there:
            if os.environ.get("RAY_USE_TLS", "0") != "0":
                return True
            there.sendall(_HTTP2_GREETING)
            answer = there.recv(4, socket.MSG_WAITALL)
            return len(answer) == 4 and answer[3] == _HTTP2_SETTINGS
    except (OSError, ValueError, OverflowError):
        return False


@contextmanager
def node_watched(died: Callable[[], None]) -> Iterator[None]:
    """Within it, ``died`` is called, in a thread, once Ray's node process (raylet) on this machine has died.

    Ray itself goes on for half a minute then, with screens of its log, and ends the driver without a word.
    """
    process, done = _node_process(), threading.Event()

    def look() -> None:
        while not done.wait(_LOOK_SECONDS):
            # looked at again: Ray may have been ended in order since, after `done` was set
            if process is not None and not _lives(process) and not done.is_set():
                died()
                return

    watch = threading.Thread(target=look, daemon=True, name="ray-node-watch")
    if process is not None:
        watch.start()
    try:
        yield
    finally:
        done.set()


def _node_process() -> int | None:
    """The number of the raylet that this process is connected to; None where there is no /proc to find it in."""
    socket_name = node_socket()
    if socket_name is None:
        return None
    name = f"--raylet_socket_name={socket_name}"
    for entry in _PROC.glob("[0-9]*"):
        try:
            if name in (entry / "cmdline").read_bytes().decode(errors="replace").split("\0"):
                return int(entry.name)
        except OSError:  # it has just ended
            continue
    return None


def _lives(process: int) -> bool:
    try:
        state = (_PROC / str(process) / "stat").read_text(encoding="utf-8", errors="replace").rpartition(") ")[2][:1]
    except OSError:
        return False
    return state not in ("Z", "X")


def has(kind: str) -> float:
    """How many CPUs or GPUs the cluster has, or can scale up to."""
    return max(float(ray.cluster_resources().get(kind, 0)), _limit(f"CRH_TUNE_MAX_{kind}S"))


def needs(scaling: ScalingSettings) -> dict[str, float]:
    """How many CPUs and GPUs a trial needs."""
    workers = scaling.workers_per_trial
    return {"CPU": workers * scaling.cpus_per_worker, "GPU": workers * scaling.gpus_per_worker}


def check_it_fits(scaling: ScalingSettings) -> None:
    """Raises SettingsError when no trial fits, or no node can hold one of its workers: Ray would wait for ever."""
    for kind, amount in needs(scaling).items():
        if amount > has(kind):
            there = "there is" if has(kind) == 1 else "there are"
            raise SettingsError(
                f"scaling.{kind.lower()}s_per_worker: a trial needs {counted(amount, kind)} "
                f"({counted(scaling.workers_per_trial, 'worker')}), {there} {has(kind):g}"
            )
    there = ray.cluster_resources()
    if all(has(kind) <= there.get(kind, 0) for kind in needs(scaling)):  # nodes that are not there yet may be larger
        _check_a_node_holds_a_worker(scaling)


def _check_a_node_holds_a_worker(scaling: ScalingSettings) -> None:
    """Raises SettingsError where no node has both the CPUs and the GPUs of one worker."""
    needed = scaling.cpus_per_worker, scaling.gpus_per_worker
    nodes = {
        (node["Resources"].get("CPU", 0), node["Resources"].get("GPU", 0)) for node in ray.nodes() if node["Alive"]
    }
    if any(cpus >= needed[0] and gpus >= needed[1] for cpus, gpus in nodes):
        return
    have = ", ".join(f"{cpus:g} and {gpus:g}" for cpus, gpus in sorted(nodes))
    wanted = f"{counted(needed[0], 'CPU')} and {counted(needed[1], 'GPU')}"
    raise SettingsError(
        f"scaling: a worker needs {wanted} on one node, the nodes have {have}: lower cpus_per_worker or gpus_per_worker"
    )


def _limit(name: str) -> float:
    """What the cluster may scale up to: a cluster file says so in the environment, Ray itself does not."""
    text = os.environ.get(name, "0")
    try:
        return float(text)
    except ValueError:
        raise SettingsError(f"{name}: expected a number, got {text!r}") from None


def trial_resources(scaling: ScalingSettings) -> tune.PlacementGroupFactory:
    """What Tune reserves for a trial: its worker's share, or one byte where a worker group reserves its own.

    Tune wants something reserved; a fraction of a CPU would keep a group from getting the machine's last one.
    """
    if scaling.workers_per_trial > 1:
        return tune.PlacementGroupFactory([{"memory": 1}])
    return tune.PlacementGroupFactory([{"CPU": scaling.cpus_per_worker, "GPU": scaling.gpus_per_worker}])


def concurrency(scaling: ScalingSettings, budget: BudgetSettings) -> int:
    """How many trials at once: as set, or as many as the cluster has (or can scale up to) CPUs and GPUs for.

    Raises SettingsError when not even one fits.
    """
    check_it_fits(scaling)
    if budget.concurrent != "auto":
        return int(budget.concurrent)
    return max(1, int(min(has(kind) / amount for kind, amount in needs(scaling).items() if amount)))


def free_groups() -> int:
    """Remove the placement groups that dead controllers of this job have left; how many living ones have.

    A placement group outlives the controller that made it for as long as the search's job runs. A trial that ASHA stops
    loses its process, with it the controller, and would keep its CPUs for ever.
    """
    groups = groups_of(ray.get_runtime_context().get_job_id())
    for each in groups:
        if each.maker_dead:
            remove_placement_group(each.group)
    return sum(not each.maker_dead for each in groups)


def device_of(scaling: ScalingSettings) -> torch.device:
    """The device of a lone worker, or of the process that a worker group's network comes to in the end.

    That process needs no GPU. Raises SettingsError where a lone worker asks for more GPUs than there are.
    """
    asked, alone = scaling.gpus_per_worker, scaling.workers_per_trial == 1
    there = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if asked == 0 or not (there or alone):
        return torch.device("cpu")
    if alone and asked > there:
        raise SettingsError(f"scaling.gpus_per_worker: {asked:g} asked for, there are {there}")
    return torch.device("cuda")
