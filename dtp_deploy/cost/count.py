"""Counting what a given model costs, by torch's own counters: the reference for every formula in this package."""

import torch
from torch import Size, Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from dtp_deploy.modules import Inputs, as_inputs, device_of, evaluating, fused_apart


def _matrix_by_vector(matrix: Size, vector: Size, *_: object, **__: object) -> int:
    return 2 * matrix[0] * matrix[1]


def _recurrent_layer(sequence: Size, of_input: Size, of_hidden: Size, *_: object, **__: object) -> int:
    return 2 * sequence[0] * sequence[1] * (of_input.numel() + of_hidden.numel())


def _attention(query: Size, key: Size, value: Size, *_: object, **__: object) -> int:
    return 2 * query[:-1].numel() * key[-2] * (query[-1] + value[-1])


_MORE = {
    torch.ops.aten.mv: _matrix_by_vector,
    torch.ops.aten.addmv: lambda bias, matrix, vector, *_, **__: _matrix_by_vector(matrix, vector),
    torch.ops.aten.dot: lambda first, second, *_, **__: 2 * first[0],
    torch.ops.aten.mkldnn_rnn_layer: _recurrent_layer,
    # Of a model that chooses its kernel itself; torch counts those of GPUs.
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
        model(*(tensor.to(device_of(model)) for tensor in as_inputs(inputs)))
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
