"""Images of any kind: the model gets what a viewer would show, and what is no image is named in one sentence."""

import contextlib
import io
import sys
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw

from mlore_edu.errors import UserError
from mlore_edu.images import eight_bits, film_frames, read_image

COLOUR = (200, 100, 50)
GREY = 124  # 0.299 · 200 + 0.587 · 100 + 0.114 · 50

VIEWS = {
    1: lambda a: a,
    2: np.fliplr,
    3: lambda a: a[::-1, ::-1],
    4: np.flipud,
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
    8: lambda a: np.rot90(a),
}
"""What a viewer does with an image of each EXIF orientation."""


def pixel(source):
    """The one colour of a plain picture."""
    image = read_image(source)
    assert image.dtype == torch.uint8
    assert image.shape[0] == 3
    assert (image == image[:, :1, :1]).all()
    return tuple(image[:, 0, 0].tolist())


def numbers(size):
    return np.random.default_rng(0).integers(0, 256, size, dtype=np.uint8)


def file_of(array, path, kind, **options):
    Image.fromarray(array).save(path, kind, **options)
    return path


@pytest.mark.parametrize(
    ("mode", "tolerance"), [("RGB", 0), ("RGBA", 0), ("RGBX", 0), ("P", 0), ("CMYK", 1), ("YCbCr", 3), ("HSV", 4)]
)
def test_a_plain_picture_keeps_its_colour_in_every_colour_mode(mode, tolerance):
    picture = Image.new("RGB", (5, 4), COLOUR).convert(mode, palette=Image.Palette.ADAPTIVE)
    np.testing.assert_allclose(pixel(picture), COLOUR, atol=tolerance)


@pytest.mark.parametrize(
    "picture",
    [
        Image.new("L", (5, 4), GREY),
        Image.new("LA", (5, 4), (GREY, 255)),
        Image.new("I;16", (5, 4), GREY * 257),
        Image.new("I", (5, 4), GREY),
        Image.new("I", (5, 4), GREY * 257),
        Image.new("F", (5, 4), GREY / 255),
    ],
    ids=lambda picture: picture.mode,
)
def test_grey_of_any_depth_becomes_the_same_eight_bits_three_times(picture):
    assert pixel(picture) == (GREY,) * 3


def test_black_and_white_is_black_and_white():
    assert pixel(Image.new("1", (3, 3), 1)) == (255,) * 3
    assert pixel(Image.new("1", (3, 3), 0)) == (0,) * 3


def test_transparent_parts_are_white_as_in_a_viewer():
    assert pixel(Image.new("RGBA", (3, 3), (*COLOUR, 0))) == (255,) * 3
    half = (np.array(COLOUR) + 255) / 2
    np.testing.assert_allclose(pixel(Image.new("RGBA", (3, 3), (*COLOUR, 128))), half, atol=1)
    np.testing.assert_allclose(pixel(Image.new("LA", (3, 3), (10, 128))), (10 + 255) / 2, atol=1)
    premultiplied = Image.new("RGBA", (3, 3), (*COLOUR, 128)).convert("RGBa")
    np.testing.assert_allclose(pixel(premultiplied), half, atol=2)


def test_a_palette_with_a_transparent_colour_is_white_there(tmp_path):
    picture = Image.new("P", (2, 1))
    picture.putpalette([*COLOUR, 0, 0, 0])
    picture.putpixel((1, 0), 1)
    picture.save(tmp_path / "a.png", transparency=1)
    image = read_image(tmp_path / "a.png")
    assert image[:, 0, 0].tolist() == list(COLOUR)
    assert image[:, 0, 1].tolist() == [255] * 3


@pytest.mark.parametrize("orientation", VIEWS)
def test_a_photo_is_turned_upright_as_the_camera_noted(tmp_path, orientation):
    stored = numbers((6, 9, 3))
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = file_of(stored, tmp_path / "a.png", "PNG", exif=exif)
    np.testing.assert_array_equal(read_image(path).permute(1, 2, 0), VIEWS[orientation](stored))


def test_a_sixteen_bit_png_is_not_cut_off(tmp_path):
    values = np.array([[0, 257, 65535, 30000]], np.uint16)
    path = file_of(values, tmp_path / "a.png", "PNG")
    assert read_image(path)[0, 0].tolist() == [0, 1, 255, round(30000 / 257)]


def test_of_an_animation_the_first_picture_is_taken(tmp_path):
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert pixel(tmp_path / "a.gif") == (255, 0, 0)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 9), st.integers(1, 9), st.sampled_from([1, 3]), st.sampled_from(["array", "tensor"]))
def test_every_way_to_hold_the_same_eight_bits_gives_the_same_tensor(height, width, channels, kind):
    array = numbers((height, width, channels))
    expected = torch.from_numpy(np.moveaxis(np.broadcast_to(array, (height, width, 3)), -1, 0).copy())
    for values in (array, array.astype(np.int64), array.astype(np.uint16) * 257, array / 255, array / np.float32(255)):
        if kind == "tensor":
            values = torch.from_numpy(np.moveaxis(values, -1, 0).copy())
        elif channels == 1:
            assert torch.equal(read_image(values[..., 0]), read_image(values))
        assert torch.equal(read_image(values), expected)
    assert torch.equal(read_image(expected), expected)


def test_half_precision_with_gradients_and_booleans_are_read_too():
    grey = torch.full((1, 2, 2), 0.5, dtype=torch.bfloat16, requires_grad=True)
    assert pixel(grey) == (128,) * 3
    assert pixel(torch.ones(2, 2, dtype=torch.bool)) == (255,) * 3
    assert pixel(torch.tensor([200, 100, 50, 0]).view(4, 1, 1)) == (255,) * 3  # fully transparent


