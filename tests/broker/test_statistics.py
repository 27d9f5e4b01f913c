"""Running statistics that are shared: exact whatever the codec, summed in a unit of their own, in the model that is published."""

import dataclasses
import struct
from fractions import Fraction
from pathlib import Path

import msgspec
import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from fleetgrad.broker import founding
from fleetgrad.broker.merge import Sum, merge
from fleetgrad.broker.registry import objects
from fleetgrad.broker.settings import Settings
from fleetgrad.edge import feedback
from fleetgrad.edge.autodiff import export_model
from fleetgrad.edge.data.dataset import fit
from fleetgrad.edge.training.trainer import Trainer
from fleetgrad.wire import plan
from fleetgrad.wire.codecs import CodecError, decode_payload, encode_payload, payload_bound, read_info
from fleetgrad.wire.coding.layout import VectorLayout
from fleetgrad.wire.coding.spec import CodecSpec
from fleetgrad.wire.seeds import Keys
from tests.edge.test_batch_norm import network
from tests.memory_files import MemoryFiles
from tests.wire.codings import KEYS, SPECS, heavy

PLAIN = VectorLayout.stacked([("w", (40, 50)), ("b", (30,)), ("mean", (9,)), ("var", (9,))])
LAYOUT = dataclasses.replace(PLAIN, statistics=PLAIN.parts[2:], variances=PLAIN.parts[3:], exponent=12)
MEAN, VAR = (slice(p.start, p.end) for p in LAYOUT.statistics)
RAW32, DEAD_ZONE = CodecSpec(name="raw32"), CodecSpec(name="ec-dz", bits=0.5)


def delta(seed: int, scale: float = 1000.0) -> np.ndarray:
    """A CNN's delta, with statistics far beyond the range of parameters."""
    values = heavy(LAYOUT, seed)
    random = np.random.Generator(np.random.PCG64(seed))
    values[MEAN], values[VAR] = (scale * random.standard_normal((2, 9))).astype(np.float32)
    return values


def payload(values: np.ndarray, spec: CodecSpec = RAW32, weight: int = 3) -> bytes:
    return encode_payload(spec, LAYOUT, values, keys=KEYS, weight=weight, steps=1, loss=0.5)


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_statistics_travel_as_they_are_and_the_rest_as_without_them(spec: CodecSpec) -> None:
    values, out, head = delta(1), np.empty(LAYOUT.count, np.float32), LAYOUT.trained.count
    raw = payload(values, spec)
    assert len(raw) <= payload_bound(spec, LAYOUT)
    decode_payload(raw, spec, LAYOUT, KEYS, out)
    assert np.array_equal(out[head:], values[head:])
    alone = encode_payload(spec, LAYOUT.trained, values[:head], keys=KEYS, weight=3, steps=1, loss=0.5)
    other = np.empty(head, np.float32)
    decode_payload(alone, spec, LAYOUT.trained, KEYS, other)
    assert np.array_equal(out[:head], other)
    with pytest.raises(CodecError):
        decode_payload(raw[:-1], spec, LAYOUT, KEYS, out)
    with pytest.raises(CodecError, match="'var', value 8 of 9 is nan"):
        nan = np.full(1, np.nan, "<f4").tobytes()
        end = len(raw) - 4 * (LAYOUT.count - VAR.stop)
        decode_payload(raw[: end - 4] + nan + raw[end:], spec, LAYOUT, KEYS, out)


def test_a_payload_shorter_than_its_statistics_is_refused() -> None:
    info, coded = read_info(payload(delta(1), DEAD_ZONE))
    apart = 4 * (LAYOUT.count - LAYOUT.trained.count)
    short = bytes(coded[-apart + 4 :])
    text = msgspec.msgpack.encode(msgspec.structs.replace(info, rate=8 * len(short) / info.count))
    with pytest.raises(CodecError, match=f"coded vector has {apart - 4} bytes"):
        decode_payload(
            struct.pack("<H", len(text)) + text + short, DEAD_ZONE, LAYOUT, KEYS, np.empty(LAYOUT.count, np.float32)
        )


def test_statistics_are_merged_exactly_in_their_own_unit_and_in_any_order() -> None:
    old = heavy(LAYOUT, 9)
    old[VAR] = np.abs(delta(2)[VAR])
    members = [(f"dev-{i}", payload(delta(i), weight=i + 1)) for i in range(5)]
    merged = merge(old.tobytes(), members, RAW32, LAYOUT, lambda _: KEYS)
    assert merge(old.tobytes(), members[::-1], RAW32, LAYOUT, lambda _: KEYS) == merged
    new, cut = np.frombuffer(merged, "<f4"), 0
    for at in range(MEAN.start, VAR.stop):
        exact = sum((i + 1) * round(Fraction(float(delta(i)[at])) * 2**20) for i in range(5))
        expected = np.float32(float(old[at]) + exact / 15 * 2.0**-20)
        cut += bool(expected < 0 and at >= VAR.start)
        assert new[at] == (max(expected, 0) if at >= VAR.start else expected)
    assert cut > 0
    assert (new[MEAN] < 0).any()
    trained = merge(
        old[: LAYOUT.trained.count].tobytes(),
        [(n, encode_payload(RAW32, LAYOUT.trained, delta(i)[: LAYOUT.trained.count], keys=KEYS, weight=i + 1, steps=1,
                            loss=0.5)) for i, (n, _) in enumerate(members)],
        RAW32, LAYOUT.trained, lambda _: KEYS,
    )  # fmt: skip
    assert merged[: len(trained)] == trained


