"""One connection to a board: by the system's own OpenSSH client, or to this machine in the same way.

Nothing is installed on the board. The user's ssh configuration holds (keys, agent, jump hosts), nobody is ever asked
for a password, and a host whose key is not known is refused. A shell on the board, the *keeper*, makes a folder and
waits at the other end of the connection; when the connection ends, however it ends, it removes the folder.
"""

import os
import re
import select
import shlex
import signal
import subprocess
import tempfile
import time
import weakref
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO

from dtp_deploy.errors import TargetError, UsageError

CONNECT_S = 15
_OPEN_S = 60.0
_CLOSE_S = 15.0
_CUT = 255  # ssh's own exit status; every other one is the command's

_MARK = "dtp-deploy folder: "
# The arguments: the folder to work in ("" for the board's own choice), and how long to wait at most. The clocks of a
# board, if they are locked, come back by the script "on-exit" that the runner leaves.
_KEEPER = f"""
umask 077
trap '' HUP INT TERM PIPE
folder=$(mktemp -d "${{1:-${{TMPDIR:-/tmp}}}}/dtp-deploy-XXXXXXXX") || exit 73
echo "{_MARK}$folder"
if command -v timeout >/dev/null 2>&1; then timeout "$2" cat >/dev/null; else cat >/dev/null; fi
if [ -f "$folder/on-exit" ]; then sh "$folder/on-exit" >/dev/null 2>&1; fi
rm -rf "$folder" 2>/dev/null || {{ sleep 1; rm -rf "$folder"; }}
"""
_LONGEST_S = 86_400
# Removes the folder of the sockets ($0) even if this process is killed: then the keeper's standard input ends.
_HERE = '"$@"; status=$?; rm -rf "$0"; exit $status'


