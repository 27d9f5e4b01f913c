"""Normalisation."""

from tests.edge.cases.inputs import Case, numbers

r = numbers()
X = r(3, 4, 5, 2)
PARAMETERS = (r(4), r(4))
STATISTICS = (r(4), abs(r(4)) + 0.3)
TRAINING = {"training_mode": 1, "outputs": 3, "absent": (1, 2)}


CASES: list[Case] = [
    ("LayerNormalization", (r(3, 5, 4), *PARAMETERS), {}),
    ("LayerNormalization", (r(3, 5, 4), PARAMETERS[0]), {"epsilon": 1e-3}),
    ("LayerNormalization", (r(3, 5, 4), r(5, 4), r(5, 4)), {"axis": 1}),
    ("LayerNormalization", (r(3, 5, 4), r(5, 4), r(5, 4)), {"axis": -2}),
    ("InstanceNormalization", (X, *PARAMETERS), {}),
    ("InstanceNormalization", (r(2, 4, 7), *PARAMETERS), {"epsilon": 1e-3}),
    ("GroupNormalization", (X, *PARAMETERS), {"num_groups": 2}),
    ("GroupNormalization", (r(2, 4, 7), *PARAMETERS), {"num_groups": 1, "epsilon": 1e-2}),
    ("GroupNormalization", (X, *PARAMETERS), {"num_groups": 4}),
    ("BatchNormalization", (X, *PARAMETERS, *STATISTICS), {}),
    ("BatchNormalization", (r(5, 4), *PARAMETERS, *STATISTICS), {"epsilon": 1e-2}),
    ("BatchNormalization", (r(2, 4, 3, 2, 2), *PARAMETERS, *STATISTICS), {}),
    ("BatchNormalization", (X, *PARAMETERS, *STATISTICS), TRAINING),
    ("BatchNormalization", (r(6, 4), *PARAMETERS, *STATISTICS), {**TRAINING, "epsilon": 1e-2, "momentum": 0.5}),
    ("BatchNormalization", (r(2, 4, 5), *PARAMETERS, *STATISTICS), TRAINING),
    ("MeanVarianceNormalization", (X,), {}),
    ("MeanVarianceNormalization", (X,), {"axes": [2, 3]}),
    ("LpNormalization", (r(3, 5, 4),), {}),
    ("LpNormalization", (r(3, 5, 4),), {"axis": 1, "p": 1}),
    ("LpNormalization", (r(3, 5, 4),), {"axis": -2, "p": 2}),
    ("LRN", (r(2, 7, 3, 2),), {"size": 3, "alpha": 0.5, "beta": 0.6, "bias": 1.5}),
    ("LRN", (r(2, 5, 3, 1),), {"size": 1, "alpha": 0.5}),
    ("LRN", (r(2, 3, 2, 2),), {"size": 5}),
]
