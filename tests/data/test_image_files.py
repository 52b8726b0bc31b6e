"""Folders, arrays and Parquet files of images are one stream; what cannot be read is listed, nothing else lost."""

from __future__ import annotations

import io
import os
import zipfile
import zlib

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from anomaly_vae.data.image_files import DIGITS, ImageError, is_images, open_images, write_errors
from anomaly_vae.data.images import ImageSchema, png_of
from anomaly_vae.errors import SchemaError, UnreadableDataError

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (40, 12, 10), np.uint8)
SCHEMA = ImageSchema(height=12, width=10, channels=1)


def pixels(frame: pd.DataFrame) -> np.ndarray:
    return np.stack(frame["image"].tolist())


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def put(folder, name: str, data: bytes) -> None:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


@pytest.fixture
def folder(tmp_path):
    for i, image in enumerate(IMAGES):
        put(tmp_path / "photos", f"img{i}.png", png_of(image))
    return tmp_path / "photos"


@pytest.fixture
def parquet(tmp_path):
    path = tmp_path / "images.parquet"
    cells = [png_of(image) for image in IMAGES]
    table = pa.table({"id": range(100, 140), "photo": pa.array(cells, pa.binary()), "kind": ["a", "b"] * 20})
    pq.write_table(table, path, row_group_size=16)
    return path


def test_a_folder_is_read_in_natural_order(folder):
    assert is_images(folder)
    source = open_images(folder, batch_rows=16)
    assert (source.count, source.label) == (40, None)
    frames = list(source.batches())
    assert [len(frame) for frame in frames] == [16, 16, 8]
    whole = pd.concat(frames)
    assert whole.columns.tolist() == ["image", "file"]
    assert whole.index.tolist() == list(range(40))
    assert whole["file"].tolist() == [f"img{i}.png" for i in range(40)]
    assert (pixels(whole) == IMAGES).all()
    assert source.errors == []
    pd.testing.assert_frame_equal(source.read().drop(columns="image"), whole.drop(columns="image"))
    assert ImageSchema.fit(whole) == source.fit() == SCHEMA


def test_order_is_total_and_by_folder(tmp_path):
    names = ["a/2.png", "a/10.png", "a10/1.png", "a2/1.png", "01.png", "1.png", "b.png", "B.png", "é.png"]
    for name in names:
        put(tmp_path, name, png_of(IMAGES[0]))
    got = open_images(tmp_path).read()["file"].tolist()
    assert got == ["01.png", "1.png", "B.png", "a/2.png", "a/10.png", "a2/1.png", "a10/1.png", "b.png", "é.png"]


def test_sub_folders_are_classes(tmp_path):
    for i, name in enumerate(["cat/1.png", "cat/2.png", "dog/deep/3.png", "stray.png"]):
        put(tmp_path, name, png_of(IMAGES[i]))
    frame = open_images(tmp_path).read()
    assert frame["label"].tolist() == ["cat", "cat", "dog", None]
    assert open_images(tmp_path, label="kind").read()["kind"].tolist() == ["cat", "cat", "dog", None]
    with pytest.raises(SchemaError, match="must not be called 'image' or 'file'"):
        open_images(tmp_path, label="file")


def test_classes_asked_for_must_be_there(folder):
    with pytest.raises(SchemaError, match="must be the names of sub-folders, got no sub-folder in 'photos'"):
        open_images(folder, label="kind")


