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
OPTIONS = (ROOT / "docs/options.md").read_text()


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


@pytest.mark.parametrize(
    ("has_sshd", "user", "apt_get", "calls"),
    [
        (True, 0, 0, []),
        (False, 1000, 0, []),
        (False, 0, None, []),
        (False, 0, 0, ["update", "install --yes --no-install-recommends openssh-server"]),
        (False, 0, 100, ["update"]),
    ],
    ids=["there already", "not root", "no apt-get", "installed", "no package"],
)
def test_ci_tries_to_install_sshd_and_tests_in_any_case(
    has_sshd: bool, user: int, apt_get: int | None, calls: list[str], tmp_path: Path
) -> None:
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in ("bash", "dirname", "timeout"):
        (programs / name).symlink_to(str(shutil.which(name)))
    scripts = {"id": f"echo {user}", "make": 'echo "make $*"'}
    if has_sshd:
        scripts["sshd"] = "exit 1"
    if apt_get is not None:
        scripts["apt-get"] = f'echo "$*" >>{tmp_path}/calls; exit {apt_get}'
    for name, line in scripts.items():
        (programs / name).write_text(f"#!{programs}/bash\n{line}\n")
        (programs / name).chmod(0o755)

    result = run(str(ROOT / ".ci/run"), PATH=str(programs))

    assert (result.returncode, result.stdout) == (0, "make test\n"), result.stderr
    assert ((tmp_path / "calls").read_text().splitlines() if calls else []) == calls
    assert (tmp_path / "calls").exists() == bool(calls)
    assert ("could not be installed" in result.stderr) == (apt_get == 100)


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


def compress_flags() -> dict[str, str]:
    """Every flag of ``compress``, as its help shows it, with what it takes; empty for a switch."""
    from dtp_deploy_cli.reference import help_text

    lines = re.findall(r"^  (--\S+)(?: / (--no-\S+)| (\S+))?(?:  |$)", help_text("compress"), re.MULTILINE)
    flags = {flag: takes.strip("<>") for flag, _, takes in lines} | {off: "" for _, off, _ in lines if off}
    return {flag: takes for flag, takes in flags.items() if flag != "--help"}


def documented_flags(text: str) -> dict[str, str]:
    """The same from the page of options: its table, where a flag shares the next one's value, and the switches."""
    flags: dict[str, str] = {}
    for cell in re.findall(r"^\| ((?:`--[^`]+`(?:, )?)+) \|", text, re.MULTILINE):
        takes = ""
        for span in reversed(re.findall(r"`([^`]+)`", cell)):
            flag, _, own = span.partition(" ")
            takes = own.replace("\\|", "|") or takes
            assert flag not in flags, f"{flag} stands twice in the table"
            flags[flag] = takes
    (off,) = re.findall(r"an option switches off: ([^.]+)\.", text)
    return flags | dict.fromkeys(re.findall(r"`(--no-[a-z-]+)`", off), "")


def test_the_page_of_options_names_those_of_compress_and_no_others() -> None:
    assert documented_flags(OPTIONS) == compress_flags()


@pytest.mark.parametrize(
    ("wrong", "right"),
    [("`--lr RATE`, ", ""), ("`--lr RATE`", "`--rate RATE`"), ("`--lr RATE`", "`--lr N`"), ("`--no-json`, ", "")],
)
def test_a_wrong_option_on_the_page_is_seen(wrong: str, right: str) -> None:
    assert wrong in OPTIONS
    assert documented_flags(OPTIONS.replace(wrong, right)) != compress_flags()


def test_the_page_of_options_says_every_kind_of_data_and_the_defaults_that_it_names() -> None:
    from dtp_deploy.config import CompressConfig

    rows = dict(re.findall(r"^\| `--(\S+?)[ `][^|]*\| (.+) \|$", OPTIONS, re.MULTILINE))
    kinds = re.findall(r"^\| (.+?) \| (?:yes|no|as you like) \|", (ROOT / "docs/data.md").read_text(), re.MULTILINE)
    named = {word for kind in kinds for word in re.findall(r"`([a-z.:-]+)`", kind)} - {"data.npz"}
    assert named == {"digits", "fashion-mnist", "synthetic", "pkg.module:factory"}
    assert all(f"`{word}`" in rows["data"] for word in named)
    assert ".npz" in rows["data"]
    assert "on by default" in rows["distill"]
    assert CompressConfig().distill


