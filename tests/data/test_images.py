"""Images go in as files, arrays or text and come out as they were; what is no image is said, and the rest goes on."""

from __future__ import annotations

import base64
import io
import os
import struct
import warnings
import zlib

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from anomaly_vae.data.images import ImageSchema, Looks, frame_of
from anomaly_vae.data.pixels import NamedFile, in_order, pixels_of
from anomaly_vae.errors import SchemaError, UnreadableImageError

GREY = ImageSchema(height=6, width=5, channels=1)
RGB = ImageSchema(height=6, width=5, channels=3)
RAMP = np.arange(30, dtype=np.uint8).reshape(6, 5) * 8
COLOUR = np.stack([RAMP, RAMP[::-1], RAMP[:, ::-1]], axis=-1)


def encoded(image: np.ndarray | Image.Image, kind: str = "PNG", **options: object) -> bytes:
    file = io.BytesIO()
    pillow = image if isinstance(image, Image.Image) else Image.fromarray(image)
    pillow.save(file, kind, **options)
    return file.getvalue()


def column(*cells: object) -> pd.DataFrame:
    return pd.DataFrame({"image": pd.Series(cells, dtype=object)})


def png_header(width: int, height: int) -> bytes:
    """A PNG that declares a size and holds next to nothing."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(b"\0" * 1000)) + chunk(b"IEND", b"")


def webp_header(width: int, height: int) -> bytes:
    body = struct.pack("<I", 0) + (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    chunk = b"VP8X" + struct.pack("<I", len(body)) + body
    return b"RIFF" + struct.pack("<I", 4 + len(chunk)) + b"WEBP" + chunk


def frames(kind: str) -> bytes:
    images = [Image.fromarray(RAMP), Image.fromarray(RAMP[::-1])]
    return encoded(images[0], kind, save_all=True, append_images=images[1:], duration=50)


def bytes_of_tiff(mode: str) -> bytes:
    return encoded(Image.fromarray(COLOUR).convert(mode), "TIFF")


@settings(max_examples=40, deadline=None)
@given(data=st.data(), channels=st.sampled_from([1, 3]), height=st.integers(1, 9), width=st.integers(1, 9))
def test_what_is_encoded_comes_back(data, channels, height, width):
    n = data.draw(st.integers(1, 4))
    images = data.draw(arrays(np.uint8, (n, height, width, channels)))
    schema = ImageSchema(height=height, width=width, channels=channels)
    x = schema.encode(frame_of(images))
    assert x.shape == (n, schema.width_flat)
    assert (x.reshape(n, channels, height, width) == images.transpose(0, 3, 1, 2)).all()
    assert (schema.encode_array(images) == x).all()
    assert (schema.encode(schema.decode(x)) == x).all()
    assert (schema.encode(frame_of(schema.pixels(x))) == x).all()
    texts = [base64.b64encode(cell).decode() for cell in schema.decode(x)["image"]]
    assert (schema.encode(column(*texts)) == x).all()


@settings(max_examples=30, deadline=None)
@given(image=arrays(np.uint8, (6, 5)), dtype=st.sampled_from(["float32", "float64", "uint16", ">u2", "int64", "list"]))
def test_every_dtype_says_the_same(image, dtype):
    if dtype == "list":
        cell: object = image.tolist()
    elif dtype.startswith("float"):
        cell = (image / 255).astype(dtype)
    else:
        cell = (image.astype(int) * (257 if dtype in ("uint16", ">u2") else 1)).astype(dtype)
    assert (GREY.encode(column(cell)) == image.reshape(1, -1)).all()
    if dtype != "list":
        assert (GREY.encode_array(cell[None]) == image.reshape(1, -1)).all()


def test_bool_is_black_and_white():
    assert GREY.encode(column(RAMP > 100)).tolist() == (255 * (RAMP > 100)).reshape(1, -1).tolist()


@pytest.mark.parametrize(
    "cell",
    [
        encoded(COLOUR),
        encoded(COLOUR, "WebP", lossless=True),
        encoded(COLOUR, "TIFF"),
        encoded(COLOUR, "TIFF", compression="tiff_lzw"),
        bytearray(encoded(COLOUR)),
        memoryview(encoded(COLOUR)),
        base64.b64encode(encoded(COLOUR)).decode(),
        "data:image/png;base64," + base64.encodebytes(encoded(COLOUR)).decode(),
        Image.fromarray(COLOUR),
        COLOUR,
        COLOUR.tolist(),
        encoded(Image.fromarray(COLOUR).convert("RGBA")),
        encoded(Image.fromarray(COLOUR).quantize(64)),
    ],
    ids=lambda cell: f"{type(cell).__name__}-{len(cell) if hasattr(cell, '__len__') else ''}",
)
def test_every_kind_of_cell_is_the_same_image(cell):
    assert (RGB.encode(column(cell)).reshape(3, 6, 5) == COLOUR.transpose(2, 0, 1)).all()


def test_jpeg_is_nearly_the_same_image():
    smooth = np.add.outer(np.arange(64), np.arange(64)).astype(np.uint8)
    got = ImageSchema(height=64, width=64, channels=1).encode(column(encoded(smooth, "JPEG", quality=95)))
    assert np.abs(got.reshape(64, 64).astype(int) - smooth).max() <= 4


@pytest.mark.parametrize(
    ("cell", "want"),
    [
        (encoded(Image.fromarray(RAMP).convert("1", dither=Image.Dither.NONE)), np.where(RAMP >= 128, 255, 0)),
        (encoded(RAMP.astype(np.uint16) * 257), RAMP),
        (encoded(RAMP.astype(np.uint16) * 257, "TIFF"), RAMP),
        (encoded((RAMP / 255).astype(np.float32), "TIFF"), RAMP),
        (encoded(np.stack([RAMP] * 3, -1)), RAMP),
        (encoded(np.dstack([RAMP, np.full((6, 5), 255, np.uint8)])), RAMP),
        (encoded(np.dstack([RAMP, np.zeros((6, 5), np.uint8)])), np.full((6, 5), 255)),
        (encoded(np.dstack([RAMP] * 3 + [np.zeros((6, 5), np.uint8)])), np.full((6, 5), 255)),
        (encoded(Image.fromarray(RAMP), transparency=80), np.where(RAMP == 80, 255, RAMP)),
    ],
    ids=["bilevel", "png16", "tiff16", "tiff-float", "equal-rgb", "opaque", "transparent", "clear-rgb", "colour-key"],
)
def test_modes_become_grey(cell, want):
    assert GREY.encode(column(cell)).reshape(6, 5).tolist() == want.tolist()


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF", "WebP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_honoured(kind, orientation):
    """One dark corner, turned by the tag to where it belongs."""
    upright = np.full((32, 16), 255, np.uint8)
    upright[:16, :8] = 0
    back = {
        1: lambda a: a,
        2: np.fliplr,
        3: lambda a: a[::-1, ::-1],
        4: np.flipud,
        5: np.transpose,
        6: np.rot90,
        7: lambda a: a[::-1, ::-1].T,
        8: lambda a: np.rot90(a, -1),
    }
    exif = Image.Exif()
    exif[0x0112] = orientation
    cell = encoded(np.ascontiguousarray(back[orientation](upright)), kind, exif=exif)
    got = pixels_of(cell)
    assert got.shape[:2] == (32, 16)
    grey = got if got.ndim == 2 else got[..., 0]
    assert (np.abs(grey.astype(int) - upright) < 60).all()


def test_damaged_exif_costs_nothing():
    cell = encoded(RAMP, exif=b"Exif\0\0MM\0*\xff\xff\xff\xff rubbish")
    assert pixels_of(cell).tolist() == RAMP.tolist()


BAD = {
    "missing": (None, "got a missing cell"),
    "nan": (float("nan"), "got a missing cell"),
    "na": (pd.NA, "got a missing cell"),
    "number": (3, "must be the bytes of an image file, base64 text or an array, got int"),
    "empty": (b"", "got an empty file"),
    "text": (
        b"hello world, this is no image",
        "must be PNG, JPEG, WebP or TIFF, got bytes that start with b'hello wo'",
    ),
    "path": ("cats/1.png", "Paths are not opened"),
    "base64 of text": (base64.b64encode(b"hello").decode(), "got bytes that start with b'hello'"),
    "gif": (encoded(RAMP, "GIF"), "must be PNG, JPEG, WebP or TIFF, got GIF"),
    "animated gif": (frames("GIF"), "must be PNG, JPEG, WebP or TIFF, got GIF"),
    "animated webp": (frames("WebP"), "must be a single image, got 2 frames"),
    "animated png": (frames("PNG"), "must be a single image, got 2 frames"),
    "pages": (frames("TIFF"), "must be a single image, got several pages"),
    "cmyk jpeg": (encoded(Image.fromarray(COLOUR).convert("CMYK"), "JPEG"), "must be grey or RGB, got CMYK"),
    "cmyk tiff": (bytes_of_tiff("CMYK"), "must be grey or RGB, got CMYK"),
    "lab": (bytes_of_tiff("LAB"), "must be grey or RGB, got LAB"),
    "truncated png": (encoded(np.random.default_rng(0).integers(0, 256, (40, 40), np.uint8))[:-200], "whole PNG file"),
    "truncated jpeg": (encoded(COLOUR, "JPEG")[:-40], "whole JPEG file"),
    "truncated webp": (encoded(COLOUR, "WebP")[:-30], "whole WebP file"),
    "truncated tiff": (encoded(COLOUR, "TIFF")[:-50], "whole TIFF file"),
    "header only": (encoded(COLOUR)[:10], "whole PNG file"),
    "bomb": (png_header(20_000, 20_000), "must have at most 64,000,000 pixels, got 20,000 x 20,000"),
    "long bomb": (png_header(2**31 - 1, 2**31 - 1), "must have at most 64,000,000 pixels"),
    "webp bomb": (webp_header(16_000, 16_000), "must have at most 64,000,000 pixels, got 16,000 x 16,000"),
    "float 0 to 255": (RAMP.astype(float), r"must lie in \[0, 1\] as a float image, got 0 to 232. Divide by 255"),
    "negative float": (RAMP / 255 - 0.5, r"must lie in \[0, 1\] as a float image, got -0.5"),
    "nan pixel": (np.where(RAMP == 8, np.nan, 0.5), "must hold finite values"),
    "large integers": (RAMP.astype(int) * 9, "must hold integers from 0 to 255, got 0 to 2088"),
    "complex": (RAMP * 1j, "must hold numbers, got an array of complex128"),
    "ragged": ([[1, 2], [3]], "lists that differ in length"),
    "strings": ([["a", "b"], ["c", "d"]], "must hold numbers"),
    "channels first": (np.zeros((3, 6, 5), np.uint8), "Channels come last"),
    "four channels": (np.zeros((6, 5, 4), np.uint8), r"must have the shape .* got \(6, 5, 4\)"),
    "vector": (np.zeros(30, np.uint8), r"must have the shape .* got \(30,\)"),
    "no pixels": (np.zeros((0, 5), np.uint8), "must have pixels"),
    "colour": (encoded(COLOUR), "must be grey like the images the model was trained on, got colour"),
    "colour array": (COLOUR, "must be grey like the images the model was trained on, got colour"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_image_is_one_clear_line_and_the_rest_goes_on(name):
    cell, reason = BAD[name]
    frame = column(RAMP, cell, encoded(RAMP), cell, RAMP).set_axis(list("abcde"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        x, faults = GREY.encode_each(frame)
    assert (x == RAMP.reshape(1, -1)).all()
    assert len(x) == 3
    assert [i for i, _ in faults] == [1, 3]
    with pytest.raises(SchemaError, match=reason) as caught:
        GREY.encode(frame)
    assert str(caught.value).startswith("the image in row 'b' must ")
    assert "1 more of 5 images" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 320
    assert (caught.value.row, caught.value.column, len(caught.value.faults)) == ("b", "image", 2)
    with pytest.raises(UnreadableImageError):  # alone, too, and whatever it is asked for
        GREY._encode_cell(cell)


def test_a_fault_in_an_array_names_its_row_and_keeps_the_rest():
    images = np.zeros((1500, 6, 5))
    images[[3, 1400]] = 7.0
    x, faults = GREY.encode_each(frame_of(images))
    assert len(x) == 1498
    assert [i for i, _ in faults] == [3, 1400]
    with pytest.raises(SchemaError, match=r"the image in row 3 must lie in \[0, 1\].*1 more of 1500"):
        GREY.encode_array(images)


def test_files_too_long_are_neither_read_nor_decoded(tmp_path, monkeypatch):
    monkeypatch.setattr("anomaly_vae.data.pixels.MOST_BYTES", 1 << 20)
    with (tmp_path / "a.png").open("wb") as file:
        file.truncate(3 << 20)
    for cell in (encoded(RAMP) + bytes(3 << 20), NamedFile(tmp_path / "a.png", "a.png"), "A" * (4 << 20)):
        with pytest.raises(UnreadableImageError, match="must be at most 1 MiB as a file, got 3 MiB"):
            pixels_of(cell)


def test_a_name_must_agree_with_the_content(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(encoded(COLOUR, "JPEG"))
    with pytest.raises(UnreadableImageError, match=r"must have the suffix of its content, got '\.png' for JPEG"):
        pixels_of(NamedFile(path, "a.png"))
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(UnreadableImageError, match="must be a regular file"):
        pixels_of(NamedFile(tmp_path / "pipe.png", "pipe.png"))
    with pytest.raises(UnreadableImageError, match="must be readable, got 'No such file"):
        pixels_of(NamedFile(tmp_path / "b.png", "b.png"))


def test_colour_is_replicated_from_grey_and_refused_by_grey():
    assert (RGB.encode(column(RAMP)).reshape(3, -1) == RAMP.reshape(1, -1)).all()
    assert (GREY.encode(column(np.stack([RAMP] * 3, -1))) == RAMP.reshape(1, -1)).all()


def test_resizing_does_not_alias():
    stripes = np.zeros((240, 200), np.uint8)
    stripes[:, ::2] = 255  # thinner than a pixel of the result: without a filter all black or all white
    for cell in (stripes, encoded(stripes), Image.fromarray(stripes)):
        got = GREY.encode(column(cell))
        assert (np.abs(got.astype(int) - 127) <= 1).all()


@pytest.mark.parametrize(
    ("sizes", "want"),
    [
        ([(28, 28)] * 3, (28, 28)),
        ([(9, 128)] * 3, (9, 128)),
        ([(130, 130)] * 3, (64, 64)),
        ([(1000, 2000)], (32, 64)),
        ([(2000, 1000)], (64, 32)),
        ([(20, 20), (22, 22), (23, 23)], (24, 24)),
        ([(10, 1000)] * 2, (8, 64)),
        ([(30, 40), (300, 400), (3000, 4000)], (48, 64)),
    ],
)
def test_the_size_follows_the_stated_rule(sizes, want):
    assert ImageSchema.of_looks([Looks(h, w, False) for h, w in sizes]).size == want


def test_a_set_of_mixed_modes_and_sizes_is_rgb():
    frame = column(RAMP, encoded(COLOUR), encoded(np.zeros((40, 60), np.uint8)), np.zeros((9, 9), bool))
    schema = ImageSchema.fit(frame)
    assert schema.channels == 3
    assert schema.encode(frame).shape == (4, schema.width_flat)
    assert ImageSchema.fit(column(RAMP, np.stack([RAMP] * 3, -1))).channels == 1
    assert ImageSchema.fit(frame, size=16).size == (16, 16)
    assert ImageSchema.fit(frame, size=(16, 24)).size == (16, 24)
    assert ImageSchema.fit(np.stack([COLOUR] * 2)).shape == (3, 6, 5)


def test_one_image_is_a_set():
    assert ImageSchema.fit(column(RAMP)) == GREY


def test_bad_sets_are_said():
    with pytest.raises(SchemaError, match="images must have rows, got none"):
        ImageSchema.fit(column())
    with pytest.raises(SchemaError, match="the image in row 1 must be an image, got a missing cell"):
        ImageSchema.fit(column(RAMP, None))
    with pytest.raises(SchemaError, match=r"the image in row 2 must lie in \[0, 1\]"):
        ImageSchema.fit(np.array([0.0, 1.0, 2.0])[:, None, None] * np.ones((3, 6, 5)))
    with pytest.raises(SchemaError, match=r"must have the shape .*got \(4, 6\)"):
        ImageSchema.fit(np.zeros((4, 6)))
    with pytest.raises(SchemaError, match="Channels come last"):
        frame_of(np.zeros((4, 3, 6, 5)))
    with pytest.raises(SchemaError, match=r"must have the column 'image', got none. Is it 'Image'\? Rename it."):
        GREY.encode(pd.DataFrame({"Image": [RAMP], "other": [1]}))
    with pytest.raises(SchemaError, match="got 'image' more than once"):
        GREY.encode(pd.DataFrame([[1, 2]], columns=["image", "image"]))
    with pytest.raises(SchemaError, match="height of images must be a whole number from 1 to 1024, got 0"):
        ImageSchema.fit(column(RAMP), size=0)


def test_other_columns_do_not_matter_and_no_rows_are_no_error():
    frame = column(RAMP).assign(file="a.png", label=3)
    assert (GREY.encode(frame) == RAMP.reshape(1, -1)).all()
    assert GREY.encode(frame[:0]).shape == (0, 30)


def test_a_schema_survives_storage_and_no_other_does():
    schema = ImageSchema(height=8, width=12, channels=3, column="photo")
    facts = schema.to_dict()
    assert ImageSchema.from_dict(facts) == schema
    for bad in (
        {"channels": 2},
        {"height": 0},
        {"height": True},
        {"width": 8.0},
        {"column": ""},
        {"kind": "table"},
        {"x": 1},
    ):
        with pytest.raises(SchemaError):
            ImageSchema.from_dict({**facts, **bad})
    with pytest.raises(SchemaError):
        ImageSchema.from_dict({"columns": []})


def test_drawn_values_become_images():
    drawn = np.array([[-3.0, 300.0] + [1.4] * 28])
    assert GREY.pixels(drawn).reshape(-1)[:3].tolist() == [0, 255, 1]
    assert GREY.decode(drawn)["image"][0].startswith(b"\x89PNG")


def test_threads_keep_the_order_and_do_not_run_ahead():
    taken: list[int] = []

    def items():
        for i in range(1000):
            taken.append(i)
            yield i

    results = in_order(lambda i: i * i, items(), workers=4)
    assert next(results) == 0
    assert len(taken) < 50
    assert list(results) == [i * i for i in range(1, 1000)]


def test_parallel_and_serial_give_the_same(monkeypatch):
    rng = np.random.default_rng(0)
    cells = [encoded(rng.integers(0, 256, (rng.integers(5, 90), 40), np.uint8)) for _ in range(80)]
    cells[7] = cells[60] = b"no"
    schema = ImageSchema(height=16, width=16, channels=1)
    serial = schema.encode_each(column(*cells))
    monkeypatch.setattr("anomaly_vae.data.images._LIGHT", 0)
    parallel = schema.encode_each(column(*cells))
    assert (serial[0] == parallel[0]).all()
    assert serial[1] == parallel[1]
    alone = [schema.encode(column(cell))[0] for cell in cells if len(cell) > 2]
    assert (np.stack(alone) == serial[0]).all()
