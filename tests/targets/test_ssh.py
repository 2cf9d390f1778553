import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from dtp_deploy.errors import TargetError, UsageError
from dtp_deploy.profile import MeasureSettings, measure
from dtp_deploy.target import TargetSpec, find_target, random_inputs
from dtp_deploy.testing.conformance import CHECKS, make_case, write_small_model
from dtp_deploy_targets.connection import Connection

SSH = "dtp_deploy_targets.ssh:SshTarget"
QUICK = MeasureSettings(
    min_samples=20, max_samples=100, min_seconds=0.02, warm_up_seconds=0.01, max_warm_up_seconds=0.3, repeats=0
)


@pytest.fixture
def spec(sshd, remote_folder):
    return TargetSpec(
        SSH, {"host": sshd.host, "config": sshd.config, "python": sys.executable, "folder": str(remote_folder)}
    )


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_conformance(check, spec, tmp_path):
    check(make_case(spec, tmp_path))


def test_measures_on_the_board(spec, tmp_path):
    case = make_case(spec, tmp_path)
    reports = measure({"dense": case.model_path, "again": case.model_path}, spec, QUICK)
    assert len(reports["dense"].samples_ms) >= 20
    assert reports["dense"].block_sizes == reports["again"].block_sizes
    assert reports["dense"].environment["engine"]["runtime"] == "onnxruntime"
    assert reports["dense"].environment["engine"]["precision"] == "fp32"


def test_layers_are_profiled_on_the_board(spec, tmp_path):
    path = make_case(spec, tmp_path).model_path
    layers = find_target(spec).build(path).layer_times()
    assert layers is not None
    assert "fp32" in {layer.precision for layer in layers}
    assert find_target(options(spec, command="sh -c 'echo 1' {model}")).build(path).layer_times() is None


def options(spec, **changes):
    return TargetSpec(SSH, dict(spec.options) | changes)


def test_same_outputs_as_here(spec, tmp_path):
    case = make_case(spec, tmp_path)
    with (
        find_target("cpu").build(case.model_path).open() as here,
        find_target(spec).build(case.model_path).open() as there,
    ):
        inputs = random_inputs(here.inputs, 1)[0]
        np.testing.assert_array_equal(here.run(inputs)["output"], there.run(inputs)["output"])


def test_a_benchmark_command_is_measured(spec, tmp_path, sshd):
    case = make_case(spec, tmp_path)
    command = "sh -c 'test -s {model} && echo loading && echo 1.5 && echo 2.5'"
    report = measure({"dense": case.model_path}, options(spec, command=command), QUICK)["dense"]
    assert set(report.samples_ms) == {1.5, 2.5}
    assert report.environment["engine"]["runtime"] == "command"


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("sh -c 'echo no such chip >&2; exit 3' {model}", "the benchmark command ended with status 3: no such chip."),
        ("echo {model}", "the benchmark command printed no latency: let it print one number of ms on each line."),
        ("no-such-program {model}", "cannot start no-such-program: No such file or directory."),
    ],
)
def test_a_benchmark_command_that_fails(spec, tmp_path, command, message):
    with pytest.raises(TargetError) as caught:
        find_target(options(spec, command=command)).build(make_case(spec, tmp_path).model_path)
    assert str(caught.value) == f"On board 'loopback': {message}"


def test_parity_on_a_benchmark_command_is_refused(spec, tmp_path):
    case = make_case(spec, tmp_path)
    with (
        find_target(options(spec, command="sh -c 'echo 1' {model}")).build(case.model_path).open() as session,
        pytest.raises(TargetError, match="a benchmark command gives no outputs"),
    ):
        session.run(random_inputs(session.inputs, 1)[0])


def test_cut_connection(spec, tmp_path, sshd, remote_folder):
    with find_target(spec).build(make_case(spec, tmp_path).model_path).open() as session:
        inputs = random_inputs(session.inputs, 1)[0]
        session.run(inputs)
        assert list(remote_folder.iterdir())
        sshd.cut()
        with pytest.raises(TargetError, match=r"^The connection to board 'loopback' was cut \(.*\)\. Nothing"):
            session.run(inputs)


def test_killed_in_the_middle_of_measuring(spec, tmp_path, sshd):
    case = make_case(spec, tmp_path)
    long = MeasureSettings(min_seconds=60, max_seconds=60, max_samples=10**9, timeout_s=100)
    timer = threading.Timer(4, sshd.cut)
    timer.start()
    with pytest.raises(TargetError, match=r"The connection to board 'loopback' was cut"):
        measure({"dense": case.model_path}, spec, long)
    timer.join()


def test_a_time_out_leaves_nothing_behind(spec, tmp_path):
    case = make_case(spec, tmp_path)
    slow = options(spec, command="sh -c 'sleep 60; echo 1' {model}")
    with pytest.raises(TargetError, match=r"was killed after 4 s without a result"):
        measure({"dense": case.model_path}, slow, MeasureSettings(timeout_s=4))