def test_nothing_is_shared_with_the_source():
    array = np.zeros((1, 1, 3), np.uint8)
    read_image(array)[:] = 9
    assert array.max() == 0


@pytest.mark.parametrize(
    ("source", "words"),
    [
        (np.zeros((3, 5, 7)), r"shape \(3, 5, 7\).*\(H, W, 3\)"),
        (torch.zeros(2, 3, 5, 5), r"shape \(2, 3, 5, 5\).*\(3, H, W\)"),
        (torch.randn(3, 5, 5, generator=torch.Generator().manual_seed(0)), "floats from 0 to 1, before any normal"),
        (np.full((2, 2), np.nan), "from nan to nan"),
        (np.full((2, 2), 70000), "whole numbers from 0 to 65535"),
        (np.full((2, 2), -1), "from -1 to -1"),
        (np.zeros((2, 2), complex), "values of type complex128"),
        (np.zeros((0, 4, 3), np.uint8), "no pixels"),
        (Image.new("RGB", (0, 4)), "no pixels"),
        (Image.new("F", (2, 2), 300), "The image: .* from 300 to 300"),
        (None, "NoneType is no image"),
    ],
)
def test_what_is_no_image_is_said_in_one_sentence(source, words):
    with pytest.raises(UserError, match=words):
        read_image(source)


def test_files_that_cannot_be_read_are_named_with_the_reason(tmp_path, monkeypatch):
    (tmp_path / "empty.png").touch()
    (tmp_path / "text.jpg").write_text("a recipe for bread")
    whole = file_of(numbers((64, 64, 3)), tmp_path / "whole.jpg", "JPEG").read_bytes()
    (tmp_path / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "locked.png").write_bytes(b"x")
    reasons = {
        "empty.png": "is empty; save",
        "text.jpg": "is no image that Pillow can read",
        "cut.jpg": r"is damaged \(.*truncated",
        "none.png": "There is no file",
        ".": "is a folder",
    }
    for name, reason in reasons.items():
        with pytest.raises(UserError, match=reason) as raised:
            read_image(tmp_path / name)
        assert str(tmp_path) in str(raised.value)
        assert "\n" not in str(raised.value)

    def refuse(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Image, "open", refuse)
    with pytest.raises(UserError, match="may not be read; grant"):
        read_image(tmp_path / "locked.png")


def test_a_picture_too_large_to_open_safely_is_refused_and_a_large_one_read_without_a_warning(tmp_path, monkeypatch):
    path = file_of(numbers((40, 40, 3)), tmp_path / "a.png", "PNG")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)  # Pillow warns above it, and refuses above twice as many
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read_image(path).shape == (3, 40, 40)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 500)
    with pytest.raises(UserError, match="more pixels than Pillow opens safely; make it smaller first"):
        read_image(path)


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(["PNG", "JPEG", "GIF", "TIFF", "BMP", "WEBP"]), st.data())
def test_a_damaged_file_gives_an_image_or_one_sentence_and_nothing_else(tmp_path_factory, kind, data):
    picture = Image.new("RGB", (24, 16), COLOUR)
    ImageDraw.Draw(picture).ellipse((4, 2, 18, 12), "blue")
    buffer = io.BytesIO()
    picture.save(buffer, kind)
    content = bytearray(buffer.getvalue())
    for place in data.draw(st.lists(st.integers(0, len(content) - 1), min_size=1, max_size=8)):
        content[place] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.mktemp("damaged") / "a"
    path.write_bytes(content[: data.draw(st.integers(1, len(content)))])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with contextlib.suppress(UserError):
            assert read_image(path).dtype == torch.uint8


def test_eight_bits_rounds_to_the_nearest_level():
    values = np.linspace(0, 1, 1001)
    assert np.abs(eight_bits(values) - values * 255).max() <= 0.5


def write_film(path, frames):
    av = pytest.importorskip("av", reason="films need the extra video (package av)")
    with av.open(str(path), "w") as film:
        stream = film.add_stream("mpeg4", rate=5)
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = "yuv420p"
        for frame in frames:
            film.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        film.mux(stream.encode())
    return path


def test_a_film_is_read_picture_by_picture_or_one_of_so_many(tmp_path):
    frames = [np.full((32, 48, 3), level, np.uint8) for level in (40, 90, 140, 190, 240)]
    path = write_film(tmp_path / "a.mp4", frames)
    for every in (1, 2):
        found = list(film_frames(path, every))
        assert [number for number, _ in found] == list(range(0, 5, every))
        for number, frame in found:
            assert frame.shape == (3, 32, 48)
            assert float((frame.float() - frames[number][0, 0, 0]).abs().mean()) < 6  # the codec loses a little


def test_what_is_no_film_is_said_in_one_sentence(tmp_path):
    pytest.importorskip("av", reason="films need the extra video (package av)")
    (tmp_path / "a.mp4").write_text("no film")
    with pytest.raises(UserError, match="is no film that FFmpeg can read"):
        list(film_frames(tmp_path / "a.mp4"))


@pytest.mark.parametrize("every", [0, -1, 0.5])
def test_a_step_through_a_film_that_is_no_whole_number_is_refused_before_the_film_is_opened(tmp_path, every):
    with pytest.raises(UserError, match=f"every is {every}; give a whole number of at least 1"):
        list(film_frames(tmp_path / "none.mp4", every))


def test_without_the_package_a_film_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(UserError, match="install it with 'pip install av'"):
        list(film_frames(tmp_path / "a.mp4"))
