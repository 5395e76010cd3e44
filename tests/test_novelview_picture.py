"""Pictures from users: every odd file is either read rightly or refused in one line."""

from __future__ import annotations

import errno
import os
import struct
import sys
import warnings
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms, ImageDraw, ImageFilter

from distill.conditions import picture
from distill.conditions.background import plain_background
from distill.conditions.cutout import (
    Frame,
    cut_out,
    frame_of,
    over_white,
    read_map,
    read_rgba,
    rembg_model,
    without_background,
)
from distill.conditions.framing import settled
from distill.run.config.compose import compose_config
from distill.silhouettes import silhouette_iou

RED, GREEN = (220, 30, 30), (30, 160, 40)


def scene(size: int = 64, background: tuple[int, int, int] = (255, 255, 255)) -> np.ndarray:
    """A red ring, 24 pixels wide and 16 high, whose hole shows the background, left of the middle."""
    picture = np.full((size, size, 3), background, np.uint8)
    picture[20:36, 8:32] = RED
    picture[26:30, 16:24] = background
    return picture


def test_a_plain_background_is_removed_and_so_is_the_hole() -> None:
    for background in ((255, 255, 255), (90, 120, 200)):
        mask = plain_background(scene(background=background), "p.png")
        assert mask.sum() / 255 == 24 * 16 - 8 * 4
        assert mask[28, 20] == 0
        assert mask[22, 10] == 255


def test_noise_and_a_part_of_nearly_the_background_inside_stay_apart() -> None:
    """A white shirt button is not a hole: it is not quite the background's colour."""
    noisy = scene(background=(200, 200, 200)).astype(int)
    noisy += np.random.default_rng(0).integers(-2, 3, noisy.shape)
    noisy[26:30, 16:24] = 212
    mask = plain_background(noisy.clip(0, 255).astype(np.uint8), "p.png")
    assert mask[28, 20] == 255
    assert mask[0, 0] == 0


def test_the_object_is_centred_and_scaled(tmp_path: Path) -> None:
    Image.fromarray(scene()).save(tmp_path / "p.png")
    found, frame = cut_out(tmp_path / "p.png", 64, fill=0.75)
    assert (frame.left, frame.top, frame.side) == (20 - 16, 28 - 16, 32)
    rows, columns = (torch.where((found.mask[0] > 0.5).any(axis))[0] for axis in (1, 0))
    assert (int(columns[0]), int(columns[-1]) + 1) == (8, 56)  # three quarters of 64, in the middle
    assert (int(rows[0]), int(rows[-1]) + 1) == (16, 48)
    torch.testing.assert_close(found.rgb[:, 20, 12], torch.tensor(RED) / 255)
    torch.testing.assert_close(found.rgb[:, 2, 2], torch.ones(3))


def test_left_where_it_is_a_picture_is_only_made_square(tmp_path: Path) -> None:
    Image.fromarray(scene()[:40]).save(tmp_path / "p.png")
    found, frame = cut_out(tmp_path / "p.png", 64, recentre=False)
    assert (frame.left, frame.top, frame.side) == (0, -12, 64)
    assert found.mask[0, 12 + 22, 10] == 1
    assert found.mask[0, :12].sum() == 0


def test_an_alpha_channel_is_believed(tmp_path: Path) -> None:
    rgba = np.zeros((32, 32, 4), np.uint8)
    rgba[8:24, 8:24] = (*RED, 255)
    rgba[8:24, 24:26] = (*GREEN, 128)
    Image.fromarray(rgba).save(tmp_path / "p.png")
    found, _ = cut_out(tmp_path / "p.png", 32, recentre=False)
    torch.testing.assert_close(found.mask[0, 10, 24], torch.tensor(128 / 255))
    over_white = torch.tensor(GREEN) / 255 * (128 / 255) + (1 - 128 / 255)
    torch.testing.assert_close(found.rgb[:, 10, 24], over_white)


