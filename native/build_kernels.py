"""Builds the C core as the cffi API-mode module `fleetgrad.native._core`, one stable-ABI shared object for any Python >= 3.11.

Every ISA's file is compiled into it; each switches its own target on and is empty on the other architectures. The same shared
object exports RegisterCustomOps for onnxruntime (src/ort/). What Python may call is read from the headers: the kernel lists'
rows, and plain prototypes that start a line.
"""

import re
from pathlib import Path

from cffi import FFI

ROOT = Path("native")
SOURCES = sorted(path.as_posix() for path in ROOT.glob("src/**/*.c"))
INTERNAL = sorted(path.as_posix() for path in ROOT.glob("src/**/*.h"))
PUBLIC = [path.as_posix() for path in (ROOT / "include/fleetgrad.h", *sorted(ROOT.glob("include/fleetgrad/*.h")))]


def declarations(header: str) -> list[str]:
    """C declarations of the structs, kernels and functions of a header."""
    text = re.sub(r"/\*.*?\*/", " ", header, flags=re.DOTALL)
    rows = re.findall(r"X\((\w+), (\w+),\s+\(([^)]*)\),\s+\([^)]*\)\)", re.sub(r"\s*\\\n\s*", " ", text))
    structs = re.findall(r"^typedef struct \{[^}]*\} fg_\w+;", text, flags=re.MULTILINE)
    sizes = [f"#define {name} ..." for name in re.findall(r"^#define (FG_\w+) \d+ *$", text, flags=re.MULTILINE)]
    errors = [f"#define {name} ..." for name in re.findall(r"X\((FG_\w+), -?\d+, ", text)]
    plain = re.findall(r"^(?:const )?\w+ \*?fg_\w+\([^)]*\);", text, flags=re.MULTILINE)
    return sizes + errors + structs + [f"{type_} fg_{name}({parameters});" for type_, name, parameters in rows] + plain


ffibuilder = FFI()
ffibuilder.cdef("\n".join(line for path in PUBLIC for line in declarations(Path(path).read_text())))
ffibuilder.set_source(
    "fleetgrad.native._core",
    '#include "fleetgrad.h"',
    sources=SOURCES,
    include_dirs=["native/include"],
    depends=[*PUBLIC, *INTERNAL],
    extra_compile_args=["-std=c11", "-O3", "-ffp-contract=off", "-fno-math-errno", "-fvisibility=hidden"],
    py_limited_api=True,
)
