"""A device's own samples: sources, checks against the plan, splits."""