def bad_files(folder) -> dict[str, str]:
    """Put one file of every bad kind into a folder; returns what must be said of each."""
    rgb = Image.fromarray(RNG.integers(0, 256, (60, 50, 3), np.uint8))
    more = {"save_all": True, "append_images": [rgb.rotate(90)]}
    bomb = bytearray(encoded(Image.new("L", (8, 8)), "PNG"))
    bomb[16:24] = (20_000).to_bytes(4, "big") * 2
    bomb[29:33] = zlib.crc32(bomb[12:29]).to_bytes(4, "big")
    bad = {
        "1-bomb.png": (bytes(bomb), "must have at most 64,000,000 pixels, got 20,000 x 20,000"),
        "2-cut.jpg": (encoded(rgb, "JPEG")[:-700], "must be a whole JPEG file"),
        "3-jpeg.png": (encoded(rgb, "JPEG"), "must have the suffix of its content, got '.png' for JPEG"),
        "4-text.png": (b"no image at all", "must be PNG, JPEG, WebP or TIFF, got bytes that start with b'no image'"),
        "5-moving.gif": (encoded(rgb, "GIF", **more), "must be PNG, JPEG, WebP or TIFF, got GIF"),
        "6-moving.webp": (encoded(rgb, "WebP", **more), "must be a single image, got 2 frames"),
        "7-pages.tiff": (encoded(rgb, "TIFF", **more), "must be a single image, got several pages"),
        "8-ink.jpg": (encoded(rgb.convert("CMYK"), "JPEG"), "must be grey or RGB, got CMYK"),
        "9-empty.png": (b"", "must hold an image, got an empty file"),
        "10-nameless": (png_of(IMAGES[0]), "must have the suffix of its content, got 'none' for PNG"),
    }
    for name, (data, _) in bad.items():
        put(folder, name, data)
    (folder / "11-broken.png").symlink_to(folder / "absent")
    (folder / "12-folder.png").mkdir()
    os.mkfifo(folder / "13-pipe.png")
    reasons = {name: reason for name, (_, reason) in bad.items()}
    return {**reasons, "11-broken.png": "must be readable, got 'No such file", "13-pipe.png": "must be a regular file"}


def test_bad_files_are_one_line_each_and_the_rest_goes_on(folder, tmp_path):
    reasons = bad_files(folder)
    source = open_images(folder, batch_rows=7)
    frame = source.read(SCHEMA)
    assert (pixels(frame) == IMAGES).all()
    assert frame["file"].tolist() == [f"img{i}.png" for i in range(40)]
    assert source.count == 40 + len(reasons)
    assert [e.file for e in source.errors] == list(reasons)
    for error, row in zip(source.errors, range(len(reasons)), strict=True):
        assert error.reason.startswith(reasons[error.file])
        assert error.row == row
        assert "\n" not in str(error)
    assert frame.index[0] == len(reasons)
    again = source.read()
    assert len(again) == 40
    assert len(source.errors) == len(reasons)  # of one pass, not of two
    write_errors(tmp_path / "errors.csv", source.errors)
    assert pd.read_csv(tmp_path / "errors.csv")["file"].tolist() == list(reasons)


def test_parallel_and_serial_give_the_same(folder, monkeypatch):
    bad_files(folder)
    source = open_images(folder)
    parallel, errors = source.read(), source.errors
    monkeypatch.setattr("anomaly_vae.data.pixels.os.cpu_count", lambda: 1)
    serial = source.read()
    assert errors == source.errors
    assert (pixels(parallel) == pixels(serial)).all()
    assert parallel["file"].tolist() == serial["file"].tolist()


def test_mixed_sizes_and_modes_become_one(tmp_path):
    for i, mode in enumerate(["L", "RGB", "RGBA", "P", "1", "LA", "I;16"]):
        image = Image.fromarray(RNG.integers(0, 256, (30 + i, 40, 3), np.uint8))
        data = encoded(image.convert("L").convert("I").convert(mode) if mode == "I;16" else image.convert(mode), "PNG")
        put(tmp_path, f"{i}.png", data)
    source = open_images(tmp_path)
    frame = source.read()
    assert source.errors == []
    assert pixels(frame).shape == (7, 32, 40, 3)
    one = open_images(tmp_path / "1.png")
    assert is_images(tmp_path / "1.png")
    assert one.count == 1
    assert pixels(one.read(source.fit())).shape == (1, 32, 40, 3)
    grey = ImageSchema(height=32, width=40, channels=1)
    assert open_images(tmp_path).read(grey)["file"].tolist() == ["0.png", "4.png", "5.png", "6.png"]


