"""The runner as one file that any Python from 3.8 on runs: ``python3 dtp_runner.pyz``.

It is a zip of a few of our own files, under the names that they have here, with empty packages around them.
"""

import zipfile
from importlib.resources import files
from pathlib import Path

RUNNER = "dtp_runner.pyz"
LEAST_PYTHON = (3, 8)

_LIBRARY = ("errors.py", "profile/environment.py", "profile/sampling.py", "profile/settings.py")
# No syntax newer than Python 2, so that an old Python can say what it is.
_MAIN = f"""import sys

if sys.version_info < {LEAST_PYTHON}:
    found = "%d.%d" % sys.version_info[:2]
    sys.exit("dtp_runner needs Python {LEAST_PYTHON[0]}.{LEAST_PYTHON[1]} or newer; this is Python " + found)

from dtp_deploy_targets.runner.__main__ import main

sys.exit(main())
"""
_EPOCH = (1980, 1, 1, 0, 0, 0)  # the same sources give the same bytes


def write_runner(folder: Path) -> Path:
    """Write the runner into `folder`; its path.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_runner(Path(folder)).name
    'dtp_runner.pyz'
    """
    path = folder / RUNNER
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, text in sorted(_sources().items()):
            info = zipfile.ZipInfo(name, _EPOCH)
            info.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(info, text)
    return path


def _sources() -> dict[str, str]:
    sources = {"__main__.py": _MAIN}
    for package in ("dtp_deploy", "dtp_deploy/profile", "dtp_deploy_targets"):
        sources[f"{package}/__init__.py"] = ""
    for name in _LIBRARY:
        sources[f"dtp_deploy/{name}"] = files("dtp_deploy").joinpath(name).read_text("utf-8")
    for entry in files("dtp_deploy_targets.runner").iterdir():
        if entry.name.endswith(".py"):
            sources[f"dtp_deploy_targets/runner/{entry.name}"] = entry.read_text("utf-8")
    return sources
