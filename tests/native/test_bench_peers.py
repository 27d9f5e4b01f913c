"""The benches' peers and theory are what they claim to be: a weak peer would flatter us."""

import math
from pathlib import Path

import numpy as np
import pytest

from fleetgrad.native import binding
from fleetgrad.native import entropy as entropy_codec
from fleetgrad.native.bench import eden, products, results, symbols
from fleetgrad.native.bench.theory import eden_nmse, entropy, lloyd_max, nmse
from tests.native import reference

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(("bits", "distortion"), [(1, 0.3634), (2, 0.1175), (3, 0.03455), (4, 0.00950), (6, 6.44e-4)])
def test_lloyd_max_has_the_distortion_of_the_literature(bits: int, distortion: float) -> None:
    levels, boundaries, found = lloyd_max(bits)
    assert len(levels) == 2**bits and len(boundaries) == 2**bits - 1
    assert list(levels) == sorted(levels) and levels[0] == -levels[-1]
    assert found == pytest.approx(distortion, rel=4e-3)  # the literature gives three or four digits


@pytest.mark.needs("torch")
@pytest.mark.parametrize("bits", [1, 2, 4])
@pytest.mark.parametrize("count", [2**14, 2**14 - 100])
def test_eden_in_torch_reaches_its_theory(bits: int, count: int) -> None:
    import torch

    x = np.random.default_rng(bits).standard_t(4, count).astype(np.float32)  # heavy tails: the rotation must level them
    peer = eden.Eden(bits)
    decoded = peer.decode(*peer.encode(torch.from_numpy(x), 7), 7).numpy()
    assert decoded.shape == x.shape
    # 2^14 coordinates leave about 1 % of chance; padding adds what it adds to the rate, not to the error.
    assert nmse(x, decoded) == pytest.approx(eden_nmse(bits), rel=0.05)


@pytest.mark.needs("torch")
def test_eden_in_torch_is_unbiased() -> None:
    import torch

    x = np.random.default_rng(0).standard_normal(512).astype(np.float32)
    peer = eden.Eden(1)
    decoded = [peer.decode(*peer.encode(torch.from_numpy(x), seed), seed).numpy() for seed in range(100)]
    # One has an NMSE near 0.57; independent errors average it away.
    assert nmse(x, np.mean(decoded, 0)) < 0.57 / 100 * 1.3


def test_top_k_spends_no_more_than_its_bits_and_nearly_all() -> None:
    x = np.random.default_rng(1).standard_normal(20_000).astype(np.float32)
    for bits in (0.1, 0.25, 1.0):
        decoded, spent = eden.top_k(x, bits)
        assert bits * 0.99 < spent <= bits
        kept = decoded != 0
        assert np.abs(x[kept]).min() >= np.abs(x[~kept]).max()
        np.testing.assert_allclose(decoded[kept], x[kept], rtol=2**-11)


def test_numpy_peers_decode_within_a_step() -> None:
    x = np.random.default_rng(2).standard_normal(4096).astype(np.float32)
    assert np.abs(eden.stochastic_uniform(x, 7, 1) - x).max() <= np.abs(x).max() / 7 * (1 + 1e-6)
    assert np.abs(eden.block_int8(x) - x).max() <= np.abs(x).max() / 127 * 0.5 * (1 + 1e-5)


def test_entropy_of_fair_symbols_is_their_bits() -> None:
    assert entropy(np.arange(1024) % 8) == pytest.approx(3 * 1024)
    assert math.isclose(entropy(np.zeros(10, np.int64)), 0.0)


def test_the_symbols_dither_is_the_one_of_the_format() -> None:
    np.testing.assert_array_equal(symbols.dither(99, 1000), reference.dither(99, 0, 1000))


def test_symbols_under_a_table_each_take_their_conditional_entropy() -> None:
    context = np.repeat([0, 1], 512)
    symbol = np.where(context == 0, 7, np.arange(1024) % 4)
    assert symbols.conditional(context, symbol) == pytest.approx(2 * 512)  # the first context's symbols are certain


@pytest.mark.parametrize("bits", [1.0, 2.0, 4.0])
def test_no_stream_undercuts_the_ideal_coder_and_a_long_one_is_near_it(bits: float) -> None:
    rng = np.random.default_rng(5)
    rows, columns = rng.lognormal(0, 1, (400, 1)), 2.0 ** rng.integers(-3, 4, 1000)
    values = (rng.standard_normal((400, 1000)) * rows * columns).astype(np.float32).ravel()
    layout = entropy_codec.Layout.of([(400, 1000)])
    coded = entropy_codec.encode(values, kind="dither", key=3, bits=bits, layout=layout)
    # Tables, header and lanes take 1 % here, at one bit 3 %; wrong classes or offsets would put the ideal 12 % above the stream.
    assert 1.0 < 8 * coded.size / symbols.ideal_bits(coded, values, 3, layout) < 1.045


def test_the_page_counts_missed_and_unmeasured_promises() -> None:
    table = [
        results.at_most("a ratio", 1.5, "ratio", "a peer", 1.02),
        results.at_most("another", 1.0, "ratio", "a peer", 1.02),
        results.skipped("a third", "torch is not installed", 60),
    ]
    text = results.page({"codecs": table}, 2, "avx2")
    assert "1 kept, 1 missed, 1 not measured" in text
    assert "| a ratio | 1.5 | ratio | <= 1.02 | **missed** | a peer |" in text
    assert "skipped: torch is not installed" in text


@pytest.mark.needs("gcc")
def test_the_product_that_is_timed_is_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(products, "ROUNDS", 1)
    found = products.product_rows([(600, 21, 37), (40, 64, 32)], 600)  # which refuses one that gives something else
    measured = [r for r in found if r["value"] is not None]
    assert len(measured) == 2 * len(set(products.FAMILIES) & set(binding.capabilities()))
    assert all(0 < r["value"] <= 1.1 for r in measured)  # a little over 1 if the clock changes between the two
    assert {r["bound"] is None for r in measured if "40x64x32" in r["figure"]} <= {True}


def test_a_family_that_the_cpu_lacks_is_said_to_be_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(binding, "capabilities", lambda: ("serial",))
    found = products.product_rows([(256, 16, 16)], 256)
    assert [results.state_text(r) for r in found] == ["not measured"] * len(products.FAMILIES)
    assert found[0]["peer"] == "skipped: this CPU has no VNNI"
