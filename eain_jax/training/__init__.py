"""One step, one loop, and what keeps them: pure functions over a state."""
