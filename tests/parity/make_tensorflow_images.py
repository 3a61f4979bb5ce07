"""What TensorFlow makes of some images, given stated draws, for test_tensorflow_images.py to compare with.

    python tests/parity/make_tensorflow_images.py tests/parity/tensorflow_images.npz

Needs TensorFlow and NumPy, and nothing of foveal. Written with TensorFlow 2.15.1.
"""

from __future__ import annotations

import sys

import numpy as np

# For each image: top and left of the crop, mirrored or not, brightness, contrast, saturation, hue.
DRAWS = {
    "top": [0, 8, 3, 5, 1, 7],
    "left": [8, 0, 4, 2, 6, 3],
    "mirrored": [False, True, True, False, True, False],
    "delta": [-63.0, 62.5, 17.25, -30.7, 0.0, 41.3],
    "factor": [0.2, 1.8, 0.75, 1.31, 1.0, 1.55],
    "saturation": [0.0, 1.9, 0.5, 1.2, 1.0, 0.3],
    "turn": [-0.2, 0.45, 0.1, -0.5, 0.0, 0.25],
}
SEQUENCES = {
    # distorted_inputs of the CIFAR-10 tutorial
    "tutorial": ["crop", "flip", "brightness", "contrast", "standardize"],
    "all": ["crop", "flip", "brightness", "contrast", "saturation", "hue"],
}
ALONE = ("crop", "flip", "brightness", "contrast", "saturation", "hue", "standardize")
OPERATIONS = (*ALONE, *SEQUENCES)


def images():
    """Noise, gradients, two constant images, one that is nearly constant, and dark saturated colours."""
    random = np.random.default_rng(20)
    out = np.empty((6, 32, 32, 3), np.uint8)
    out[0] = random.integers(0, 256, (32, 32, 3))
    out[1] = np.arange(32)[:, None, None] * 7 + np.array([0, 15, 30])
    out[2] = 0
    out[3] = [200, 100, 50]
    out[4] = 127 + (random.random((32, 32, 3)) < 0.01)
    out[5] = random.integers(0, 2, (32, 32, 3)) * random.integers(0, 90, (32, 32, 3))
    return out


def steps(image):
    """Each operation of ``tf.image`` as a function of the pixels and the number of the image."""
    return {
        "crop": lambda x, n: image.crop_to_bounding_box(x, DRAWS["top"][n], DRAWS["left"][n], 24, 24),
        "flip": lambda x, n: image.flip_left_right(x) if DRAWS["mirrored"][n] else x,
        "brightness": lambda x, n: image.adjust_brightness(x, DRAWS["delta"][n]),
        "contrast": lambda x, n: image.adjust_contrast(x, DRAWS["factor"][n]),
        "saturation": lambda x, n: image.adjust_saturation(x, DRAWS["saturation"][n]),
        "hue": lambda x, n: image.adjust_hue(x, DRAWS["turn"][n]),
        "standardize": lambda x, n: image.per_image_standardization(x),  # noqa: ARG005 - as the others
    }


def recompute():
    """Each operation's result on each image, float32 ``[6, H, W, 3]``."""
    import tensorflow as tf

    known = steps(tf.image)
    out = {}
    for name in OPERATIONS:
        results = []
        for n, pixels in enumerate(images()):
            x = tf.constant(pixels, tf.float32)
            for step in SEQUENCES.get(name, [name]):
                x = known[step](x, n)
            results.append(x.numpy())
        out[name] = np.stack(results)
    return out


if __name__ == "__main__":
    np.savez_compressed(sys.argv[1], **recompute())
