"""Decoding and preparing one image: every colour mode, the crops, the resize, every refusal."""

import dataclasses
import io
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngImageFile, PngInfo
from PIL.TiffImagePlugin import ImageFileDirectory_v2

from ddim_jax import names
from ddim_jax.config import DataConfig
from ddim_jax.data.transforms import CROPS, ImageError, crop_image, decode_image, prepare_image, set_channels
from ddim_jax.errors import UserError


def encode(image: Image.Image, file_format: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()


def png_file(width: int, height: int, depth: int, colour: int, rows: bytes, transparent: bytes = b"") -> bytes:
    """A PNG of kinds that Pillow cannot write: bits of a sample, kind of colour, rows as stored, chunk tRNS."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"tRNS", transparent), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in chunks
        if data or name != b"tRNS"
    )


def exif_with(orientation: int, tag: int, kind: int, value: Any) -> bytes:
    """EXIF data with an orientation and one more tag, stored as the number type ``kind``."""
    tags = ImageFileDirectory_v2()
    tags[0x0112] = orientation
    tags.tagtype[tag] = kind
    tags[tag] = value
    return b"Exif\0\0II*\0\x08\0\0\0" + tags.tobytes(8)


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape, np.uint8)


@pytest.mark.parametrize("file_format", ["PNG", "BMP", "WEBP", "TIFF"])
def test_lossless_rgb_is_unchanged(file_format: str) -> None:
    pixels = noise(5, 7, 3)
    options = {"lossless": True} if file_format == "WEBP" else {}
    np.testing.assert_array_equal(decode_image(encode(Image.fromarray(pixels), file_format, **options)), pixels)


def test_grey_keeps_one_channel() -> None:
    pixels = noise(5, 7)
    np.testing.assert_array_equal(decode_image(encode(Image.fromarray(pixels))), pixels[..., None])


def test_one_bit_becomes_black_and_white() -> None:
    bits = noise(8, 8) > 127
    np.testing.assert_array_equal(decode_image(encode(Image.fromarray(bits)))[..., 0], np.where(bits, 255, 0))


def test_palette_becomes_its_colours() -> None:
    image = Image.fromarray(np.array([[0, 1], [2, 1]], np.uint8), "L")
    image.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90])
    assert image.mode == "P"
    expected = np.array([[[10, 20, 30], [40, 50, 60]], [[70, 80, 90], [40, 50, 60]]])
    np.testing.assert_array_equal(decode_image(encode(image)), expected)


def test_alpha_is_composited_over_white() -> None:
    pixels = noise(6, 6, 4)
    alpha = pixels[..., 3:].astype(float) / 255
    expected = pixels[..., :3] * alpha + 255 * (1 - alpha)
    decoded = decode_image(encode(Image.fromarray(pixels, "RGBA")))
    assert np.abs(decoded - expected).max() <= 1


def test_grey_with_alpha_stays_grey() -> None:
    pixels = np.array([[[100, 0], [100, 255]]], np.uint8)
    np.testing.assert_array_equal(decode_image(encode(Image.fromarray(pixels, "LA"))), [[[255], [100]]])


@pytest.mark.parametrize("mode", ["P", "RGB", "L"])
def test_a_transparent_colour_becomes_white(mode: str) -> None:
    image = Image.fromarray(np.array([[0, 1]], np.uint8), "L")
    key: Any = 0
    if mode == "P":
        image.putpalette([10, 10, 10, 40, 40, 40])
    elif mode == "RGB":
        image, key = image.convert("RGB"), (0, 0, 0)
    decoded = decode_image(encode(image, transparency=key))
    opaque = 40 if mode == "P" else 1
    assert decoded[0, 0].tolist() == [255] * decoded.shape[2]
    assert decoded[0, 1].tolist() == [opaque] * decoded.shape[2]


def test_sixteen_bit_grey_is_scaled_and_rounded() -> None:
    values = np.concatenate([np.arange(0, 65536, 97), [128, 129, 65535]]).astype(np.uint16)[None]
    expected = np.floor(values / 65535 * 255 + 0.5)[..., None]
    np.testing.assert_array_equal(decode_image(encode(Image.fromarray(values))), expected)


def test_sixteen_bit_grey_with_alpha_stays_grey() -> None:
    row = b"\0" + struct.pack(">4H", 0x6400, 0xFFFF, 0x6400, 0)
    np.testing.assert_array_equal(decode_image(png_file(2, 1, 16, 4, row)), [[[100], [255]]])


@pytest.mark.parametrize(
    ("depth", "row", "transparent", "expected"),
    [
        (1, b"\x40", 1, [0, 255, 0]),
        (2, b"\x18", 1, [0, 255, 170]),
        (4, b"\x12\xf0", 1, [255, 34, 255]),
        (8, b"\1\2\3", 2, [1, 255, 3]),
        (16, struct.pack(">3H", 999, 1000, 65535), 1000, [4, 255, 255]),
    ],
)
def test_a_transparent_grey_of_any_depth_becomes_white(
    depth: int, row: bytes, transparent: int, expected: list[int]
) -> None:
    data = png_file(3, 1, depth, 0, b"\0" + row, struct.pack(">H", transparent))
    np.testing.assert_array_equal(decode_image(data), np.reshape(expected, (1, 3, 1)))


def test_a_transparent_sixteen_bit_colour_becomes_white() -> None:
    colour, other = (0x1234, 0x5678, 0x9ABC), (0x3434, 0x7878, 0xBCBC)
    data = png_file(2, 1, 16, 2, b"\0" + struct.pack(">6H", *colour, *other), struct.pack(">3H", *colour))
    np.testing.assert_array_equal(decode_image(data), [[[255] * 3, [0x34, 0x78, 0xBC]]])


@pytest.mark.parametrize("order", ["<u2", ">u2"])
def test_sixteen_bit_tiff_is_scaled_too(order: str) -> None:
    values = np.array([[0, 1000, 65535]], order)
    np.testing.assert_array_equal(decode_image(encode(Image.fromarray(values), "TIFF")), [[[0], [4], [255]]])


def test_a_sixteen_bit_tiff_whose_zero_is_white_is_refused() -> None:
    """Pillow gives it as a negative."""
    data = encode(Image.fromarray(np.array([[0, 1000]], np.uint16)), "TIFF", tiffinfo={262: 0})
    with pytest.raises(ImageError, match="of an unusual number type or scale"):
        decode_image(data)


def test_cmyk_becomes_rgb() -> None:
    image = Image.new("CMYK", (8, 8), (255, 0, 0, 0))
    decoded = decode_image(encode(image, "JPEG", quality=100))
    assert decoded.shape == (8, 8, 3)
    assert np.abs(decoded.astype(int) - [0, 255, 255]).max() <= 2


@pytest.mark.parametrize("file_format", ["PNG", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation: int, file_format: str) -> None:
    pixels = noise(4, 6)
    upright = {
        1: pixels,
        2: pixels[:, ::-1],
        3: pixels[::-1, ::-1],
        4: pixels[::-1],
        5: pixels.T,
        6: np.rot90(pixels, -1),  # the camera was turned: rotate by 90 degrees clockwise to see it upright
        7: pixels[::-1, ::-1].T,
        8: np.rot90(pixels),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    decoded = decode_image(encode(Image.fromarray(pixels), file_format, exif=exif))
    np.testing.assert_array_equal(decoded[..., 0], upright)


@pytest.mark.parametrize(
    ("tag", "kind", "value"),
    [(306, 5, 1.5), (306, 10, -1.5), (37384, 8, -3), (256, 2, "abc"), (306, 7, b"\xff")],
    ids=["rational date", "signed rational date", "negative short", "text for a number", "undefined"],
)
def test_oddly_typed_tags_do_not_matter(tag: int, kind: int, value: Any) -> None:
    pixels = np.kron(noise(4, 6), np.ones((8, 8), np.uint8))
    photo = Image.fromarray(pixels)
    decoded = decode_image(encode(photo, "JPEG", quality=100, exif=exif_with(6, tag, kind, value)))
    plain = decode_image(encode(photo, "JPEG", quality=100))
    np.testing.assert_array_equal(decoded[..., 0], np.rot90(plain[..., 0], -1))


def test_a_sound_image_with_damaged_exif_is_used_as_stored() -> None:
    photo = Image.fromarray(noise(16, 24))
    damaged = encode(photo, "JPEG", exif=b"Exif\0\0no tags at all")
    np.testing.assert_array_equal(decode_image(damaged), decode_image(encode(photo, "JPEG")))


@pytest.mark.parametrize("error", [AttributeError("no tag"), KeyError(7), RecursionError(), AssertionError()])
def test_whatever_a_decoder_raises_is_an_image_error(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise error

    monkeypatch.setattr(PngImageFile, "load", fail)
    with pytest.raises(ImageError, match=r"^the image cannot be decoded: \w") as caught:
        decode_image(encode(Image.fromarray(noise(4, 4))))
    assert caught.value.__cause__ is error


def test_lack_of_memory_is_not_the_images_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise MemoryError

    monkeypatch.setattr(PngImageFile, "load", fail)
    with pytest.raises(MemoryError):
        decode_image(encode(Image.fromarray(noise(4, 4))))


def test_a_png_with_megabytes_of_text_and_profile_is_read() -> None:
    pixels = noise(4, 4, 3)
    text = PngInfo()
    text.add_text("notes", "x" * 3_000_000, zip=True)
    data = encode(Image.fromarray(pixels), pnginfo=text, icc_profile=bytes(3_000_000))
    np.testing.assert_array_equal(decode_image(data), pixels)


def test_a_png_with_too_much_text_says_what_to_do() -> None:
    text = PngInfo()
    text.add_text("notes", "x" * (2**26 + 1), zip=True)
    with pytest.raises(ImageError, match=r"MAX_TEXT_CHUNK; store it without its text or colour profile$"):
        decode_image(encode(Image.fromarray(noise(4, 4)), pnginfo=text))


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "the file is empty"),
        (b"GET / HTTP/1.1", "not a PNG, JPEG, WebP, BMP, GIF or TIFF image"),
        (encode(Image.fromarray(noise(32, 32, 3)), "JPEG")[:-300], "cannot be decoded: .*truncated"),
        (encode(Image.fromarray(noise(32, 32, 3)), "PNG")[:-300], "cannot be decoded"),
        (encode(Image.fromarray(noise(32, 32, 3)), "PPM"), "not a PNG, JPEG, WebP, BMP, GIF or TIFF image"),
        (
            encode(Image.fromarray(noise(4, 4).astype(np.float32)), "TIFF"),
            "unusual number type .*; store 8 or 16",
        ),
        (
            encode(Image.fromarray(noise(4, 4).astype(np.int32)), "TIFF"),
            "unusual number type .*; store 8 or 16",
        ),
        (png_file(20_000, 10_000, 8, 0, b""), "more than 178,956,970 pixels.*; store it smaller, or .*on_error=skip"),
    ],
    ids=["empty", "text", "jpeg cut", "png cut", "ppm", "float tiff", "32-bit tiff", "too large"],
)
def test_bad_bytes_are_refused_in_one_line(data: bytes, reason: str) -> None:
    with pytest.raises(ImageError, match=reason) as caught:
        decode_image(data)
    assert "\n" not in str(caught.value)


def test_any_cut_or_damage_is_an_image_error() -> None:
    generator = np.random.default_rng(0)
    for file_format in ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF"):
        data = encode(Image.fromarray(noise(16, 16, 3)), file_format)
        for _ in range(60):
            damaged = bytearray(data[: generator.integers(1, len(data))])
            for place in generator.integers(0, len(damaged), 3):
                damaged[place] = generator.integers(256)
            try:
                decoded = decode_image(bytes(damaged))
            except ImageError:
                continue
            assert decoded.dtype == np.uint8


@pytest.mark.parametrize(("height", "width"), [(9, 6), (6, 9), (7, 4), (5, 5)])
def test_center_crop(height: int, width: int) -> None:
    image = noise(height, width, 3)
    side, top, left = min(height, width), max(0, height - width) // 2, max(0, width - height) // 2
    cropped = crop_image(image, "center")
    np.testing.assert_array_equal(cropped, image[top : top + side, left : left + side])
    assert cropped.shape == (side, side, 3)


def test_each_name_has_a_crop() -> None:
    assert tuple(CROPS) == names.choices(names.Crop)
    with pytest.raises(UserError, match=r"crop 'centre' does not exist; did you mean 'center'\? choose from: "):
        crop_image(noise(4, 6, 3), "centre")
    np.testing.assert_array_equal(crop_image(noise(4, 6, 3), "none"), noise(4, 6, 3))


def test_celeba_crop_is_the_papers() -> None:
    image = noise(218, 178, 3)
    # DDIM's code: centre (89, 121), half a side 64.
    np.testing.assert_array_equal(crop_image(image, "celeba"), image[121 - 64 : 121 + 64, 89 - 64 : 89 + 64])


def test_resize_is_antialiased() -> None:
    """Halving a 1-pixel checkerboard must give grey; sampling points would give black or white."""
    board = (np.indices((16, 16)).sum(0) % 2 * 255).astype(np.uint8)[..., None]
    config = DataConfig(image_size=8, channels=1)
    assert set(np.unique(prepare_image(board, dataclasses.replace(config, resize="box")))) <= {127, 128}
    inside = prepare_image(board, dataclasses.replace(config, resize="bilinear"))[1:-1, 1:-1]
    assert np.abs(inside.astype(int) - 127).max() <= 2


@pytest.mark.parametrize("resize", ["bilinear", "bicubic", "lanczos", "box"])
def test_resize_is_pillows(resize: Any) -> None:
    image = noise(20, 20, 3)
    expected = Image.fromarray(image).resize((12, 12), getattr(Image.Resampling, resize.upper()))
    np.testing.assert_array_equal(prepare_image(image, DataConfig(image_size=12, resize=resize)), np.asarray(expected))


def test_an_image_of_the_right_size_is_not_resampled() -> None:
    image = noise(12, 12, 3)
    np.testing.assert_array_equal(prepare_image(image, DataConfig(image_size=12, resize="lanczos")), image)


def test_channels() -> None:
    colour, grey = noise(4, 4, 3), noise(4, 4, 1)
    np.testing.assert_array_equal(set_channels(grey, 3), np.concatenate([grey] * 3, -1))
    luma = (colour @ [0.299, 0.587, 0.114])[..., None]
    assert np.abs(set_channels(colour, 1) - luma).max() <= 0.51
    np.testing.assert_array_equal(set_channels(set_channels(grey, 3), 1), grey)


@pytest.mark.parametrize(
    ("shape", "keys", "reason"),
    [
        ((20, 30, 3), {"resize": "bilinear"}, "30x20 pixels, not square; set data.crop=center"),
        ((20, 20, 3), {}, "20x20 pixels after data.crop=none, data.image_size is 8; set data.resize"),
        ((20, 30, 3), {"crop": "center"}, "20x20 pixels after data.crop=center"),
        ((218, 177, 3), {"crop": "celeba"}, "177x218 pixels, data.crop=celeba is for aligned CelebA"),
    ],
    ids=["not square", "other size", "other size after crop", "not CelebA"],
)
def test_unfit_images_are_refused(shape: tuple[int, ...], keys: dict[str, Any], reason: str) -> None:
    with pytest.raises(ImageError, match=reason):
        prepare_image(noise(*shape), DataConfig(image_size=8, **keys))
