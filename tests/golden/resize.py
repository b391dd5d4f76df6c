"""Images resized by Pillow and OpenCV: bilinear, which in Pillow low-pass filters images that shrink.

    pip install pillow==13.0.0 opencv-python-headless==5.0.0.93 numpy
    python resize.py     # writes resize.json, which models/tests/inputs.rs reads

Tests need neither this script nor Python.
"""

import json
from pathlib import Path

import cv2
import numpy as np
import PIL
from PIL import Image

# Width and height, from and to: enlarged, reduced, strongly reduced, and one axis of each. In none does the height shrink by
# more than twice as many pixels as the width, where Pillow 13 begins with the columns.
WAYS = [((23, 17), (40, 31)), ((50, 40), (30, 24)), ((90, 70), (13, 11)), ((64, 31), (20, 48)), ((40, 30), (40, 30))]


def pattern(width, height):
    """Smooth waves under noise, in rows of RGB."""
    noise = lambda x, y, c: (x * 7919 + y * 104729 + c * 1299709 + x * y * 31) % 97
    return bytes((x * 3 + y * 2 + c * 40 + noise(x, y, c)) % 256 for y in range(height) for x in range(width) for c in range(3))


def pillow(pixels, size):
    return np.array(Image.fromarray(pixels).resize(size, Image.Resampling.BILINEAR))


def opencv(pixels, size):
    return cv2.resize(pixels, size, interpolation=cv2.INTER_LINEAR)


def main():
    assert (PIL.__version__, cv2.__version__) == ("13.0.0", "5.0.0"), (PIL.__version__, cv2.__version__)
    cases = []
    for resize in (pillow, opencv):
        for (width, height), resized in WAYS:
            pixels = np.frombuffer(pattern(width, height), np.uint8).reshape(height, width, 3)
            pixels = resize(pixels, resized).flatten().tolist()
            cases.append(dict(library=resize.__name__, image=[width, height], resized=resized, bytes=pixels))
    lines = ",\n".join(json.dumps(case, separators=(",", ":")) for case in cases)
    (Path(__file__).parent / "resize.json").write_text(f"[\n{lines}\n]\n")


main()