def test_rotated_by_exif_means_upright(tmp_path: Path) -> None:
    picture = Image.fromarray(scene())
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: show it 90 degrees clockwise
    picture.save(tmp_path / "p.jpg", exif=exif, quality=100, subsampling=0)
    turned = np.asarray(read_rgba(tmp_path / "p.jpg").convert("RGB")).astype(int)
    assert np.abs(turned - np.rot90(scene(), -1)).mean() < 4


def profile(space: bytes) -> bytes:
    """A minimal ICC profile (ICC.1:2022) of linear values; of RGB, sRGB's primaries for D50, red's in blue's place and so on."""

    def numbers(*values: float) -> bytes:
        return struct.pack(f">{len(values)}i", *(round(value * 65536) for value in values))

    white = (0.9642, 1.0, 0.8249)
    primaries = {
        "g": (0.4360747, 0.2225045, 0.0139322), "b": (0.3850649, 0.7168786, 0.0971045), "r": (0.1430804, 0.0606169, 0.7141733),
    }  # fmt: skip
    linear = b"curv" + bytes(8)
    tags = {b"desc": b"desc" + bytes(4) + struct.pack(">I", 5) + b"test" + bytes(79), b"cprt": b"text" + bytes(8),
            b"wtpt": b"XYZ " + bytes(4) + numbers(*white)}  # fmt: skip
    if space == b"GRAY":
        tags[b"kTRC"] = linear
    else:
        for colour, xyz in primaries.items():
            tags |= {
                f"{colour}XYZ".encode(): b"XYZ " + bytes(4) + numbers(*xyz),
                f"{colour}TRC".encode(): linear,
            }
    table, body, begin = struct.pack(">I", len(tags)), b"", 132 + 12 * len(tags)
    for name, value in tags.items():
        table += name + struct.pack(">II", begin + len(body), len(value))
        body += value + bytes(-len(value) % 4)
    head = struct.pack(">I4sI4s4s4s", begin + len(body), b"none", 0x02100000, b"mntr", space, b"XYZ ")
    return head + bytes(12) + b"acsp" + bytes(28) + numbers(*white) + bytes(48) + table + body


def shown(linear: Any) -> Any:
    """The sRGB bytes of linear ones."""
    value = np.asarray(linear) / 255
    return 255 * np.where(value <= 0.0031308, value * 12.92, 1.055 * value ** (1 / 2.4) - 0.055)


@pytest.mark.parametrize(
    ("name", "mode"),
    [("p.png", mode) for mode in ("RGB", "RGBA", "P", "L", "LA")]
    + [("p.webp", "RGB"), ("p.webp", "RGBA"), ("p.tif", "RGB"), ("p.tif", "RGBA"), ("p.tif", "L")],
)
def test_a_pictures_colours_are_those_of_its_profile(tmp_path: Path, name: str, mode: str) -> None:
    rgba = np.array([[(200, 100, 40, 255), (10, 20, 30, 128)]], np.uint8)
    stored = (
        Image.fromarray(rgba).convert("RGB").quantize(2)
        if mode == "P"
        else Image.fromarray(rgba).convert(mode)
    )
    grey = mode in "LA"
    options: dict[str, Any] = {"lossless": True} if "webp" in name else {}
    stored.save(tmp_path / name, icc_profile=profile(b"GRAY" if grey else b"RGB "), **options)
    expected = shown(np.asarray(stored.convert("RGBA"))[..., :3])
    expected = expected if grey else expected[..., [1, 2, 0]]  # red is stored as blue, green as red
    found = np.asarray(read_rgba(tmp_path / name))
    np.testing.assert_allclose(found[..., :3], expected, atol=1.01)
    np.testing.assert_array_equal(found[0, :, 3], [255, 128 if "A" in mode else 255])
    # A map has values and no colours.
    np.testing.assert_array_equal(np.asarray(read_rgba(tmp_path / name, data=True)), stored.convert("RGBA"))


def test_the_profile_of_srgb_changes_nothing(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 4), np.uint8)
    own = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    Image.fromarray(pixels).save(tmp_path / "p.png", icc_profile=own)
    np.testing.assert_allclose(np.asarray(read_rgba(tmp_path / "p.png")).astype(int), pixels, atol=1)