def test_runner_that_dies(spec, tmp_path, remote_folder):
    command = "sh -c 'kill -9 $PPID; sleep 1; echo 1' {model}"
    with pytest.raises(TargetError, match=r"^The runner on board 'loopback' died while building\. Where memory"):
        find_target(options(spec, command=command)).build(make_case(spec, tmp_path).model_path)


def test_wrong_key(spec, tmp_path, sshd, new_key):
    new_key(tmp_path / "other_key")
    bad = options(spec, config=sshd.write_config(IdentityFile=str(tmp_path / "other_key")))
    with pytest.raises(TargetError, match=r"^Host 'loopback' refuses the key of user '\w+' \(.*Permission denied"):
        find_target(bad).build(make_case(spec, tmp_path).model_path)


def test_a_key_of_the_agent_is_enough(spec, tmp_path, sshd, monkeypatch):
    socket = f"/tmp/dtp-agent-{os.getpid()}"  # a socket's path must be short
    agent = subprocess.Popen(["ssh-agent", "-D", "-a", socket], stdout=subprocess.DEVNULL)
    try:
        while not Path(socket).exists():
            assert agent.poll() is None
            time.sleep(0.01)
        monkeypatch.setenv("SSH_AUTH_SOCK", socket)
        subprocess.run(["ssh-add", "-q", str(sshd.folder / "user_key")], check=True)
        config = Path(sshd.write_config(IdentityFile="none", IdentitiesOnly="no"))
        connection = Connection("loopback", config=str(config), folder=spec.options["folder"])
        assert connection.run("echo hello").stdout == b"hello\n"
        connection.close()
    finally:
        agent.terminate()
        agent.wait()


def test_unknown_host_key_names_the_line_that_adds_it(spec, tmp_path, sshd):
    known = tmp_path / "empty"
    known.touch()
    bad = options(spec, config=sshd.write_config(UserKnownHostsFile=str(known)))
    case = make_case(spec, tmp_path)
    with pytest.raises(TargetError) as caught:
        find_target(bad).build(case.model_path)
    message = str(caught.value)
    assert message.startswith("The host key of 'loopback' is not known, so it is refused. Add it")
    line = message.rpartition(": ")[2]
    assert line == f"ssh-keyscan -p {sshd.port} 127.0.0.1 >> {known}"
    subprocess.run(line, shell=True, check=True, stderr=subprocess.DEVNULL)
    find_target(bad).build(case.model_path)


def test_changed_host_key(spec, tmp_path, sshd, new_key):
    other = new_key(tmp_path / "other_host")
    known = tmp_path / "known"
    known.write_text(f"[127.0.0.1]:{sshd.port} {other}")
    bad = options(spec, config=sshd.write_config(UserKnownHostsFile=str(known)))
    with pytest.raises(TargetError) as caught:
        find_target(bad).build(make_case(spec, tmp_path).model_path)
    assert str(caught.value).endswith(f"ssh-keygen -f {known} -R '[127.0.0.1]:{sshd.port}'")


def test_nobody_listens(spec, tmp_path, sshd):
    sshd.process.terminate()
    sshd.process.wait()
    with pytest.raises(TargetError, match=r"^Host 'loopback' \(127\.0\.0\.1, port \d+\) cannot be reached: connection"):
        find_target(spec).build(make_case(spec, tmp_path).model_path)


@pytest.mark.parametrize(
    ("python", "message"),
    [
        ("no-such-python", r"^The board 'loopback' has no 'no-such-python'\. Install Python 3\.8 or newer there"),
        ("echo 3 6 #", r"has no 'echo 3 6 #'"),
    ],
)
def test_missing_python(spec, tmp_path, python, message):
    with pytest.raises(TargetError, match=message):
        find_target(options(spec, python=python)).build(make_case(spec, tmp_path).model_path)


def test_old_python(spec, tmp_path):
    python = tmp_path / "python3"
    python.write_text("#!/bin/sh\necho 3 6\n")
    python.chmod(0o755)
    with pytest.raises(TargetError, match=r"has Python 3\.6 as '.*python3'\. The runner needs 3\.8 or newer"):
        find_target(options(spec, python=str(python))).build(make_case(spec, tmp_path).model_path)


def test_missing_runtime(spec, tmp_path):
    python = tmp_path / "bare-python"
    python.write_text(f'#!/bin/sh\nexec {sys.executable} -S -s "$@"\n')  # without its installed packages
    python.chmod(0o755)
    with pytest.raises(TargetError, match=r"has no package (numpy|onnxruntime)\. Install it there: .* -m pip install"):
        find_target(options(spec, python=str(python))).build(make_case(spec, tmp_path).model_path)


