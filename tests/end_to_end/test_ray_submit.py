"""A real ``ray up`` and ``ray submit`` of clusters/on_prem.yaml, with this machine as client and as head.

Both live in network, process and mount namespaces of their own: ssh's port 22 is free there, ``ray stop`` sees no other
cluster, and each has a home and a /tmp of its own, so that only what Ray copies over ssh gets from the client to the
head. All of it ends with the namespace's first process, which ends with this one.
"""

from __future__ import annotations

import os
import pwd
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import optuna
import pytest
import yaml
from mlflow import MlflowClient

PROJECT = Path(__file__).parents[2]
HOME = Path(pwd.getpwuid(os.getuid()).pw_dir)
SSHD = shutil.which("sshd", path="/usr/sbin:/usr/local/sbin:/sbin")
NAMESPACES = ["unshare", "--net", "--pid", "--mount", "--fork", "--kill-child", "--mount-proc"]
LOOPBACK_UP = """
import fcntl, socket, struct
SIOCSIFFLAGS, IFF_UP = 0x8914, 1
fcntl.ioctl(socket.socket(), SIOCSIFFLAGS, struct.pack("16sH14x", b"lo", IFF_UP))
"""


def _why_not() -> str:
    """What keeps this machine from running these tests, or nothing."""
    if SSHD is None:
        return "sshd is not installed (Debian: apt-get install openssh-server)"
    for program in ("ssh", "ssh-keygen", "rsync", "unshare", "nsenter"):
        if shutil.which(program) is None:
            return f"{program} is not installed"
    if os.getuid() != 0 or subprocess.run([*NAMESPACES, "true"], capture_output=True, check=False).returncode != 0:
        return "sshd in namespaces of its own needs root and the right to make them"
    return ""


WHY_NOT = _why_not()
pytestmark = pytest.mark.skipif(bool(WHY_NOT), reason=f"ray submit: {WHY_NOT}")


