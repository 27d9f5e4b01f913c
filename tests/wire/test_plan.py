"""The plan's manifest: round trip, layout, and everything it refuses."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleetgrad.wire import plan
from fleetgrad.wire.loss import LossOptions
from fleetgrad.wire.plan import Feed, Manifest, PlanError, Role, Tensor, check, decode, encode, lay_out, padded


def manifest(shapes: list[tuple[str, tuple[int, ...], Role]]) -> Manifest:
    """A plan with these tensors that holds together, whether or not it is a good one."""
    tensors = lay_out(shapes)
    travelling = [t.end for t in tensors if t.role in ("trainable", "statistic")]
    return Manifest(
        schema=plan.SCHEMA, model="m", loss="cross-entropy", gradients="int8", op_abi=1,
        inputs=(Feed(name="x", shape=(1, 8, 8), dtype="float32"),), label=Feed(name=plan.LABEL, shape=(), dtype="int64"),
        output=(10,), tensors=tensors, travels=max(travelling, default=0),
        length=max((t.end for t in tensors), default=0), files={plan.PARAMS: "ab" * 32},
    )  # fmt: skip


GOOD = manifest([("w", (3, 5), "trainable"), ("frozen", (4,), "frozen"), ("mean", (7,), "statistic")])


def test_a_manifest_survives_its_bytes_and_equal_ones_have_equal_bytes() -> None:
    assert decode(encode(GOOD)) == GOOD
    reordered = msgspec.structs.replace(GOOD, files=dict(reversed(list(GOOD.files.items()))))
    assert encode(reordered) == encode(GOOD)
    assert encode(decode(encode(GOOD))) == encode(GOOD)


def test_tensors_lie_by_role_at_multiples_of_the_alignment() -> None:
    assert [(t.name, t.offset, t.size, t.end) for t in GOOD.tensors] == [
        ("w", 0, 15, 16),
        ("mean", 16, 7, 32),
        ("frozen", 32, 4, 48),
    ]
    assert (GOOD.travels, GOOD.length) == (32, 48)
    assert [t.name for t in GOOD.of_role("statistic")] == ["mean"]


shapes = st.lists(st.integers(1, 9), max_size=4).map(tuple)
tensors = st.lists(st.tuples(shapes, st.sampled_from(plan.ROLES)), max_size=8)


@given(tensors)
def test_what_lay_out_places_never_overlaps_and_checks(placed: list[tuple[tuple[int, ...], Role]]) -> None:
    made = manifest([(f"t{i}", shape, role) for i, (shape, role) in enumerate(placed)])
    end = 0
    for tensor in made.tensors:
        assert tensor.offset == end
        assert tensor.offset % plan.ALIGN == 0
        end = tensor.end
        assert tensor.end - tensor.offset == padded(tensor.size) >= tensor.size
    assert made.length == end
    if made.of_role("trainable"):
        assert decode(encode(made)) == made
    else:
        with pytest.raises(PlanError, match="no trainable"):
            check(made)


def with_tensor(index: int, **changes: object) -> Manifest:
    changed = list(GOOD.tensors)
    changed[index] = msgspec.structs.replace(changed[index], **changes)
    return msgspec.structs.replace(GOOD, tensors=tuple(changed))


def with_noise(*names: str, **changes: object) -> Manifest:
    feeds = [Feed(name=n, shape=(3,), dtype="float32") for n in names]
    return msgspec.structs.replace(GOOD, noise=tuple(msgspec.structs.replace(f, **changes) for f in feeds))


def with_feed(**changes: object) -> Manifest:
    return msgspec.structs.replace(GOOD, inputs=(msgspec.structs.replace(GOOD.inputs[0], **changes),))


def with_optimizer(**changes: object) -> Manifest:
    return msgspec.structs.replace(GOOD, optimizer=msgspec.structs.replace(GOOD.optimizer, **changes))


BAD = [
    (msgspec.structs.replace(GOOD, schema=2), "schema 2"),
    (with_tensor(1, name="w"), "names a tensor twice"),
    (with_tensor(0, shape=(3, 0)), "must be positive"),
    (with_tensor(0, shape=(3, -5)), "must be positive"),
    (with_tensor(0, shape=(2**20, 2**20)), "product at most"),
    (with_tensor(0, shape=(2**200,)), "must be positive"),
    (with_tensor(0, shape=(1,) * 33), "33 dimensions"),
    (with_tensor(1, offset=0), "overlap"),
    (with_tensor(1, offset=32), "gaps"),
    (with_tensor(1, offset=-16), "overlap"),
    (with_tensor(1, role="frozen"), "floats travel"),
    (with_tensor(0, role="frozen"), "ordered by role"),
    (msgspec.structs.replace(GOOD, travels=16), "floats travel"),
    (msgspec.structs.replace(GOOD, length=2**30), "floats travel"),
    (manifest([("a", (2**28,), "trainable"), ("b", (16,), "frozen")]), "at most"),
    (manifest([]), "no trainable"),
    (with_noise("noise"), "expected fleetgrad.noise"),
    (with_noise(plan.NOISE + "a", shape=(2**20, 2**20)), "feed of noise"),
    (with_noise(plan.NOISE + "a", dtype="int64"), "is int64"),
    (with_noise(plan.NOISE + "a", plan.NOISE + "a"), "noise twice"),
    (msgspec.structs.replace(GOOD, loss="mse", loss_options=LossOptions(ignore_index=3)), "no option ignore-index"),
    (msgspec.structs.replace(GOOD, loss_options=LossOptions(class_weights=(1.0,) * 9)), "9 class-weights for 10"),
    (msgspec.structs.replace(GOOD, loss_options=LossOptions(label_smoothing=1.5)), "label-smoothing 1.5"),
    (msgspec.structs.replace(GOOD, inputs=()), "no input"),
    (with_feed(shape=(-1, 8)), "must be positive"),
    (with_feed(shape=(2**20, 2**20)), "product at most"),
    (msgspec.structs.replace(GOOD, label=Feed(name=plan.LABEL, shape=(0,), dtype="int64")), "fleetgrad.label"),
    (with_optimizer(batch_size=0), r">= 1 - at `\$.optimizer.batch-size"),
    (with_optimizer(batch_size=2**40), r"<= 65536 - at `\$.optimizer.batch-size"),
    (with_optimizer(learning_rate=-0.1), r"\$.optimizer.learning-rate"),
    (with_optimizer(momentum=1.0), r"\$.optimizer.momentum"),
    (msgspec.structs.replace(GOOD, op_abi=-3), r"\$.op-abi"),
]


@pytest.mark.parametrize(("bad", "reason"), BAD, ids=[reason for _, reason in BAD])
def test_a_manifest_that_contradicts_itself_is_refused(bad: Manifest, reason: str) -> None:
    with pytest.raises(PlanError, match=reason):
        decode(encode(bad))


@pytest.mark.parametrize(
    ("field", "value", "path"),
    [
        ("schema", "1", r"\$.schema"),
        ("loss", "hinge", r"\$.loss"),
        ("tensors", [{"name": "w", "shape": [1.5], "offset": 0, "role": "trainable"}], r"\$\.tensors\[0\]\.shape"),
        ("extra", 1, "unknown field `extra`"),
        ("files", {"a": 1}, r"\$.files"),
        ("op-abi", None, r"\$.op-abi"),
    ],
)
def test_an_ill_typed_manifest_is_refused_with_the_key_path(field: str, value: object, path: str) -> None:
    raw = msgspec.json.encode({**msgspec.to_builtins(GOOD), field: value})
    with pytest.raises(PlanError, match=path):
        decode(raw)


def test_a_manifest_that_is_no_utf8_is_refused_as_a_plan() -> None:
    with pytest.raises(PlanError, match="utf-8"):
        decode(encode(GOOD).replace(b'"model": "m"', b'"model": "\xff"'))


@given(st.binary(max_size=200))
def test_random_bytes_are_no_plan(raw: bytes) -> None:
    with pytest.raises(PlanError):
        decode(raw)


@given(st.data())
def test_a_manifest_with_bytes_changed_reads_as_a_checked_plan_or_is_refused(data: st.DataObject) -> None:
    raw = bytearray(encode(GOOD))
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    try:
        read = decode(bytes(raw))
    except PlanError:
        return
    assert check(read) == read
    assert isinstance(read.tensors[0], Tensor)
