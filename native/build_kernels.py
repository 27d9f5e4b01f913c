"""Builds the C core as the cffi API-mode module `fleetgrad.native._core`."""

from cffi import FFI

ffibuilder = FFI()
ffibuilder.cdef("int fg_abi_version(void);")
ffibuilder.set_source(
    "fleetgrad.native._core", "static int fg_abi_version(void) { return 1; }", py_limited_api=True,
)
