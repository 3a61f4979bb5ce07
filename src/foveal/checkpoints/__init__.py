"""Checkpoints that cannot be half-written, that detect damage, and that hold no pickle."""