@pytest.fixture
def small_disk(tmp_path):
    folder = tmp_path / "small-disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)], capture_output=True, text=True
    )
    if mounted.returncode != 0:
        pytest.skip(f"needs the right to mount a small disk: {mounted.stderr.strip()}")
    yield folder
    left = list(folder.iterdir())
    subprocess.run(["umount", str(folder)], check=True)
    assert left == []


def test_full_disk(spec, tmp_path, small_disk):
    case = make_case(spec, tmp_path)
    write_small_model(case.model_path, width=256)
    with pytest.raises(TargetError) as caught:
        find_target(options(spec, folder=str(small_disk))).build(case.model_path)
    message = str(caught.value)
    assert message.startswith("Cannot write ")
    assert "No space left on device. Free some space there, or name another folder of that board" in message
    deadline = time.monotonic() + 10
    while list(small_disk.iterdir()) and time.monotonic() < deadline:
        time.sleep(0.05)


def test_no_folder_for_files(spec, tmp_path):
    with pytest.raises(TargetError, match=r"^The board 'loopback' cannot make a folder in /no/such: .*No such file"):
        find_target(options(spec, folder="/no/such")).build(make_case(spec, tmp_path).model_path)


def test_noisy_login_shell(spec, tmp_path, sshd):
    # What a shell's start-up files print comes before everything else.
    (sshd.folder / "authorized_keys").write_text(
        'command="echo welcome to the board; eval \\"$SSH_ORIGINAL_COMMAND\\"" '
        + (sshd.folder / "user_key.pub").read_text()
    )
    find_target(spec).build(make_case(spec, tmp_path).model_path)


def test_jump_host(spec, tmp_path, sshd):
    config = Path(sshd.write_config())
    config.write_text(config.read_text().replace("Host loopback", "Host loopback behind") + "  ProxyJump none\n")
    config.write_text("Host behind\n  ProxyJump loopback\n" + config.read_text())
    find_target(options(spec, host="behind", config=str(config))).build(make_case(spec, tmp_path).model_path)


def test_without_a_host_it_says_what_to_give():
    state = find_target(TargetSpec(SSH)).availability()
    assert (state.available, state.reason, state.install) == (
        False,
        "needs the name of a board",
        "give --host user@board",
    )


@pytest.mark.parametrize("host", ["-oProxyCommand=touch /tmp/x", "a b"])
def test_a_host_is_no_option(host, tmp_path):
    with pytest.raises(UsageError, match=r"is no host\. Give it as user@name"):
        Connection(host)


def test_files_come_back_from_this_machine_too(tmp_path):
    connection = Connection("", folder=str(tmp_path))
    (tmp_path / "a").write_text("hello")
    path = connection.put(tmp_path / "a", "b")
    connection.get(path, tmp_path / "c")
    assert (tmp_path / "c").read_text() == "hello"
    assert Path(connection.folder).is_dir()
    connection.close()
    assert not Path(connection.folder).exists()
    with pytest.raises(TargetError, match="The connection to this machine was cut"):
        connection.run("true")


def test_a_command_that_hangs_is_ended_in_its_time(spec, tmp_path):
    hanging = options(spec, command="sh -c 'sleep 60; echo 1' {model}", build_timeout_s=1.0)
    with pytest.raises(TargetError, match=r"sh ran for more than 1 s and was ended\.$"):
        find_target(hanging).build(make_case(spec, tmp_path).model_path)


def test_a_board_that_does_not_answer_is_given_up(spec, tmp_path, monkeypatch):
    monkeypatch.setattr("dtp_deploy_targets.remote._SLACK_S", -58.0)
    hanging = options(spec, command="sh -c 'sleep 60; echo 1' {model}", build_timeout_s=60.0)
    with pytest.raises(TargetError, match=r"took more than 2 s while building\. Raise build_timeout_s if it is only"):
        find_target(hanging).build(make_case(spec, tmp_path).model_path)


@pytest.mark.parametrize("seconds", [0, -1.0, float("inf"), True])
def test_a_time_that_is_none_is_refused(seconds):
    with pytest.raises(UsageError, match=r"^build_timeout_s=.* is not possible for target 'ssh'\. Give seconds, more"):
        find_target(TargetSpec(SSH, {"build_timeout_s": seconds}))


def test_nobody_is_asked_for_a_password_by_the_ssh_to_a_jump_host(spec, tmp_path, sshd, monkeypatch):
    seen = tmp_path / "seen"
    monkeypatch.setenv("SSH_ASKPASS_REQUIRE", "force")
    config = Path(sshd.write_config())
    proxy = f"ProxyCommand sh -c 'echo $SSH_ASKPASS_REQUIRE > {seen}; exit 1'"
    config.write_text(f"Host loopback\n  {proxy}\n" + config.read_text())
    with pytest.raises(TargetError):
        Connection("loopback", config=str(config))
    assert seen.read_text() == "never\n"