@pytest.mark.parametrize("broken", [b"none", profile(b"GRAY")])
def test_a_profile_that_does_not_fit_is_left_out_and_said(
    tmp_path: Path, broken: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    Image.fromarray(scene()).save(tmp_path / "p.png", icc_profile=broken)
    np.testing.assert_array_equal(np.asarray(read_rgba(tmp_path / "p.png"))[..., :3], scene())
    (line,) = caplog.messages
    assert line.startswith(f"the colour profile of {tmp_path / 'p.png'} cannot be used") and "\n" not in line


@pytest.mark.slow
def test_sixteen_bits_cmyk_palettes_and_large_ones_are_read(tmp_path: Path) -> None:
    grey = np.full((40, 40), 65535, np.uint16)
    grey[10:30, 10:30] = 20000
    Image.fromarray(grey).save(tmp_path / "deep.png")
    found, _ = cut_out(tmp_path / "deep.png", 40, recentre=False)
    torch.testing.assert_close(found.rgb[:, 20, 20], torch.full((3,), round(255 * 20000 / 65535) / 255))
    assert found.mask.sum() == 400
    Image.fromarray(scene()).convert("CMYK").save(tmp_path / "ink.jpg", quality=100)
    found, _ = cut_out(tmp_path / "ink.jpg", 64)
    assert found.rgb[0, 20, 12] > 0.7 > 0.3 > found.rgb[1, 20, 12]
    Image.fromarray(scene()).convert("P").save(tmp_path / "few.gif")
    assert cut_out(tmp_path / "few.gif", 64)[0].mask.mean() > 0.2
    Image.fromarray(scene()).resize((8000, 8000), Image.Resampling.NEAREST).save(tmp_path / "large.png")
    found, frame = cut_out(tmp_path / "large.png", 64)
    assert frame.side == pytest.approx(4000, abs=16)  # of the file's own pixels
    torch.testing.assert_close(found.rgb[:, 20, 12], torch.tensor(RED) / 255)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("missing.png", "is not there"),
        ("text.png", "cannot be read"),
        ("cut.png", "cannot be read"),
        ("clear.png", "is fully transparent"),
        ("dot.png", "at least 16 x 16 pixels, got 1 x 1"),
        ("speck.png", "is 3 x 3 pixels; give a picture where it has at least 8"),
        ("busy.png", "is not plain"),
        ("blank.png", "nothing in .* stands out"),
    ],
)
def test_what_cannot_be_used_is_refused_in_one_line(tmp_path: Path, name: str, said: str) -> None:
    (tmp_path / "text.png").write_text("not a picture")
    Image.fromarray(scene()).save(tmp_path / "whole.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "whole.png").read_bytes()[:120])
    Image.new("RGBA", (64, 64), (255, 0, 0, 0)).save(tmp_path / "clear.png")
    Image.new("RGB", (1, 1), RED).save(tmp_path / "dot.png")
    speck = np.full((64, 64, 3), 255, np.uint8)
    speck[30:33, 30:33] = RED
    Image.fromarray(speck).save(tmp_path / "speck.png")
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3))
    Image.fromarray(noise.astype(np.uint8)).save(tmp_path / "busy.png")
    Image.new("RGB", (64, 64), (200, 200, 200)).save(tmp_path / "blank.png")
    with pytest.raises(ValueError, match=said) as caught:
        cut_out(tmp_path / name, 64)
    assert "\n" not in str(caught.value)


def test_an_unknown_way_and_a_missing_package_are_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Image.fromarray(scene()).save(tmp_path / "p.png")
    with pytest.raises(ValueError, match="one of auto, keep, rembg, got 'magic'"):
        cut_out(tmp_path / "p.png", 64, background="magic")
    monkeypatch.setitem(sys.modules, "rembg", None)
    with pytest.raises(ValueError, match=r"pip install 'rembg\[cpu\]'"):
        cut_out(tmp_path / "p.png", 64, background="rembg")
    assert cut_out(tmp_path / "p.png", 64, background="keep")[0].mask.min() == 0  # around the square frame


