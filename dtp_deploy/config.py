"""What ``dtp-deploy compress`` may be told: one key for every flag, in ``dtp-deploy.toml`` or on the command line.

A key is called as its flag is, without the dashes in front: ``batch-size = 32`` is ``--batch-size 32``. Flags win over
the file. The flags themselves, their help texts and the commented example are all made from `CompressConfig`.
"""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic.fields import FieldInfo

from dtp_deploy.budget import Budget, BudgetKind, Granularity, Scope, Statistic, parse_budget
from dtp_deploy.errors import UsageError

if TYPE_CHECKING:  # it imports NumPy, which the help texts can do without
    from dtp_deploy.target import Option, TargetSpec

CONFIG_FILE = Path("dtp-deploy.toml")
"""Read where the command is started."""
USER_TARGETS = Path("~/.config/dtp-deploy/targets.toml")
"""A file of targets and boards that every folder shares."""

BUDGET_KEYS: Mapping[str, BudgetKind] = {
    "macs": "macs",
    "params": "params",
    "size": "size",
    "channel_count": "channels",
    "latency": "latency",
}
"""The fields that hold a budget, and its kind."""

_TABLES = ("compress", "targets", "devices", "gate")
_ALIASES = {"as_json": "json"}


def _as_list(value: object) -> object:
    return [value] if isinstance(value, str) else value


def _as_numbers(value: object) -> object:
    """Numbers, from a list, a single number, or a text such as "0.485,0.456,0.406"."""
    if isinstance(value, str):
        return value.split(",")
    return [value] if isinstance(value, int | float) else value


Texts = Annotated[tuple[str, ...], BeforeValidator(_as_list)]
Numbers = Annotated[tuple[float, ...] | None, BeforeValidator(_as_numbers)]


def _key(section: str, default: Any, text: str, metavar: str = "", example: object = None, **limits: Any) -> Any:  # noqa: ANN401
    extra: Any = {"section": section, "metavar": metavar, "example": default if example is None else example}
    return Field(default, description=text, json_schema_extra=extra, **limits)


def _dashes(name: str) -> str:
    return _ALIASES.get(name, name.replace("_", "-"))


