"""The licence allow-list: everything that dtp-deploy depends on must be permissively licensed.

    python tests/check_licences.py

Follows the requirements of the installed distribution `dtp-deploy`, once as a user installs it and once with all of its
extras, reads each distribution's own metadata, and names what is not allowed. Extras not installed here are skipped.
"""

import re
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatch
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from types import MappingProxyType

from packaging.requirements import Requirement

PROJECT = "dtp-deploy"

ALLOWED = frozenset(
    [
        "0BSD",
        "Apache-2.0",
        "BSD",
        "BSD-2-Clause",
        "BSD-3-Clause",
        "BSL-1.0",
        "CC0-1.0",
        "ISC",
        "MIT-CMU",
        "MIT",
        "MIT-0",
        "PSF-2.0",
        "Python-2.0",
        "Unlicense",
        "Zlib",
    ]
)
"""Licences that let anybody ship the result, closed or open. Metadata that say only "BSD" do not name the variant."""

ALLOWED_FOR_TOOLS = ALLOWED | {"MPL-2.0"}
"""For what only develops and tests dtp-deploy: none of it is delivered. MPL-2.0 binds only changes to its own files."""

EXCEPTIONS: Mapping[str, str] = MappingProxyType(
    {
        "cuda-*": "brought by the CUDA build of PyTorch only; the CPU build, which CI tests with, has none",
        "nvidia-*": "brought by the CUDA build of PyTorch only; the CPU build, which CI tests with, has none",
        "tensorrt*": "NVIDIA's runtime, under NVIDIA's licence: a user with an NVIDIA GPU asks for it by an extra that "
        "brings nothing else; no other extra has it, and CI installs neither",
    }
)
"""Distributions accepted without looking at their metadata, by the pattern of their name, each with its reason."""

SPELLINGS: Mapping[str, str] = MappingProxyType(
    {
        "3-clause bsd license": "BSD-3-Clause",
        "apache 2.0": "Apache-2.0",
        "apache license 2.0": "Apache-2.0",
        "apache license, version 2.0": "Apache-2.0",
        "apache software license": "Apache-2.0",
        "bsd 2-clause license": "BSD-2-Clause",
        "bsd 3-clause license": "BSD-3-Clause",
        "bsd license": "BSD",
        "isc license": "ISC",
        "isc license (iscl)": "ISC",
        "mit license": "MIT",
        "mozilla public license 2.0 (mpl 2.0)": "MPL-2.0",
        "python software foundation license": "PSF-2.0",
        "the unlicense (unlicense)": "Unlicense",
    }
)
"""The identifier of SPDX for what classifiers and free text say, in lower case."""


@dataclass(frozen=True)
class Package:
    """One dependency: what it says of its licence, and whether a user of dtp-deploy gets it."""

    name: str
    version: str
    licences: tuple[str, ...]
    runtime: bool


def licences_of(expression: str | None, classifiers: Iterable[str], text: str | None) -> tuple[str, ...]:
    """The licences that metadata name, from the most exact field that is filled in.

    All identifiers of an SPDX expression count, those joined by OR too: a choice is made here by a person.

    >>> licences_of("MIT AND (Apache-2.0 WITH LLVM-exception OR BSD-2-Clause)", [], None)
    ('MIT', 'Apache-2.0', 'BSD-2-Clause')
    >>> licences_of(None, ["License :: OSI Approved", "License :: OSI Approved :: BSD License"], "Copyright (c) ...")
    ('BSD',)
    >>> licences_of(None, [], "MIT License")
    ('MIT',)
    """
    if expression:
        words = re.sub(r"\bWITH\s+[\w.-]+", "", expression).replace("(", " ").replace(")", " ").split()
        return tuple(word for word in words if word not in ("AND", "OR"))
    named = [name for name in classifiers if name.startswith("License ::") and name != "License :: OSI Approved"]
    if not named and text and text.strip():
        named = [text.strip().splitlines()[0]]
    stems = [name.rsplit(" :: ", 1)[-1] for name in named]
    return tuple(SPELLINGS.get(stem.lower(), stem) for stem in stems)


def closure(root: str, extras: Iterable[str]) -> dict[str, Distribution]:
    """The installed distributions that `root` with `extras` requires, by normalised name, without `root` itself."""
    found: dict[str, Distribution] = {}
    seen: set[tuple[str, str]] = set()
    waiting = [(root, "", False), *((root, extra, True) for extra in extras)]
    while waiting:
        name, extra, optional = waiting.pop()
        key = re.sub(r"[-_.]+", "-", name).lower()
        if (key, extra) in seen:
            continue
        seen.add((key, extra))
        try:
            found[key] = distribution(name)
        except PackageNotFoundError:
            if optional:
                continue
            raise
        for line in found[key].requires or ():
            wanted = Requirement(line)
            if wanted.marker is None or wanted.marker.evaluate({"extra": extra}):
                waiting += [(wanted.name, inner, optional) for inner in ("", *wanted.extras)]
    found.pop(root, None)
    return found


def field(found: Distribution, name: str) -> list[str]:
    """All values that a distribution's metadata give a field; none is an empty list."""
    return list(found.metadata.get_all(name) or [])


def packages() -> list[Package]:
    """All dependencies that are installed here, by name.

    Raises:
        PackageNotFoundError: dtp-deploy or one of its run-time dependencies is not installed.
    """
    extras = field(distribution(PROJECT), "Provides-Extra")
    runtime = closure(PROJECT, [])
    return [
        Package(
            name=name,
            version=found.version,
            licences=licences_of(
                next(iter(field(found, "License-Expression")), None),
                field(found, "Classifier"),
                next(iter(field(found, "License")), None),
            ),
            runtime=name in runtime,
        )
        for name, found in sorted(closure(PROJECT, extras).items())
    ]


def problem(package: Package) -> str | None:
    """One line on why a package may not be depended on; None if it may."""
    if any(fnmatch(package.name, pattern) for pattern in EXCEPTIONS):
        return None
    allowed = ALLOWED if package.runtime else ALLOWED_FOR_TOOLS
    refused = [licence for licence in package.licences if licence not in allowed]
    if package.licences and not refused:
        return None
    use = "at run time" if package.runtime else "for development"
    said = f"says its licence is {', '.join(refused)}" if refused else "does not name its licence"
    return (
        f"{package.name} {package.version}, needed {use}, {said}. Allowed are {', '.join(sorted(allowed))}. "
        "Replace it, or read its licence and add it with the reason to EXCEPTIONS in tests/check_licences.py."
    )


def main() -> None:
    """Check all packages; exit 1 and name those that are not allowed."""
    checked = packages()
    problems = [line for package in checked if (line := problem(package))]
    if problems:
        sys.exit("\n".join(problems))
    print(f"licences: {len(checked)} packages, all allowed ({sum(package.runtime for package in checked)} at run time)")


if __name__ == "__main__":
    main()
