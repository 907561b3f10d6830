"""Folders of photographs as people have them: sizes, orientations, transparency, other files; what is said of it."""

import os
import random
import re

import numpy as np
import pytest
import torch
from PIL import Image

from avalanche_contrastive.bench import cli, files
from avalanche_contrastive.bench.data.images import decode, header_of
from avalanche_contrastive.bench.data.own import LARGEST, load_own
from avalanche_contrastive.bench.data.streams import make_stream


def photo(path, size=(20, 16), mode="RGB", **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, 120 if mode == "L" else (120, 60, 30, 200)[: len(mode)]).save(path, **options)


def folder(root, sizes, suffix=".png", classes=("cat", "dog")):
    for name in classes:
        for number, size in enumerate(sizes):
            photo(root / name / f"{number}{suffix}", size)
    return root


def loaded(root, image_size=0):
    arrays = load_own(str(root), image_size)
    return tuple(arrays.train.x.shape[2:]), arrays.note


# ---- sizes


@pytest.mark.parametrize(
    ("sizes", "image_size", "expected", "words"),
    [
        ([(20, 16)] * 6, 0, (16, 20), ""),
        ([(20, 16)] * 6, 12, (12, 12), "images of 1 sizes, each scaled and cut to 12 x 12"),
        (
            [(30, 40)] * 5 + [(4, 4)],
            0,
            (30, 30),
            "2 sizes, .* 30 x 30; the median of their shorter sides is 30",
        ),
        ([(30, 40)] * 5 + [(9, 900)], 0, (30, 30), "cut to 30 x 30"),
        ([(20, 20), (30, 35), (40, 50), (50, 60), (60, 60)], 0, (40, 40), "is 40"),
        (
            [(500, 600), (700, 800), (900, 900)] * 2,
            0,
            (LARGEST, LARGEST),
            "to 224 x 224; .* is 700",
        ),
    ],
)
def test_images_of_several_sizes_get_the_median_or_what_is_asked_for(tmp_path, sizes, image_size, expected, words):
    size, note = loaded(folder(tmp_path, sizes), image_size)
    assert size == expected
    assert re.search(words, note), note
    assert bool(note) == bool(words)


@pytest.mark.parametrize(("image_size", "larger", "smaller"), [(40, 6, 0), (8, 0, 10), (18, 0, 0)])
def test_many_images_that_change_a_lot_are_named(tmp_path, image_size, larger, smaller):
    root = folder(tmp_path, [(12, 12), (15, 15), (18, 18), (30, 30), (40, 40), (50, 50), (28, 28), (27, 27)])
    note = loaded(root, image_size)[1]
    if larger + smaller:
        assert f"of 16 images {larger} are enlarged by more than half and {smaller} shrunk to less than a third" in note
        assert "image_size sets another side" in note
    else:
        assert "enlarged" not in note


def test_a_size_is_refused_where_it_means_nothing(tmp_path):
    x = np.zeros((20, 4, 4), np.uint8)
    np.savez(
        tmp_path / "a.npz", train_images=x, test_images=x, train_labels=np.arange(20) % 2, test_labels=np.arange(20) % 2
    )
    with pytest.raises(ValueError, match="image_size is for folders of images; the images of a"):
        load_own(str(tmp_path / "a.npz"), 8)
    with pytest.raises(ValueError, match="digits: image_size is for folders of your own images"):
        make_stream("split_digits", 0, image_size=8)


@pytest.mark.parametrize("image_size", [-1, 2.5, True, "8", None])
def test_a_size_that_is_no_whole_number_is_named(tmp_path, image_size):
    with pytest.raises(ValueError, match=f"image_size must be a whole number >= 0, got {image_size!r}"):
        load_own(str(folder(tmp_path, [(8, 8)] * 6)), image_size)


