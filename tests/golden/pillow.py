"""Images resized by Pillow: bilinear, which low-pass filters images that shrink.

    pip install pillow==13.0.0
    python pillow.py     # writes pillow.json, which models/tests/inputs.rs reads

Tests need neither this script nor Python.
"""

import json
from pathlib import Path

import PIL
from PIL import Image

# Width and height, from and to: enlarged, reduced, strongly reduced, and one axis of each.
WAYS = [((23, 17), (40, 31)), ((50, 40), (30, 24)), ((90, 70), (13, 11)), ((31, 64), (48, 20)), ((40, 30), (40, 30))]


def pattern(width, height):
    """Smooth waves under noise, in rows of RGB."""
    noise = lambda x, y, c: (x * 7919 + y * 104729 + c * 1299709 + x * y * 31) % 97
    return bytes((x * 3 + y * 2 + c * 40 + noise(x, y, c)) % 256 for y in range(height) for x in range(width) for c in range(3))


def main():
    assert PIL.__version__ == "13.0.0", PIL.__version__
    cases = []
    for size, resized in WAYS:
        image = Image.frombytes("RGB", size, pattern(*size)).resize(resized, Image.Resampling.BILINEAR)
        cases.append(dict(image=size, resized=resized, bytes=list(image.tobytes())))
    lines = ",\n".join(json.dumps(case, separators=(",", ":")) for case in cases)
    (Path(__file__).parent / "pillow.json").write_text(f"[\n{lines}\n]\n")


main()
