"""Error feedback: what is carried follows from what became of the update, over crashes, full disks and changes of policy."""

import errno
import hashlib
from collections.abc import Callable
from typing import Any

import msgspec
import numpy as np
import pytest

from fleetgrad.edge import events as ev
from fleetgrad.edge import feedback
from fleetgrad.edge.link.residual import CARRIED, Residual
from fleetgrad.wire import frames
from fleetgrad.wire.codecs import CodecError, decode_payload
from fleetgrad.wire.coding.layout import VectorLayout
from fleetgrad.wire.coding.spec import CodecSpec
from fleetgrad.wire.files import DiskError
from fleetgrad.wire.messages import Closed, Policy, Receipt
from fleetgrad.wire.seeds import Keys
from tests.edge.one_device import PARAMS, PLAN, Device, ref, select

LAYOUT = VectorLayout.stacked([("w", (40, 50)), ("b", (30,))])
KEYS = Keys(1, 2)
TOPK, DEADZONE = CodecSpec(name="topk", fraction=0.05), CodecSpec(name="ec-dz", bits=0.5)
POLICY = Policy(codec=DEADZONE)
NEXT = b"next" * 1000


def delta(seed: int, scale: float = 0.01) -> np.ndarray:
    values = (scale * np.random.default_rng(seed).standard_normal(LAYOUT.count)).astype(np.float32)
    LAYOUT.clear_padding(values)
    return values


def encode(values: np.ndarray, e: np.ndarray | None, codec: CodecSpec = DEADZONE) -> feedback.Fed:
    return feedback.encode(values, e, codec, LAYOUT, KEYS, weight=10, steps=1, loss=0.5)


def sent(payload: bytes, codec: CodecSpec = DEADZONE) -> np.ndarray:
    out = np.empty(LAYOUT.count, np.float32)
    decode_payload(payload, codec, LAYOUT, KEYS, out)
    return out


# --- the arithmetic --------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("codec", [TOPK, DEADZONE], ids=str)
def test_what_is_sent_and_what_is_left_add_up_to_all_deltas(codec: CodecSpec) -> None:
    e: np.ndarray | None = None
    total, published = np.zeros(LAYOUT.count), np.zeros(LAYOUT.count)
    for number in range(20):
        fed = encode(delta(number), e, codec)
        total += delta(number)
        published += sent(fed.payload, codec)
        e = fed.residual
        assert fed.given_up == ""
    assert e is not None
    assert np.abs(published + e - total).max() < 20 * 2.0**-24  # one rounding a round, of values under 1
    assert np.abs(published - total).max() > 1e-3, "the codec left something out, or there is nothing to feed back"


@pytest.mark.parametrize("codec", [TOPK, DEADZONE], ids=str)
def test_feedback_keeps_the_error_of_the_sum_bounded_and_without_it_the_error_grows(codec: CodecSpec) -> None:
    """The same delta each round, the worst case of a biased codec: with feedback the sum's error stays, without it it adds up."""
    fixed, e, total = delta(3), None, np.zeros(LAYOUT.count)
    errors, blind = [], np.zeros(LAYOUT.count)
    for number in range(1, 41):
        fed = encode(fixed, e, codec)
        e = fed.residual
        total += sent(fed.payload, codec)
        blind += sent(encode(fixed, None, codec).payload, codec)
        errors.append(float(np.linalg.norm(total - number * fixed.astype(np.float64))))
    assert errors[-1] < 1.5 * errors[19]
    assert errors[-1] < 0.6 * float(np.linalg.norm(blind - 40 * fixed.astype(np.float64)))


def test_a_residual_that_has_outgrown_its_updates_is_given_up() -> None:
    fed = encode(delta(1), delta(2, scale=0.01 * feedback.MOST_NORM * 1.1))
    assert "over 1000 times" in fed.given_up
    assert fed.payload == encode(delta(1), None).payload
    assert encode(delta(1), delta(2, scale=0.01 * feedback.MOST_NORM * 0.8)).given_up == ""


def test_a_residual_that_cannot_be_summed_is_given_up_and_the_update_goes_out() -> None:
    e = np.zeros(LAYOUT.count, np.float32)
    e[7] = 65.0
    fed = encode(delta(1, scale=1.0), e)
    assert "at most 64" in fed.given_up
    assert np.abs(sent(fed.payload)).max() < 64