@pytest.fixture
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home without networks."""
    for name in ("U2NET_HOME", "REMBG_HOME", "XDG_DATA_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def test_the_networks_file_is_found_where_rembg_keeps_it(
    nowhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def put(folder: str, name: str) -> Path:
        file = nowhere / folder / f"{name}.onnx"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
        return file

    small = put(".u2net", "u2netp")
    assert rembg_model() == ("u2netp", small)
    now = put(".rembg/models/u2net", "u2net")
    assert rembg_model() == ("u2net", now)
    monkeypatch.setenv("U2NET_HOME", str(nowhere / "own"))
    mine = put("own", "u2net")
    assert rembg_model() == ("u2net", mine)


def test_nothing_is_downloaded_unasked(
    nowhere: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fetch(*given: Any, **options: Any) -> None:
        raise AssertionError("rembg was asked")

    monkeypatch.setitem(sys.modules, "rembg", SimpleNamespace(remove=fetch, new_session=fetch))
    Image.fromarray(scene()).save(tmp_path / "p.png")
    with pytest.raises(
        ValueError, match=r"neither ~/.rembg/models/u2net/u2net.onnx nor ~/.u2net/u2net.onnx"
    ) as told:
        cut_out(tmp_path / "p.png", 64, background="rembg")
    assert "new_session('u2net')" in str(told.value)
    assert "\n" not in str(told.value)


def test_a_busy_background_is_left_to_rembg(
    nowhere: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What stands in for it returns the cut-out picture, as the package's ``remove`` does."""
    given: list[Any] = []

    def remove(image: Image.Image, session: Any) -> Image.Image:
        given.append((image.mode, session))
        mask = Image.new("L", image.size)
        mask.paste(255, (8, 16, 40, 32))
        return Image.merge("RGBA", (*image.split(), mask))

    monkeypatch.setitem(sys.modules, "rembg", SimpleNamespace(remove=remove, new_session=lambda name: name))
    (nowhere / ".u2net").mkdir()
    (nowhere / ".u2net" / "u2net.onnx").touch()
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3))
    Image.fromarray(noise.astype(np.uint8)).save(tmp_path / "busy.png")
    mask = cut_out(tmp_path / "busy.png", 64, background="rembg", recentre=False)[0].mask
    assert given == [("RGB", "u2net")]
    assert mask[0, 16:32, 8:40].min() > 0.9
    assert mask.sum() == pytest.approx(16 * 32, rel=0.1)


def test_u2net_itself_finds_an_object_on_a_photograph(tmp_path: Path) -> None:
    """A true object's render on a photograph of grass that comes with scikit-image, against its true mask."""
    if find_spec("rembg") is None or find_spec("onnxruntime") is None:
        pytest.skip("rembg and onnxruntime are not installed: pip install 'rembg[cpu]'")
    try:
        rembg_model()
    except ValueError as error:
        pytest.skip(str(error))
    import skimage

    from distill.cameras import turntable
    from distill.lab.novel_view.render import from_world, picture

    rgba = picture(from_world("orange-mug-0100", 1), turntable(1, 20.0), 256, 2)
    grass = Image.open(Path(skimage.__file__).parent / "data" / "grass.png").convert("RGB").resize((256, 256))
    grass.paste(Image.fromarray(rgba).convert("RGB"), mask=Image.fromarray(rgba[..., 3]))
    grass.save(tmp_path / "p.png")
    with pytest.raises(ValueError, match="is not plain"):
        cut_out(tmp_path / "p.png", 256)
    found = cut_out(tmp_path / "p.png", 256, background="rembg", recentre=False)[0].mask[0] > 0.5
    assert silhouette_iou(found, torch.from_numpy(rgba[..., 3] > 127)).item() > 0.9


