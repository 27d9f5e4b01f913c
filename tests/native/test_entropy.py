"""ec-dither and ec-dz: bit for bit what a decoder in plain Python reads, the errors and rates they promise, and what they refuse."""

import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from fleetgrad.native import entropy
from fleetgrad.native.binding import KernelError
from tests.native import reference
from tests.native.every import every_capability
from tests.native.inputs import SIZES, sgd, vectors

KEY = 0xFEDCBA9876543210
KINDS: list[entropy.Kind] = ["dither", "dead-zone"]
Floats = NDArray[np.float32]


def round_trip(
    values: Floats, kind: entropy.Kind, bits: float, key: int = KEY, shape: tuple[int, ...] = ()
) -> tuple[bytes, Floats]:
    layout = entropy.Layout.of([shape]) if shape else None
    coded = entropy.encode(values, kind=kind, key=key, bits=bits, stream=7, layout=layout)
    out = np.full(values.size, 7, np.float32)
    entropy.decode(coded, out, kind=kind, key=key, stream=7, layout=layout)
    return coded.tobytes(), out


def oracle(coded: bytes, count: int, kind: entropy.Kind, columns: int = 0) -> Floats:
    return reference.entropy(
        coded, count, dead_zone=kind == "dead-zone", key=KEY, number=7, shapes=[(count, columns)] if count else []
    )


def step_of(coded: bytes) -> float:
    return float(struct.unpack_from("<f", coded, 3)[0])


def nmse(values: Floats, decoded: Floats) -> float:
    x = values.astype(np.float64)
    return float(((x - decoded) ** 2).sum() / (x**2).sum())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bits", [0.3, 1.2, 3.0, 9.0])
def test_a_decoder_in_plain_python_reads_the_same_floats(isa: str, seed: int, kind: entropy.Kind, bits: float) -> None:
    for make in vectors(seed):
        for size, shape in ((1, ()), (65, ()), (2001, ()), (1700, (17, 100))):
            values = make(size)
            coded, out = round_trip(values, kind, bits, shape=shape)
            assert oracle(coded, size, kind, shape[1] if shape else 0).tobytes() == out.tobytes()


@pytest.mark.parametrize("kind", KINDS)
def test_a_stream_of_two_chunks_with_offsets_is_read_the_same(isa: str, seed: int, kind: entropy.Kind) -> None:
    print(f"seed {seed}")
    values = sgd(np.random.default_rng(seed), 66_000)
    coded, out = round_trip(values, kind, 2.5, shape=(264, 250))
    assert coded[0] & 16  # the columns' offsets are told
    assert oracle(coded, values.size, kind, 250).tobytes() == out.tobytes()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", SIZES)
