"""Decoding and preparing one image: every colour mode, the crops, the resize, every refusal."""

import dataclasses
import io
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ddim_jax import names
from ddim_jax.config import DataConfig
from ddim_jax.data.transforms import CROPS, ImageError, crop_image, decode_image, prepare_image, set_channels
from ddim_jax.errors import UserError


def encode(image: Image.Image, file_format: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape, np.uint8)


@pytest.mark.parametrize("file_format", ["PNG", "BMP", "WEBP"])
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


def test_cmyk_becomes_rgb() -> None:
    image = Image.new("CMYK", (8, 8), (255, 0, 0, 0))
    decoded = decode_image(encode(image, "JPEG", quality=100))
    assert decoded.shape == (8, 8, 3)
    assert np.abs(decoded.astype(int) - [0, 255, 255]).max() <= 2


def test_exif_orientation_is_applied() -> None:
    pixels = noise(4, 6)
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: rotate by 90 degrees clockwise to see it upright
    decoded = decode_image(encode(Image.fromarray(pixels), exif=exif))
    np.testing.assert_array_equal(decoded[..., 0], np.rot90(pixels, -1))


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "the file is empty"),
        (b"GET / HTTP/1.1", "not a PNG, JPEG, WebP, BMP or GIF image"),
        (encode(Image.fromarray(noise(32, 32, 3)), "JPEG")[:-300], "cannot be decoded: .*truncated"),
        (encode(Image.fromarray(noise(32, 32, 3)), "PNG")[:-300], "cannot be decoded"),
        (encode(Image.fromarray(noise(32, 32, 3)), "TIFF"), "not a PNG, JPEG, WebP, BMP or GIF image"),
    ],
    ids=["empty", "text", "jpeg cut", "png cut", "tiff"],
)
def test_bad_bytes_are_refused_in_one_line(data: bytes, reason: str) -> None:
    with pytest.raises(ImageError, match=reason) as caught:
        decode_image(data)
    assert "\n" not in str(caught.value)


def test_any_cut_or_damage_is_an_image_error() -> None:
    generator = np.random.default_rng(0)
    for file_format in ("PNG", "JPEG", "WEBP", "BMP"):
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
