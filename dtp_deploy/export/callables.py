"""Each form of a model as a callable from arrays to a list of arrays, so that any two can be compared.

They are for parity, not for measuring: a target's session is what is measured.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy.typing as npt
import onnxruntime
import torch
from torch import nn

from dtp_deploy.errors import GraphError
from dtp_deploy.modules import device_of, evaluating
from dtp_deploy.nested import flatten_outputs
from dtp_deploy.target import Arrays

Outputs = list[npt.NDArray[Any]]


def torch_callable(model: nn.Module) -> Callable[[Arrays], Outputs]:
    """The model, in evaluation mode and without gradients, on the device where it is.

    The values of the arrays are given to the model by position, as copies: a model may write into its input.
    """

    def run(arrays: Arrays) -> Outputs:
        device = device_of(model)
        tensors = [torch.tensor(array, device=device) for array in arrays.values()]
        with evaluating(model), torch.no_grad():
            return [tensor.numpy(force=True) for tensor in flatten_outputs(model(*tensors))]

    return run


def onnx_callable(path: Path) -> Callable[[Arrays], Outputs]:
    """The ONNX file on ONNX Runtime's CPU provider with one thread, so that its sums come in one order.

    Raises:
        GraphError: ONNX Runtime refuses the file.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    try:
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime has no common class for its errors
        raise GraphError(
            f"ONNX Runtime {onnxruntime.__version__} cannot load {path.name}: {error}. "
            "It takes valid ONNX models of operators that it has. Export the model again with this version installed."
        ) from error

    def run(arrays: Arrays) -> Outputs:
        return list(session.run(None, arrays))

    return run
