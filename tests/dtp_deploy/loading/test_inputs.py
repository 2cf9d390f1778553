import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from dtp_deploy.errors import DtpError, InputError, UsageError
from dtp_deploy.loading.inputs import DTYPES, InputSpec, arrange_inputs, example_inputs, parse_input


class TwoInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(10, 4)
        self.fc = nn.Linear(3, 4)

    def forward(self, image: Tensor, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
        words = self.embedding(tokens)
        return self.fc(image) + (words if mask is None else words * mask[..., None]).sum(1)


IMAGE, TOKENS, MASK = (parse_input(text) for text in ("image:2x3", "tokens:2x5:int64", "mask:2x5:bool"))


def assert_error(kind: type[DtpError], message: str, *specs: InputSpec) -> None:
    with pytest.raises(kind) as caught:
        example_inputs(TwoInputs(), specs)
    assert type(caught.value) is kind
    assert str(caught.value) == message


@given(
    name=st.none() | st.from_regex(r"[a-z_]\w{0,9}", fullmatch=True),
    shape=st.lists(st.integers(1, 999_999_999), min_size=1, max_size=5).map(tuple),
    dtype=st.sampled_from(sorted(DTYPES)),
)
def test_is_read_back_as_it_is_written(name: str | None, shape: tuple[int, ...], dtype: str) -> None:
    spec = InputSpec(name, shape, dtype)
    assert parse_input(str(spec)) == spec


@pytest.mark.parametrize(
    "text", ["", "3x", "x3", "0x3", "1x-3", "1,3", "1x3 ", "a:b:1x3", ":1x3", "1x3:", "9:1x3", "a:"]
)
def test_refuses_other_texts(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_input(text)
    assert str(caught.value) == (
        f"--input {text!r} is not of the form [name:]shape[:type]. Give whole numbers above zero joined by x, the "
        "batch first, such as 1x3x224x224 or tokens:1x128:int64."
    )


def test_refuses_half_precision() -> None:
    with pytest.raises(UsageError) as caught:
        parse_input("1x3:float16")
    assert str(caught.value) == (
        "--input '1x3:float16' has the type 'float16'. Give one of: float32, int64, int32, uint8, bool."
    )


def test_examples_are_repeatable_and_of_each_type() -> None:
    assert torch.equal(parse_input("2x3").example(7), parse_input("2x3").example(7))
    assert not torch.equal(parse_input("2x3").example(7), parse_input("2x3").example(8))
    for dtype, expected in DTYPES.items():
        tensor = parse_input(f"2x3:{dtype}").example()
        assert (tensor.dtype, tensor.shape) == (expected, (2, 3))
    assert parse_input("2x3:bool").example().all()  # a mask of nothing would divide by zero


def test_unnamed_inputs_go_by_place() -> None:
    specs = (parse_input("2x3"), parse_input("2x5:int64"))
    assert arrange_inputs(TwoInputs(), specs) == specs
    assert [tuple(tensor.shape) for tensor in example_inputs(TwoInputs(), specs)] == [(2, 3), (2, 5)]


def test_named_inputs_go_by_name() -> None:
    assert arrange_inputs(TwoInputs(), (MASK, TOKENS, IMAGE)) == (IMAGE, TOKENS, MASK)
    inputs = example_inputs(TwoInputs(), (TOKENS, IMAGE))
    assert [tensor.dtype for tensor in inputs] == [torch.float32, torch.int64]


def test_the_model_keeps_its_mode() -> None:
    model = TwoInputs().train()
    example_inputs(model, (IMAGE, TOKENS))
    assert model.training


def test_says_what_is_wrong_with_the_set() -> None:
    assert_error(
        UsageError,
        "No --input is given, and the model's configuration names none. Give the shape, the batch first: "
        "--input 1x3x224x224.",
    )
    assert_error(
        UsageError,
        "--input image:2x3 --input 2x5:int64: some are named, some are not. Name all of them, or none.",
        IMAGE,
        parse_input("2x5:int64"),
    )
    assert_error(
        UsageError,
        "--input image:2x3 --input image:2x3: two have the same name. Give each input once.",
        IMAGE,
        IMAGE,
    )
    assert_error(
        InputError,
        "--input picture:2x3: TwoInputs has no input picture. Its forward() takes: image, tokens, mask.",
        parse_input("picture:2x3"),
    )
    assert_error(
        InputError,
        "--input image:2x3 --input mask:2x5:bool: inputs are passed by place, and tokens comes before mask in "
        "forward(). Give it too.",
        IMAGE,
        MASK,
    )


def test_says_what_the_model_says_of_a_wrong_shape() -> None:
    assert_error(
        InputError,
        "TwoInputs does not take --input 2x4 --input 2x5:int64 (RuntimeError: mat1 and mat2 shapes cannot be "
        "multiplied (2x4 and 3x4), at test_inputs.py:"
        f"{TwoInputs.forward.__code__.co_firstlineno + 2}). Give the shape and type of each "
        "input that its forward() needs, the batch first.",
        parse_input("2x4"),
        parse_input("2x5:int64"),
    )
