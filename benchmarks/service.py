"""The demo's server under load: 8 clients for 30 s on loopback, each sending photos and waiting for the answer.

    python benchmarks/service.py EXPORT PHOTOS [--clients 8] [--seconds 30]

PHOTOS is a folder of photos to search with. Prints the errors, the latency (p50, p99) and the searches a second. Client
and server share this machine's cores.
"""

from __future__ import annotations

import argparse
import http.client
import itertools
import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np

from crh_tune.data.store.decode import IMAGE_SUFFIXES

START = 120.0


def main() -> int:
    """Start the server, load it, print what was measured: 0 where there was no error."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("export", type=Path)
    parser.add_argument("photos", type=Path)
    parser.add_argument("--index", type=Path)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=30.0)
    arguments = parser.parse_args()
    files = sorted(path for path in arguments.photos.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES)
    bodies = [path.read_bytes() for path in files[:: max(1, len(files) // 500)]]
    if not bodies:
        print(f"{arguments.photos}: no photos in it", file=sys.stderr)
        return 2
    port = free_port()
    command = [sys.executable, "-m", "crh_tune.serving", "demo", str(arguments.export), "--port", str(port)]
    command += ["--index", str(arguments.index)] if arguments.index else []
    server = subprocess.Popen(command)
    try:
        wait_for(port, server)
        times, errors, seconds = load(port, bodies, arguments.clients, arguments.seconds)
    finally:
        server.terminate()
        server.wait()
    p50, p99 = np.percentile(times, [50, 99]) * 1000 if times else (float("nan"), float("nan"))
    print(f"clients      {arguments.clients} for {seconds:.0f} s on {os.cpu_count()} cores, {len(bodies)} photos")
    print(f"searches     {len(times)}, {len(times) / seconds:.1f} a second")
    print(f"errors       {len(errors)}{': ' + errors[0] if errors else ''}")
    print(f"latency      p50 {p50:.0f} ms, p99 {p99:.0f} ms")
    return 1 if errors or not times else 0


def load(port: int, bodies: list[bytes], clients: int, seconds: float) -> tuple[list[float], list[str], float]:
    """Seconds of each answered search, what went wrong, and how long it took in all."""
    times: list[float] = []
    errors: list[str] = []
    start = time.monotonic()

    def client(number: int) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        for i in itertools.count(number):
            sent = time.monotonic()
            if sent - start > seconds:
                return
            try:
                connection.request("POST", "/search", bodies[i * 7919 % len(bodies)])
                answer = connection.getresponse()
                content = answer.read()
                if answer.status != 200 or b'"distance"' not in content:
                    errors.append(f"{answer.status} {content[:100]!r}")
                else:
                    times.append(time.monotonic() - sent)
            except OSError as error:
                errors.append(repr(error))
                connection.close()

    threads = [threading.Thread(target=client, args=(number,)) for number in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return times, errors, time.monotonic() - start


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port


def wait_for(port: int, server: subprocess.Popen[bytes]) -> None:
    """Return once the server answers. Raises RuntimeError where it ended, or does not within two minutes."""
    end = time.monotonic() + START
    while time.monotonic() < end and server.poll() is None:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
        except OSError:
            time.sleep(0.2)
        else:
            return
    raise RuntimeError("the server did not start")


if __name__ == "__main__":
    sys.exit(main())
