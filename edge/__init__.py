"""The device: it trains a plan on its own data and publishes compressed updates."""

import fleetgrad.native  # noqa: F401  (before onnxruntime: what it may send is said there)