def test_every_size_decodes_to_within_a_step(isa: str, seed: int, kind: entropy.Kind, size: int) -> None:
    for make in vectors(seed):
        values = make(size)
        coded, out = round_trip(values, kind, 2.0)
        step = step_of(coded)
        # ec-dither: half a step; ec-dz: three quarters in the dead zone, beyond it a cell whose mean is decoded to.
        # Float32 itself rounds a value of 2^20 steps to a sixteenth of one.
        bound = (0.501 if kind == "dither" else 1.001) * step + np.abs(values) * 2.0**-22
        assert (np.abs(out.astype(np.float64) - values) <= bound).all()
        blocks = np.zeros(-(-size // 64) * 64, np.float32)
        blocks[:size] = values
        zero = np.repeat(~blocks.reshape(-1, 64).any(axis=1), 64)[:size]
        assert (out.view(np.uint32)[zero] == 0).all()


@pytest.mark.parametrize("kind", KINDS)
def test_every_instruction_set_writes_the_same_bytes(seed: int, kind: entropy.Kind) -> None:
    cases = [
        (make(size), bits) for make in vectors(seed) for size, bits in ((4097, 0.5), (150_001, 2.2), (70_000, 6.0))
    ]
    found = {tuple(round_trip(values, kind, bits)[0] for values, bits in cases) for _ in every_capability()}
    assert len(found) == 1


@pytest.mark.parametrize("kind", KINDS)
def test_zeros_take_seven_bytes_and_come_back_positive(isa: str, kind: entropy.Kind) -> None:
    coded, out = round_trip(np.full(100_000, -0.0, np.float32), kind, 1.0)
    assert len(coded) == 7
    assert out.tobytes() == bytes(400_000)


def test_small_numbers_of_either_sign_decode_to_positive_zero_in_ec_dz(isa: str) -> None:
    values = np.tile(np.array([100, -1e-3, -0.0, 1e-3], np.float32), 64)
    _, out = round_trip(values, "dead-zone", 1.5)
    assert (out.reshape(-1, 4)[:, 1:].view(np.uint32) == 0).all()
    assert (out.reshape(-1, 4)[:, 0] == 100).all()


# --- what the codecs promise ----------------------------------------------------------------------------------------


def test_ec_dither_is_right_on_average(seed: int) -> None:
    rng = np.random.default_rng(seed)
    print(f"seed {seed}")
    values, rounds = sgd(rng, 4096), 560
    total, step = np.zeros(values.size), 0.0
    for i in range(rounds):
        coded, out = round_trip(values, "dither", 1.0, key=seed * 65536 + i)
        total += out
        step = max(step, step_of(coded))
    # An error is uniform over a step: its deviation is step / sqrt(12), that of the mean of all coordinates' errors less again.
    # One normal number in 1e10 is beyond 6.5 deviations, so one of 4096 is in three runs of ten million.
    z = (total / rounds - values) / (step / np.sqrt(12 * rounds))
    assert np.abs(z).max() < 6.5
    assert abs(z.sum()) / np.sqrt(z.size) < 5


@settings(max_examples=6, deadline=None)
@given(number=st.integers(0, 2**40), bits=st.sampled_from([0.5, 1.0, 2.0, 4.0]))
def test_the_mean_of_a_hundred_clients_has_a_hundredth_of_the_error(number: int, bits: float) -> None:
    # The ratio of n values is the mean of n squares of normal numbers: its deviation is sqrt(2 / n), and 0.05 is almost eight of them.
    values = sgd(np.random.default_rng(number), 50_000)
    one, total = 0.0, np.zeros(values.size)
    for client in range(100):
        _, out = round_trip(values, "dither", bits, key=number + client)
        total += out
        one += nmse(values, out) / 100
    assert 0.95 <= 100 * nmse(values, (total / 100).astype(np.float32)) / one <= 1.05


def test_a_seed_that_clients_share_takes_the_averaging_away(seed: int) -> None:
    print(f"seed {seed}")
    values = sgd(np.random.default_rng(seed), 8192)
    _, out = round_trip(values, "dither", 2.0)
    total = sum(round_trip(values, "dither", 2.0)[1].astype(np.float64) for _ in range(100))
    assert nmse(values, np.asarray(total / 100, np.float32)) > 0.99 * nmse(values, out)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bits", [0.1, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0])
def test_the_rate_is_within_a_percent_of_what_was_asked(seed: int, kind: entropy.Kind, bits: float) -> None:
    rng = np.random.default_rng(seed)
    print(f"seed {seed}")
    for size in (4096, 20_000, 200_000):
        for values in (
            rng.standard_normal(size),
            rng.lognormal(0, 2, size) * rng.choice([-1, 1], size),
            sgd(rng, size),
        ):
            # The largest value has 2^20 steps at most; one that is farther from all others than these reach would leave bits unspent.
            values = np.clip(values, -(far := 4000 * np.abs(values).mean()), far)
            coded, _ = round_trip(values.astype(np.float32), kind, bits)
            # A chunk of words ends at a whole state and word, and a table more or less is a jump: 16 bytes.
            assert abs(8 * len(coded) - bits * size) <= 0.01 * bits * size + 128


@pytest.mark.parametrize(("bits", "size", "rounds"), [(0.25, 5000, 1600), (1.0, 5000, 400)])
def test_with_error_feedback_ec_dz_delivers_all_and_the_residual_stays_bounded(
    seed: int, bits: float, size: int, rounds: int
) -> None:
    print(f"seed {seed}")
    constant = sgd(np.random.default_rng(seed), size)
    residual, sent, norms = np.zeros_like(constant), np.zeros(constant.size), []
    for _ in range(rounds):
        v = constant + residual
        _, out = round_trip(v, "dead-zone", bits)
        residual, sent = v - out, sent + out
        norms.append(float(np.linalg.norm(residual)))
        assert norms[-1] < float(np.linalg.norm(v))  # a contraction in every round
    assert max(norms[rounds // 2 :]) < 1.1 * max(norms[: rounds // 2])  # it is full by then
    assert np.linalg.norm(sent / rounds - constant) < 0.1 * np.linalg.norm(constant)


def test_columns_of_different_size_are_worth_telling_apart(seed: int) -> None:
    rng = np.random.default_rng(seed)
    print(f"seed {seed}")
    values = (rng.standard_normal((200, 300)) * np.exp(1.5 * rng.standard_normal(300))).astype(np.float32).ravel()
    known, unknown = round_trip(values, "dither", 2.0, shape=(200, 300))[1], round_trip(values, "dither", 2.0)[1]
    assert nmse(values, known) < 0.6 * nmse(values, unknown)


# --- what they refuse -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("bad", "text"), [(np.nan, "NaN or infinite"), (-np.inf, "NaN or infinite"), (2e27, "beyond the range")]
)
def test_what_is_not_finite_or_too_large_is_refused_with_its_index(
    isa: str, kind: entropy.Kind, bad: float, text: str
) -> None:
    values = np.ones(70_000, np.float32)
    values[66_001] = bad
    with pytest.raises(KernelError, match=f"value 66001 of 70000: value is {text}"):
        entropy.encode(values, kind=kind, key=KEY, bits=2.0)


@pytest.mark.parametrize("kind", KINDS)
def test_every_cut_of_a_stream_and_every_byte_behind_it_is_refused(isa: str, seed: int, kind: entropy.Kind) -> None:
    values = sgd(np.random.default_rng(seed), 2000)
    coded, out = round_trip(values, kind, 1.5, shape=(40, 50))
    layout = entropy.Layout.of([(40, 50)])
    for size in range(len(coded)):
        with pytest.raises(KernelError, match="chunk 0 of a stream of"):
            entropy.decode(coded[:size], out, kind=kind, key=KEY, stream=7, layout=layout)
    with pytest.raises(KernelError, match="bytes are left over"):
        entropy.decode(coded + b"\0", out, kind=kind, key=KEY, stream=7, layout=layout)
    with pytest.raises(KernelError):
        entropy.decode(coded, np.empty(2128, np.float32), kind=kind, key=KEY, stream=7)


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_a_damaged_stream_decodes_as_the_reference_does_or_is_refused_by_both(data: st.DataObject) -> None:
    kind: entropy.Kind = data.draw(st.sampled_from(KINDS))
    values = sgd(np.random.default_rng(data.draw(st.integers(0, 3))), 850)
    bits = data.draw(st.sampled_from([0.5, 1.5, 4.0, 10.0]))
    coded = bytearray(round_trip(values, kind, bits, shape=(17, 50))[0])
    most = data.draw(st.sampled_from([20, len(coded) - 1]))  # the header more often than its share
    for _ in range(data.draw(st.integers(1, 3))):
        coded[data.draw(st.integers(0, most))] ^= 1 << data.draw(st.integers(0, 7))
    out, layout = np.empty(values.size, np.float32), entropy.Layout.of([(17, 50)])
    try:
        expected = oracle(bytes(coded), values.size, kind, 50)
    except ValueError:
        with pytest.raises(KernelError):
            entropy.decode(coded, out, kind=kind, key=KEY, stream=7, layout=layout)
    else:
        entropy.decode(coded, out, kind=kind, key=KEY, stream=7, layout=layout)
        assert out.tobytes() == expected.tobytes()


def test_headers_that_no_encoder_writes_are_refused(isa: str) -> None:
    values = np.ones(100, np.float32)
    coded, out = round_trip(values, "dither", 4.0)
    head = list(coded[:3])
    for at, bad, text in (
        (0, 1, "header is out of range"),  # ec-dz
        (0, 16, "header is out of range"),  # offsets, but the vector has no columns
        (0, 32, "header is out of range"),
        (1, 3, "header is out of range"),
        (2, 33, "header is out of range"),
        (6, 0x7F, "scale is"),  # the step: over 2^90, negative, NaN, under 2^-90
        (6, 0xBF, "scale is"),
        (6, 0x00, "scale is"),
    ):
        damaged = bytearray(coded)
        damaged[at] = bad
        with pytest.raises(KernelError, match=text):
            entropy.decode(damaged, out, kind="dither", key=KEY, stream=7)
    with pytest.raises(KernelError, match="header is out of range"):
        entropy.decode(bytes([head[0], 1, 0, 0, 0, 0, 0]), out, kind="dither", key=KEY)


def test_another_key_or_stream_decodes_to_something_else(isa: str, seed: int) -> None:
    values = sgd(np.random.default_rng(seed), 5000)
    coded, out = round_trip(values, "dither", 2.0)
    for key, stream in ((KEY + 1, 7), (KEY, 8)):
        other = np.empty_like(out)
        entropy.decode(coded, other, kind="dither", key=key, stream=stream)
        assert nmse(values, other) > nmse(values, out)


def test_the_face_refuses_what_the_kernel_cannot_check() -> None:
    values = np.ones(30, np.float32)
    for bits in (0.0, 17.0, float("nan")):
        with pytest.raises(KernelError, match=r"bits a coordinate, expected 0\.01 to 16"):
            entropy.encode(values, kind="dither", key=0, bits=bits)
    with pytest.raises(KernelError, match="doesn't fit 64 bits"):
        entropy.encode(values, kind="dither", key=2**64, bits=1.0)
    with pytest.raises(KernelError, match="the layout has 12 values, the vector 30"):
        entropy.encode(values, kind="dither", key=0, bits=1.0, layout=entropy.Layout.of([(3, 4)]))
    wraps = entropy.Layout(np.array([2**64 - 1, 31], np.uintp), np.array([3, 3], np.uintp))
    with pytest.raises(KernelError, match="the layout has 18446744073709551646 values, the vector 30"):
        entropy.encode(values, kind="dither", key=0, bits=1.0, layout=wraps)
    with pytest.raises(KernelError, match="the layout has 2 sizes and 1 numbers of columns"):
        entropy.encode(values, kind="dither", key=0, bits=1.0, layout=entropy.Layout(wraps.sizes, wraps.columns[:1]))
    with pytest.raises(KernelError, match="kind is 'junk', expected one of dither, dead-zone"):
        entropy.encode(values, kind="junk", key=0, bits=1.0)  # type: ignore[arg-type]
    with pytest.raises(KernelError, match="strides"):
        entropy.decode(b"", values[::2], kind="dither", key=0)