class Connection:
    """An open connection; close it, or let go of it.

    Args:
        host: as ssh takes it ("user@board", or a name of the user's ssh configuration); "" for this machine.
        config: a file to use in place of the user's ssh configuration.
        folder: where on the board files may be put for a while; "" for its $TMPDIR, or /tmp.

    Attributes:
        folder: a new folder on the board, which goes away with the connection.

    Raises:
        UsageError: the host is no host name, or the configuration is not there.
        TargetError: there is no connection. The message says why, and what to do.
    """

    def __init__(self, host: str, *, config: str = "", folder: str = "") -> None:
        if host.startswith("-") or re.search(r"\s", host):
            raise UsageError(f"host={host!r} is no host. Give it as user@name, or as named in your ssh configuration.")
        if config and not Path(config).expanduser().is_file():
            raise UsageError(f"config={config!r} is no file. Give an ssh configuration, or leave it out.")
        self.host, self._config = host, str(Path(config).expanduser()) if config else ""
        self.label = f"board '{host}'" if host else "this machine"
        # A socket's path may have about 100 characters; TMPDIR may be longer.
        self._sockets = tempfile.mkdtemp(prefix="dtp-", dir=None if len(tempfile.gettempdir()) < 60 else "/tmp")  # noqa: S108
        self._errors: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the connection
        self._keeper = subprocess.Popen(
            ["/bin/sh", "-c", _HERE, self._sockets, *self._command(_KEEPER, [folder, str(_LONGEST_S)], master=True)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env=_environment(),
            start_new_session=True,  # no terminal to ask for a password on; and Ctrl-C leaves it time to clean up
        )
        self.close: Callable[[], object] = weakref.finalize(self, _close, self._keeper, self._errors)
        try:
            self.folder = self._await_folder(folder)
        except BaseException:
            self.close()
            raise

    def _command(self, script: str, arguments: Sequence[str], *, master: bool = False) -> list[str]:
        words = ["sh", "-c", script, "sh", *arguments]
        if not self.host:
            return words
        control = ["ControlMaster=yes", "ControlPersist=no"] if master else ["ControlMaster=no", "ProxyCommand=false"]
        settings = [
            "BatchMode=yes",
            "StrictHostKeyChecking=yes",
            f"ConnectTimeout={CONNECT_S}",
            "ServerAliveInterval=10",
            "ServerAliveCountMax=3",
            "LogLevel=ERROR",
            "RemoteCommand=none",
            "RequestTTY=no",
            "ForwardAgent=no",
            "ForwardX11=no",
            "ClearAllForwardings=yes",
            f"ControlPath={self._sockets}/ssh",
            *control,
        ]
        options = [part for setting in settings for part in ("-o", setting)]
        return [*self._ssh(), *options, "--", self.host, "exec " + shlex.join(words)]

    def _ssh(self) -> list[str]:
        return ["ssh", *(["-F", self._config] if self._config else [])]

    def _await_folder(self, folder: str) -> str:
        deadline = time.monotonic() + _OPEN_S
        stdout = _require(self._keeper.stdout)
        received = b""
        while True:
            # A login shell may print what it likes before.
            found = re.search(rf"^{re.escape(_MARK)}(.+)\n".encode(), received, re.MULTILINE)
            if found:
                return found.group(1).decode()
            if not select.select([stdout], [], [], max(0.0, deadline - time.monotonic()))[0]:
                raise TargetError(
                    f"The {self.label} did not answer in {_OPEN_S:g} s. Check that `ssh {self.host} true` works."
                )
            chunk = os.read(stdout.fileno(), 4096)
            if not chunk:
                raise self._refused(self._keeper.wait(), folder)
            received += chunk

    def _refused(self, status: int, folder: str) -> TargetError:
        errors = self._said()
        if self.host and status == _CUT:
            return TargetError(explain_ssh(errors, self.host, self._resolved()))
        where = folder or "its temporary folder"
        return TargetError(
            f"The {self.label} cannot make a folder in {where}: {_last_line(errors)}. Free some space there, or name "
            "another folder of that board: folder=/path."
        )

    def _resolved(self) -> dict[str, str]:
        """What ssh makes of the host: hostname, port, user, userknownhostsfile, proxyjump."""
        done = subprocess.run([*self._ssh(), "-G", "--", self.host], capture_output=True, text=True, check=False)
        return dict(line.split(" ", 1) for line in done.stdout.splitlines() if " " in line)

    # ---- what a user of it does ------------------------------------------------------------------------------------

    def run(
        self, script: str, arguments: Sequence[str] = (), *, stdin: IO[bytes] | None = None, timeout_s: float = 60.0
    ) -> subprocess.CompletedProcess[bytes]:
        """Run a shell script on the board, and give what it printed and its status.

        Raises:
            TargetError: the connection was cut, or the script took longer than `timeout_s`.
        """
        self.check()
        try:
            done = subprocess.run(
                self._command(script, arguments),
                stdin=stdin if stdin is not None else subprocess.DEVNULL,
                capture_output=True,
                env=_environment(),
                timeout=timeout_s,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise TargetError(
                f"The {self.label} took more than {timeout_s:g} s for one step. Check the network and its load."
            ) from None
        if self.host and done.returncode == _CUT:
            raise self.cut(done.stderr.decode(errors="replace"))
        return done

    def put(self, source: Path, name: str, *, timeout_s: float = 600.0) -> str:
        """Copy a file into the connection's folder; its path there.

        Raises:
            TargetError: the board's disk is full, or the connection was cut.
        """
        path = f"{self.folder}/{name}"
        with source.open("rb") as stdin:
            done = self.run('cat > "$1" && wc -c < "$1"', [path], stdin=stdin, timeout_s=timeout_s)
        size = source.stat().st_size
        if done.returncode != 0 or int(done.stdout.split()[-1]) != size:
            said = _last_line(done.stderr.decode(errors="replace"))
            remedy = "Free some space there, or name another folder of that board: folder=/path."
            raise TargetError(f"Cannot write {name} ({size} bytes) to {self.label}: {said}. {remedy}")
        return path

    def get(self, path: str, destination: Path, *, timeout_s: float = 600.0) -> None:
        """Copy a file of the board to here.

        Raises:
            TargetError: it is not there, or the connection was cut.
        """
        done = self.run('cat < "$1"', [path], timeout_s=timeout_s)
        if done.returncode != 0:
            said = _last_line(done.stderr.decode(errors="replace"))
            raise TargetError(f"Cannot read {path} of {self.label}: {said}. Check that it is there.")
        destination.write_bytes(done.stdout)

    def start(self, words: Sequence[str], errors: IO[bytes]) -> subprocess.Popen[bytes]:
        """Start a command on the board, with pipes to its standard input and output."""
        self.check()
        return subprocess.Popen(
            self._command(f"exec {shlex.join(words)}", []),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            bufsize=0,
            env=_environment(),
            start_new_session=True,
        )

    def check(self, patience_s: float = 0.0) -> None:
        """See that the connection is open.

        Args:
            patience_s: how long to watch it: what runs over it can notice a cut first.

        Raises:
            TargetError: it was cut.
        """
        with suppress(subprocess.TimeoutExpired):
            self._keeper.wait(patience_s)
            raise self.cut(self._said())

    def _said(self) -> str:
        if self._errors.closed:
            return ""
        self._errors.seek(0)
        return self._errors.read().decode(errors="replace")

    def cut(self, errors: str = "") -> TargetError:
        """The error to raise where the connection broke."""
        said = _last_line(errors) if errors.strip() else "no message"
        return TargetError(
            f"The connection to {self.label} was cut ({said}). Nothing of this run stays there, except built engines "
            "in its cache; check that it is powered and reachable, and start again."
        )


def _close(keeper: "subprocess.Popen[bytes]", errors: IO[bytes]) -> None:
    with suppress(OSError):
        _require(keeper.stdin).close()
    try:
        keeper.wait(_CLOSE_S)
    except subprocess.TimeoutExpired:
        with suppress(ProcessLookupError):
            os.killpg(keeper.pid, signal.SIGKILL)
        keeper.wait()
    _require(keeper.stdout).close()
    errors.close()


def _environment() -> dict[str, str]:
    """Ours, and that nobody is asked for a password: BatchMode does not reach the ssh that goes to a jump host."""
    return {**os.environ, "SSH_ASKPASS_REQUIRE": "never"}


def _require(stream: IO[bytes] | None) -> IO[bytes]:
    assert stream is not None
    return stream


def explain_ssh(errors: str, host: str, resolved: dict[str, str]) -> str:
    """Why ssh could not connect, in one line that says what to do.

    >>> explain_ssh("ssh: Could not resolve hostname bord: Name or service not known", "bord", {})
    "Host 'bord' cannot be resolved. Check its spelling, or give its address: host=user@192.168.1.20."
    """
    name, port = resolved.get("hostname", host), resolved.get("port", "22")
    known_hosts = resolved.get("userknownhostsfile", "~/.ssh/known_hosts").split()[0]
    entry = name if port == "22" else f"[{name}]:{port}"
    if "Could not resolve hostname" in errors:
        return f"Host '{host}' cannot be resolved. Check its spelling, or give its address: host=user@192.168.1.20."
    if "HOST IDENTIFICATION HAS CHANGED" in errors:
        return (
            f"The host key of '{host}' has changed: another machine answers, or the board was set up anew. Only if you "
            f"know that it was: ssh-keygen -f {known_hosts} -R '{entry}'"
        )
    if "host key is known for" in errors or "Host key verification failed" in errors:
        if resolved.get("proxyjump", "none") != "none":
            return f"The host key of '{host}' is not known. Connect once by hand, and compare it: ssh {host} true"
        scan = f"ssh-keyscan -p {port} {name}" if port != "22" else f"ssh-keyscan {name}"
        return (
            f"The host key of '{host}' is not known, so it is refused. Add it, and compare it with the board's own "
            f"(ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub): {scan} >> {known_hosts}"
        )
    if "Permission denied" in errors or "Too many authentication failures" in errors:
        return (
            f"Host '{host}' refuses the key of user '{resolved.get('user', '')}' ({_last_line(errors)}). Add your key "
            f"there (ssh-copy-id {host}), or name the right one by IdentityFile in your ssh configuration; passwords "
            "are never asked for."
        )
    reasons = ("Connection refused", "Connection timed out", "No route to host", "Network is unreachable")
    for reason in reasons:
        if reason in errors:
            return (
                f"Host '{host}' ({name}, port {port}) cannot be reached: {reason.lower()}. Check that it is on, and "
                f"that its ssh server runs: ssh {host} true"
            )
    return f"The connection to '{host}' failed: {_last_line(errors)}. Check that this works: ssh {host} true"


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1].rstrip(".") if lines else "no message"
