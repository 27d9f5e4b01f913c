"""LSTMTrain, LSTMGrad, GRUTrain, GRUGrad and the embedding ops in stock sessions: against torch, onnxruntime's own layers and standard ops."""

from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from numpy.typing import NDArray

from fleetgrad.native import recurrent
from fleetgrad.native.bench import recurrent_graphs as graphs

f = np.float32
Feeds = dict[str, NDArray[Any]]


def feeds(seed: int, kind: str, t: int, n: int, i: int, h: int, d: int = 1) -> Feeds:
    print(f"seed {seed}")
    rng = np.random.default_rng(seed)
    gates = 4 if kind == "LSTM" else 3
    shapes = {
        "x": (t, n, i), "w": (d, gates * h, i), "r": (d, gates * h, h), "b": (d, 2 * gates * h), "h0": (d, n, h),
        "c0": (d, n, h), "dy": (t, d, n, h),
    }  # fmt: skip
    made = {k: rng.standard_normal(s, f) for k, s in shapes.items() if k in graphs.INPUTS[kind]}
    return made | {k: made[k] * f(h**-0.5) for k in ("w", "r")}


def run(session: ort.InferenceSession, given: Feeds) -> Feeds:
    names = [o.name for o in session.get_outputs()]
    return dict(zip(names, session.run(names, given), strict=True))


def assert_close(found: Feeds, expected: Feeds) -> None:
    for name, value in expected.items():
        scale = max(1.0, float(np.abs(value).max()))
        np.testing.assert_allclose(found[name], value, rtol=1e-4, atol=1e-5 * scale, err_msg=name)


SIZES = [(1, 1, 1, 1), (3, 1, 2, 7), (6, 19, 5, 33)]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
def test_the_ops_and_the_graph_of_standard_ops_give_the_same_numbers(
    isa: str, seed: int, kind: str, size: tuple[int, int, int, int]
) -> None:
    given = feeds(seed, kind, *size)
    assert_close(run(graphs.native(kind, *size), given), run(graphs.twin(kind, *size), given))


def onnx_layer(kind: str, direction: str, h: int, before: int, lengths: bool) -> ort.InferenceSession:
    """onnxruntime's own LSTM or GRU, forward only."""
    g = graphs.Graph()
    extra: dict[str, Any] = {"linear_before_reset": before} if kind == "GRU" else {}
    states = ["h0", "c0"] if kind == "LSTM" else ["h0"]
    inputs = ["x", "w", "r", "b", "lengths" if lengths else "", *states]
    outputs = ["y", "y_h", "y_c"][: len(states) + 1]
    made = g.many(kind, *inputs, outputs=len(outputs), hidden_size=h, direction=direction, **extra)
    fed = ["x", "w", "r", "b", *states, *(["lengths"] if lengths else [])]
    return g.session(fed, dict(zip(outputs, made, strict=True)))


@pytest.mark.parametrize("lengths", [False, True])
@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
@pytest.mark.parametrize(("kind", "before"), [("LSTM", 0), ("GRU", 0), ("GRU", 1)])
def test_the_forward_pass_is_onnxruntimes(
    isa: str, seed: int, kind: str, before: int, direction: str, lengths: bool
) -> None:
    t, n, i, h = 5, 11, 3, 17
    d = 2 if direction == "bidirectional" else 1
    given = feeds(seed, kind, t, n, i, h, d)
    if lengths:
        given["lengths"] = np.random.default_rng(seed).integers(1, t + 1, n).astype(np.int32)
    ours = run(
        graphs.native(kind, t, n, i, h, d, reverse=int(direction == "reverse"), before=before, lengths=lengths), given
    )
    del given["dy"]
    assert_close(ours, run(onnx_layer(kind, direction, h, before, lengths), given))


