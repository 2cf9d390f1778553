"""Counting what a given model costs, by torch's own counters: the reference for every formula in this package."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from dtp_deploy.modules import Inputs, as_inputs, evaluating, fused_apart


def _matrix_by_vector(matrix: Any, vector: Any, *_: object, **__: object) -> int:  # noqa: ANN401 - shapes, says torch
    return 2 * int(matrix[0]) * int(matrix[1])


def _recurrent_layer(sequence: Any, of_input: Any, of_hidden: Any, *_: object, **__: object) -> int:  # noqa: ANN401
    uses = int(sequence[0]) * int(sequence[1])
    return 2 * uses * (int(of_input[0]) * int(of_input[1]) + int(of_hidden[0]) * int(of_hidden[1]))


def _attention(query: Any, key: Any, value: Any, *_: object, **__: object) -> int:  # noqa: ANN401
    return int(sdpa_flop_count(query, key, value))  # type: ignore[no-untyped-call]


_MORE = {
    torch.ops.aten.mv: _matrix_by_vector,
    torch.ops.aten.addmv: lambda bias, matrix, vector, *_, **__: _matrix_by_vector(matrix, vector),
    torch.ops.aten.dot: lambda first, second, *_, **__: 2 * int(first[0]),
    torch.ops.aten.mkldnn_rnn_layer: _recurrent_layer,
    # Of a model that chooses its kernel itself.
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention,
}
"""Floating point operations that torch's counter has no formula for, from the shapes of the arguments."""


def count_macs(model: nn.Module, inputs: Tensor | Inputs) -> int:
    """Multiply-accumulate operations of one forward pass in eval mode: convolutions and all matrix products, those
    inside of attention and recurrent layers too.

    >>> count_macs(nn.Conv2d(3, 8, 3, padding=1), torch.zeros(1, 3, 4, 4))
    3456
    """
    with (
        evaluating(model),
        torch.no_grad(),
        fused_apart(),
        FlopCounterMode(display=False, custom_mapping=_MORE) as counter,
    ):
        model(*as_inputs(inputs))
    return int(counter.get_total_flops()) // 2


def macs_per_sample(model: nn.Module, inputs: Tensor | Inputs) -> int:
    """The same for one sample of the batch that `inputs` are.

    >>> macs_per_sample(nn.Conv2d(3, 8, 3, padding=1), torch.zeros(5, 3, 4, 4))
    3456
    """
    return round(count_macs(model, inputs) / len(as_inputs(inputs)[0]))


def count_parameters(model: nn.Module) -> int:
    """Number of values in all parameters, shared ones once.

    >>> count_parameters(nn.Linear(2, 3))
    9
    """
    return sum(parameter.numel() for parameter in model.parameters())