def test_a_delta_that_is_not_finite_is_refused_as_without_feedback() -> None:
    bad = delta(1)
    bad[5] = np.nan
    for e in (None, delta(2)):
        with pytest.raises(CodecError, match="tensor 'w', value 5"):
            encode(bad, e)


def made(undelivered: bool, e: np.ndarray, payload: bytes) -> tuple[Residual, dict[str, bytes]]:
    raw = e.astype("<f4").tobytes()
    found = Residual(
        plan="0" * 64, round=1, attempt=1, name="residuals/1-1.f32", sha256=hashlib.sha256(raw).hexdigest(),
        payload_name="updates/1-1.payload", payload=hashlib.sha256(payload).hexdigest(),
        codec=DEADZONE, keys=KEYS, undelivered=undelivered,
    )  # fmt: skip
    return found, {"residuals/1-1.f32": raw, "updates/1-1.payload": payload}


def reader(files: dict[str, bytes]) -> Callable[[str], bytes]:
    def read(name: str) -> bytes:
        if name not in files:
            raise FileNotFoundError(name)
        return files[name]

    return read


def test_an_undelivered_update_is_carried_whole_in_whatever_codec_it_was() -> None:
    fed = encode(delta(1), delta(2))
    for undelivered in (False, True):
        found, files = made(undelivered, fed.residual, fed.payload)
        e = feedback.carried(reader(files), found, LAYOUT)
        expected = delta(1) + delta(2) if undelivered else fed.residual
        assert np.abs(e - expected).max() < 2.0**-26
    encode(delta(3), e, TOPK)


@pytest.mark.parametrize("name", ["residuals/1-1.f32", "updates/1-1.payload"])
@pytest.mark.parametrize("damage", ["missing", "cut", "changed"])
def test_damaged_files_are_named_and_nothing_of_them_is_used(name: str, damage: str) -> None:
    fed = encode(delta(1), None)
    found, files = made(True, fed.residual, fed.payload)
    if damage == "missing":
        del files[name]
    else:
        files[name] = files[name][:-4] if damage == "cut" else files[name][:-4] + b"\0\0\0\1"
    with pytest.raises(feedback.ResidualLost, match=name):
        feedback.carried(reader(files), found, LAYOUT)


@pytest.mark.parametrize("size", [0, 4 * LAYOUT.count - 4, 4 * LAYOUT.count + 1])
def test_a_residual_of_another_size_is_lost_though_its_ledger_vouches_for_it(size: int) -> None:
    found, files = made(False, delta(1), b"payload")
    files[found.name] = bytes(size)
    vouched = msgspec.structs.replace(found, sha256=hashlib.sha256(bytes(size)).hexdigest())
    with pytest.raises(feedback.ResidualLost, match=f"holds {size / 4:g} floats, the plan has {LAYOUT.count}"):
        feedback.carried(reader(files), vouched, LAYOUT)


def test_a_file_that_cannot_be_read_is_lost_and_does_not_fail_the_training() -> None:
    found, _ = made(False, delta(1), b"payload")

    def read(name: str) -> bytes:
        raise DiskError(errno.EIO, f"can't read {name}: Input/output error")

    with pytest.raises(feedback.ResidualLost, match=r"residuals/1-1\.f32: can't read .*: Input/output error"):
        feedback.carried(read, found, LAYOUT)