@pytest.mark.needs("torch")
@pytest.mark.parametrize("d", [1, 2])
@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
@pytest.mark.parametrize("size", [(1, 1, 1, 1), (9, 1, 4, 7), (7, 17, 6, 33)])
def test_every_gradient_is_torchs(isa: str, seed: int, kind: str, d: int, size: tuple[int, int, int, int]) -> None:
    import torch

    t, n, i, h = size
    given = feeds(seed, kind, t, n, i, h, d)
    order = [0, 3, 1, 2] if kind == "LSTM" else [1, 0, 2]  # gates as ONNX has them, from torch's: i f g o, r z n

    def swap(a: NDArray[Any], back: bool = False) -> NDArray[Any]:
        blocks = np.split(a, len(order))
        return np.concatenate([blocks[k] for k in (order if back else np.argsort(order))])

    layer = getattr(torch.nn, kind)(i, h, bidirectional=d == 2)
    ends = ["", "_reverse"][:d]
    b_w, b_r = np.split(given["b"], 2, axis=1)
    ours = {"weight_ih_l0": given["w"], "weight_hh_l0": given["r"], "bias_ih_l0": b_w, "bias_hh_l0": b_r}
    with torch.no_grad():
        for name, value in ours.items():
            for k, end in enumerate(ends):
                getattr(layer, name + end).copy_(torch.from_numpy(swap(value[k])))
    tensors = {k: torch.tensor(given[k], requires_grad=True) for k in ("x", "h0", "c0") if k in given}
    state = (tensors["h0"], tensors["c0"]) if kind == "LSTM" else tensors["h0"]
    y, _ = layer(tensors["x"], state)
    y.backward(torch.from_numpy(given["dy"].transpose(0, 2, 1, 3).reshape(t, n, d * h)))

    def gradient(name: str) -> NDArray[Any]:
        return np.stack([swap(getattr(layer, name + end).grad.numpy(), back=True) for end in ends])

    expected = {
        "y": y.detach().numpy().reshape(t, n, d, h).transpose(0, 2, 1, 3),
        "dw": gradient("weight_ih_l0"),
        "dr": gradient("weight_hh_l0"),
        "db": np.concatenate([gradient("bias_ih_l0"), gradient("bias_hh_l0")], axis=1),
        **{f"d{k}": v.grad.numpy() for k, v in tensors.items()},
    }
    assert_close(run(graphs.native(kind, t, n, i, h, d), given), expected)


@pytest.mark.parametrize(("kind", "before"), [("LSTM", 0), ("GRU", 0), ("GRU", 1)])
def test_threads_and_the_cut_of_the_batch_do_not_change_a_byte(isa: str, seed: int, kind: str, before: int) -> None:
    t, n, h = 4, 21, 19
    print(f"seed {seed}")
    rng = np.random.default_rng(seed)
    gates = 4 if kind == "LSTM" else 3
    p, r = rng.standard_normal((t, n, gates * h), f), rng.standard_normal((gates * h, h), f) * f(0.2)
    g = graphs.Graph()
    extra: dict[str, Any] = {"linear_before_reset": before} if kind == "GRU" else {}
    y, _ = g.many(f"{kind}Train", "p", "r", outputs=2, domain="fleetgrad", **extra)
    one = recurrent.lstm_forward(p, r) if kind == "LSTM" else recurrent.gru_forward(p, r, reset_after=bool(before))
    for threads in (1, 2):
        found = run(g_session(g, y, threads), {"p": p[None], "r": r[None]})["y"]
        assert found[:, 0].tobytes() == one.y.tobytes()


def g_session(g: graphs.Graph, y: str, threads: int) -> ort.InferenceSession:
    copy = graphs.Graph()
    copy.nodes, copy.constants = list(g.nodes), list(g.constants)
    return copy.session(["p", "r"], {"y": y}, threads)


def node(kind: str, inputs: dict[str, NDArray[Any]], outputs: int = 1, **attributes: Any) -> list[NDArray[Any]]:
    """The outputs of one node on its inputs."""
    g = graphs.Graph()
    made = g.many(kind, *inputs, outputs=outputs, domain="fleetgrad", **attributes)
    session = g.session([k for k in inputs if k], {f"out{k}": v for k, v in enumerate(made)})
    return [np.asarray(a) for a in session.run(None, {k: v for k, v in inputs.items() if k})]


def zeros(*shape: int) -> NDArray[np.float32]:
    return np.zeros(shape, f)


