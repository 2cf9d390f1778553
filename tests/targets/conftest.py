"""A real ssh server on this machine's loopback, for the targets that work over ssh.

It is an ordinary process of the tests' user, with host and user keys of its own. Where `sshd` is not installed (Debian:
``apt-get install openssh-server``), the tests that need it are skipped.
"""

import contextlib
import getpass
import os
import shutil
import signal
import socket
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path

import pytest

SSHD = shutil.which("sshd", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")


@dataclass
class Sshd:
    """A server, and the files that a client needs."""

    folder: Path
    port: int
    process: subprocess.Popen
    environment: dict[str, str] = field(default_factory=dict)

    @property
    def host(self) -> str:
        return "loopback"

    @property
    def config(self) -> str:
        return str(self.folder / "ssh_config")

    def sessions(self) -> list[int]:
        """The processes of the server's connections."""
        found = []
        for status in Path("/proc").glob("[0-9]*/stat"):
            with contextlib.suppress(OSError):  # it may have ended meanwhile
                parent = int(status.read_text().rpartition(")")[2].split()[1])
                if parent == self.process.pid:
                    found.append(int(status.parent.name))
        return found

    def cut(self) -> None:
        """Kill the server's side of every connection, as a board does that loses its power."""
        for pid in self.sessions():
            os.kill(pid, signal.SIGKILL)

    def write_config(self, **settings: str) -> str:
        """An ssh configuration that differs from the usual one in some settings; its path."""
        text = (self.folder / "ssh_config").read_text()
        for key, value in settings.items():
            lines = [line for line in text.splitlines() if not line.strip().startswith(key + " ")]
            text = "\n".join([*lines, f"  {key} {value}"]) + "\n"
        path = self.folder / f"ssh_config-{len(list(self.folder.iterdir()))}"
        path.write_text(text)
        return str(path)


def make_key(path: Path) -> str:
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(path)], check=True)
    return path.with_suffix(".pub").read_text()


@pytest.fixture
def start_sshd(tmp_path):
    """Start a server whose sessions get these environment variables."""
    if SSHD is None:
        pytest.skip("needs the program sshd: apt-get install openssh-server")
    started = []

    def start(**environment: str) -> Sshd:
        folder = tmp_path / f"sshd-{len(started)}"
        folder.mkdir()
        folder.chmod(0o700)
        host_key = make_key(folder / "host_key")
        (folder / "authorized_keys").write_text(make_key(folder / "user_key"))
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        (folder / "known_hosts").write_text(f"[127.0.0.1]:{port} {host_key}")
        variables = " ".join(f'"{name}={value}"' for name, value in environment.items())
        (folder / "sshd_config").write_text(
            f"Port {port}\nListenAddress 127.0.0.1\nHostKey {folder}/host_key\nPidFile none\nUsePAM no\n"
            f"AuthorizedKeysFile {folder}/authorized_keys\nStrictModes no\nPasswordAuthentication no\n"
            "PermitRootLogin prohibit-password\n" + (f"SetEnv {variables}\n" if variables else "")
        )
        (folder / "ssh_config").write_text(
            f"Host loopback\n  HostName 127.0.0.1\n  Port {port}\n  User {getpass.getuser()}\n"
            f"  IdentityFile {folder}/user_key\n  IdentitiesOnly yes\n  UserKnownHostsFile {folder}/known_hosts\n"
        )
        if os.geteuid() == 0:  # sshd as root wants this folder, which the system's own start makes
            Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
        log = (folder / "sshd.log").open("wb")
        process = subprocess.Popen([SSHD, "-D", "-e", "-f", str(folder / "sshd_config")], stderr=log)
        log.close()
        server = Sshd(folder, port, process)
        started.append(server)
        _await(port, process, folder)
        return server

    yield start
    for server in started:
        server.process.terminate()
        server.process.wait()


def _await(port: int, process: subprocess.Popen, folder: Path) -> None:
    for _ in range(100):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        if process.poll() is not None:
            break
        time.sleep(0.05)
    pytest.skip("sshd does not start here: " + (folder / "sshd.log").read_text().strip()[-300:])


@pytest.fixture
def sshd(start_sshd):
    return start_sshd()


@pytest.fixture
def remote_folder(tmp_path):
    """Where "the board" keeps its temporary files; after every test they must be gone."""
    folder = tmp_path / "board-tmp"
    folder.mkdir()
    yield folder
    deadline = time.monotonic() + 15
    while list(folder.iterdir()) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert [path.name for path in folder.iterdir()] == []


@pytest.fixture
def new_key():
    """Make an ssh key at a path; its public half."""
    return make_key
