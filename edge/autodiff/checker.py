"""Checks VJP rules in float64 against central finite differences, and their float32 form on onnxruntime.

For y = f(x), a random direction r and s(x) = sum(r y): the rule's answer for dy = r must be

    ds/dx_i  ~  (s(x + h e_i) - s(x - h e_i)) / 2h

f and the gradient's nodes are evaluated in float64 by onnx's reference evaluator, so that a difference is a wrong rule
and not rounding; then onnxruntime runs the same nodes in float32, which shows where its kernels read the standard
differently, and those of the native lowering where the rule has one. The first dimension of the data is compiled as the
symbolic batch.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from fleetgrad.edge.autodiff import reference, reference_recurrent
from fleetgrad.edge.autodiff.graph import DOMAIN, DOMAIN_VERSION, IR_VERSION, OPSET, Array, Builder, Shape
from fleetgrad.edge.autodiff.registry import STILL, differentiate
from fleetgrad.native import kernels

OPS = [*reference.OPS, *reference_recurrent.OPS]
STEP = 1e-5  # of the differences: their error is about STEP^2 + 1e-16 / STEP
TOLERANCE = 1e-6  # float64 rule against differences, relative to the largest entry
TOLERANCE_FLOAT32 = 2e-5  # onnxruntime in float32 against the float64 rule


def check_rule(
    op: str,
    *inputs: Array | None,
    outputs: int = 1,
    absent: Sequence[int] = (),
    batched: Sequence[int] | Mapping[int, int] = (0,),
    fixed: Sequence[int] = (),
    longer: Mapping[int, Array] | None = None,
    silent: Sequence[int] = (),
    probes: int = 40,
    seed: int = 0,
    **attributes: Any,
) -> None:
    """Raises AssertionError, with both numbers, when the rule of `op` is wrong for these inputs.

    Float inputs are differentiated (float64 is used whatever their type), None is an input that is left out. `batched` are
    the inputs whose first dimension is the batch, or {input: dimension}; with one more sample, inputs in `longer` are what
    it says. Inputs of other types that aren't batched, and float ones that are `fixed`, are constants, which the rule
    knows. Outputs that are `absent` are left out, those in `silent` have no gradient. Where the rule gives none,
    differences must give zero. At most `probes` entries of each input are perturbed.
    """
    names = ["" if x is None else f"x{i}" for i, x in enumerate(inputs)]
    named = ["" if i in absent else f"y{i}" for i in range(outputs)]
    results = [n for n in named if n]
    node = helper.make_node(op, names, named, **attributes)
    given = {n: _typed(x, np.float64) for n, x in zip(names, inputs, strict=True) if x is not None}
    grows = {f"x{i}": a for i, a in (batched.items() if isinstance(batched, Mapping) else ((i, 0) for i in batched))}
    others = {f"x{i}": _typed(x, np.float64) for i, x in (longer or {}).items()}
    data = {*grows, *others}
    constants = {n: x for n, x in given.items() if (x.dtype.kind != "f" and n not in data) or int(n[1:]) in fixed}
    fed = {n: x for n, x in given.items() if n not in constants}
    forward = ReferenceEvaluator(_model([node], fed, results, constants), new_ops=OPS)
    ys = dict(zip(results, map(np.asarray, forward.run(None, fed)), strict=True))

    # The shapes with a batch of one more tell which dimensions hold the batch.
    more = {n: np.concatenate([x, x.take([0], grows[n])], grows[n]) for n, x in fed.items() if n in grows and x.ndim}
    more = {**fed, **more, **others}
    count = next((fed[n].shape[axis] for n, axis in grows.items()), 1)
    more |= dict(zip(results, map(np.asarray, forward.run(None, more)), strict=True)) if batched else ys
    shapes: dict[str, Shape] = {n: x.shape for n, x in constants.items()}
    for n, x in [*fed.items(), *ys.items()]:
        shapes[n] = tuple(a if a == b else -(a // count) for a, b in zip(x.shape, more[n].shape, strict=True))

    random = np.random.Generator(np.random.PCG64(seed))
    smooth = [n for n, y in ys.items() if y.dtype.kind == "f"]
    heard = [n for n in smooth if int(n[1:]) not in silent]
    directions = {n: random.standard_normal(ys[n].shape) for n in heard}
    seeds = {n: f"d{n}" for n in directions}
    still = {f"x{i}" for i in STILL.get(op, ())}
    wanted = [n for n, x in fed.items() if x.dtype.kind == "f" and n not in still]
    gradients: dict[tuple[type, bool], dict[str, Array]] = {}
    lowerings: list[tuple[type, bool]] = [(np.float64, False), (np.float32, False), (np.float32, True)]
    for dtype, native in lowerings:
        known = {n: _typed(x, dtype) for n, x in constants.items()}
        g = Builder(shapes, [*shapes, *seeds.values()], dtype, known=known, native=native)
        found = differentiate([node], seeds, wanted, {*wanted, *smooth}, g, OPSET)
        nodes = [*g.forward([node]), *g.nodes]
        if native and not any(n.domain == DOMAIN for n in nodes):
            continue
        feeds = {n: _typed(x, dtype) for n, x in {**fed, **{seeds[n]: r for n, r in directions.items()}}.items()}
        own = {t.name: numpy_helper.to_array(t) for t in g.constants.values()}
        fetches = [*found.values(), *(directions if found else ())]
        model = _model(nodes, feeds, fetches, {**known, **own})
        values = dict(zip(fetches, _run(model, feeds, fetches) if fetches else [], strict=True))
        gradients[dtype, native] = {
            n: values[found[n]] if n in found else np.zeros(fed[n].shape, dtype) for n in wanted
        }
        for n in directions if found else ():
            _near(f"{op} {attributes}: forward, {n}, native {native}", values[n], ys[n], dtype)

    for name in wanted:
        x, exact = fed[name], gradients[np.float64, False][name]
        _hold(exact.shape == x.shape, f"{op}: gradient of {name} has shape {exact.shape}, the input has {x.shape}")
        scale = max(1.0, float(np.abs(exact).max(initial=0)))
        for flat in random.permutation(x.size)[:probes]:
            at = np.unravel_index(flat, x.shape)
            sums = []
            for sign in (1, -1):
                moved = x.copy()
                moved[at] += sign * STEP
                moved_ys = dict(zip(results, forward.run(None, {**fed, name: moved}), strict=True))
                sums.append(float(sum((moved_ys[n] * r).sum() for n, r in directions.items())))
            measured = (sums[0] - sums[1]) / (2 * STEP)
            _hold(
                abs(measured - float(exact[at])) <= TOLERANCE * scale,
                f"{op} {attributes}: d/d{name}{[int(i) for i in at]} is {exact[at]:.9g} by the rule, {measured:.9g} by differences",
            )
        for (dtype, native), other in gradients.items():
            _near(f"{op} {attributes}: gradient of {name}, native {native}", other[name], exact, dtype)


def _near(what: str, value: Array, exact: Array, dtype: type) -> None:
    scale = max(1.0, float(np.abs(exact).max(initial=0)))
    _hold(value.shape == exact.shape, f"{what}: the shape is {value.shape}, not {exact.shape}")
    error = float(np.abs(value - exact).max(initial=0)) / scale
    _hold(
        error <= (TOLERANCE if dtype is np.float64 else TOLERANCE_FLOAT32),
        f"{what}: off by {error:.2g} in {dtype.__name__}",
    )


def _hold(claim: bool, message: str) -> None:
    if not claim:
        raise AssertionError(message)


def _typed(x: Array, dtype: type) -> Array:
    return x.astype(dtype) if x.dtype.kind == "f" else x


def _model(
    nodes: list[onnx.NodeProto], feeds: dict[str, Array], fetches: list[str], constants: dict[str, Array]
) -> onnx.ModelProto:
    def info(name: str, x: Array) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(x.dtype), x.shape)

    graph = helper.make_graph(
        nodes,
        "check",
        [info(n, x) for n, x in feeds.items()],
        [onnx.ValueInfoProto(name=n) for n in fetches],
        [numpy_helper.from_array(x, n) for n, x in constants.items()],
    )
    opsets = [helper.make_opsetid("", OPSET)]
    if any(n.domain == DOMAIN for n in nodes):
        opsets.append(helper.make_opsetid(DOMAIN, DOMAIN_VERSION))
    return helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION)


def _run(model: onnx.ModelProto, feeds: dict[str, Array], fetches: list[str]) -> list[Array]:
    if any(x.dtype == np.float64 for x in feeds.values()):
        return [np.asarray(v) for v in ReferenceEvaluator(model, new_ops=OPS).run(fetches, feeds)]
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    options.register_custom_ops_library(kernels.custom_ops_library())
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return [np.asarray(v) for v in session.run(fetches, feeds)]