def test_every_flag_that_a_page_names_is_one_of_a_command() -> None:
    known = set(re.findall(r"--[a-z][a-z-]*", (ROOT / "docs/cli.md").read_text()))
    for page in (ROOT / "README.md", ROOT / "docs/method.md", ROOT / "docs/data.md", ROOT / "docs/models.md"):
        assert set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", page.read_text())) <= known, page.name


def test_contributing_lists_the_layers_of_the_import_rules() -> None:
    contracts = PYPROJECT["tool"]["importlinter"]["contracts"]
    (layers,) = [contract["layers"] for contract in contracts if contract["id"] == "upwards"]
    assert documented_layers((ROOT / "CONTRIBUTING.md").read_text()) == layers_as_written(layers)


def documented_layers(text: str) -> list[str]:
    (block,) = re.findall(r"never what is above:\n\n((?: {4}.+\n)+)", text)
    return [line.strip() for line in block.splitlines()]


def layers_as_written(layers: list[str]) -> list[str]:
    """As CONTRIBUTING writes them: optional or not, a bar between those that are independent, else a comma."""
    return [re.sub(r"[()]", "", layer).replace(" : ", ", ") for layer in layers]


def test_a_layer_that_is_missing_in_contributing_is_seen() -> None:
    text = "never what is above:\n\n    a | b\n    c, d\n"
    assert documented_layers(text) == layers_as_written(["(a) | b", "c : d"])
    assert documented_layers(text) != layers_as_written(["(a) : b", "c : d"])
    assert documented_layers(text) != layers_as_written(["(a) | b", "e", "c : d"])


def test_contributing_builds_an_image_as_its_file_says() -> None:
    commands = re.findall(
        r"^ {4}(docker build \S+ (\S+) .+?) && ", (ROOT / "CONTRIBUTING.md").read_text(), re.MULTILINE
    )
    assert [dockerfile for _, dockerfile in commands] == ["docker/cpu.Dockerfile"]
    assert all(f"#   {command}\n" in (ROOT / dockerfile).read_text() for command, dockerfile in commands)


def test_the_loop_in_the_docstring_of_the_masks_is_that_of_the_readme() -> None:
    from dtp_deploy.prune import masks, weights

    loops = re.findall(r"^for x, y in batches:\n((?: {4}.+\n)+)", README, re.MULTILINE)
    for module, readme in zip((masks, weights), loops, strict=True):
        (docstring,) = re.findall(r"for x, y in batches:.*\n((?: {8}.+\n)+)", module.__doc__ or "")
        assert [line.strip() for line in docstring.splitlines()] == [line.strip() for line in readme.splitlines()]


def ran_readme_example(number: int) -> dict[str, Any]:
    """What the names of a Python example stand for after it ran."""
    example = re.findall(r"^```python\n(.+?)^```$", README, re.MULTILINE | re.DOTALL)[number]
    model = ResNet((8, 16), blocks=1)
    names: dict[str, Any] = {
        "model": model,
        "inputs": torch.zeros(1, 1, 8, 8),
        "batches": [(torch.randn(16, 1, 8, 8), torch.randint(0, 10, (16,))) for _ in range(20)],
        "optimizer": torch.optim.SGD(model.parameters(), 0.01),
        "loss_function": nn.CrossEntropyLoss(),
    }
    exec(example, names)
    return names


def test_readme_loop_runs_and_keeps_its_budget() -> None:
    names = ran_readme_example(0)
    dense, small = (sum(p.numel() for p in names[name].parameters()) for name in ("model", "small"))
    assert small < 0.8 * dense
    assert names["small"](torch.zeros(2, 1, 8, 8)).shape == (2, 10)


def test_readme_loop_of_single_weights_leaves_two_of_every_four() -> None:
    model = ran_readme_example(1)["model"]
    assert any(
        (weight.movedim(1, -1).reshape(-1, 4) != 0).sum(1).eq(2).all()
        for name, weight in model.named_parameters()
        if weight.ndim == 4 and weight.shape[1] % 4 == 0
    )


DOCUMENTS = ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", *(f"docs/{path.name}" for path in ROOT.glob("docs/*.md"))]


@pytest.mark.parametrize("document", sorted(DOCUMENTS))
def test_links_between_files_lead_somewhere(document: str) -> None:
    path = ROOT / document
    links = re.findall(r"\]\(([^)#:]+)\)", path.read_text())
    assert [link for link in links if not (path.parent / link).exists()] == []