# --- what became of the update ---------------------------------------------------------------------------------------
class Fed(Device):
    """A device under a policy with error feedback, whose first update is stored."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.handle(ev.Connected())
        self.head(policy=POLICY)
        self.objects(PLAN, PARAMS)
        self.begin(1, 1)

    def begin(self, round_: int, attempt: int, params: bytes = PARAMS, policy: Policy = POLICY) -> None:
        self.command(select(round_, attempt, params=ref(params).sha256, config=policy.sha256()))

    def trained(self, round_: int = 1, attempt: int = 1, size: int = 300_000) -> list[ev.Effect]:
        sealed = bytes(range(256)) * (size // 256)
        payload = sealed[::-1]
        self.disk.held |= {f"updates/{round_}-{attempt}.payload": payload, f"updates/{round_}-{attempt}.sealed": sealed}
        self.disk.held[f"residuals/{round_}-{attempt}.f32"] = b"left"
        return self.handle(
            ev.Trained(
                round_, attempt, f"updates/{round_}-{attempt}.sealed", len(sealed), hashlib.sha256(sealed).hexdigest(),
                50, 10, 0.25, 0.5, hashlib.sha256(b"left").hexdigest(), hashlib.sha256(payload).hexdigest(),
            )
        )  # fmt: skip

    def publish(self, *closed: tuple[int, int, Any], version: int = 1, params: bytes = NEXT, **fields: Any) -> None:
        entries = tuple(Closed(round=r, attempt=a, outcome=o) for r, a, o in closed)
        self.head(version=version, params=params, closed=entries, **{"policy": POLICY, **fields})
        self.objects(params)

    def state(self) -> str:
        return self.participant.state

    def carried(self) -> tuple[int, int, bool] | None:
        """Attempt that what is carried came from, and whether it is carried whole; as the disk says."""
        raw = self.store.held.get((CARRIED, ""))
        if raw is None:
            return None
        found = msgspec.json.decode(raw, type=Residual)
        assert found.name in self.disk.held
        assert not found.undelivered or found.payload_name in self.disk.held
        return found.round, found.attempt, found.undelivered


@pytest.fixture
def device() -> Fed:
    made = Fed()
    (train,) = made.trains()
    assert (train.residual_output, train.carried) == ("residuals/1-1.f32", None)
    made.trained()
    return made


def restarted(device: Fed) -> Fed:
    device.start()
    device.handle(ev.Connected())
    return device


@pytest.mark.parametrize("restart", [False, True])
@pytest.mark.parametrize(("outcome", "undelivered"), [("published", False), ("abandoned", True)])
def test_an_accepted_update_waits_for_its_rounds_end(
    device: Fed, restart: bool, outcome: str, undelivered: bool
) -> None:
    device.receipt()
    assert device.state() == "idle"
    assert device.carried() is None, "a receipt isn't the round's end"
    if restart:
        restarted(device)
        assert device.state() == "idle"
    device.publish(
        (1, 1, outcome), version=1 if outcome == "published" else 0, params=NEXT if outcome == "published" else PARAMS
    )
    assert device.carried() == (1, 1, undelivered)
    assert device.spooled() == []
    assert device.disk.names("updates") == (["1-1.payload"] if undelivered else [])
    round_, attempt, params = (2, 1, NEXT) if outcome == "published" else (1, 2, PARAMS)
    device.begin(round_, attempt, params)
    (train,) = device.trains()
    assert train.carried is not None
    assert (train.carried.round, train.carried.attempt, train.carried.undelivered) == (1, 1, undelivered)
    assert train.residual_output == f"residuals/{round_}-{attempt}.f32"


@pytest.mark.parametrize("verdict", ["late", "stale", "refused"])
def test_an_update_that_does_not_count_is_carried_whole(device: Fed, verdict: str) -> None:
    device.receipt(verdict=verdict)
    assert device.carried() == (1, 1, True)


def test_a_duplicate_leaves_what_was_carried_before(device: Fed) -> None:
    device.receipt(verdict="late")
    device.publish((1, 1, "published"))
    device.begin(2, 1, NEXT)
    device.trained(2, 1)
    device.receipt(2, 1, verdict="duplicate")
    assert device.carried() == (1, 1, True)
    assert device.disk.names("residuals") == ["1-1.f32"]


def test_a_later_attempt_says_that_the_last_was_abandoned(device: Fed) -> None:
    device.begin(1, 2)
    assert device.carried() == (1, 1, True)
    (train,) = device.trains()
    assert train.carried is not None


@pytest.mark.parametrize(("verdict", "undelivered"), [("accepted", False), ("late", True)])
def test_a_round_published_without_a_receipt_is_asked_about_before_the_next_update_is_made(
    device: Fed, verdict: str, undelivered: bool
) -> None:
    device.publish((1, 1, "published"))
    assert device.state() == "uploading"
    assert device.carried() is None
    device.begin(2, 1, NEXT)
    assert device.trains() == []
    assert [h.type for h in device.frames()] == [frames.QUERY]
    device.receipt(verdict=verdict)
    assert device.carried() == (1, 1, undelivered)
    assert device.state() == "idle"
    device.begin(2, 1, NEXT)
    assert len(device.trains()) == 1


def test_an_accepted_update_whose_round_is_on_no_list_any_more_counts_as_published(device: Fed) -> None:
    device.receipt()
    device.publish((9, 1, "published"), version=9)
    assert device.carried() == (1, 1, False)


def test_another_plan_and_a_codec_without_feedback_drop_what_is_carried(device: Fed) -> None:
    device.receipt(verdict="late")
    blk8 = Policy()
    device.publish((1, 1, "published"), policy=blk8)
    device.begin(2, 1, NEXT, blk8)
    (train,) = device.trains()
    assert (train.carried, train.residual_output) == (None, "")
    assert device.carried() is None
    assert device.disk.names("residuals") == []
    other = Fed()
    other.trained()
    other.receipt(verdict="late")
    plan = b"another plan"
    other.head(version=1, params=NEXT, plan=ref(plan), policy=POLICY)
    other.objects(plan, NEXT)
    other.begin(2, 1, NEXT)
    assert [t.carried for t in other.trains()] == [None]


def test_a_change_between_codecs_with_feedback_keeps_what_is_carried(device: Fed) -> None:
    device.receipt(verdict="late")
    topk = Policy(codec=TOPK)
    device.publish((1, 1, "published"), policy=topk)
    device.begin(2, 1, NEXT, topk)
    (train,) = device.trains()
    assert train.carried is not None
    assert train.carried.codec == DEADZONE, "the undelivered payload is read by the codec that it was made with"
    assert train.policy.codec == TOPK


@pytest.mark.parametrize("at", ["receipt", "head"])
def test_a_full_disk_delays_what_is_carried_and_loses_nothing(device: Fed, at: str) -> None:
    if at == "head":
        device.receipt()
    device.disk.full = True
    if at == "receipt":
        device.receipt()
    device.publish((1, 1, "published"))
    assert device.carried() is None
    device.disk.full = False
    if at == "receipt":
        device.receipt()
    device.publish((1, 1, "published"))
    assert device.carried() == (1, 1, False)


class Crash(BaseException):
    pass


@pytest.mark.parametrize("settled_by", ["receipt", "head"])
def test_a_crash_at_any_file_operation_of_settling_ends_in_the_same_place(settled_by: str) -> None:
    for survived in range(40):
        device = Fed()
        device.trained()
        if settled_by == "head":
            device.receipt()
        left = survived
        disk = device.disk
        acts = [(disk, "write"), (disk, "rename"), (disk, "unlink"), (device.store, "commit")]
        whole = [(of, name, getattr(of, name)) for of, name in acts]

        def guarded(act: Callable[..., None]) -> Callable[..., None]:
            def run(*args: Any) -> None:
                nonlocal left
                if left == 0:
                    raise Crash
                left -= 1
                act(*args)

            return run

        for of, name, act in whole:
            setattr(of, name, guarded(act))
        crashed = False
        try:
            if settled_by == "receipt":
                device.receipt(verdict="late")
            else:
                device.publish((1, 1, "abandoned"), version=0, params=PARAMS)
        except Crash:
            crashed = True
        for of, name, act in whole:
            setattr(of, name, act)
        if crashed:
            restarted(device)
            device.receipt(verdict="late")
            device.publish((1, 1, "abandoned"), version=0, params=PARAMS)
        assert device.carried() == (1, 1, True), f"after {survived} operations"
        assert device.spooled() == []
        assert disk.names("updates") == ["1-1.payload"]
        if not crashed:
            return
    pytest.fail("settling takes more than 40 file operations")


def test_a_damaged_row_is_left_out_and_the_next_update_carries_nothing(device: Fed) -> None:
    device.receipt(verdict="late")
    device.store.damage(CARRIED, "junk")
    restarted(device)
    device.publish((1, 1, "published"))
    device.begin(2, 1, NEXT)
    assert [t.carried for t in device.trains()] == [None]


def test_files_that_a_power_cut_brought_back_are_swept_away(device: Fed) -> None:
    device.receipt()
    held = dict(device.disk.held)
    device.publish((1, 1, "published"))
    assert "updates/1-1.payload" not in device.disk.held
    device.disk.held |= {name: raw for name, raw in held.items() if name.startswith("updates/")}
    restarted(device)
    assert device.carried() == (1, 1, False)
    assert device.disk.names("updates") == []


def test_a_job_lost_in_a_crash_carries_the_same_again(device: Fed) -> None:
    device.receipt(verdict="late")
    device.publish((1, 1, "published"))
    device.begin(2, 1, NEXT)
    (before,) = device.trains()
    restarted(device)
    device.begin(2, 1, NEXT)
    assert device.trains() == [before]


def test_the_receipts_type_is_the_protocols() -> None:
    """`Receipt.verdict` has exactly the five verdicts that the tests above go through."""
    (field,) = [f for f in msgspec.structs.fields(Receipt) if f.name == "verdict"]
    assert set(field.type.__args__) == {"accepted", "duplicate", "late", "stale", "refused"}