class Loopback:
    """A client and a head, each with its own home and /tmp, kept in ``folder``."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.client, self.head = folder / "client" / "home", folder / "head" / "home"
        self.head_tmp = folder / "head" / "tmp"
        self.project = self.client / "project"
        first = f"{shlex.join([sys.executable, '-c', LOOPBACK_UP])}; mount -t tmpfs none /run; mkdir /run/sshd"
        self._first = subprocess.Popen(
            [*NAMESPACES, "bash", "-ec", f"{first}; echo up; read -r"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._first.stdout is not None
        assert self._first.stdout.readline() == "up\n"
        self._make_files()
        self._sshd = self._start_sshd()

    def close(self) -> None:
        """Ends every process of client and head."""
        for process in (self._first, self._sshd):
            process.kill()
            process.wait()

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        """Run a command on the client, in the project's folder."""
        return subprocess.run(
            self._on("client", f"cd {shlex.quote(str(HOME / self.project.name))}", command),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            text=True,
            timeout=1800,
            check=False,
            env={"PATH": f"{sys.prefix}/bin:/usr/local/bin:/usr/bin:/bin", "HOME": str(HOME), "LANG": "C.UTF-8"},
        )

    def _on(self, side: str, first: str, command: Sequence[str]) -> list[str]:
        """The command line that runs a command with the home and /tmp of the client or the head.

        The package of this checkout is not to be seen there, only what of the python environment lies in home or /tmp.
        """
        mounts = [(self._folder / "nothing", PROJECT / "crh_tune"), (self._folder / "shadow", Path("/etc/shadow"))]
        masks = [(self._folder / side / "home", HOME), (self._folder / side / "tmp", Path("/tmp"))]
        for shown, hidden in masks:
            for kept in {PROJECT, Path(sys.prefix), Path(sys.base_prefix)}:
                if kept.is_relative_to(hidden):
                    (shown / kept.relative_to(hidden)).mkdir(parents=True, exist_ok=True)
                    mounts.append((kept, shown / kept.relative_to(hidden)))
        lines = [shlex.join(["mount", "--rbind", str(source), str(target)]) for source, target in mounts + masks]
        ours = f"/proc/{self._first.pid}/ns"
        enter = ["nsenter", f"--net={ours}/net", f"--mount={ours}/mnt", f"--pid={ours}/pid_for_children"]
        return [*enter, "unshare", "--mount", "bash", "-ec", "\n".join([*lines, first, 'exec "$@"']), "bash", *command]

    def _make_files(self) -> None:
        for side in ("client", "head"):
            (self._folder / side / "home" / ".ssh").mkdir(parents=True, mode=0o700)
            (self._folder / side / "tmp").mkdir()
        (self._folder / "nothing").mkdir()
        (self._folder / "shadow").write_text("root:*:20000:0:99999:7:::\n")  # sshd takes no key for a locked account
        for name in ("crh_tune", "search_spaces", "clusters"):
            shutil.copytree(PROJECT / name, self.project / name, ignore=shutil.ignore_patterns("__pycache__"))
        for name in ("pyproject.toml", "constraints.txt"):
            shutil.copy(PROJECT / name, self.project)
        for name in (".venv", ".git", "crh_runs"):
            (self.project / name).mkdir()
            (self.project / name / "large").touch()
        for key in (self.client / ".ssh" / "crh_tune", self.head / ".ssh" / "host_key"):
            subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key)], check=True)
        shutil.copy(self.client / ".ssh" / "crh_tune.pub", self.head / ".ssh" / "authorized_keys")
        (self.project / "loopback.yaml").write_text(yaml.safe_dump(_loopback_cluster()))
        (self.project / "search_spaces" / "short.yaml").write_text(yaml.safe_dump(_short_space()))

    def _start_sshd(self) -> subprocess.Popen[bytes]:
        options = {"ListenAddress": "127.0.0.1", "HostKey": HOME / ".ssh" / "host_key", "PidFile": "none"}
        options |= {"UsePAM": "no", "StrictModes": "no", "PasswordAuthentication": "no", "MaxSessions": 100}
        options |= {"PermitRootLogin": "prohibit-password", "Subsystem": "sftp internal-sftp"}
        assert SSHD is not None
        command = [SSHD, "-D", "-e", "-f", "/dev/null"]
        for name, value in options.items():
            command += ["-o", f"{name}={value}"]
        log = self._folder / "sshd.log"
        with log.open("w") as written:
            sshd = subprocess.Popen(self._on("head", "cd /", command), stdin=subprocess.DEVNULL, stderr=written)
        deadline = time.monotonic() + 120
        while "Server listening" not in log.read_text():
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.1)
        return sshd


def _loopback_cluster() -> dict[str, object]:
    """clusters/on_prem.yaml for this machine: its python environment is there already and stands first in PATH.

    Its workers are no nicer than other processes, among which they would hardly run on a busy machine.
    """
    cluster = yaml.safe_load((PROJECT / "clusters" / "on_prem.yaml").read_text())
    assert any(command.startswith("pip install") for command in cluster["setup_commands"])
    kept = [each for each in cluster["setup_commands"] if "crh_tune_env" not in each and "pip install" not in each]
    ray = "RAY_AUTH_MODE=token RAY_worker_niceness=0"
    profile = f'export PATH="{sys.prefix}/bin:$PATH" PYTHONPATH="$HOME/crh_tune_src" {ray}'
    return {
        **cluster,
        "cluster_name": "loopback",
        "provider": {"type": "local", "head_ip": "127.0.0.1", "worker_ips": []},
        "auth": {"ssh_user": "root", "ssh_private_key": "~/.ssh/crh_tune"},
        "setup_commands": [f"echo {shlex.quote(profile)} > ~/.crh_tune_profile", *kept],
    }


def _short_space() -> dict[str, object]:
    """The built-in search space, with trials of seconds."""
    space = yaml.safe_load((PROJECT / "search_spaces" / "digit_pairs.yaml").read_text())
    return {
        **space,
        "trial": {**space["trial"], "epochs": 4, "evaluate_every": 2},
        "scheduler": {},
        "confirm": {"top": 1, "seeds": 1},
    }


