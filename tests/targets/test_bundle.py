import json
import os
import re
import subprocess
import sys

import pytest

from dtp_deploy.errors import UsageError
from dtp_deploy.testing.conformance import write_small_model
from dtp_deploy_targets.bundle import INSTRUCTIONS, RESULT, SCRIPT, write_bundle


@pytest.fixture
def model(tmp_path):
    folder = tmp_path / "pruned model"
    folder.mkdir()
    write_small_model(folder / "model.onnx")
    return folder / "model.onnx"


def test_a_bundle_is_complete_and_says_what_to_do(model):
    files = write_bundle(model.parent, model, "orin-nano", "fp16")
    assert files[0] == model
    assert sorted(files) == sorted(model.parent.iterdir())
    instructions = (model.parent / INSTRUCTIONS).read_text()
    assert len(instructions.splitlines()) <= 10
    for part in ("orin-nano", "predicted, not measured", "fp16", SCRIPT, RESULT, "import-measurement 'pruned model'"):
        assert part in instructions


def test_the_script_runs_the_runner_which_tells_what_is_missing(model, tmp_path):
    write_bundle(model.parent, model, "orin-nano", "fp16")
    (tmp_path / "empty").mkdir()
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/python3").symlink_to(sys.executable)
    env = {"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}", "DTP_DEPLOY_BOARD_ROOT": str(tmp_path / "empty")}
    done = subprocess.run([str(model.parent / SCRIPT)], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    result = json.loads((model.parent / RESULT).read_text())
    assert "has no trtexec" in result["errors"][0]


def test_the_runner_lists_its_options(model):
    write_bundle(model.parent, model, "", "fp32")
    done = subprocess.run([str(model.parent / SCRIPT), "--help"], capture_output=True, text=True, check=True)
    assert "--lock-clocks" in done.stdout
    assert "on the board" in (model.parent / INSTRUCTIONS).read_text()


def test_a_model_elsewhere_and_an_unknown_precision_are_refused(model, tmp_path):
    message = f"{model} is no file of the folder {tmp_path}. Write the model there first."
    with pytest.raises(UsageError, match=f"^{re.escape(message)}$"):
        write_bundle(tmp_path, model, "orin-nano", "fp16")
    with pytest.raises(UsageError, match=r"^Precision 'fp8' cannot be measured\. Give fp32, fp16 or int8\.$"):
        write_bundle(model.parent, model, "orin-nano", "fp8")
    assert list(model.parent.iterdir()) == [model]
