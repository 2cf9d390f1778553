"""The few calls of NVIDIA's driver library that running an engine needs: devices, memory, copies, one stream.

The library comes with the driver, so where there is a GPU nothing has to be installed for it.
"""

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy.typing as npt

from dtp_deploy.errors import TargetError

LIBRARY = "libcuda.so.1"
_OUT_OF_MEMORY = 2
_COMPUTE_CAPABILITY_MAJOR, _COMPUTE_CAPABILITY_MINOR = 75, 76


@dataclass(frozen=True)
class Gpu:
    """One GPU of this machine, as the driver names it."""

    index: int
    name: str
    compute_capability: str


def driver() -> ctypes.CDLL:
    """The driver library, initialised.

    Raises:
        TargetError: there is no driver, or it finds no GPU.
    """
    try:
        library = ctypes.CDLL(LIBRARY)
    except OSError:
        raise TargetError(f"no GPU: there is no NVIDIA driver here ({LIBRARY} is not found)") from None
    code = library.cuInit(0)
    if code:
        raise TargetError(f"no GPU: the NVIDIA driver does not start ({_error(library, code)})")
    return library


def gpu(index: int = 0) -> Gpu:
    """The GPU of that index.

    Raises:
        TargetError: there is none.
    """
    library = driver()
    count = ctypes.c_int()
    _check(library, library.cuDeviceGetCount(ctypes.byref(count)), "count the GPUs")
    if not 0 <= index < count.value:
        raise TargetError(f"no GPU {index}: the driver finds {count.value}")
    device = _device(library, index)
    name = ctypes.create_string_buffer(256)
    _check(library, library.cuDeviceGetName(name, len(name), device), "name the GPU")
    capability = []
    for attribute in (_COMPUTE_CAPABILITY_MAJOR, _COMPUTE_CAPABILITY_MINOR):
        value = ctypes.c_int()
        _check(library, library.cuDeviceGetAttribute(ctypes.byref(value), attribute, device), "ask the GPU")
        capability.append(value.value)
    return Gpu(index, name.value.decode(), ".".join(map(str, capability)))


def problem(index: int = 0) -> str:
    """Why no engine can run on that GPU, or "" if one can. Never raises."""
    try:
        gpu(index)
    except TargetError as error:
        return str(error)
    return ""


@contextmanager
def stream(index: int = 0) -> Iterator["Stream"]:
    """A stream on a GPU; all of its memory is given back at the end.

    Raises:
        TargetError: there is no such GPU, or the driver refuses.
    """
    opened = Stream(index)
    try:
        yield opened
    finally:
        opened.close()


class Stream:
    """A queue of work on one GPU, in the context that TensorRT uses there too, and the memory allocated for it."""

    def __init__(self, index: int = 0) -> None:
        self._library = driver()
        self._device = _device(self._library, index)
        self._context = ctypes.c_void_p()
        self._call("use the GPU", "cuDevicePrimaryCtxRetain", ctypes.byref(self._context), self._device)
        self._memory: list[int] = []
        handle = ctypes.c_void_p()
        try:
            self._call("use the GPU", "cuCtxSetCurrent", self._context)
            self._call("create a stream", "cuStreamCreate", ctypes.byref(handle), 0)
        except TargetError:
            self._library.cuDevicePrimaryCtxRelease_v2(self._device)
            raise
        self.handle = int(handle.value or 0)

    def allocate(self, size_bytes: int) -> int:
        """The address of new memory on the GPU.

        Raises:
            TargetError: there is not enough.
        """
        pointer = ctypes.c_uint64()
        self._call(f"allocate {size_bytes} bytes", "cuMemAlloc_v2", ctypes.byref(pointer), ctypes.c_size_t(size_bytes))
        self._memory.append(pointer.value)
        return pointer.value

    def upload(self, array: npt.NDArray[Any], address: int) -> None:
        """Queue the copy of a contiguous array to the GPU."""
        source = ctypes.c_void_p(array.ctypes.data)
        self._call("copy to the GPU", "cuMemcpyHtoDAsync_v2", ctypes.c_uint64(address), source, *self._sized(array))

    def download(self, address: int, array: npt.NDArray[Any]) -> None:
        """Queue the copy from the GPU into a contiguous array, which holds it after `wait`."""
        target = ctypes.c_void_p(array.ctypes.data)
        self._call("copy from the GPU", "cuMemcpyDtoHAsync_v2", target, ctypes.c_uint64(address), *self._sized(array))

    def wait(self) -> None:
        """Until everything in the queue is done."""
        self._call("run on the GPU", "cuStreamSynchronize", ctypes.c_void_p(self.handle))

    def close(self) -> None:
        """Give everything back."""
        for address in self._memory:
            self._library.cuMemFree_v2(ctypes.c_uint64(address))
        self._memory.clear()
        self._library.cuStreamDestroy_v2(ctypes.c_void_p(self.handle))
        self._library.cuDevicePrimaryCtxRelease_v2(self._device)

    def _sized(self, array: npt.NDArray[Any]) -> tuple[ctypes.c_size_t, ctypes.c_void_p]:
        assert array.flags["C_CONTIGUOUS"]
        return ctypes.c_size_t(array.nbytes), ctypes.c_void_p(self.handle)

    def _call(self, action: str, function: str, *arguments: Any) -> None:  # noqa: ANN401 - whatever ctypes takes
        _check(self._library, getattr(self._library, function)(*arguments), action)


def _device(library: ctypes.CDLL, index: int) -> ctypes.c_int:
    device = ctypes.c_int()
    _check(library, library.cuDeviceGet(ctypes.byref(device), index), "find the GPU")
    return device


def _check(library: ctypes.CDLL, code: int, action: str) -> None:
    if code == _OUT_OF_MEMORY:
        raise TargetError(
            f"out of GPU memory: could not {action}. Close what else uses the GPU, or take a smaller model"
        )
    if code:
        raise TargetError(f"the NVIDIA driver could not {action}: {_error(library, code)}")


def _error(library: ctypes.CDLL, code: int) -> str:
    text = ctypes.c_char_p()
    known = library.cuGetErrorString(code, ctypes.byref(text)) == 0
    return f"{text.value.decode()}, error {code}" if known and text.value else f"error {code}"