def test_a_photograph_is_turned_as_its_camera_says(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    for name in ("cat", "dog"):
        for number in range(6):
            photo(tmp_path / name / f"{number}.jpg")
    upright = Image.new("RGB", (16, 20))
    upright.paste((255, 255, 255), (0, 0, 16, 10))  # the upper half is the right half once it is turned
    upright.save(tmp_path / "cat" / "0.jpg", exif=exif, quality=95)
    arrays = load_own(str(tmp_path))
    assert arrays.train.x.shape[2:] == (16, 20)
    assert arrays.note == ""
    images = torch.cat([arrays.train.x, arrays.test.x])
    turned = images[[int(image.max()) > 250 for image in images]]
    assert len(turned) == 1
    assert turned[0, :, 8, 15].min() > 240
    assert turned[0, :, 8, 5].max() < 15


# ---- what is left out


def test_what_is_left_out_is_said(tmp_path):
    root = folder(tmp_path, [(16, 16)] * 6)
    photo(root / "cat" / "clear.png", (16, 16), "RGBA")
    photo(root / "dog" / "grey.png", (16, 16), "LA")
    frames = [Image.new("RGB", (16, 16), (shade, 0, 0)) for shade in (10, 200)]
    frames[0].save(root / "dog" / "moving.webp", save_all=True, append_images=frames[1:])
    for name in ("a.heic", "b.HEIC", "c.gif", "notes", ".hidden.gif"):
        (root / "cat" / name).write_bytes(b"no matter")
    (root / "labels.csv").write_text("a,b")
    (root / ".DS_Store").write_text("")
    _, note = loaded(root)
    assert "the transparency of 2 images is dropped" in note
    assert "of 1 images with several frames the first is taken" in note
    assert "files left out: 1 .csv, 1 .gif, 2 .heic, 1 no extension (read: .jpg, .jpeg, .png" in note
    assert note in make_stream("own", 0, data=str(root)).description


def test_hidden_images_are_left_out_for_systems_and_tools_make_them(tmp_path):
    root = folder(tmp_path, [(16, 16)] * 6)
    expected = load_own(str(root))
    (root / "cat" / "._0.png").write_bytes(b"what macOS adds to archives")
    photo(root / "cat" / ".ipynb_checkpoints" / "0.png")
    photo(root / ".cache" / "0.png")
    arrays = load_own(str(root))
    assert arrays.train.y.tolist() == expected.train.y.tolist()
    assert "files left out: 3 .png" in arrays.note


def test_parts_may_be_written_in_capitals(tmp_path):
    for part in ("Train", "TEST", "Val"):
        folder(tmp_path / part, [(8, 8)] * 2)
    arrays = load_own(str(tmp_path))
    assert arrays.class_names == ("cat", "dog")
    assert len(arrays.train.x) == len(arrays.test.x) == 4


@pytest.mark.parametrize("names", [("training", "testing"), ("Train", "Test", "extra"), ("images", "more")])
def test_folders_of_folders_are_no_classes(tmp_path, names):
    for name in names:
        folder(tmp_path / name, [(8, 8)] * 6)
    with pytest.raises(ValueError, match=r"holds folders, as a part of the images would. Parts are train/ and test/"):
        load_own(str(tmp_path))


def test_a_name_that_is_no_text_can_be_written_all_the_same(tmp_path):
    root = folder(tmp_path, [(8, 8)] * 6)
    os.rename(root / "cat", os.path.join(os.fsencode(root), b"\xff"))
    assert load_own(str(root)).class_names == ("dog", "?")


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".tiff", ".webp", ".bmp"])
def test_damaged_images_are_named(tmp_path, suffix):
    """Whatever the reader of the format makes of the damage."""
    draw, image, errors = random.Random(0), tmp_path / f"a{suffix}", []
    photo(image, (12, 12))
    data = image.read_bytes()
    for _ in range(300):
        damaged = bytearray(data)
        for _ in range(draw.randint(1, 6)):
            damaged[draw.randrange(len(data))] = draw.randrange(256)
        image.write_bytes(damaged)
        try:
            header_of(image)
            decode([image], 3, (8, 8))
        except ValueError as error:
            errors.append(str(error))
    assert len(errors) > 10
    assert all(str(image) in error for error in errors)


@pytest.mark.parametrize("few", [1, 2])
def test_a_class_with_too_few_images_to_share_is_named(tmp_path, few):
    folder(tmp_path, [(8, 8)] * 19)
    folder(tmp_path, [(8, 8)] * few, classes=("a rare bird",))
    with pytest.raises(ValueError, match=rf"too few images to hold out 20% of each class: .* a rare bird has {few}\."):
        load_own(str(tmp_path))


def test_validation_images_are_refused_likewise(tmp_path):
    for part in ("train", "test"):
        folder(tmp_path / part, [(8, 8)] * 19)
        folder(tmp_path / part, [(8, 8)] * 2, classes=("wolf",))
    with pytest.raises(ValueError, match=r"validation images out of training images: too few .* class 2 has 2\."):
        make_stream("own", 0, data=str(tmp_path), validation=True)


def test_a_run_says_what_was_done_and_keeps_the_names_of_the_classes(tmp_path, capsys):
    root = folder(tmp_path / "photos", [(16, 16)] * 9 + [(12, 12)], classes=("Kühe", "b <c> $\\frac{$", "dog", "cat"))
    (root / "dog" / "x.heic").write_bytes(b"")
    quick = ["--set", "epochs=1", "--set", "image_size=9", "--jobs", "1", "--seeds", "0"]
    assert cli.main(["run", "naive", "--data", str(root), "--out", str(tmp_path / "out"), *quick]) == 0
    told = capsys.readouterr().err
    assert told.count("note: images of 2 sizes, each scaled and cut to 9 x 9; files left out: 1 .heic") == 1
    result = files.read_json(tmp_path / "out" / "naive-seed0.json")
    assert result["class_names"] == ["Kühe", "b <c> $\\frac{$", "cat", "dog"]
    assert "cut to 9 x 9" in result["stream"]
    assert result["config"]["image_size"] == 9
