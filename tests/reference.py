"""Formulas for the parameters and inputs of the published outputs in tests/golden."""

import pathlib
import zlib

import numpy as np

DATA = pathlib.Path(__file__).parent / "golden"


def formula_array(path, shape):
    """Values that depend only on the parameter's path `module:name` and on the position."""
    count = int(np.prod(shape))
    index = np.arange(count, dtype=np.float64)
    phase = zlib.crc32(path.encode()) % 1000
    noise = np.sin(index * 12.9898 + phase) * 43758.5453
    unit = (noise - np.floor(noise) - 0.5) * np.sqrt(12)
    name = path.rpartition(":")[2]
    if name == "w":
        values = unit * np.sqrt(2 / np.prod(shape[:-1]))
    elif name in ("gain", "scale"):
        values = 1 + 0.1 * unit
    elif name == "skip_gain":
        values = 0.5 + 0.1 * unit
    else:
        values = 0.1 * unit
    return values.reshape(shape).astype(np.float32)


def formula_params(shapes):
    """Formula arrays for a tree of shapes, module -> name -> array."""
    return {
        module: {
            name: formula_array(f"{module}:{name}", leaf.shape)
            for name, leaf in arrays.items()
        }
        for module, arrays in shapes.items()
    }


def formula_images(batch, size):
    """sin(0.1 h + 0.2 w + c + b), float32 [batch, size, size, 3]."""
    b, h, w, c = np.meshgrid(*[np.arange(n) for n in (batch, size, size, 3)], indexing="ij")
    return np.sin(0.1 * h + 0.2 * w + c + b).astype(np.float32)
