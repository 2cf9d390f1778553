"""Nothing that was started outlives the runner, at whatever moment it is ended."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from dtp_deploy_targets.runner import processes

SLEEP = [sys.executable, "-c", "import time; time.sleep(60)"]


@pytest.fixture
def started(monkeypatch):
    """What was started; `meanwhile` runs when a process is there, and nobody but the system knows it yet."""
    found, meanwhile = [], []

    def popen(*arguments, **options):
        found.append(real(*arguments, **options))
        for act in meanwhile:
            act()
        return found[-1]

    real = subprocess.Popen
    monkeypatch.setattr(processes.subprocess, "Popen", popen)
    return found, meanwhile


def interrupt(number, frame):
    raise KeyboardInterrupt


def test_a_signal_while_a_process_starts_ends_it_too(started):
    found, meanwhile = started
    meanwhile.append(lambda: signal.raise_signal(signal.SIGTERM))
    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        with pytest.raises(KeyboardInterrupt):
            processes.run(SLEEP, timeout_s=30)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert found[0].returncode == -signal.SIGKILL


def test_another_thread_that_ends_everything_waits_for_a_start(started):
    found, meanwhile = started

    def cut():
        threading.Thread(target=processes.kill_all).start()
        time.sleep(0.1)  # without a lock, it would have ended everything by now, but for this process

    meanwhile.append(cut)
    assert processes.run(SLEEP, timeout_s=30).status == -signal.SIGKILL
    assert len(found) == 1


def test_a_signal_while_the_list_is_held_is_handled(monkeypatch):
    handled = []

    class Held(set):
        def discard(self, pid):
            signal.raise_signal(signal.SIGTERM)
            super().discard(pid)

    monkeypatch.setattr(processes, "_running", Held())
    before = signal.signal(signal.SIGTERM, lambda *_: handled.append(processes.kill_all()))
    try:
        assert processes.run([sys.executable, "-c", "print('done')"], timeout_s=30).stdout == "done\n"
    finally:
        signal.signal(signal.SIGTERM, before)
    assert len(handled) == 1


def test_all_that_a_process_started_ends_with_it():
    pid = processes.run(["sh", "-c", "sleep 60 > /dev/null 2>&1 & echo $!"], timeout_s=30).stdout.strip()
    until = time.monotonic() + 20
    while is_alive(pid) and time.monotonic() < until:
        time.sleep(0.01)
    assert not is_alive(pid)


def is_alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def test_what_takes_too_long_is_ended(started):
    with pytest.raises(RuntimeError, match=r" ran for more than 0\.2 s and was ended$"):
        processes.run(SLEEP, timeout_s=0.2)
    assert started[0][0].returncode == -signal.SIGKILL


def test_what_cannot_be_started_says_why(tmp_path):
    with pytest.raises(RuntimeError, match=r"^cannot start .*nothing: No such file or directory$"):
        processes.run([os.fspath(tmp_path / "nothing")])
