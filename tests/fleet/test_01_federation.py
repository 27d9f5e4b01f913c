"""A federation of real processes runs to its end, on each broker, with the same bytes."""

import numpy as np
import onnxruntime as ort
import pytest

from tests.fleet.conftest import MakeFederation, samples

KEYS = {
    "round",
    "version",
    "members",
    "accuracy",
    "loss",
    "bytes_up",
    "bytes_down",
    "seconds",
    "codec",
    "bits",
    "scores",
}


def test_the_embedded_broker_carries_a_federation_to_its_end(make_federation: MakeFederation) -> None:
    federation = make_federation(kind="embedded")
    federation.start()
    rows = federation.until_reported()
    assert [r["round"] for r in rows] == [1, 2, 3, 4]
    assert all(set(r) == KEYS and r["members"] == 3 and r["bytes_up"] > 0 for r in rows)
    held = samples(200, 99)
    session = ort.InferenceSession(str(federation.directory / "model.onnx"), providers=["CPUExecutionProvider"])
    right = session.run(None, {session.get_inputs()[0].name: held["x"]})[0].argmax(1) == held["y"]
    assert right.mean() == pytest.approx(rows[-1]["accuracy"])
    assert np.mean(right) > 0.6  # three classes, the largest half of the samples


@pytest.mark.needs("mosquitto")
def test_the_model_does_not_depend_on_the_broker_or_on_who_starts_first(make_federation: MakeFederation) -> None:
    first = make_federation("first")
    first.start()
    first.until_reported()
    second = make_federation("second", kind="embedded")
    second.start_broker()
    for name in reversed(("dev-1", "dev-2", "dev-3")):
        second.start_edge(name)
    second.start_aggregator()
    second.until_reported()
    assert first.model_hash() == second.model_hash()


@pytest.mark.needs("mosquitto")
def test_a_device_added_while_the_aggregator_runs_takes_part(make_federation: MakeFederation) -> None:
    federation = make_federation(rounds=3)
    federation.start_broker()
    hidden = federation.directory / "roster" / "dev-3.jws"
    key = hidden.read_bytes()
    hidden.unlink()
    federation.start_aggregator()
    federation.start_edge("dev-1")
    federation.until(lambda v: v.aggregator is not None and v.aggregator.received == 1)
    hidden.write_bytes(key)
    federation.start_edge("dev-3")
    federation.start_edge("dev-2")
    rows = federation.until_reported()
    assert [r["members"] for r in rows] == [3, 3, 3]


@pytest.mark.needs("mosquitto")
def test_retained_topics_alone_tell_what_the_fleet_does(make_federation: MakeFederation) -> None:
    federation = make_federation(rounds=2)
    federation.start()
    federation.until_reported()
    federation.until(
        lambda v: v.aggregator is not None and v.aggregator.state == "finished"
        and len(v.devices) == 3 and all(d.updates == 2 for d in v.devices.values())
    )  # fmt: skip
    federation.fleet.kill("dev-2")  # its last will speaks for it
    view = federation.until(lambda v: "dev-2" in v.devices and v.devices["dev-2"].state == "offline")
    assert {d.state for n, d in view.devices.items() if n != "dev-2"} <= {"idle", "fetching"}
