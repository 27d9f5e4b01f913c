"""The aggregator: it selects devices, verifies and sums their updates, and releases the next model."""

import fleetgrad.native  # noqa: F401  (before onnxruntime: what it may send is said there)
