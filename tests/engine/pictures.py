"""Small pictures, and the settings of the pools that prepare them in tests."""

import io

import numpy as np
from PIL import Image

from vipllava_jax.inputs.pixels import ImageSettings

SIDE = 28
SETTINGS = ImageSettings(side=SIDE, edge=SIDE)


def picture(size=(60, 50), seed=0):
    levels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(levels)


def png(image):
    file = io.BytesIO()
    image.save(file, 'PNG')
    return file.getvalue()
