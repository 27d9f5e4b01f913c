"""The simulation behind the accuracy figures: the same seed is the same run, and the codec is really in the loop."""

import numpy as np
import pytest

from fleetgrad.native.bench import eden, federated

ROUNDS = 6


def top_k(values: federated.Floats, _seed: int) -> tuple[federated.Floats, float]:
    return eden.top_k(values, 0.25)


def test_the_same_seed_is_the_same_run() -> None:
    runs = [federated.run(top_k, 1, feedback=True, rounds=2) for _ in range(2)]
    assert runs[0] == runs[1]
    assert runs[0] != federated.run(top_k, 2, feedback=True, rounds=2)


def test_federated_averaging_learns_and_an_exact_codec_leaves_no_residual() -> None:
    plain = federated.run(federated.exact, 0, feedback=False, rounds=ROUNDS)
    assert plain == federated.run(federated.exact, 0, feedback=True, rounds=ROUNDS)
    assert plain.bits == pytest.approx(32)
    assert plain.accuracy[-1] > 60  # chance is 10


def test_error_feedback_helps_a_biased_codec() -> None:
    with_it = federated.run(top_k, 0, feedback=True, rounds=ROUNDS)
    without = federated.run(top_k, 0, feedback=False, rounds=ROUNDS)
    assert with_it.last > without.last
    assert 0.24 < with_it.bits <= 0.25


def test_the_flat_vector_is_covered_once_by_matrices_and_biases() -> None:
    covered = np.zeros(federated.SIZE, int)
    for at, rows, columns in federated.offsets():
        covered[at : at + rows * columns + rows] += 1
    assert (covered == 1).all()
