"""Maps the five rooms at the top of the repository into the import root `fleetgrad` and builds the C core."""

from setuptools import find_packages, setup

ROOMS = ("native", "wire", "edge", "broker", "hardware")

setup(
    packages=[f"fleetgrad.{name}" for name in find_packages(include=[*ROOMS, *(f"{room}.*" for room in ROOMS)])],
    package_dir={f"fleetgrad.{room}": room for room in ROOMS},
    cffi_modules=["native/build_kernels.py:ffibuilder"],
    options={"bdist_wheel": {"py_limited_api": "cp311"}},
)
