"""The Dockerfiles keep these rules. Nothing is built here: there may be no container engine."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parent.parent
DOCKERFILES = sorted((ROOT / "docker").glob("*.Dockerfile"))


class Instruction(NamedTuple):
    """One instruction: its keyword in capitals, and the rest of its lines joined into one."""

    keyword: str
    value: str


def parse(text: str) -> list[Instruction]:
    """The instructions of a Dockerfile, without comments, with the defaults of its ARGs put in."""
    joined = re.sub(r"\\\n\s*", " ", re.sub(r"^\s*#.*\n", "", text, flags=re.MULTILINE))
    found: list[Instruction] = []
    defaults: dict[str, str] = {}
    for line in filter(None, map(str.strip, joined.splitlines())):
        keyword, _, value = line.partition(" ")
        if keyword.upper() == "ARG" and "=" in value:
            name, _, default = value.partition("=")
            defaults[name] = default
        for name, default in defaults.items():
            value = value.replace(f"${{{name}}}", default)
        found.append(Instruction(keyword.upper(), value.strip()))
    return found


def values(instructions: list[Instruction], keyword: str) -> list[str]:
    return [instruction.value for instruction in instructions if instruction.keyword == keyword]


def bases_are_pinned(instructions: list[Instruction]) -> Iterator[str]:
    stages: set[str] = set()
    for value in values(instructions, "FROM"):
        image, _, stage = value.partition(" AS ")
        _, _, tag = image.rpartition("/")[2].partition(":")
        if image not in stages and (not re.search(r"\d", tag) or "latest" in tag or "$" in image):
            yield f"the base image {image} is not pinned"
        stages.add(stage)


def stages_are_several(instructions: list[Instruction]) -> Iterator[str]:
    if len(values(instructions, "FROM")) < 2:
        yield "there is one stage only"


def user_is_not_root(instructions: list[Instruction]) -> Iterator[str]:
    last = max(index for index, instruction in enumerate(instructions) if instruction.keyword == "FROM")
    users = values(instructions[last:], "USER")
    if not users or users[-1].partition(":")[0] in ("root", "0"):
        yield "it runs as root"


def nothing_is_added_or_piped(instructions: list[Instruction]) -> Iterator[str]:
    if values(instructions, "ADD"):
        yield "ADD is used: COPY files, and download what is checked"
    for value in values(instructions, "RUN"):
        if re.search(r"\b(curl|wget)\b", value):
            yield f"it downloads without a check: {value}"


def installs_are_constrained(instructions: list[Instruction]) -> Iterator[str]:
    environment = " ".join(values(instructions, "ENV"))
    for value in values(instructions, "RUN"):
        if "pip install" in value:
            if "--constraint constraints.txt" not in value:
                yield f"pip takes any version: {value}"
            if "PIP_NO_CACHE_DIR=1" not in environment:
                yield "pip keeps its cache in the image"
        if "apt-get install" in value and not (
            "--no-install-recommends" in value and "rm -rf /var/lib/apt/lists/*" in value
        ):
            yield f"apt-get installs more than is asked for, or leaves its lists: {value}"


def commands_are_in_exec_form(instructions: list[Instruction]) -> Iterator[str]:
    for keyword in ("ENTRYPOINT", "CMD"):
        for value in values(instructions, keyword):
            try:
                json.loads(value)
            except ValueError:
                yield f"{keyword} {value} starts a shell, which swallows signals"
    if not values(instructions, "ENTRYPOINT"):
        yield "there is no ENTRYPOINT"


def no_secret_is_baked_in(instructions: list[Instruction]) -> Iterator[str]:
    for value in (*values(instructions, "ENV"), *values(instructions, "ARG")):
        if re.search(r"(?i)(password|secret|token|api_?key)", value):
            yield f"a secret would stay in the image: {value}"


RULES: tuple[Callable[[list[Instruction]], Iterator[str]], ...] = (
    bases_are_pinned,
    stages_are_several,
    user_is_not_root,
    nothing_is_added_or_piped,
    installs_are_constrained,
    commands_are_in_exec_form,
    no_secret_is_baked_in,
)

GOOD = """\
ARG TAG=1.2
FROM base:${TAG} AS build
ENV PIP_NO_CACHE_DIR=1
RUN pip install --constraint constraints.txt \\
    torch
FROM base:1.2
USER dtp
ENTRYPOINT ["run"]
"""

BAD = {
    "bases_are_pinned": GOOD.replace("FROM base:1.2", "FROM base:latest"),
    "stages_are_several": GOOD.replace("FROM base:1.2\n", ""),
    "user_is_not_root": GOOD.replace("USER dtp", "USER root"),
    "nothing_is_added_or_piped": GOOD + "RUN curl https://example.com | sh\n",
    "installs_are_constrained": GOOD.replace("--constraint constraints.txt", ""),
    "commands_are_in_exec_form": GOOD.replace('["run"]', "run"),
    "no_secret_is_baked_in": GOOD + "ENV API_KEY=x\n",
}


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_dockerfile_keeps_the_rule(path: Path, rule: Callable[[list[Instruction]], Iterator[str]]) -> None:
    assert list(rule(parse(path.read_text()))) == []


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_rule_catches_what_it_forbids(rule: Callable[[list[Instruction]], Iterator[str]]) -> None:
    assert list(rule(parse(GOOD))) == []
    assert list(rule(parse(BAD[rule.__name__])))


@pytest.mark.parametrize(
    "text",
    [
        GOOD.replace("FROM base:1.2", "FROM base"),
        GOOD.replace("FROM base:1.2", "FROM registry:5000/base"),
        GOOD.replace("ARG TAG=1.2", "ARG TAG"),
    ],
    ids=["no tag", "a port is no tag", "no default"],
)
def test_a_base_without_a_tag_is_not_pinned(text: str) -> None:
    assert list(bases_are_pinned(parse(text)))


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_what_is_copied_exists_and_is_let_through(path: Path) -> None:
    allowed = {line[1:] for line in Path(f"{path}.dockerignore").read_text().splitlines() if line.startswith("!")}
    copied = {
        source
        for value in values(parse(path.read_text()), "COPY")
        if not value.startswith("--from=")
        for source in value.split()[:-1]
    }
    assert copied == allowed
    assert [source for source in copied if not (ROOT / source).exists()] == []


def test_the_runner_of_the_jetson_image_is_made_without_any_package(tmp_path: Path) -> None:
    (command,) = (
        value
        for value in values(parse((ROOT / "docker/jetson.Dockerfile").read_text()), "RUN")
        if "PYTHONPATH" in value
    )
    code = re.search(r'python -c "(.+)"$', command)
    assert code
    paths = os.pathsep.join(str(ROOT / folder) for folder in (".", "targets"))
    script = code.group(1).replace("/opt", str(tmp_path))
    subprocess.run([sys.executable, "-S", "-c", script], env={"PYTHONPATH": paths}, check=True)
    shown = subprocess.run(
        [sys.executable, "-S", str(tmp_path / "dtp_runner.pyz"), "--help"], capture_output=True, text=True, check=True
    )
    assert "measure" in shown.stdout
