"""The aggregator: it selects devices, verifies and sums their updates, and releases the next model."""