BAD_LENGTHS = np.array([1, 2, 4], np.int32)
REFUSED: list[tuple[str, str, dict[str, NDArray[Any]], dict[str, Any]]] = [
    ("LSTMTrain", r"isn't float\[D, T, B, 4 H\]", {"p": zeros(3, 3, 8), "r": zeros(1, 8, 2)}, {}),
    ("LSTMTrain", r"R \[1, 8, 2\] doesn't fit input 0 \[1, 3, 3, 9\]", {"p": zeros(1, 3, 3, 9), "r": zeros(1, 8, 2)}, {}),
    ("GRUTrain", r"R \[2, 6, 2\] doesn't fit", {"p": zeros(1, 3, 3, 6), "r": zeros(2, 6, 2)}, {}),
    ("LSTMTrain", "3 directions with reverse = 0", {"p": zeros(3, 3, 3, 8), "r": zeros(3, 8, 2)}, {}),
    ("LSTMTrain", "2 directions with reverse = 1", {"p": zeros(2, 3, 3, 8), "r": zeros(2, 8, 2)}, {"reverse": 1}),
    ("LSTMTrain", "input 0 is empty", {"p": zeros(1, 0, 3, 8), "r": zeros(1, 8, 2)}, {}),
    (
        "LSTMTrain", r"input 2 isn't float\[1, 3, 2\]",
        {"p": zeros(1, 3, 3, 8), "r": zeros(1, 8, 2), "h0": zeros(1, 2, 2), "c0": zeros(1, 3, 2)}, {},
    ),
    (
        "LSTMTrain", r"sequence_lens\[2\] is 4, of 3 steps",
        {"p": zeros(1, 3, 3, 8), "r": zeros(1, 8, 2), "h0": zeros(1, 3, 2), "c0": zeros(1, 3, 2), "lengths": BAD_LENGTHS}, {},
    ),
    (
        "LSTMTrain", "direction 0, step 2, sequence 1: value is NaN",
        {"p": np.where(np.arange(72).reshape(1, 3, 3, 8) == 60, f(np.nan), f(0)), "r": zeros(1, 8, 2)}, {},
    ),
    (
        "GRUTrain", "recurrent_bias is for linear_before_reset = 1",
        {"p": zeros(1, 3, 3, 6), "r": zeros(1, 6, 2), "h0": zeros(1, 3, 2), "bias": zeros(1, 2)}, {},
    ),
    (
        "GRUTrain", r"recurrent_bias isn't float\[1, 2\]",
        {"p": zeros(1, 3, 3, 6), "r": zeros(1, 6, 2), "h0": zeros(1, 3, 2), "bias": zeros(2)}, {"linear_before_reset": 1},
    ),
    (
        "GRUGrad", "needs GRUTrain's hidden",
        {"gates": zeros(1, 3, 3, 6), "r": zeros(1, 6, 2), "y": zeros(3, 1, 3, 2)}, {"linear_before_reset": 1},
    ),
    ("EmbeddingGrad", "index 7 at position 1, the vocabulary has 7 rows", {"indices": np.array([1, 7]), "dy": zeros(2, 3)}, {"vocabulary": 7}),
    ("EmbeddingGrad", "with the shape of int32 or int64 indices in front", {"indices": np.array([1, 7]), "dy": zeros(3, 3)}, {"vocabulary": 7}),
    ("EmbeddingGrad", "attribute vocabulary is 0", {"indices": np.array([1, 7]), "dy": zeros(2, 3)}, {}),
    ("EmbeddingGrad", "vocabulary isn't a whole number", {"indices": np.array([1]), "dy": zeros(1, 3)}, {"vocabulary": 7.0}),
    ("LSTMTrain", "reverse isn't a whole number", {"p": zeros(1, 3, 3, 8), "r": zeros(1, 8, 2)}, {"reverse": 1.0}),
    ("SparseEmbeddingGrad", "index -8 at position 0", {"indices": np.array([-8]), "dy": zeros(1, 3)}, {"vocabulary": 7}),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "match", "inputs", "attributes"), REFUSED, ids=range(len(REFUSED)))
def test_the_ops_refuse_in_words(
    kind: str, match: str, inputs: dict[str, NDArray[Any]], attributes: dict[str, Any]
) -> None:
    with pytest.raises(Exception, match=match):
        node(kind, inputs, **attributes)


@pytest.mark.parametrize("form", ["OneHot", "ScatterND", "ScatterElements"])
def test_embedding_grad_is_what_standard_ops_compute(isa: str, seed: int, form: str) -> None:
    print(f"seed {seed}")
    rng = np.random.default_rng(seed)
    given: Feeds = {"indices": rng.integers(-50, 50, 333), "dy": rng.standard_normal((333, 24), f)}
    dense = run(graphs.embedding("EmbeddingGrad", 50, 24), given)["dw"]
    if form != "OneHot":
        standard = run(graphs.embedding(form, 50, 24), given)["dw"]
    else:
        standard = run(graphs.embedding(form, 50, 24), given | {"indices": given["indices"] % 50})["dw"]
    np.testing.assert_allclose(dense, standard, rtol=1e-5, atol=1e-5)


def test_embedding_ops_take_any_rank_give_the_kernels_bytes_and_ignore_threads(isa: str, seed: int) -> None:
    print(f"seed {seed}")
    rng = np.random.default_rng(seed)
    indices, dy = rng.integers(-3000, 3000, (4, 100)), rng.standard_normal((4, 100, 5, 20), f)
    expected = recurrent.embedding_grad(indices, dy.reshape(400, 100), 3000)
    for threads in (1, 2):
        dense = run(graphs.embedding("EmbeddingGrad", 3000, 0, threads), {"indices": indices, "dy": dy})["dw"]
        assert dense.shape == (3000, 5, 20) and dense.tobytes() == expected.tobytes()
        found = run(graphs.embedding("SparseEmbeddingGrad", 3000, 0, threads), {"indices": indices, "dy": dy})
        assert found["rows"].tolist() == sorted(set((indices % 3000).ravel().tolist()))
        assert found["values"].tobytes() == expected[found["rows"]].tobytes()
    (empty,) = node("EmbeddingGrad", {"indices": np.zeros(0, np.int64), "dy": zeros(0, 3)}, vocabulary=4)
    assert empty.shape == (4, 3) and not empty.any()