@pytest.mark.parametrize(
    ("head", "said"),
    [
        (b"", "an empty file, which cannot be read here; save the picture again"),
        (b"<?xml version='1.0'?><SVG width='9'></SVG>", "a drawing in SVG, which cannot be read here; save it as PNG or JPEG"),
        (b"<!DOCTYPE html><body>404</body>", "a web page, which cannot be read here; save the picture that it shows"),
        (b"%PDF-1.7", "a PDF, "), (b"%!PS-Adobe", "a drawing in PostScript, "), (b"8BPS" + b"\0" * 50, "a picture of Photoshop, "),
        (b"\xff\x0a" + b"\0" * 50, "a picture in JPEG XL, "), (b"\0\0\0\x18ftypisom" + b"\0" * 50, "a video, "),
        *((b"\0\0\0\x18ftyp" + brand + b"\0" * 50, "a picture in HEIC or AVIF, ") for brand in (b"heic", b"heix", b"hevx", b"mif1", b"avis")),
        (b"\0\0\0\x18ftypcrx " + b"\0" * 50, "a raw picture of a camera, which cannot be read here; save it as PNG or JPEG"),
        (b"RIFF\0\0\0\0AVI LIST", "a video, which cannot be read here; save one of its frames as PNG or JPEG"),
        (b"glTF" + b"\0" * 50, "a mesh in GLB, which cannot be read here; to give it a texture, write mesh=FILE"),
    ],
)  # fmt: skip
def test_a_file_of_another_kind_is_told_as_what_it_is(head: bytes, said: str, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(head)
    with pytest.raises(ValueError, match=r"^.+$") as caught:
        read_rgba(tmp_path / "a.png")
    assert f"a.png is {said}" in str(caught.value)


def test_a_damaged_picture_is_not_taken_for_a_text_that_it_holds(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"\xff\xd8\xff\xe0\0\x10JFIF<svg <html" + b"\0" * 50)
    with pytest.raises(ValueError, match=r"a\.jpg cannot be read: "):
        read_rgba(tmp_path / "a.jpg")


def test_a_picture_that_may_not_be_read_is_told_as_such(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By no other error on the way to what kind of file it is."""

    def denied(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    (tmp_path / "a.png").write_bytes(b"glTF")
    monkeypatch.setattr(Image, "open", denied)
    monkeypatch.setattr(Path, "open", denied)
    with pytest.raises(ValueError, match=r"a\.png cannot be read: .*Permission denied$"):
        read_rgba(tmp_path / "a.png")


def test_a_picture_of_many_pixels_is_read_without_a_word_and_one_of_too_many_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Image.fromarray(scene()).save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 64 * 64 - 1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read_rgba(tmp_path / "a.png").size == (64, 64)
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
        with pytest.raises(
            ValueError, match=r"^image must be a picture of at most 0 million pixels, .* save it smaller$"
        ):
            read_rgba(tmp_path / "a.png")  # fmt: skip


def test_a_frame_far_beyond_a_large_picture_is_no_picture_of_its_size() -> None:
    """An object of 3600 pixels at a fill of 0.2 has a frame of 18000, which Pillow refuses to make."""
    image = Image.new("RGBA", (3600, 3600), (*RED, 255))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = over_white(image, Frame(-7200, -7200, 18000), 50)
    assert found.mask[0, 20:30, 20:30].min() > 0.99 and float(found.mask.mean()) == pytest.approx(
        0.04, abs=1e-3
    )
    torch.testing.assert_close(found.rgb[:, 25, 25], torch.tensor(RED) / 255, atol=1e-2, rtol=0)


def test_maps_are_cut_as_their_picture_was(tmp_path: Path) -> None:
    Image.fromarray(scene()).save(tmp_path / "p.png")
    ramp = np.tile(np.arange(64, dtype=np.uint8)[None] * 4, (64, 1))
    Image.fromarray(ramp).save(tmp_path / "depth.png")
    _, frame = cut_out(tmp_path / "p.png", 32, fill=0.75)
    depth = read_map(tmp_path / "depth.png", frame, 32, (64, 64))[0]
    torch.testing.assert_close(depth[5], torch.arange(4, 36) * 4 / 255)
    Image.new("L", (32, 32)).save(tmp_path / "small.png")
    with pytest.raises(ValueError, match="must be as large as the image, 64 x 64, got 32 x 32"):
        read_map(tmp_path / "small.png", frame, 32, (64, 64))


def test_a_frame_by_hand() -> None:
    alpha = np.zeros((20, 30), np.uint8)
    alpha[4:12, 10:26] = 255
    frame = frame_of(alpha, "p.png", 0.5)
    assert (frame.left, frame.top, frame.side) == (18 - 16, 8 - 16, 32)


def ring_at(x: int, y: int) -> Image.Image:
    """A red ring and bar on transparency, 200 pixels wide; (100, 100) leaves it in the middle."""
    across, down = np.meshgrid(np.arange(200), np.arange(200))
    far = np.hypot(across - x, down - y)
    rgba = np.zeros((200, 200, 4), np.uint8)
    rgba[(far < 40) & (far > 25) | (abs(across - x) < 5) & (down - y < 0) & (down - y > -60)] = (*RED, 255)
    return Image.fromarray(rgba)


def a_model_that_draws(picture: Image.Image | None, offset: float = 0.0) -> Any:
    """A pipeline whose draft is one picture over white, whatever it is shown; None for a model without a code."""

    def pixels(size: int) -> torch.Tensor:
        assert picture is not None
        rgba = torch.from_numpy(np.asarray(picture, np.float32) / 255).movedim(-1, 0)
        rgb = rgba[:3] * rgba[3:] + 1 - rgba[3:]
        return torch.nn.functional.interpolate(rgb[None] * 2 - 1, (size, size), mode="area")

    class Draft:
        size = 16

        def __call__(self, code: torch.Tensor) -> torch.Tensor:
            return pixels(16).expand(len(code), -1, -1, -1)

    turn = picture and SimpleNamespace(draft=Draft(), code=lambda maps, pose: pose)
    return SimpleNamespace(
        model=SimpleNamespace(turn=turn), fourth="distance", size=64, device=torch.device("cpu"), offset=offset,
        encoder=lambda rgb: SimpleNamespace(maps=rgb),
    )  # fmt: skip


def test_a_frame_settles_where_the_model_draws_the_object() -> None:
    """It draws the ring in the middle: the frame moves from the middle of ring and bar to that of the ring."""
    model = a_model_that_draws(ring_at(100, 100))
    frame = settled(model, ring_at(93, 106), Frame(-7, -4, 200), 0.5)  # 10 to the right of it, 10 above
    assert frame.left == pytest.approx(-7, abs=1)
    assert frame.top == pytest.approx(6, abs=1)
    assert frame.side == 200
    far = settled(model, ring_at(60, 100), Frame(0, 0, 200), 0.5)
    assert far.left >= -0.13 * 200  # no further than it may be moved


def test_a_model_that_knows_objects_beside_the_axis_leaves_the_frame() -> None:
    model = a_model_that_draws(ring_at(100, 100), offset=0.25)
    assert settled(model, ring_at(93, 106), Frame(-7, -4, 200), 0.5) == Frame(-7, -4, 200)


def test_a_model_without_a_code_leaves_the_frame() -> None:
    assert settled(a_model_that_draws(None), ring_at(90, 90), Frame(0, 0, 200), 0.5) == Frame(0, 0, 200)


def card(where: tuple[int, int, int, int] = (60, 40, 140, 150)) -> Any:
    """A picture of 200 pixels: a red box on white."""
    image = Image.new("RGB", (200, 200), "white")
    image.paste((200, 30, 30), where)
    return image


def dotted(image: Any) -> Any:
    for x, y in ((10, 10), (180, 20), (25, 185)):
        image.paste((90, 90, 90), (x, y, x + 4, y + 3))
    return image


def framed(image: Any, at: int, width: int = 2) -> Any:
    ImageDraw.Draw(image).rectangle((at, at, 199 - at, 199 - at), outline=(0, 0, 0), width=width)
    return image


def clear(image: Any, corner: int, alpha: int, hidden: tuple[int, int, int] | None = None) -> Any:
    """Its corners are as transparent as said, and of another colour beneath."""
    image = image.convert("RGBA")
    for x in (0, 200 - corner):
        for y in (0, 200 - corner):
            image.paste((*(hidden or (255, 255, 255)), alpha), (x, y, x + corner, y + corner))
    return image


CARDS = {
    "one pixel": lambda: clear(card(), 1, 254),
    "round corners": lambda: clear(card(), 8, 0, (0, 0, 0)),
    "specks": lambda: dotted(card()),
    "a frame inside": lambda: framed(card(), 5),
    "a frame at the edge": lambda: framed(card(), 0, 3),
    "all": lambda: clear(framed(dotted(card()), 0), 6, 0),
}


@pytest.mark.parametrize("kind", list(CARDS))
def test_what_surrounds_an_object_is_none_of_it(kind: str, tmp_path: Path) -> None:
    """The box is 80 x 110 pixels about (100, 95), whatever else is in the picture."""
    CARDS[kind]().save(tmp_path / "card.png")
    alpha = np.asarray(without_background(tmp_path / "card.png").getchannel("A"))
    expected = np.zeros((200, 200), bool)
    expected[40:150, 60:140] = True
    assert np.array_equal(alpha > 127, expected)
    _, frame = cut_out(tmp_path / "card.png", 64, fill=0.5)
    assert (frame.left, frame.top, frame.side) == (100 - 110, 95 - 110, 220)


def test_parts_of_an_object_and_channels_that_cut_it_out_are_kept(tmp_path: Path) -> None:
    pair = card()
    pair.paste((30, 30, 200), (150, 60, 170, 80))  # 400 pixels beside 8800
    pair.save(tmp_path / "pair.png")
    assert (
        np.asarray(without_background(tmp_path / "pair.png").getchannel("A"))[60:80, 150:170] == 255
    ).all()
    full = card((5, 5, 195, 195))  # the white around it is no frame
    full.save(tmp_path / "full.png")
    alpha = np.asarray(without_background(tmp_path / "full.png").getchannel("A"))
    assert (alpha > 127).sum() == 190 * 190
    own = card().convert("RGBA")
    own.putalpha(Image.new("L", (200, 200)))
    own.paste((255, 255, 255, 255), (50, 50, 100, 100))  # white, and only alpha tells it
    own.save(tmp_path / "own.png")
    assert (np.asarray(without_background(tmp_path / "own.png").getchannel("A")) > 127).sum() == 2500


@pytest.mark.parametrize(("size", "diameter", "least"), [(4000, 32, 0.93), (2000, 100, 0.98)])
def test_a_small_object_is_cut_out_from_its_own_pixels(
    tmp_path: Path, size: int, diameter: int, least: float
) -> None:
    """Drawn small in a large picture, a disc is still one: against the disc's own equation, at 256 pixels."""
    picture = Image.new("RGB", (size, size), (250, 250, 250))
    left, top = int(0.3 * size), int(0.4 * size)
    ImageDraw.Draw(picture).ellipse([left, top, left + diameter - 1, top + diameter - 1], fill=RED)
    picture.save(tmp_path / "p.png", compress_level=1)
    found, frame = cut_out(tmp_path / "p.png", 256)
    assert frame.side == pytest.approx(diameter / 0.75, abs=1)
    assert (frame.left + frame.side / 2, frame.top + frame.side / 2) == pytest.approx(
        (left + diameter / 2, top + diameter / 2), abs=1
    )
    y, x = np.mgrid[:256, :256] - 127.5
    disc = torch.from_numpy(np.hypot(x, y) <= 96).float()[None, None]
    assert silhouette_iou((found.mask > 0.5).float()[None], disc).item() > least


def test_maps_follow_a_frame_of_the_files_own_pixels(tmp_path: Path) -> None:
    depth = np.zeros((2000, 2000), np.uint8)
    depth[1000:1100, 500:600] = 200
    Image.fromarray(depth).save(tmp_path / "d.png")
    found = read_map(tmp_path / "d.png", Frame(500, 1000, 100), 32, of=(2000, 2000))
    torch.testing.assert_close(found, torch.full((3, 32, 32), 200 / 255))


@pytest.mark.parametrize(("factor", "expected"), [(1.0, 255), (0.5, 128), (7.0, 255)])
def test_depth_in_floating_point_keeps_its_range(tmp_path: Path, factor: float, expected: int) -> None:
    ramp = np.linspace(0, factor, 64 * 64, dtype=np.float32).reshape(64, 64)
    ramp[0, 0] = np.nan
    Image.fromarray(ramp).save(tmp_path / "d.tif")
    grey = np.asarray(read_rgba(tmp_path / "d.tif"))[..., 0]
    assert grey[-1, -1] == expected and grey[0, 0] == 0
    assert grey[32, 0] == pytest.approx(expected / 2, abs=1)


def lit(shade: float, softness: float, colour: tuple[int, int, int]) -> tuple[np.ndarray, np.ndarray]:
    """An ellipse over white with an ellipse of black, softened, as its shadow; the picture, and where the first one is."""
    picture, mask, dark = (
        Image.new("RGB", (256, 256), "white"),
        Image.new("L", (256, 256)),
        Image.new("L", (256, 256)),
    )
    ImageDraw.Draw(dark).ellipse([64, 174, 218, 210], fill=int(255 * shade))
    picture.paste((0, 0, 0), mask=dark.filter(ImageFilter.GaussianBlur(softness)))
    ImageDraw.Draw(mask).ellipse([77, 64, 179, 192], fill=255)
    picture.paste(colour, mask=mask)
    return np.asarray(picture), np.asarray(mask) > 0


@pytest.mark.parametrize("colour", [RED, (60, 60, 60), (40, 120, 220)])
@pytest.mark.parametrize("shade", [0.3, 0.6])
def test_a_soft_shadow_is_not_the_object(
    colour: tuple[int, int, int], shade: float, caplog: pytest.LogCaptureFixture
) -> None:
    picture, true = lit(shade, 8, colour)
    found = plain_background(picture, "p.png") > 127
    assert (found & true).sum() / (found | true).sum() > 0.98
    assert "a shadow in p.png is removed" in caplog.text


@pytest.mark.parametrize("colour", [(150, 150, 150), (225, 225, 225)])
def test_a_grey_object_is_no_shadow(colour: tuple[int, int, int], caplog: pytest.LogCaptureFixture) -> None:
    picture, true = lit(0, 8, colour)
    assert ((plain_background(picture, "p.png") > 127) == true).all() and not caplog.text


def test_a_pale_object_that_its_shadow_cannot_be_told_from_keeps_it_and_that_is_said(
    caplog: pytest.LogCaptureFixture,
) -> None:
    picture, true = lit(0.4, 8, (200, 200, 200))
    assert ((plain_background(picture, "p.png") > 127) & true).sum() == true.sum()
    assert "treated as the object, not as a shadow" in caplog.text


def test_a_shadow_with_an_edge_is_kept_and_said(caplog: pytest.LogCaptureFixture) -> None:
    picture, true = lit(0.4, 0, RED)
    assert (plain_background(picture, "p.png") > 127).sum() > 1.2 * true.sum()
    assert "it may be a shadow" in caplog.text


@pytest.mark.parametrize("option", ["depth", "normal"])
def test_a_map_is_named_by_its_option_and_may_lie_in_the_home_folder(
    option: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    Image.fromarray(scene()).save(tmp_path / "p.png")
    config = compose_config(
        [f"image={tmp_path}/p.png", f"reference.{option}='~/map.png'", f"penalties.reference_{option}=1"]
    )
    image, frame = picture.framed(config)
    with pytest.raises(
        ValueError, match=f"reference.{option} must be a picture file, and .*map.png is not there"
    ):
        picture.maps_of(config, frame, image.size, 16)
    Image.new("RGB", image.size, (255, 128, 128)).save(tmp_path / "map.png")
    found = dict(zip(("depth", "normal"), picture.maps_of(config, frame, image.size, 16), strict=True))
    read = found[option]
    assert read is not None and read.shape[-2:] == (16, 16)