def test_nothing_outside_a_folder_is_read_and_nothing_is_passed_over_in_silence(folder, tmp_path):
    put(tmp_path, "outside/secret.png", png_of(IMAGES[0]))
    put(folder, ".hidden.png", png_of(IMAGES[0]))
    put(folder, ".git/x.png", png_of(IMAGES[0]))
    put(folder, "notes.txt", b"text")
    put(folder, "more/labels.csv", b"a,b\n")
    (folder / "link.png").symlink_to(tmp_path / "outside/secret.png")
    (folder / "linked").symlink_to(tmp_path / "outside")
    (folder / "up").symlink_to("..")
    (folder / "loop.png").symlink_to("loop.png")
    (folder / "peek.png").symlink_to(".git/x.png")
    (folder / "same.png").symlink_to("img3.png")
    assert is_images(folder)
    source = open_images(folder)
    frame = source.read(SCHEMA)
    assert len(frame) == 41
    assert frame["file"].iloc[-1] == "same.png"
    said = {e.file: e.reason for e in source.errors}
    assert list(said) == [".git", ".hidden.png", "link.png", "linked", "loop.png", "peek.png", "up", "."]
    assert said[".hidden.png"].startswith("must not be hidden")
    assert all(
        said[name].startswith("must be a file in the folder, got a link") for name in ("link.png", "linked", "up")
    )
    assert "got 2 others (1 .csv, 1 .txt)" in said["."]
    assert all(e.row is None for e in source.errors)


def test_a_folder_without_images_is_one_clear_error(tmp_path):
    assert not is_images(tmp_path)
    with pytest.raises(
        UnreadableDataError, match="a folder of images must hold PNG, JPEG, WebP or TIFF files, got none"
    ):
        open_images(tmp_path)
    put(tmp_path, "a.png", b"no")
    put(tmp_path, "b.png", b"no")
    assert is_images(tmp_path)
    with pytest.raises(UnreadableDataError, match=r"must hold a readable image, got none among 2; the first, 'a\.png'"):
        open_images(tmp_path).fit()
    with pytest.raises(UnreadableDataError, match="must hold a readable image"):
        open_images(tmp_path).read(SCHEMA)
    with pytest.raises(UnreadableDataError, match="does not exist"):
        open_images(tmp_path / "absent")
    put(tmp_path, "table.csv", b"a\n1\n")
    with pytest.raises(UnreadableDataError, match=r"got 'table\.csv'"):
        open_images(tmp_path / "table.csv")


@pytest.mark.parametrize("save", ["npy", "npz", "compressed", "fortran", "float", "rgb"])
def test_arrays_are_streamed(tmp_path, save, monkeypatch):
    images = np.asfortranarray(IMAGES) if save == "fortran" else IMAGES / np.float32(255) if save == "float" else IMAGES
    images = np.stack([IMAGES, IMAGES, IMAGES[::-1]], -1) if save == "rgb" else images
    path = tmp_path / ("a.npy" if save in ("npy", "fortran") else "a.npz")
    if path.suffix == ".npy":
        np.save(path, images)
    else:
        (np.savez_compressed if save == "compressed" else np.savez)(path, x=images, y=np.arange(40) % 3)
    assert is_images(path)
    monkeypatch.setattr("anomaly_vae.data.image_source.BATCH_BYTES", 900)
    source = open_images(path)
    frames = list(source.batches())
    assert [len(frame) for frame in frames] == ([2] * 20 if save == "rgb" else [7] * 5 + [5])
    whole = pd.concat(frames)
    assert (pixels(whole) == (images if save == "rgb" else IMAGES)).all()
    assert whole["file"].tolist() == [str(i) for i in range(40)]
    assert whole.index.tolist() == list(range(40))
    if path.suffix == ".npz":
        assert whole["label"].tolist() == (np.arange(40) % 3).tolist()


def test_an_array_is_found_by_its_name(tmp_path):
    path = tmp_path / "set.npz"
    np.savez(path, x_train=IMAGES, y_train=np.arange(40), x_test=IMAGES[:9], y_test=np.arange(9), note=np.zeros(3))
    assert is_images(path)
    with pytest.raises(
        UnreadableDataError, match=r"must have one array of images, got 2 .* Name one: set\.npz:x_train"
    ):
        open_images(path)
    source = open_images(f"{path}:x_test")
    assert is_images(f"{path}:x_test")
    assert (source.count, source.label, source.name) == (9, "label", "set.npz:x_test")
    assert open_images(f"{path}:x_test", label="y_test").read()["y_test"].tolist() == list(range(9))
    with pytest.raises(SchemaError, match=r"labels 'y_train' .* must be an array \(9,\), got int64 \(40,\)"):
        open_images(f"{path}:x_test", label="y_train")
    with pytest.raises(SchemaError, match="got none"):
        open_images(f"{path}:x_test", label="z")
    with pytest.raises(UnreadableDataError, match="must be named, got 'x'"):
        open_images(f"{path}:x")
    with pytest.raises(UnreadableDataError, match=r"must be numbers of the shape .* got float64 \(3,\)"):
        open_images(f"{path}:note")
    np.savez(path, IMAGES)
    assert open_images(path).count == 40
    np.savez(path, a=IMAGES[0])
    with pytest.raises(UnreadableDataError, match="must have an array of images"):
        open_images(path)


