"""Gradients of ReLU and Clip: the rule, its boundaries, the nodes, their standard-op twins and torch."""

import numpy as np
import pytest

from fleetgrad.native import activations, binding
from fleetgrad.native.bench.graphs import Graph
from tests.native.every import run_op

F32 = np.float32
EDGES = [0.0, -0.0, 6.0, np.nan, np.inf, -np.inf, 1e-45, -1e-45, np.nextafter(F32(6), F32(7)), -1.0, 3.0]


def values(seed: int, shape: tuple[int, ...] = (3, 1031)) -> tuple[np.ndarray, np.ndarray]:
    """(x, dy); x begins with the edge cases."""
    print(f"seed {seed}")
    rng = np.random.default_rng(seed)
    x, dy = (rng.standard_normal(shape, F32) * F32(4) for _ in range(2))
    x.reshape(-1)[: len(EDGES)] = EDGES
    return x, dy


def test_relu_passes_where_its_output_is_positive(isa: str, seed: int) -> None:
    x, dy = values(seed)
    assert (activations.relu_grad(x, dy) == np.where(x > 0, dy, 0)).all()


@pytest.mark.parametrize("inclusive", [True, False])
def test_clip_passes_between_its_bounds(isa: str, seed: int, inclusive: bool) -> None:
    x, dy = values(seed)
    inside = (x >= 0) & (x <= 6) if inclusive else (x > 0) & (x < 6)
    assert (activations.clip_grad(x, dy, 0, 6, inclusive=inclusive) == np.where(inside, dy, 0)).all()
    assert (activations.clip_grad(x, dy) == np.where(np.isnan(x), 0, dy)).all()


def test_nodes_give_the_kernels_bytes_for_any_number_of_threads(isa: str, seed: int) -> None:
    x, dy = values(seed, (5, 7, 3001))
    low, high = np.array(0, F32), np.array([6], F32)
    for threads in (1, 2):
        assert (
            run_op("ReluGrad", {"y": x, "dy": dy}, threads=threads)[0].tobytes()
            == activations.relu_grad(x, dy).tobytes()
        )
        for inclusive in (0, 1):
            expected = activations.clip_grad(x, dy, 0, 6, inclusive=bool(inclusive)).tobytes()
            feeds = {"x": x, "dy": dy}
            assert (
                run_op("ClipGrad", feeds, threads=threads, min=0.0, max=6.0, inclusive=inclusive)[0].tobytes()
                == expected
            )
            assert (
                run_op("ClipGrad", {**feeds, "min": low, "max": high}, threads=threads, inclusive=inclusive)[
                    0
                ].tobytes()
                == expected
            )


def test_the_relu_node_equals_its_standard_op_twin(seed: int) -> None:
    y, dy = values(seed)
    y = np.maximum(y, 0)
    g = Graph()
    dx = g("Mul", g("Cast", g("Greater", "y", g.constant(0, F32)), to=1), "dy")
    feeds = {"y": y, "dy": dy}
    assert (g.session(feeds, [dx]).run(None, feeds)[0] == run_op("ReluGrad", feeds)[0]).all()


@pytest.mark.parametrize(("inclusive", "low", "high"), [(1, "GreaterOrEqual", "LessOrEqual"), (0, "Greater", "Less")])
def test_the_clip_node_equals_its_standard_op_twin(seed: int, inclusive: int, low: str, high: str) -> None:
    x, dy = values(seed)
    g = Graph()
    inside = g("And", g(low, "x", g.constant(0, F32)), g(high, "x", g.constant(6, F32)))
    dx = g("Mul", g("Cast", inside, to=1), "dy")
    feeds = {"x": x, "dy": dy}
    expected = g.session(feeds, [dx]).run(None, feeds)[0]
    assert (run_op("ClipGrad", feeds, min=0.0, max=6.0, inclusive=inclusive)[0] == expected).all()


@pytest.mark.needs("torch")
def test_boundaries_are_those_of_torch(seed: int) -> None:
    import torch

    x, dy = values(seed)
    cases = {
        "clamp": (lambda v: torch.clamp(v, 0, 6), activations.clip_grad(x, dy, 0, 6)),
        "relu6": (torch.nn.functional.relu6, activations.clip_grad(x, dy, 0, 6, inclusive=False)),
        "relu": (torch.relu, activations.relu_grad(np.maximum(x, 0), dy)),
    }
    for name, (act, got) in cases.items():
        v = torch.tensor(x, requires_grad=True)
        act(v).backward(torch.tensor(dy))
        assert v.grad is not None
        numbers = ~np.isnan(x)  # torch's ReLU and Hardtanh let the gradient of NaN through
        assert (v.grad.numpy()[numbers] == got[numbers]).all(), name


@pytest.mark.parametrize("shape", [(), (0,), (2, 0, 3), (1, 1, 1, 1, 1)])
def test_any_shape_will_do(shape: tuple[int, ...]) -> None:
    x, dy = np.ones(shape, F32), np.full(shape, 2, F32)
    for out in (*run_op("ReluGrad", {"y": x, "dy": dy}), *run_op("ClipGrad", {"x": x, "dy": dy})):
        assert out.shape == shape and (out == 2).all()


def test_a_bound_may_be_a_whole_number_and_nothing_else() -> None:
    x, dy = np.array([-1, 0.5, 7], F32), np.ones(3, F32)
    assert run_op("ClipGrad", {"x": x, "dy": dy}, min=0, max=6)[0].tolist() == [0, 1, 0]
    for attributes in ({"min": "0"}, {"min": [0.0]}, {"max": [6]}):
        with pytest.raises(Exception, match=f"attribute {next(iter(attributes))} isn't a number"):
            run_op("ClipGrad", {"x": x, "dy": dy}, **attributes)
    with pytest.raises(Exception, match="attribute inclusive isn't a whole number"):
        run_op("ClipGrad", {"x": x, "dy": dy}, inclusive=0.0)


def test_shapes_and_types_that_differ_are_refused_in_words() -> None:
    x, dy = np.ones((2, 3), F32), np.ones((3, 2), F32)
    with pytest.raises(binding.KernelError, match="expected the same"):
        activations.relu_grad(x, dy)
    with pytest.raises(binding.KernelError, match="needs contiguous float32"):
        activations.clip_grad(x.astype(np.float64), dy)
    with pytest.raises(Exception, match=r"Y has shape \[2, 3\], dY \[3, 2\]"):
        run_op("ReluGrad", {"y": x, "dy": dy})
    with pytest.raises(Exception, match="expected floats of one shape"):
        run_op("ClipGrad", {"x": x.astype(np.int8), "dy": x})
    with pytest.raises(Exception, match=r"min must be one float32, it has 6 elements$"):
        run_op("ClipGrad", {"x": x, "dy": x, "low": x})
    with pytest.raises(Exception, match="min must be one float32, it has 1 elements of another type"):
        run_op("ClipGrad", {"x": x, "dy": x, "low": np.array(0, np.int8)})
