"""The device: it trains a plan on its own data and publishes compressed updates."""