def test_a_fault_in_an_array_names_file_and_row(tmp_path):
    images = IMAGES / 255.0
    images[17] = 3.0
    np.save(tmp_path / "a.npy", images)
    source = open_images(tmp_path / "a.npy")
    assert len(source.read()) == 39
    assert [(e.file, e.row) for e in source.errors] == [("a.npy", 17)]
    assert str(source.errors[0]).startswith("'a.npy' (row 17) must lie in [0, 1] as a float image, got 3 to 3.")


class Payload:
    """Would make a folder if it were unpickled."""

    def __init__(self, where: str) -> None:
        self.where = where

    def __reduce__(self):
        return os.mkdir, (self.where,)


def test_pickled_objects_are_refused_and_not_run(tmp_path):
    objects = np.array([Payload(str(tmp_path / "ran"))] * 2, dtype=object)
    np.savez(tmp_path / "a.npz", x=IMAGES, y=objects)
    np.save(tmp_path / "a.npy", objects)
    for name in ("a.npz", "a.npy"):
        with pytest.raises(UnreadableDataError, match="got pickled objects, which could run code"):
            open_images(tmp_path / name)
    assert not (tmp_path / "ran").exists()


def header(shape: object, dtype: str = "|u1") -> bytes:
    text = f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}, }}"
    text = text.ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode()


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (header((10**9, 10**9, 10**9)) + bytes(100), "must hold what its header declares"),
        (header((4, 28, 28)) + bytes(100), "must hold what its header declares"),
        (header((-1, -28, 28)) + bytes(784), "must hold what its header declares"),
        (header((1, 2**40, 2**40, 3), "<V0"), "must be numbers of the shape|must have an array of images"),
        (header((0, 28, 28)), "must be numbers of the shape"),
        (header((2, 3, 6, 5)) + bytes(180), "Channels come last"),
        (header((1, 5, 5), "<c8") + bytes(200), "got (x )?complex64"),
        (header("(" * 5000), "must be a readable array file"),
        (b"\x93NUMPY\x03\x00" + bytes(20), "version"),
        (b"\x93NUMPY\x01\x00\xff\xff" + bytes(20), "must be a readable array file"),
        (b"", "must be a readable array file"),
        (b"text", "must be a readable array file"),
    ],
)
def test_absurd_headers_are_refused_before_anything_is_read(tmp_path, data, reason):
    put(tmp_path, "a.npy", data)
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("x.npy", data)
    for name in ("a.npy", "a.npz"):
        with pytest.raises(UnreadableDataError, match=reason):
            open_images(tmp_path / name)


