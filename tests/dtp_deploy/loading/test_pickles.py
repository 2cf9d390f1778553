import io
import pickle
from argparse import Namespace
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dtp_deploy.loading.pickles import unsafe_imports


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_names_what_any_protocol_imports(protocol: int) -> None:
    # The second Namespace, and the second use of a module's name, come from the memo in protocol 4 and later.
    content = [Fraction(1, 3), Namespace(a=1), Namespace(b="argparse"), Fraction(1, 2)]
    found = unsafe_imports(io.BytesIO(pickle.dumps(content, protocol=protocol)))
    assert {"argparse.Namespace", "fractions.Fraction"} <= set(found)
    assert set(found) <= {"argparse.Namespace", "fractions.Fraction", "copyreg._reconstructor", "builtins.object"}


@pytest.mark.parametrize("zip_format", [True, False])
def test_a_state_dict_needs_nothing_unsafe(zip_format: bool) -> None:
    stream = io.BytesIO()
    model = torch.nn.BatchNorm2d(3).half()
    torch.save({"model": model.state_dict(), "p": model.weight}, stream, _use_new_zipfile_serialization=zip_format)
    assert unsafe_imports(stream) == []


@pytest.mark.parametrize("zip_format", [True, False])
def test_names_numpy_in_a_checkpoint(zip_format: bool) -> None:
    stream = io.BytesIO()
    torch.save({"w": torch.ones(1), "loss": np.ones(2)}, stream, _use_new_zipfile_serialization=zip_format)
    assert unsafe_imports(stream) == ["numpy._core.multiarray._reconstruct", "numpy.dtype", "numpy.ndarray"]


def test_names_the_imports_before_a_cut() -> None:
    whole = pickle.dumps([Fraction(1, 3)] * 3, protocol=4)
    assert unsafe_imports(io.BytesIO(whole[:-3])) == ["fractions.Fraction"]


def test_a_text_that_looks_like_an_import_is_none() -> None:
    assert unsafe_imports(io.BytesIO(b"cats\ndogs\nand other animals")) == []
    assert unsafe_imports(io.BytesIO(b"cats\ndogs\n.")) == ["ats.dogs"]  # a whole pickle of protocol 0


def test_a_damaged_record_in_a_zip_names_nothing() -> None:
    stream = io.BytesIO()
    torch.save({"x": Fraction(1, 3)}, stream)
    content = stream.getvalue()
    assert unsafe_imports(io.BytesIO(content)) == ["fractions.Fraction"]
    assert unsafe_imports(io.BytesIO(content.replace(b"Fraction", b"Friction"))) == []  # the checksum is the old one


@given(st.one_of(st.binary(max_size=200), st.binary(max_size=100).map(lambda tail: b"\x80\x04" + tail)))
def test_any_bytes_give_an_answer(content: bytes) -> None:
    assert all(isinstance(name, str) for name in unsafe_imports(io.BytesIO(content)))
