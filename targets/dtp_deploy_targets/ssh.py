"""Any Linux board over ssh, by ONNX Runtime there or by a benchmark command of the user's own."""

import shutil

from dtp_deploy.errors import UsageError
from dtp_deploy.target import Availability
from dtp_deploy_targets.connection import Connection
from dtp_deploy_targets.remote import BUILD_TIMEOUT_S, RemoteBoard, RemoteTarget, check_build_timeout


class SshTarget(RemoteTarget):
    """A board with Python 3.8 or newer and the package onnxruntime, or with a benchmark command. Nothing is installed.

    Args:
        host: as ssh takes it: "user@board", or a name of the ssh configuration, with its keys and jump hosts.
        python: the Python on the board.
        threads: how many threads share one operator.
        command: a benchmark to use in place of ONNX Runtime. "{model}" in it stands for the ONNX file; it prints every
            latency in ms as a line of its own. It gives no outputs, so parity cannot be checked on the board.
        config: an ssh configuration to use in place of the user's.
        folder: where on the board files may be put for a while.
        build_timeout_s: the longest that making a model ready there, or one run of the command, may take.

    Raises:
        UsageError: threads is less than 1, the command has no {model}, or the time is none.
    """

    name = "ssh"
    summary = "A Linux board over ssh, by ONNX Runtime there"

    def __init__(
        self,
        *,
        host: str = "",
        python: str = "python3",
        threads: int = 1,
        command: str = "",
        config: str = "",
        folder: str = "",
        build_timeout_s: float = BUILD_TIMEOUT_S,
    ) -> None:
        check_build_timeout(self.name, build_timeout_s)
        if not isinstance(threads, int) or isinstance(threads, bool) or threads < 1:
            raise UsageError(f"--threads {threads} is not possible for target 'ssh'. Give 1 or more.")
        if command and "{model}" not in command:
            raise UsageError(f"command={command!r} does not use the model. Write {{model}} where its path belongs.")
        self.host, self.python, self.threads = host, python, threads
        self.command, self.config, self.folder = command, config, folder
        self.build_timeout_s = build_timeout_s

    def availability(self) -> Availability:
        """Whether a host is named and ssh is installed; the board itself is not asked."""
        if not self.host:
            return Availability(False, "needs the name of a board", "give --host user@board")
        return ssh_availability()

    def _connect(self) -> RemoteBoard:
        connection = Connection(self.host, config=self.config, folder=self.folder)
        if self.command:
            options: dict[str, object] = {"command": self.command, "timeout_s": self.build_timeout_s}
            return RemoteBoard(connection, self.python, "command", options, self.build_timeout_s)
        options = {"threads": self.threads}
        return RemoteBoard(connection, self.python, "onnxruntime", options, self.build_timeout_s)


def ssh_availability() -> Availability:
    """Whether this machine has the ssh client."""
    if shutil.which("ssh") is None:
        return Availability(False, "needs the program ssh", "sudo apt install openssh-client")
    return Availability(True)
