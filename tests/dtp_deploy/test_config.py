"""The configuration: one key for every flag, a file, and targets with names."""

import tomllib
from pathlib import Path

import pytest

from dtp_deploy.budget import Budget
from dtp_deploy.config import (
    CompressConfig,
    ConfigFile,
    configure,
    example_config,
    named_target,
    read_config,
    target_spec,
)
from dtp_deploy.errors import UsageError
from dtp_deploy.target import TargetSpec
from dtp_deploy.train import Settings


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory, and no file of the user's own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("dtp_deploy.config.USER_TARGETS", tmp_path / "own" / "targets.toml")
    return tmp_path


def test_every_key_is_in_the_example_and_its_example_is_allowed(folder: Path) -> None:
    lines = [
        line[1:] if line.startswith("#") and not line.startswith("# ") else line
        for line in example_config().splitlines()
    ]
    tables = tomllib.loads("\n".join(lines))
    (folder / "dtp-deploy.toml").write_text("\n".join(lines))

    assert list(tables["compress"]) == [info.alias for info in CompressConfig.model_fields.values()]
    assert configure(read_config().values).input == ("1x3x224x224",)
    assert named_target("bench") == TargetSpec("jetson", {"host": "me@board"})


def test_the_defaults_are_those_of_the_library() -> None:
    config, settings = CompressConfig(), Settings()

    assert (config.epochs, config.lr, config.batch_size) == (
        settings.epochs,
        settings.learning_rate,
        settings.batch_size,
    )
    assert (config.augment, config.distill, config.seed) == (settings.augment, settings.distill, settings.seed)
    assert (config.solver, config.round_to) == (settings.masks.solver, settings.masks.round_to)
    assert config.values() == {}


def test_values_make_an_equal_configuration() -> None:
    config = configure({"mean": [0.1, 0.2, 0.3]}, {"input": ["1x3x8x8", "1x4"], "resize": 256, "as_json": True})

    assert config.values() == {
        "input": ["1x3x8x8", "1x4"],
        "mean": [0.1, 0.2, 0.3],
        "resize": "256",
        "json": True,
    }
    assert configure(config.values()) == config


@pytest.mark.parametrize(("value", "numbers"), [("0.5", (0.5,)), ("1,2,3", (1, 2, 3)), (0.5, (0.5,)), ([1, 2], (1, 2))])
def test_numbers_are_typed_as_one_text(value: object, numbers: tuple[float, ...]) -> None:
    assert configure({}, {"mean": value}).mean == numbers


def test_several_budgets_and_their_scope() -> None:
    config = CompressConfig(latency="5ms", size="4MB", statistic="p90", per_layer=True)

    assert config.budgets() == (
        Budget("size", 4e6, scope="per-layer"),
        Budget("latency", 5.0, scope="per-layer", statistic="p90"),
    )


def test_flags_win_over_the_file() -> None:
    assert configure({"batch-size": 8, "force": True}, {"batch_size": 9, "force": False}).batch_size == 9
    assert configure({"batch_size": 8, "force": True}, {"batch_size": None, "force": False}).force is False


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[compres]", "dtp-deploy.toml: there is no table 'compres'. Did you mean 'compress'?"),
        ("[compress]\nlatancy = '5ms'", "dtp-deploy.toml: there is no key 'latancy'. Did you mean 'latency'?"),
        (
            "compress = 3",
            "dtp-deploy.toml: compress is no table. Write [compress] on a line of its own, and the keys below.",
        ),
        (
            "[compress]\nseed = -1",
            "dtp-deploy.toml: seed = -1 is not allowed. Input should be greater than or equal to 0.",
        ),
        (
            "[compress]\nsolver = 'fast'",
            "dtp-deploy.toml: solver = 'fast' is not allowed. Input should be 'exact' or 'sinkhorn-1'.",
        ),
        ("[targets.a]\nhost = 'b'", 'dtp-deploy.toml: [targets.a] has no kind. Add a line such as: kind = "jetson"'),
        (
            "[targets.a]\nkind = 'ssh'\nhost = ['b']",
            "dtp-deploy.toml: [targets.a] has host = ['b']. Options are texts, numbers, true or false.",
        ),
        ("targets = 3", "dtp-deploy.toml: targets holds something else than tables. Write [targets.NAME] above each."),
    ],
)
def test_a_wrong_file_is_refused(folder: Path, text: str, message: str) -> None:
    (folder / "dtp-deploy.toml").write_text(text)

    with pytest.raises(UsageError) as caught:
        read_config()
    assert str(caught.value) == message


def test_a_key_like_none_gets_all_of_them(folder: Path) -> None:
    (folder / "dtp-deploy.toml").write_text("[compress]\nxyzzy = 1")

    with pytest.raises(UsageError, match=r"there is no key 'xyzzy'\. Known are: checkpoint, model, trust, "):
        read_config()


def test_an_unreadable_file_is_refused(folder: Path) -> None:
    (folder / "dtp-deploy.toml").mkdir()

    with pytest.raises(UsageError, match=r"dtp-deploy.toml cannot be read \(Is a directory\)"):
        read_config()


def test_no_file_is_no_error_unless_it_was_named(folder: Path) -> None:
    assert read_config() == ConfigFile()
    with pytest.raises(UsageError, match=r"^--config mine.toml does not exist\. Give the path of a file; "):
        read_config(Path("mine.toml"))


def test_the_folders_targets_come_before_the_users_own(folder: Path) -> None:
    (folder / "own").mkdir()
    (folder / "own" / "targets.toml").write_text(
        "[targets.bench]\nkind = 'ssh'\nhost = 'a'\n[targets.desk]\nkind = 'ssh'"
    )
    (folder / "dtp-deploy.toml").write_text("[targets.bench]\nkind = 'jetson'")

    assert named_target("bench") == TargetSpec("jetson")
    assert named_target("desk") == TargetSpec("ssh")
    assert named_target("cpu") == TargetSpec("cpu")


def test_options_of_a_target_come_from_everywhere() -> None:
    file = ConfigFile(targets={"bench": TargetSpec("jetson", {"host": "a", "precision": "fp16"})})
    config = CompressConfig(target="bench", host="b", target_option=("precision=fp32", "dla=0", "lock_clocks=true"))

    assert target_spec(config, file) == TargetSpec(
        "jetson", {"host": "b", "precision": "fp32", "dla": 0, "lock_clocks": True}
    )


def test_precision_and_clocks_have_flags_of_their_own() -> None:
    config = CompressConfig(target="jetson", host="b", precision="fp32", lock_clocks=True)
    assert target_spec(config, ConfigFile()) == TargetSpec(
        "jetson", {"host": "b", "precision": "fp32", "lock_clocks": True}
    )
    assert target_spec(CompressConfig(target="cpu"), ConfigFile()) == TargetSpec("cpu")
