"""NVIDIA Jetson boards: TensorRT engines, built and measured on the board itself with its own trtexec."""

from pathlib import Path

from dtp_deploy.errors import InputError, TargetError, UsageError
from dtp_deploy.target import Availability, Engine, ImportedMeasurement, PredictedLatency
from dtp_deploy_targets.connection import Connection
from dtp_deploy_targets.devices import DeviceProfile, find_device
from dtp_deploy_targets.prepare import prepare
from dtp_deploy_targets.remote import BUILD_TIMEOUT_S, RemoteBoard, RemoteTarget, check_build_timeout
from dtp_deploy_targets.runner.board import detect
from dtp_deploy_targets.runner.trtexec import PRECISIONS, STRONGLY_TYPED_FROM, Version
from dtp_deploy_targets.ssh import ssh_availability

DEFAULT_BOARD = "orin-nano"
"""The board that a prediction is for where none was named."""


class JetsonTarget(RemoteTarget):
    """A Jetson with JetPack 6.1 (TensorRT 10.3) or newer: this machine, or one over ssh.

    The engine is built on the board, where it stays and is found again. The times are those of the GPU, with a CUDA
    graph and without copies. The precision that the engine really has is read from it: one that runs mostly in another
    precision than was asked for is an error.

    Args:
        host: as ssh takes it ("user@board"); "" if this machine is the board.
        board: which board it is ("orin-nano"), to be sure that the right one answers.
        precision: "fp16", "fp32" (without TF32), or "int8" for a model with quantize and dequantize nodes.
        dla: the DLA core to use, with the GPU for what it cannot do; -1 for none.
        lock_clocks: lock the clocks at the maxima of the power mode while measuring; needs root there, or sudo without
            a password for jetson_clocks. They are put back whatever happens.
        config: an ssh configuration to use in place of the user's.
        python: the Python on the board, 3.8 or newer.
        folder: where on the board files may be put for a while.
        cache: the folder on the board that keeps the engines. They stay when a run is over; remove it to be rid of
            them.
        build_timeout_s: the longest that building one engine may take.

    Raises:
        UsageError: an option is out of range, or nobody knows that board.
    """

    name = "jetson"
    summary = "An NVIDIA Jetson board, by TensorRT there (predicted without it)"
    build_is_slow = True

    def __init__(
        self,
        *,
        host: str = "",
        board: str = "",
        precision: str = "fp16",
        dla: int = -1,
        lock_clocks: bool = False,
        config: str = "",
        python: str = "python3",
        folder: str = "",
        cache: str = "~/.cache/dtp-deploy",
        build_timeout_s: float = BUILD_TIMEOUT_S,
    ) -> None:
        check_build_timeout(self.name, build_timeout_s)
        if precision not in PRECISIONS:
            raise UsageError(
                f"precision={precision!r} is not possible for target 'jetson'. Give one of: {', '.join(PRECISIONS)}."
            )
        self._profile: DeviceProfile | None = find_device(board) if board else None
        if self._profile and not self._profile.supported:
            raise UsageError(
                f"Board '{board}' is not supported: {self._profile.unsupported_reason}. Use it by ONNX Runtime: "
                "target ssh."
            )
        cores = 2 if self._profile is None else self._profile.dla_cores
        if not -1 <= dla < cores:
            raise UsageError(
                f"dla={dla} is not possible for {board or 'a Jetson'}, which has {cores or 'no'} DLA cores. "
                f"Give {f'0 to {cores - 1}' if cores else 'no dla'}, or -1 for none."
            )
        if dla >= 0 and precision == "fp32":
            raise UsageError("dla with precision='fp32' is not possible: a DLA has no fp32. Give fp16 or int8.")
        self.host, self.board, self.precision, self.dla = host, board, precision, dla
        self.lock_clocks, self.config, self.python = lock_clocks, config, python
        self.folder, self.cache, self.build_timeout_s = folder, cache, build_timeout_s

    def availability(self) -> Availability:
        """Whether a host is named, or this machine is a Jetson; a host is not asked."""
        if self.host:
            return ssh_availability()
        if not detect().is_jetson:
            return Availability(False, "found no board here", "give --host user@board")
        return Availability(True)

    def predict(self, model_path: Path) -> PredictedLatency:
        """A roofline over the layers, from the board's data sheet; for an Orin Nano where no board was named."""
        from dtp_deploy_targets.roofline import predict

        self._check_quantized(model_path)
        profile = self._profile if self._profile is not None else find_device(DEFAULT_BOARD)
        prediction = predict(model_path, profile, self.precision)
        assumptions = prediction.assumptions
        if self._profile is None:
            assumptions = (f"no board was named, so it is for {DEFAULT_BOARD}", *assumptions)
        return PredictedLatency(prediction.total_ms, f"{profile.name}, {self.precision}", assumptions)

    def write_bundle(self, folder: Path, model_path: Path) -> list[Path]:
        """The runner, a script and instructions, beside the model."""
        from dtp_deploy_targets.bundle import write_bundle

        return write_bundle(folder, model_path, self.board or DEFAULT_BOARD, self.precision)[1:]

    def read_measurement(self, path: Path, layers: Path | None = None) -> ImportedMeasurement:
        """The runner's result; or what trtexec wrote with ``--exportTimes``, and `layers` what it wrote with
        ``--exportProfile``.

        Raises:
            InputError: as `Target.read_measurement`; or it is of another board or precision than this target's.
        """
        from dtp_deploy_targets.measurement import read_measurement

        measured = read_measurement(path, self.precision, layers)
        module = measured.environment.get("board", {}).get("module", "")
        if self._profile and module and module not in self._profile.module_part_numbers:
            raise InputError(
                f"{path} is of another board: it was measured on module {module}, and not on '{self.board}' "
                f"({', '.join(self._profile.module_part_numbers)}). Measure there, or compress for the board that "
                "it is."
            )
        return measured

    def _connect(self) -> RemoteBoard:
        connection = Connection(self.host, config=self.config, folder=self.folder)
        options = {
            "precision": self.precision,
            "dla": self.dla,
            "lock_clocks": self.lock_clocks,
            "cache": self.cache,
            "build_timeout_s": self.build_timeout_s,
        }
        board = RemoteBoard(connection, self.python, "tensorrt", options, self.build_timeout_s)
        module = board.facts["module"]
        if self._profile and module and module not in self._profile.module_part_numbers:
            board.close()
            raise TargetError(
                f"The {connection.label} is module {module} ({board.facts['module_name'] or 'unknown'}), and not "
                f"'{self.board}' ({', '.join(self._profile.module_part_numbers)}). Give the board that it is."
            )
        return board

    def _check_quantized(self, model_path: Path) -> None:
        if self.precision == "int8" and b"QuantizeLinear" not in model_path.read_bytes():
            # trtexec would invent the ranges: fast, and wrong.
            raise TargetError(
                f"Target 'jetson' got precision='int8' for {model_path.name}, which has no quantize nodes. Quantize "
                "the model first, or give fp16."
            )

    def _build(self, model_path: Path) -> Engine:
        self._check_quantized(model_path)
        return super()._build(model_path)

    def _prepared(self, board: RemoteBoard, model_path: Path, folder: Path) -> Path:
        """From 11 on, TensorRT takes the precision from the model's types."""
        version = Version.parse(board.runtime_version)
        if self.precision != "fp16" or version is None or version < STRONGLY_TYPED_FROM:
            return model_path
        prepare(model_path, self.precision, folder / "model.onnx")
        return folder / "model.onnx"
