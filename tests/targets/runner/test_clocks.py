"""Clocks come back: after an interrupt, after a failure, and by hand where jetson_clocks fails. No clock is touched."""

import os
import shlex
import signal
import subprocess

import pytest

from dtp_deploy_targets.runner import clocks, processes
from dtp_deploy_targets.runner.clocks import ON_EXIT, LockedClocks


@pytest.fixture
def program(tmp_path, monkeypatch):
    """A jetson_clocks that writes down how it was called, and does what `on` says before it ends."""
    calls, on = [], {}

    def run(command, timeout_s=None):
        (what,) = command[command.index("jetson_clocks") + 1 :][:1] or ["lock"]
        calls.append(what)
        if what == "--store":
            (tmp_path / "keep" / f"clocks-{os.getpid()}.store").write_text("stored")
        return on.get(what, lambda: processes.Done(0, "", ""))()

    monkeypatch.setattr(clocks, "run", run)
    return calls, on


@pytest.fixture
def locked(tmp_path):
    (tmp_path / "folder").mkdir()
    return LockedClocks(tmp_path / "folder", tmp_path / "keep")


def failed():
    return processes.Done(1, "", "permission denied")


def test_they_come_back_and_nothing_is_left(tmp_path, program, locked):
    with locked:
        assert (tmp_path / "folder" / ON_EXIT).is_file()
        assert len(list((tmp_path / "keep").iterdir())) == 1
    assert program[0] == ["--store", "lock", "--restore"]
    assert list((tmp_path / "keep").iterdir()) == list((tmp_path / "folder").iterdir()) == []


def interrupted():
    raise KeyboardInterrupt


def test_an_interrupt_while_locking_puts_them_back(program, locked):
    calls, on = program
    on["lock"] = interrupted
    with pytest.raises(KeyboardInterrupt), locked:
        pass
    assert calls == ["--store", "lock", "--restore"]


def test_what_was_not_stored_is_not_restored(tmp_path, program, locked):
    calls, on = program
    on["--store"] = failed
    with pytest.raises(RuntimeError, match=r"^cannot store the clocks: permission denied\. It needs root"), locked:
        pass
    assert calls == ["--store"]
    assert list((tmp_path / "keep").iterdir()) == []


def test_what_cannot_be_put_back_is_kept_outside_of_the_folder_and_named(tmp_path, program, locked):
    program[1]["--restore"] = failed
    message = r"^cannot restore the clocks: permission denied\. What they were is kept; put them back with: "
    with pytest.raises(RuntimeError, match=message), locked:
        pass
    (store,) = (tmp_path / "keep").iterdir()
    assert store.read_text() == "stored"
    assert (tmp_path / "folder" / ON_EXIT).is_file()


def test_a_signal_while_they_come_back_waits(program, locked):
    calls, on = program
    ended = []

    def signalled():
        signal.raise_signal(signal.SIGTERM)
        calls.append("restored")
        return processes.Done(0, "", "")

    on["--restore"] = signalled
    before = signal.signal(signal.SIGTERM, lambda *_: ended.append(list(calls)))
    try:
        with locked:
            pass
    finally:
        signal.signal(signal.SIGTERM, before)
    assert ended == [["--store", "lock", "--restore", "restored"]]


def test_the_script_of_who_removes_the_folder_restores_and_then_removes_what_was_kept(tmp_path, program, locked):
    with locked:
        script = (tmp_path / "folder" / ON_EXIT).read_text()
        (store,) = (tmp_path / "keep").iterdir()
        shell = tmp_path / "bin"
        shell.mkdir()
        for name in ("jetson_clocks", "sudo"):
            (shell / name).write_text(f"#!/bin/sh\ntest -f {shlex.quote(str(store))}\n")
            (shell / name).chmod(0o755)
        done = subprocess.run(["/bin/sh", "-c", script], env={"PATH": f"{shell}:{os.environ['PATH']}"}, check=False)
        assert done.returncode == 0
        assert not store.exists()
