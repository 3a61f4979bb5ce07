"""The networks. Each takes float32 ``[B, C, H, W]`` and returns logits ``[B, classes]``."""