class CompressConfig(BaseModel):
    """Everything that one run of ``compress`` may be told. None means: not given."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        alias_generator=_dashes,
        populate_by_name=True,
        coerce_numbers_to_str=True,
        allow_inf_nan=False,
    )

    checkpoint: str | None = _key(
        "Model",
        None,
        "The trained model: a state_dict, a pickled model (--trust), timm:NAME, torchvision:NAME, or a folder that "
        "compress wrote.",
        "MODEL",
        "model.pt",
    )
    model: str | None = _key(
        "Model",
        None,
        "What makes the model that weights belong to: a function, timm:NAME or torchvision:NAME.",
        "PKG.MODULE:NAME",
        "my_models:make_model",
    )
    trust: bool = _key("Model", False, "Let the model file import and run code; --dry-run says which.")
    prepare: str | None = _key(
        "Model", None, "Function applied to the model before anything else.", "PKG.MODULE:NAME", "my_models:prepare"
    )
    finish: str | None = _key(
        "Model", None, "Function applied to the model before it is exported.", "PKG.MODULE:NAME", "my_models:finish"
    )
    input: Texts = _key(
        "Model", (), "An input, batch first: [name:]1x3x224x224[:type]. Once for each.", "INPUT", ["1x3x224x224"]
    )
    keep: Texts = _key(
        "Model",
        (),
        "A layer that stays as it is, or a pattern of such layers. Once for each.",
        "PATTERN",
        ["stem*"],
    )
    only: Texts = _key(
        "Model",
        (),
        "The only layers that may lose channels or weights, as names or patterns. Once for each.",
        "PATTERN",
        ["stages.2.*"],
    )

    data: str | None = _key(
        "Data",
        None,
        "Pictures in a folder, IDX files, an .npz, pkg.module:factory, digits, fashion-mnist or synthetic; random "
        "inputs unless given.",
        "DATA",
        "photos",
    )
    val_split: float | None = _key("Data", None, "Share of a folder's pictures to hold out.", "SHARE", 0.2)
    workers: int = _key("Data", 0, "Processes that decode pictures.", "N", ge=0)
    loss: str | None = _key(
        "Data", None, "Function (outputs, targets) -> loss; cross-entropy unless given.", "PKG.MODULE:NAME", "task:loss"
    )
    metric: str | None = _key(
        "Data",
        None,
        "Function (outputs, targets) -> 0 to 1, higher is better; top-1 unless given.",
        "PKG.MODULE:NAME",
        "task:metric",
    )

    resize: str | None = _key("Preprocessing", None, "Shorter side of a picture, or HEIGHTxWIDTH.", "SIZE", 256)
    crop: str | None = _key("Preprocessing", None, "Keep the centre: a square, or HEIGHTxWIDTH.", "SIZE", 224)
    letterbox: str | None = _key("Preprocessing", None, "Fit the whole picture in, with grey bars.", "SIZE", 640)
    mean: Numbers = _key("Preprocessing", None, "Subtracted from each channel.", "NUMBERS", [0.485, 0.456, 0.406])
    std: Numbers = _key("Preprocessing", None, "Each channel is divided by it.", "NUMBERS", [0.229, 0.224, 0.225])
    channels: Literal["rgb", "bgr", "grey"] | None = _key("Preprocessing", None, "Order of the channels.", "", "rgb")
    range: Literal["0-1", "0-255"] | None = _key("Preprocessing", None, "Range of the pixels.", "", "0-1")

    granularity: Granularity = _key(
        "Budget",
        "channels",
        "What is pruned: channels, single weights (to --params, 50% by default), or 2:4, without a budget.",
    )
    macs: str | None = _key("Budget", None, "Limit of operations (MACs): 50% or 30M.", "LIMIT", "50%")
    params: str | None = _key("Budget", None, "Limit of parameters: 50% or 1.5M.", "LIMIT", "50%")
    size: str | None = _key("Budget", None, "Limit of bytes delivered: 50% or 2MB.", "LIMIT", "2MB")
    channel_count: str | None = _key("Budget", None, "Limit of prunable channels: 50% or 512.", "LIMIT", "50%")
    latency: str | None = _key("Budget", None, "Limit of the measured latency: 50% or 5ms.", "LIMIT", "5ms")
    statistic: Statistic = _key("Budget", "p50", "Which figure of the measured times --latency limits.")
    allow_depth: bool = _key(
        "Budget", False, "Remove residual blocks as a whole too, where they are worth less than they cost."
    )
    per_layer: bool = _key("Budget", False, "Keep the same ratio of channels, or of weights, in every layer.")

    target: str = _key(
        "Target", "cpu", "What to run on; see `dtp-deploy targets`. Or the name of a table [targets.NAME].", "NAME"
    )
    host: str | None = _key("Target", None, "The board, for targets over ssh.", "USER@HOST", "me@board")
    threads: int | None = _key("Target", None, "Threads of the target's runtime; cpu: 1 unless given.", "N", 1, ge=1)
    precision: Literal["fp32", "fp16", "int8"] | None = _key(
        "Target",
        None,
        "What the engine computes in, where a target can choose; int8: of a model quantized elsewhere.",
        "",
        "fp16",
    )
    lock_clocks: bool = _key("Target", False, "Lock a Jetson's clocks while measuring; they are always put back.")
    target_option: Texts = _key("Target", (), "A further option of the target. Once for each.", "KEY=VALUE", ["dla=0"])
    require_measured: bool = _key("Target", False, "Fail with code 5 where the target cannot measure here.")

    epochs: int = _key("Training", 20, "Epochs in total, masks and fine-tuning together.", "N", ge=1)
    lr: float = _key("Training", 0.02, "Highest learning rate: a fifth of what trained the model.", "RATE")
    batch_size: int = _key("Training", 64, "Samples a training step.", "N", ge=1)
    augment: Literal["none", "shift", "shift-flip"] = _key("Training", "none", "What training images go through.")
    distill: bool = _key("Training", True, "Learn from the dense model's outputs too.")
    solver: Literal["exact", "sinkhorn-1"] = _key("Training", "exact", "Transport solver of the masks.")
    scores: Literal["l2", "bn", "taylor", "uniform"] = _key(
        "Training",
        "l2",
        "What the masks' scores start from: weights, BatchNorm's scales, the loss's slope, or nothing.",
    )
    round_to: int = _key("Training", 1, "Make widths multiples of this, or leave them as they are.", "N", ge=1)
    seed: int = _key("Training", 0, "Seed of everything random.", "N", ge=0)
    device: str | None = _key(
        "Training", None, "What to train on: cpu, cuda, cuda:1; a GPU where there is one, unless given.", "NAME", "cuda"
    )
    log_dir: str | None = _key("Training", None, "Folder for the training's curves.", "DIR", "logs")
    checkpoint_every: float = _key(
        "Training", 10.0, "Minutes between two checkpoints; one is also written after every stage.", "MINUTES", ge=0
    )

    out: str | None = _key(
        "Output", None, "Folder to write; MODEL's name with -compressed unless given.", "DIR", "model-compressed"
    )
    force: bool = _key("Output", False, "Replace DIR if it is an artefact of dtp-deploy.")
    save_module: bool = _key("Output", False, "Pickle the pruned module too (module.pt), for those who trust pickles.")
    dry_run: bool = _key(
        "Output",
        False,
        "Say what would be read, imported and pruned, and train nothing; code 3 where a budget cannot be met.",
    )
    as_json: bool = _key("Output", False, "Print JSON, and nothing else, on standard output.")
    verbose: bool = _key("Output", False, "Without a terminal too, print a line for each stage.")

    def budgets(self) -> tuple[Budget, ...]:
        """The budgets given, in the order of `BUDGET_KEYS`; none, if none was given.

        Raises:
            UsageError: one is no quantity of its kind.
        """
        given = {kind: getattr(self, name) for name, kind in BUDGET_KEYS.items()}
        return tuple(self.budget(kind, text) for kind, text in given.items() if text is not None)

    def budget(self, kind: BudgetKind, text: str) -> Budget:
        """One budget, with the scope and the statistic given.

        Raises:
            UsageError: the text is no quantity of that kind.
        """
        scope: Scope = "per-layer" if self.per_layer else "global"
        budget = parse_budget(kind, text, scope)
        return replace(budget, statistic=self.statistic) if kind == "latency" else budget

    def values(self) -> dict[str, Any]:
        """What is not as it is by default, as plain values by key: `configure` makes an equal one of them."""
        return self.model_dump(mode="json", by_alias=True, exclude_defaults=True)


def flag_of(name: str) -> str:
    """The flag of a field.

    >>> flag_of("batch_size"), flag_of("as_json")
    ('--batch-size', '--json')
    """
    return f"--{_dashes(name)}"


def extra_of(info: FieldInfo) -> dict[str, Any]:
    """What `CompressConfig` says of a field besides its type: section, metavar, example."""
    assert isinstance(info.json_schema_extra, dict)
    return dict(info.json_schema_extra)


@dataclass(frozen=True)
class ConfigFile:
    """A configuration file, read.

    Attributes:
        path: where it lies; None if there is none.
        values: of its table [compress], by key.
        targets: the targets that it names.
    """

    path: Path | None = None
    values: Mapping[str, Any] = field(default_factory=dict)
    targets: Mapping[str, TargetSpec] = field(default_factory=dict)


def read_config(path: Path | None = None) -> ConfigFile:
    """Read a configuration file.

    Args:
        path: by default ``./dtp-deploy.toml``, which may be missing.

    Raises:
        UsageError: it cannot be read, or it is no TOML, or it holds an unknown key or a value that is not allowed.
    """
    place = path if path is not None else CONFIG_FILE
    tables = _read_toml(place, needed=path is not None)
    if tables is None:
        return ConfigFile()
    _refuse_unknown(tables, _TABLES, str(place), "table")
    values = tables.get("compress", {})
    if not isinstance(values, dict):
        raise UsageError(f"{place}: compress is no table. Write [compress] on a line of its own, and the keys below.")
    _checked(values, str(place))
    return ConfigFile(place, values, _targets(place, tables))


def configure(file: Mapping[str, Any], flags: Mapping[str, Any] | None = None) -> CompressConfig:
    """The configuration that a file and the flags make together; flags win.

    Args:
        file: values by key, checked by `read_config`.
        flags: values by key; None is "not given".

    Raises:
        UsageError: a flag is unknown or has a value that is not allowed.

    >>> configure({"epochs": 5, "seed": 1}, {"epochs": 9, "seed": None}).epochs
    9
    """
    given = {_dashes(key): value for key, value in (flags or {}).items() if value is not None}
    _checked(given, "")
    return _checked({_dashes(key): value for key, value in file.items()} | given, "")


def named_target(name: str, file: ConfigFile | None = None) -> TargetSpec:
    """The target of that name in the configuration file or in the user's own file; else the name itself.

    Raises:
        UsageError: a file is damaged.
    """
    from dtp_deploy.target import parse_target

    file = file if file is not None else read_config()
    own = USER_TARGETS.expanduser()
    return {**_targets(own, _read_toml(own, needed=False) or {}), **file.targets}.get(name, parse_target(name))


def target_spec(config: CompressConfig, file: ConfigFile | None = None) -> TargetSpec:
    """The target with all its options: those of its table, then those with a flag of their own, then --target-option.

    Raises:
        UsageError: an option is not of the form KEY=VALUE, or a file is damaged.

    >>> target_spec(CompressConfig(target="ssh", host="me@board", target_option="threads=2"), ConfigFile()).options
    {'host': 'me@board', 'threads': 2}
    """
    named = {
        "host": config.host,
        "threads": config.threads,
        "precision": config.precision,
        "lock_clocks": config.lock_clocks,
    }
    return with_options(named_target(config.target, file), named, config.target_option)


def with_options(spec: TargetSpec, named: Mapping[str, str | int | float | None], further: Sequence[str]) -> TargetSpec:
    """A target with more options: by name, None or False for one that is not given, and texts of the form KEY=VALUE.

    Raises:
        UsageError: one is not of that form.
    """
    from dtp_deploy.target import TargetSpec

    options = dict(spec.options)
    options |= {key: value for key, value in named.items() if value is not None and value is not False}
    for text in further:
        key, equals, value = text.partition("=")
        if not (key.isidentifier() and equals):
            raise UsageError(
                f"--target-option {text!r} is not of the form KEY=VALUE. Give a name and a value: precision=fp16."
            )
        options[key] = _plain(value)
    return TargetSpec(spec.name, options)


def example_config() -> str:
    """A commented ``dtp-deploy.toml`` with every key in it."""
    lines = [
        "# What `dtp-deploy compress` does in this folder. Every key is a flag without its dashes; flags win over this",
        "# file. A line counts once the # before it is gone. `dtp-deploy compress --help` says the same.",
        "",
        "[compress]",
    ]
    section = ""
    for name, info in CompressConfig.model_fields.items():
        extra = extra_of(info)
        if extra["section"] != section:
            section = extra["section"]
            lines += ["", f"# ---- {section} ----"]
        lines += ["", f"# {info.description}", f"#{_dashes(name)} = {_toml(extra['example'])}"]
    lines += [
        "",
        "# ---- A target with its options, for --target bench ----",
        "",
        "#[targets.bench]",
        '#kind = "jetson"',
        '#host = "me@board"',
    ]
    return "\n".join(lines) + "\n"


def _read_toml(path: Path, *, needed: bool) -> dict[str, Any] | None:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        if not needed:
            return None
        raise UsageError(
            f"--config {path} does not exist. Give the path of a file; `dtp-deploy init` writes an example."
        ) from None
    except OSError as error:
        raise UsageError(f"{path} cannot be read ({error.strerror}). Give a file that you may read.") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} is no TOML file: {error}. Correct that line.") from error


def _checked(values: Mapping[str, Any], place: str) -> CompressConfig:
    """The configuration of these values. `place` is the file they are from; "" for flags."""
    named = {_dashes(key): value for key, value in values.items()}
    _refuse_unknown(named, [_dashes(name) for name in CompressConfig.model_fields], place, "key")
    try:
        return CompressConfig.model_validate(named)
    except ValidationError as error:
        first = error.errors()[0]
        key = str(first["loc"][0])
        where = f"{place}: {key} = {named[key]!r}" if place else f"--{key} {named[key]}"
        raise UsageError(f"{where} is not allowed. {first['msg']}.") from None


def _refuse_unknown(given: Mapping[str, Any], known: Sequence[str], place: str, what: str) -> None:
    for name in given:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"Did you mean {near[0]!r}?" if near else f"Known are: {', '.join(known)}."
            raise UsageError(f"{place or 'The options'}: there is no {what} {name!r}. {hint}")


def _targets(path: Path, tables: Mapping[str, Any]) -> dict[str, TargetSpec]:
    from dtp_deploy.target import Option, TargetSpec

    found = tables.get("targets", {})
    if not isinstance(found, dict) or not all(isinstance(table, dict) for table in found.values()):
        raise UsageError(f"{path}: targets holds something else than tables. Write [targets.NAME] above each.")
    specs = {}
    for name, table in found.items():
        options = dict(table)
        kind = options.pop("kind", None)
        if not isinstance(kind, str):
            raise UsageError(f'{path}: [targets.{name}] has no kind. Add a line such as: kind = "jetson"')
        for key, value in options.items():
            if not isinstance(value, Option):
                raise UsageError(
                    f"{path}: [targets.{name}] has {key} = {value!r}. Options are texts, numbers, true or false."
                )
        specs[name] = TargetSpec(kind, options)
    return specs


def _plain(text: str) -> Option:
    """A value as TOML would read it, or the text itself.

    >>> _plain("4"), _plain("true"), _plain("fp16")
    (4, True, 'fp16')
    """
    from dtp_deploy.target import Option

    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text
    return value if isinstance(value, Option) else text


def _toml(value: object) -> str:
    """A plain value as TOML writes it."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_toml, value))}]"
    return f'"{value}"' if isinstance(value, str) else str(value)
