"""Makes the seed images for fuzzing, one for each format variant that the decoders support.

    python tests/fuzz/seeds.py      # with Pillow 13; writes tests/fuzz/seeds/image_file, which is committed
"""

from pathlib import Path

from PIL import Image

folder = Path(__file__).parent / "seeds" / "image_file"
folder.mkdir(parents=True, exist_ok=True)
rgb = Image.new("RGB", (24, 17))
rgb.putdata([(x * 10, y * 15, (x * y) % 256) for y in range(17) for x in range(24)])
gray, palette, alpha, bits = rgb.convert("L"), rgb.quantize(16), rgb.convert("RGBA"), rgb.convert("1")
alpha.putalpha(gray)
deep = Image.new("I;16", (24, 17))
deep.putdata([x * y * 150 for y in range(17) for x in range(24)])
turned = Image.Exif()
turned[0x112] = 6
frames = {"save_all": True, "append_images": [rgb.rotate(90), rgb.rotate(180)]}


def save(name, image, **options):
    image.save(folder / name, **options)


save("baseline.jpg", rgb)
save("progressive.jpg", rgb, progressive=True)
save("restarts.jpg", rgb, restart_marker_blocks=1, subsampling=0)
save("turned.jpg", rgb, exif=turned)
save("gray.jpg", gray)
save("cmyk.jpg", rgb.convert("CMYK"))
save("rgb.png", rgb)
save("deep.png", deep)
save("palette.png", palette, bits=4, transparency=3)
save("alpha.png", alpha, exif=turned)
save("bits.png", bits)
save("animated.png", rgb, **frames)
save("lossy.webp", rgb, quality=50)
save("lossless.webp", palette, lossless=True)
save("alpha.webp", alpha, exif=turned)
save("animated.webp", rgb, **frames)
save("rgb.bmp", rgb)
save("palette.bmp", palette)
save("bits.bmp", bits)
save("alpha.bmp", alpha)
save("still.gif", palette, interlace=1)
save("animated.gif", rgb, **frames)
for kind in [None, "tiff_lzw", "tiff_deflate", "packbits", "jpeg", "tiff_adobe_deflate"]:
    save(f"{kind or 'plain'}.tif", rgb, compression=kind)
save("deep.tif", deep)
save("palette.tif", palette, compression="tiff_lzw")
save("alpha.tif", alpha, exif=turned)
for kind in ["group3", "group4"]:
    save(f"{kind}.tif", bits, compression=kind)
save("cmyk.tif", rgb.convert("CMYK"))
