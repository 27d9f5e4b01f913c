"""Every VJP rule in every variant, a line each, in a file per family of ops like edge/autodiff/rules."""

import importlib
import pkgutil

from tests.edge.cases.inputs import Case

CASES: list[Case] = [
    case
    for module in pkgutil.iter_modules(__path__)
    if module.name != "inputs"
    for case in importlib.import_module(f"{__name__}.{module.name}").CASES
]