def test_a_zip_that_declares_too_much_or_is_cut_is_refused(tmp_path, monkeypatch):
    np.savez_compressed(tmp_path / "a.npz", x=np.zeros((3000, 28, 28), np.uint8))
    data = (tmp_path / "a.npz").read_bytes()
    put(tmp_path, "cut.npz", data[: len(data) // 2])
    with pytest.raises(UnreadableDataError, match="must be a readable array file, got an error"):
        open_images(tmp_path / "cut.npz")
    np.savez(tmp_path / "damaged.npz", x=IMAGES)
    damaged = bytearray((tmp_path / "damaged.npz").read_bytes())
    damaged[1500] ^= 1
    put(tmp_path, "damaged.npz", bytes(damaged))
    with pytest.raises(UnreadableDataError, match="must be a readable array file, got an error"):
        open_images(tmp_path / "damaged.npz").read()
    monkeypatch.setattr("anomaly_vae.data.image_arrays.MOST_ARRAY_BYTES", 1 << 20)
    with pytest.raises(UnreadableDataError, match=r"at most 0 GiB, got \(3000, 28, 28\)"):
        open_images(tmp_path / "a.npz")
    monkeypatch.undo()
    monkeypatch.setattr("anomaly_vae.data.image_arrays.MOST_AT_ONCE", 1 << 20)
    np.save(tmp_path / "f.npy", np.asfortranarray(np.zeros((3000, 28, 28), np.uint8)))
    with pytest.raises(UnreadableDataError, match=r"in Fortran order\. Save it smaller"):
        open_images(tmp_path / "f.npy")


def test_a_parquet_column_of_files_keeps_the_other_columns(parquet):
    assert is_images(parquet)
    source = open_images(parquet, label="kind", batch_rows=10)
    assert (source.count, source.label) == (40, "kind")
    frames = list(source.batches())
    assert max(len(frame) for frame in frames) <= 10
    frame = pd.concat(frames)
    assert (pixels(frame) == IMAGES).all()
    assert set(frame.columns) == {"image", "id", "kind", "file"}
    assert frame["id"].tolist() == list(range(100, 140))
    assert frame.index.tolist() == list(range(40))
    with pytest.raises(SchemaError, match="label 'no' must be a column"):
        open_images(parquet, label="no")


def test_parquet_folders_structs_and_gaps(tmp_path):
    cells = [{"bytes": png_of(image), "path": "x.png"} for image in IMAGES]
    cells[5] = None
    cells[25] = {"bytes": b"no", "path": "y.png"}
    for i in range(2):
        some = pa.array(cells[20 * i : 20 * i + 20], pa.struct([("bytes", pa.binary()), ("path", pa.string())]))
        pq.write_table(pa.table({"image": some, "label": range(20)}), tmp_path / f"part-{i}.parquet")
    assert is_images(tmp_path)
    source = open_images(tmp_path)
    frame = source.read()
    assert (pixels(frame) == np.delete(IMAGES, [5, 25], axis=0)).all()
    assert [e.row for e in source.errors] == [5, 25]
    assert "got a missing cell" in source.errors[0].reason
    put(tmp_path, "part-2.parquet", b"PAR1 no")
    with pytest.raises(UnreadableDataError, match=r"'part-2\.parquet' must be a readable Parquet file"):
        open_images(tmp_path)


def test_tables_are_not_taken_for_images(tmp_path):
    pq.write_table(pa.table({"a": [1, 2], "b": [b"x", b"y"]}), tmp_path / "t.parquet")
    put(tmp_path, "u.csv", b"a,b\n1,2\n")
    put(tmp_path, "plot.png", png_of(IMAGES[0]))
    for path in (tmp_path, tmp_path / "t.parquet", tmp_path / "u.csv", tmp_path / "absent"):
        assert not is_images(path)
    with pytest.raises(UnreadableDataError, match="must have one binary column of PNG"):
        open_images(tmp_path / "t.parquet")


def test_the_digits_are_built_in():
    assert is_images(DIGITS)
    source = open_images(DIGITS)
    frame = source.read()
    assert source.fit() == ImageSchema(height=8, width=8, channels=1)
    assert len(frame) == source.count == 1797
    assert (pixels(frame).min(), pixels(frame).max()) == (0, 255)
    assert frame["label"].value_counts().between(170, 190).all()


def test_errors_are_written_whole_and_safe_to_open(tmp_path):
    path = tmp_path / "errors.csv"
    path.write_text("old")
    write_errors(path, [ImageError("=cmd()", 3, "must be, got \"a\", 'b'."), ImageError("-a\udcff.png", None, "@x")])
    got = pd.read_csv(path, dtype=str, keep_default_na=False)
    assert got.to_numpy().tolist() == [["'=cmd()", "3", "must be, got \"a\", 'b'."], ["'-a\\udcff.png", "", "'@x"]]

    def interrupted():
        yield ImageError("a", 1, "b")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_errors(path, interrupted())
    assert len(pd.read_csv(path)) == 2
    assert [p.name for p in tmp_path.iterdir()] == ["errors.csv"]


def test_a_name_that_is_no_text_is_made_one(tmp_path):
    try:
        put(tmp_path, "a\udcff.png", png_of(IMAGES[0]))
    except OSError:
        pytest.skip("this file system takes text names only")
    assert open_images(tmp_path).read()["file"].tolist() == ["a\\udcff.png"]
