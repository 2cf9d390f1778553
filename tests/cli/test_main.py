"""The entry point: quick help, one line for an error, a traceback for a bug."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dtp_deploy.errors import (
    BudgetError,
    DtpError,
    GateError,
    GraphError,
    InputError,
    ParityError,
    TargetError,
    TrainingError,
    TransportError,
    UsageError,
)
from dtp_deploy_cli.main import EXIT_CODES

HEAVY = ("torch", "onnx", "onnxruntime", "numpy", "sklearn", "dtp_deploy_targets")


def started(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "dtp_deploy_cli", *words], capture_output=True, text=True, check=False, timeout=60
    )


@pytest.mark.parametrize(
    "words", [["--help"], ["--version"], ["compress", "--help"], ["profile"], ["compress", "--macs"]]
)
def test_help_and_wrong_use_import_nothing_heavy(words: list[str]) -> None:
    script = (
        "import json, sys\nfrom dtp_deploy_cli.main import main\nsys.argv[1:] = json.loads(sys.argv[1])\n"
        f"try:\n    main()\nfinally:\n    print(*[name for name in {HEAVY!r} if name in sys.modules], file=sys.stderr)"
    )

    done = subprocess.run(
        [sys.executable, "-c", script, json.dumps(words)], capture_output=True, text=True, check=False, timeout=60
    )

    assert done.stderr.splitlines()[-1] == ""


def test_the_check_for_heavy_imports_can_fail() -> None:
    script = f"import numpy, sys; print(*[name for name in {HEAVY!r} if name in sys.modules])"

    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60)

    assert done.stdout.split() == ["numpy"]


def test_the_module_is_the_command() -> None:
    done = started("--version")

    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("dtp-deploy ")


def test_the_installed_script_is_the_command() -> None:
    script = Path(sys.executable).with_name("dtp-deploy")

    done = subprocess.run([script, "--help"], capture_output=True, text=True, check=True, timeout=60)

    assert done.stdout == started("--help").stdout
    assert done.stdout.startswith("Usage: dtp-deploy [OPTIONS] COMMAND [ARGS]...")


def test_help_says_the_exit_codes(run_cli) -> None:
    text = " ".join(run_cli("--help").out.split())

    for code, meaning in EXIT_CODES.items():
        assert f"{code} {meaning}" in text


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "Missing command. See `dtp-deploy --help`."),
        (["compres"], "No such command 'compres'. Did you mean 'compress'? See `dtp-deploy --help`."),
        (["targets", "--verbos"], "No such option: --verbos. See `dtp-deploy targets --help`."),
        (["profile"], "Missing argument 'MODEL'. See `dtp-deploy profile --help`."),
        (["compress", "m.pt", "--macs"], "Option '--macs' requires an argument. See `dtp-deploy compress --help`."),
        (["profile", "m", "--threads"], "Option '--threads' requires an argument. See `dtp-deploy profile --help`."),
    ],
)
def test_wrong_use_is_one_line(run_cli, words: list[str], message: str) -> None:
    assert run_cli(*words) == (2, "", f"Error: {message}\n")


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (UsageError, 2),
        (InputError, 2),
        (GraphError, 2),
        (TransportError, 2),
        (TrainingError, 2),
        (BudgetError, 3),
        (GateError, 4),
        (TargetError, 5),
        (ParityError, 6),
    ],
)
def test_an_error_for_users_is_one_line_and_its_code(
    run_cli, monkeypatch: pytest.MonkeyPatch, error: type[DtpError], code: int
) -> None:
    def fail() -> None:
        raise error("What was given.\n  What to do.")

    monkeypatch.setattr("dtp_deploy.target.target_classes", fail)

    assert run_cli("targets") == (code, "", "Error: What was given. What to do.\n")
    assert code in EXIT_CODES


def test_a_bug_of_ours_keeps_its_traceback() -> None:
    script = (
        "import sys, dtp_deploy.target\nfrom dtp_deploy_cli.main import main\n"
        "dtp_deploy.target.target_classes = lambda: 1 / 0\nsys.argv[1:] = ['targets']\nmain()"
    )

    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, timeout=60)

    assert done.returncode == 1
    assert done.stderr.startswith("Traceback (most recent call last):")
    assert done.stderr.endswith("ZeroDivisionError: division by zero\n")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_run_removes_what_it_wrote(tmp_path: Path, number: signal.Signals, code: int) -> None:
    script = (
        "import signal, sys, time, dtp_deploy.target\nfrom pathlib import Path\n"
        "from dtp_deploy.artefact import open_artefact\n"
        "from dtp_deploy_cli.main import main\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a shell's background job ignores it
        "out = Path(sys.argv.pop())\n"
        "def wait():\n"
        "    with open_artefact(out) as partial:\n"
        "        (partial / 'half').touch()\n"
        "        time.sleep(60)\n"
        "dtp_deploy.target.target_classes = wait\n"
        "main()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script, "targets", str(tmp_path / "out")], stderr=subprocess.PIPE, text=True
    )
    while not (tmp_path / "out.partial" / "half").exists():
        assert process.poll() is None
        time.sleep(0.01)

    process.send_signal(number)
    _, err = process.communicate(timeout=60)

    assert process.returncode == code
    assert list(tmp_path.iterdir()) == []
    assert err == ("Error: interrupted.\n" if number == signal.SIGINT else "")


def test_a_reader_who_leaves_early_is_no_error() -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "dtp_deploy_cli", "targets", "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    process.stdout.close()
    assert process.stderr is not None
    err = process.stderr.read()
    process.stderr.close()

    assert (process.wait(timeout=60), err) == (0, "")
