"""The networks. Each takes float32 ``[B, C, H, W]`` and returns logits ``[B, classes]``.

In training, those with an auxiliary head return its logits too (:mod:`foveal.models.auxiliary`).
"""