def test_a_statistic_beyond_its_own_range_is_refused_by_name() -> None:
    total, values, old = Sum(RAW32, LAYOUT), delta(3), bytes(4 * LAYOUT.count)
    values[VAR.start + 4] = 64 * 4096
    assert total.add("a", payload(values), KEYS).weight == 3
    before = total.apply(old)
    values[VAR.start + 4] *= np.float32(1.01)
    with pytest.raises(CodecError, match="tensor 'var', value 4 of 9 is 264765"):
        total.add("b", payload(values), KEYS)
    assert (total.devices, total.apply(old)) == ({"a"}, before), "nothing of it is added"


def test_statistics_have_no_residual_and_are_no_reason_to_give_one_up() -> None:
    first = feedback.encode(delta(4), None, DEAD_ZONE, LAYOUT, KEYS, weight=3, steps=1, loss=0.5)
    head = LAYOUT.trained.count
    assert first.residual[:head].any()
    assert not first.residual[head:].any()
    undelivered = first.residual + delta(4)  # of an update that came too late
    fed = feedback.encode(delta(5), undelivered, DEAD_ZONE, LAYOUT, KEYS, weight=3, steps=1, loss=0.5)
    out = np.empty(LAYOUT.count, np.float32)
    decode_payload(fed.payload, DEAD_ZONE, LAYOUT, KEYS, out)
    assert fed.given_up == ""
    assert np.array_equal(out[head:], delta(5)[head:])
    np.testing.assert_allclose(out[:head] + fed.residual[:head], (delta(5) + undelivered)[:head], atol=1e-6)


def test_the_published_model_predicts_with_the_mean_of_the_devices_statistics(tmp_path: Path) -> None:
    onnx.save(network(), str(tmp_path / "model.onnx"))
    manifest = founding.create(tmp_path / "fed", tmp_path / "model.onnx", Settings(name="fed"), batch_norm="shared")
    assert {t.name for t in manifest.of_role("statistic")} == {"mean", "var"}
    assert manifest.statistics == plan.Statistics(exponent=12, variances=("var",))
    assert manifest.travels == manifest.of_role("statistic")[-1].end
    opened, _, first = objects.initial(MemoryFiles(), tmp_path / "fed" / "aggregator")
    assert first.size == 4 * manifest.travels
    random = np.random.Generator(np.random.PCG64(4))
    x = random.standard_normal((200, 4)) * 3 + 5
    data = fit("d", x, (x[:, 0] > x[:, 1]).astype(np.int64), manifest)
    layout, spec = VectorLayout.of(manifest), CodecSpec(name="blk4")
    devices, judge = [Trainer(opened) for _ in range(2)], Trainer(opened)
    params, before = judge.parameters.astype("<f4").tobytes(), judge.evaluate(data)
    for round_ in range(3):
        payloads = []
        for number, trainer in enumerate(devices):
            base = np.frombuffer(params, "<f4")
            trainer.load(base)
            own = data.subset(np.arange(number, 200, 2))
            trainer.run_epochs(own, epochs=2, batch_size=8, learning_rate=0.05, momentum=0.9, seed=round_)
            coded = encode_payload(
                spec, layout, trainer.delta(base), keys=Keys(round_, number), weight=100, steps=1, loss=0.5
            )
            payloads.append((str(number), coded))
        params = merge(params, payloads, spec, layout, lambda name, r=round_: Keys(r, int(name)))  # type: ignore[misc]
    judge.load(np.frombuffer(params, "<f4"))
    start = manifest.of_role("statistic")[0].offset
    mean = (devices[0].parameters[start:] + devices[1].parameters[start:]) / 2
    np.testing.assert_allclose(judge.parameters[start:], mean, rtol=1e-5, atol=1e-5)
    after = judge.evaluate(data)
    assert before.accuracy is not None
    assert after.accuracy is not None
    assert after.accuracy > max(0.9, before.accuracy)
    export_model(tmp_path / "fed" / "aggregator" / "plan", objects.whole_vector(opened, params), tmp_path / "out.onnx")
    weights = {t.name: numpy_helper.to_array(t) for t in onnx.load(str(tmp_path / "out.onnx")).graph.initializer}
    assert (weights["var"] > 2).all()
    assert np.abs(weights["mean"]).max() > 1


def test_a_plan_whose_statistics_contradict_it_is_refused(tmp_path: Path) -> None:
    onnx.save(network(), str(tmp_path / "model.onnx"))
    manifest = founding.create(tmp_path / "fed", tmp_path / "model.onnx", Settings(name="fed"), batch_norm="shared")
    for change, message in (
        ({"exponent": 25}, "exponent 25, 0 to 24"), ({"exponent": -1}, "exponent -1"),
        ({"variances": ("a",)}, "the variance 'a', which is none of its statistics"),
    ):  # fmt: skip
        bad = msgspec.structs.replace(manifest, statistics=msgspec.structs.replace(manifest.statistics, **change))
        with pytest.raises(plan.PlanError, match=message):
            plan.check(bad)
