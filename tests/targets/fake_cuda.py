"""A stand-in for NVIDIA's driver library, whose "GPU" is this machine's memory. It tests how the driver is called."""

import shutil
import subprocess
from pathlib import Path

import pytest

SOURCE = r"""
#include <stdlib.h>
#include <string.h>
#include <stdint.h>
typedef int R;
static int retained = 0, allocated = 0;
R cuInit(unsigned f) { return getenv("FAKE_CUDA_INIT") ? atoi(getenv("FAKE_CUDA_INIT")) : 0; }
R cuGetErrorString(R code, const char **text) { *text = "stand-in error"; return 0; }
R cuDeviceGetCount(int *n) { *n = 1; return 0; }
R cuDeviceGet(int *device, int index) { *device = index; return 0; }
R cuDeviceGetName(char *name, int size, int device) { strncpy(name, "Stand-in GPU", size); return 0; }
R cuDeviceGetAttribute(int *value, int attribute, int device) { *value = attribute == 75 ? 8 : 7; return 0; }
R cuDevicePrimaryCtxRetain(void **context, int device) { *context = &retained; retained++; return 0; }
R cuDevicePrimaryCtxRelease_v2(int device) { retained--; return 0; }
R cuCtxSetCurrent(void *context) { return context == &retained ? 0 : 201; }
R cuStreamCreate(void **stream, unsigned flags) { *stream = &allocated; return 0; }
R cuStreamDestroy_v2(void *stream) { return stream == &allocated ? 0 : 400; }
R cuStreamSynchronize(void *stream) { return stream == &allocated ? 0 : 400; }
R cuMemAlloc_v2(uint64_t *address, size_t size) {
    if (size > (1u << 30)) return 2;
    *address = (uint64_t)(uintptr_t)malloc(size); allocated++; return 0;
}
R cuMemFree_v2(uint64_t address) { free((void *)(uintptr_t)address); allocated--; return 0; }
R cuMemcpyHtoDAsync_v2(uint64_t to, const void *from, size_t size, void *stream) {
    memcpy((void *)(uintptr_t)to, from, size); return stream == &allocated ? 0 : 400;
}
R cuMemcpyDtoHAsync_v2(void *to, uint64_t from, size_t size, void *stream) {
    memcpy(to, (void *)(uintptr_t)from, size); return stream == &allocated ? 0 : 400;
}
int fake_retained(void) { return retained; }
int fake_allocated(void) { return allocated; }
"""


def build(folder: Path) -> Path:
    """Compile the stand-in; skips the test where there is no C compiler."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("needs a C compiler (cc) to make a stand-in for the driver")
    source, library = folder / "fake_cuda.c", folder / "libfake_cuda.so"
    source.write_text(SOURCE)
    subprocess.run([compiler, "-shared", "-fPIC", "-w", "-o", str(library), str(source)], check=True)
    return library