@pytest.fixture(scope="module")
def cluster() -> Iterator[Loopback]:
    with tempfile.TemporaryDirectory(dir="/var/tmp", prefix="crh-tune-") as folder:
        loopback = Loopback(Path(folder))
        try:
            assert loopback.run("ray", "get-auth-token", "--generate").returncode == 0
            up = loopback.run("ray", "up", "-y", "--disable-usage-stats", "loopback.yaml")
            assert up.returncode == 0, up.stdout
            yield loopback
        finally:
            loopback.close()


def test_ray_up_copies_the_working_copy_and_the_token_and_nothing_large(cluster: Loopback) -> None:
    copied = {path.name for path in (cluster.head / "crh_tune_src").iterdir()}
    assert {"crh_tune", "search_spaces", "pyproject.toml", "constraints.txt"} <= copied
    assert not copied & {".venv", ".git", "crh_runs"}
    token = cluster.head / ".ray" / "auth_token"
    assert token.read_text() == (cluster.client / ".ray" / "auth_token").read_text()
    assert token.stat().st_mode & 0o777 == 0o600


def test_the_head_demands_the_token(cluster: Loopback) -> None:
    answered = cluster.run("ray", "exec", "loopback.yaml", "ray status")
    assert answered.returncode == 0, answered.stdout
    refused = cluster.run("ray", "exec", "loopback.yaml", "RAY_AUTH_MODE=disabled ray status")
    assert refused.returncode != 0, refused.stdout
    assert "nauthenticated" in refused.stdout


def test_submit_runs_a_search_to_its_end_on_the_running_cluster(cluster: Loopback) -> None:
    assert not (cluster.head / "search.py").exists()
    done = cluster.run("ray", "submit", "loopback.yaml", "crh_tune/search.py", "--", "short", "--trials", "4")
    assert done.returncode == 0, done.stdout

    said = done.stdout.splitlines()
    assert sum("[  4/4]" in line for line in said) == 1
    last = said.index(next(line for line in said if line.startswith("best settings")))
    ends = ["best settings", "validation mAP", "test mAP", "exported to", "Optuna's pages"]
    assert [label for label in (line.split("  ")[0] for line in said[last:]) if label in ends] == ends
    assert "exported to      crh_runs/digit-pairs-001/export" in said
    assert "mlflow ui --host 127.0.0.1 --port 5000" in next(
        line for line in said[last:] if line.startswith("open the UI")
    )

    assert (cluster.head / "search.py").read_text() == (PROJECT / "crh_tune" / "search.py").read_text()
    storage = cluster.head / "crh_runs"
    folder = storage / "digit-pairs-001"
    assert (folder / "export").is_dir()
    assert (folder / "summary.json").is_file()
    study = optuna.load_study(study_name=None, storage=f"sqlite:///{folder / 'optuna.db'}")
    assert len(study.trials) == 4
    client = MlflowClient(tracking_uri=f"sqlite:///{storage / 'mlflow.db'}")
    [experiment] = [found for found in client.search_experiments() if found.name == "digit-pairs"]
    names = [run.data.tags["crh_tune.run"] for run in client.search_runs([experiment.experiment_id])]
    assert len([name for name in names if not name.startswith(("confirm-", "final-"))]) == 1 + 4  # parent and trials

    sessions = [path for path in (cluster.head_tmp / "ray").glob("session_2*") if path.is_dir()]
    assert len(sessions) == 1, "the search started a Ray of its own"
    assert list((sessions[0] / "logs").glob("python-core-driver-*")), "the search was no driver of the cluster"


def test_submit_of_an_unknown_space_fails(cluster: Loopback) -> None:
    done = cluster.run("ray", "submit", "loopback.yaml", "crh_tune/search.py", "--", "no_such_space")
    assert done.returncode != 0
    assert "unknown search space 'no_such_space'" in done.stdout
