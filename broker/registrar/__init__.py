"""The registrar: who belongs to a federation. Its folder holds the fleet's CA key, which no aggregator may read."""
