"""The repository keeps its own rules, and each guard of them is seen to fail."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import torch
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from torch import nn

from dtp_deploy import errors
from examples.resnet import ResNet
from tests import check_licences
from tests.check_licences import Package, licences_of, problem

ROOT = Path(__file__).parent.parent
PYPROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())
README = (ROOT / "README.md").read_text()


def run(*command: str, cwd: Path = ROOT, **extra: str) -> subprocess.CompletedProcess[str]:
    """Run a command outside any `make` that may have started the tests."""
    env = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    return subprocess.run(command, cwd=cwd, env={**env, **extra}, capture_output=True, text=True, check=False)


# ---- licences -------------------------------------------------------------------------------------------------------


def test_licences_of_everything_installed_are_allowed() -> None:
    packages = check_licences.packages()
    assert [line for package in packages if (line := problem(package))] == []
    runtime = {package.name for package in packages if package.runtime}
    assert {"torch", "numpy", "sympy"} <= runtime
    assert not {"dtp-deploy", "pytest", "hypothesis"} & runtime
    assert "hypothesis" in {package.name for package in packages}


def test_a_forbidden_licence_fails_and_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    bad = Package("ultralytics", "8.4.0", ("AGPL-3.0",), runtime=True)
    good = Package("numpy", "2.4.6", ("BSD-3-Clause",), runtime=True)
    monkeypatch.setattr(check_licences, "packages", lambda: [good, bad])
    with pytest.raises(SystemExit) as stop:
        check_licences.main()
    assert str(stop.value).startswith(
        "ultralytics 8.4.0, needed at run time, says its licence is AGPL-3.0. Allowed are "
    )
    assert "numpy" not in str(stop.value)


@pytest.mark.parametrize(
    ("package", "message"),
    [
        (Package("mystery", "1", (), runtime=True), "mystery 1, needed at run time, does not name its licence."),
        (
            Package("hypothesis", "6", ("MPL-2.0",), runtime=True),
            "hypothesis 6, needed at run time, says its licence is",
        ),
        (
            Package("tool", "1", ("MIT", "GPL-3.0-only"), runtime=False),
            "tool 1, needed for development, says its licence",
        ),
    ],
)
def test_a_licence_that_is_unknown_or_only_for_tools_is_refused(package: Package, message: str) -> None:
    assert (problem(package) or "").startswith(message)


@pytest.mark.parametrize(
    "package",
    [
        Package("hypothesis", "6", ("MPL-2.0",), runtime=False),
        Package("nvidia-cublas", "13", ("LicenseRef-NVIDIA-Proprietary",), runtime=True),
    ],
)
def test_a_licence_for_tools_and_a_named_exception_are_allowed(package: Package) -> None:
    assert problem(package) is None


def test_metadata_that_cannot_be_read_are_not_taken_for_permissive() -> None:
    assert licences_of(None, ["License :: OSI Approved"], "") == ()
    assert licences_of("MIT OR GPL-2.0-only", [], None) == ("MIT", "GPL-2.0-only")
    assert licences_of(None, ["License :: Other/Proprietary License"], "MIT") == ("Other/Proprietary License",)


# ---- pins -----------------------------------------------------------------------------------------------------------


def requirements(lines: list[str]) -> dict[str, Requirement]:
    return {canonicalize_name(requirement.name): requirement for requirement in map(Requirement, lines)}


def test_every_dependency_has_a_pin_that_agrees() -> None:
    text = (ROOT / "constraints.txt").read_text()
    pins = requirements([line for line in text.splitlines() if not line.startswith("#")])
    assert str(pins["torch"].specifier) == "==2.13.0"
    extras = PYPROJECT["project"]["optional-dependencies"]
    for name, wanted in requirements(PYPROJECT["project"]["dependencies"] + extras["dev"]).items():
        assert name in pins, f"{name} has no pin in constraints.txt"
        version = str(pins[name].specifier).removeprefix("==")
        assert wanted.specifier.contains(version), f"{wanted} contradicts {pins[name]} in constraints.txt"


def test_constraints_pin_everything_that_is_installed() -> None:
    text = (ROOT / "constraints.txt").read_text()
    pins = requirements([line for line in text.splitlines() if not line.startswith("#")])
    assert {canonicalize_name(package.name) for package in check_licences.packages()} <= pins.keys()


# ---- import rules ---------------------------------------------------------------------------------------------------

VIOLATIONS = {
    "targets/dtp_deploy_targets/bad_shell.py": "import dtp_deploy_cli",
    "dtp_deploy/cost/bad_shell.py": "import typer",
    "dtp_deploy/cost/bad_layer.py": "import dtp_deploy.train",
    "dtp_deploy/train/bad_device.py": "import onnxruntime",
    "dtp_deploy/export/bad_pruning.py": "import dtp_deploy.graph",
    "dtp_deploy/prune/bad_surgery.py": "import torch_pruning",
    "dtp_deploy/profile/bad_weight.py": "import torch",
    "dtp_deploy/unplaced.py": "",
}
"""A file, the forbidden import in it."""


def test_import_rules_catch_what_they_forbid(tmp_path: Path) -> None:
    for folder in ("dtp_deploy", "cli", "targets"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    with (tmp_path / "dtp_deploy/parity.py").open("a") as parity:
        parity.write("\nimport dtp_deploy.budget\n")
    for name, line in VIOLATIONS.items():
        (tmp_path / name).write_text(line + "\n")
    paths = os.pathsep.join(str(tmp_path / folder) for folder in (".", "cli", "targets"))

    result = run(str(Path(sys.executable).parent / "lint-imports"), "--no-cache", cwd=tmp_path, PYTHONPATH=paths)

    assert result.returncode == 1, result.stderr
    broken = re.findall(r"^(.+) BROKEN\b", result.stdout, re.MULTILINE)
    assert [name.strip() for name in broken] == [
        rule["name"] for rule in PYPROJECT["tool"]["importlinter"]["contracts"]
    ]
    for name, line in VIOLATIONS.items():
        module = name.removesuffix(".py").removeprefix("targets/").replace("/", ".")
        assert (f"{module} -> {line.split()[1]} (l.1)" if line else "unplaced") in result.stdout


# ---- commands -------------------------------------------------------------------------------------------------------


def test_make_test_runs_every_check() -> None:
    commands = run("make", "--dry-run", "test").stdout
    for check in (
        "ruff check .",
        "ruff format --check .",
        "mypy",
        "lint-imports",
        "check_licences.py",
        "pytest -n 2",
    ):
        assert check in commands


def test_ci_calls_make_test_and_nothing_else() -> None:
    script = ROOT / ".ci/run"
    assert os.access(script, os.X_OK)
    assert [line for line in script.read_text().splitlines() if "make" in line] == ["exec make test"]


def test_make_says_that_python_is_too_old(tmp_path: Path) -> None:
    old = tmp_path / "python3"
    pretend = "import sys; code = sys.argv[1]; sys.version_info = (3, 9, 2); exec(code)"
    old.write_text(f'#!/bin/sh\nexec {sys.executable} -c "{pretend}" "$2"\n')
    old.chmod(0o755)
    result = run("make", "install", f"PYTHON={old}", f"VENV={tmp_path / 'venv'}")
    assert result.returncode == 2
    assert (
        f"make: {old} is Python 3.9; dtp-deploy needs 3.11 or newer. Name one: make PYTHON=python3.11" in result.stderr
    )
    assert not (tmp_path / "venv").exists()


def test_make_says_that_python_is_missing(tmp_path: Path) -> None:
    result = run("make", "demo", "PYTHON=no-such-python", f"VENV={tmp_path / 'venv'}", f"DEMO={tmp_path / 'demo'}")
    assert result.returncode == 2
    assert "make: 'no-such-python' was not found. Install Python 3.11 or newer" in result.stderr
    assert list(tmp_path.iterdir()) == []


# ---- documents ------------------------------------------------------------------------------------------------------


def test_readme_names_every_exit_code() -> None:
    codes = {error.exit_code for error in vars(errors).values() if isinstance(error, type)}
    documented = {int(code) for code in re.findall(r"^\| (\d+) \|", README, re.MULTILINE)}
    assert documented == codes | {0, 1, 143}


def test_readme_names_every_option_of_compress() -> None:
    import typer

    from dtp_deploy_cli.main import app

    command = typer.main.get_group(app).commands["compress"]
    options = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
    documented = set(re.findall(r"--[a-z-]+", README))
    assert {option for option in options if option.startswith("--")} - {"--help"} <= documented


def test_readme_loop_runs_and_keeps_its_budget() -> None:
    (example,) = re.findall(r"^```python\n(.+?)^```$", README, re.MULTILINE | re.DOTALL)
    model = ResNet((8, 16), blocks=1)
    names: dict[str, Any] = {
        "model": model,
        "inputs": torch.zeros(1, 1, 8, 8),
        "batches": [(torch.randn(16, 1, 8, 8), torch.randint(0, 10, (16,))) for _ in range(20)],
        "optimizer": torch.optim.SGD(model.parameters(), 0.01),
        "loss_function": nn.CrossEntropyLoss(),
    }
    exec(example, names)
    dense, small = (sum(p.numel() for p in names[name].parameters()) for name in ("model", "small"))
    assert small < 0.8 * dense
    assert names["small"](torch.zeros(2, 1, 8, 8)).shape == (2, 10)


@pytest.mark.parametrize("document", ["README.md", "CONTRIBUTING.md", "CHANGELOG.md"])
def test_links_between_files_lead_somewhere(document: str) -> None:
    links = re.findall(r"\]\(([^)#:]+)\)", (ROOT / document).read_text())
    assert [link for link in links if not (ROOT / link).exists()] == []
