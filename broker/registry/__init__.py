"""Models and plans by content: what was released, and as what."""
