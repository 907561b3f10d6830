"""The streams: what is in them, from which files, and what is refused. All files are synthetic."""

import dataclasses
import hashlib
import http.server
import pickle
import threading
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from avalanche.benchmarks.classic import RotatedMNIST
from avalanche.benchmarks.datasets.external_datasets.mnist import TensorMNIST
from PIL import Image
from torchvision import datasets

from avalanche_contrastive.bench.data import sources as sources
from avalanche_contrastive.bench.data.kinds import class_sizes, default_sizes
from avalanche_contrastive.bench.data.own import load_own
from avalanche_contrastive.bench.data.sources import load
from avalanche_contrastive.bench.data.streams import (
    STREAMS,
    make_stream,
    rotation,
    subset,
)
from avalanche_contrastive.data import MemoryImages

PLACE = "mit Leerzeichen/Ähre 数"


@pytest.fixture(autouse=True)
def fresh():
    load.cache_clear()


def write_idx(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    head = bytes([0, 0, 8, array.ndim]) + b"".join(int(n).to_bytes(4, "big") for n in array.shape)
    path.write_bytes(head + array.tobytes())


def digits_28(per_class, seed):
    """Random images of 28 x 28, shuffled labels."""
    draws = np.random.default_rng(seed)
    labels = draws.permutation(np.repeat(np.arange(10, dtype=np.uint8), per_class))
    return draws.integers(0, 256, (len(labels), 28, 28), dtype=np.uint8), labels


@pytest.fixture
def mnist(tmp_path):
    """A folder as torchvision leaves it, with 120 training and 40 test images of each of MNIST and Fashion-MNIST."""
    root = tmp_path / PLACE
    for number, name in enumerate(("MNIST", "FashionMNIST")):
        for part, per_class in (("train", 12), ("t10k", 4)):
            images, labels = digits_28(per_class, seed=number)
            write_idx(root / name / "raw" / f"{part}-images-idx3-ubyte", images)
            write_idx(root / name / "raw" / f"{part}-labels-idx1-ubyte", labels)
    return root


def own_arrays(*, classes=4, train=10, test=3, shape=(6, 5), dtype=np.uint8, seed=0):
    draws = np.random.default_rng(seed)

    def part(count):
        x = draws.integers(0, 256, (classes * count, *shape)).astype(np.uint8)
        return x if dtype == np.uint8 else (x / 255).astype(dtype), draws.permutation(
            np.repeat(np.arange(classes), count)
        )

    (train_x, train_y), (test_x, test_y) = part(train), part(test)
    return {"train_images": train_x, "train_labels": train_y, "test_images": test_x, "test_labels": test_y}


@pytest.fixture
def npz(tmp_path):
    """Write a .npz, some keys changed or (None) left out; gives its path."""

    def write(**changes):
        arrays = {**own_arrays(), **changes}
        path = tmp_path / PLACE / "meine Bilder.npz"
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez(path, **{key: value for key, value in arrays.items() if value is not None})
        return str(path)

    return write


def experiences(stream):
    return list(zip(stream.benchmark.train_stream, stream.benchmark.test_stream, strict=True))


def everything(dataset):
    """All images, classes and task labels of a dataset, sample by sample."""
    x, y, t = zip(*(dataset[i] for i in range(len(dataset))), strict=True)
    return torch.stack(x), list(y), list(t)


class TestClassIncremental:
    def test_digits_are_split_and_ordered_as_ever(self):
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split

        images, targets = load_digits(return_X_y=True)
        kept, held = train_test_split(np.arange(1797), test_size=0.2, stratify=targets, random_state=0)
        for validation in (False, True):
            if validation:
                chosen, held = train_test_split(kept, test_size=0.2, stratify=targets[kept], random_state=0)
                kept = chosen
            stream = make_stream("split_digits", 3, validation=validation)
            order = np.random.default_rng(3).permutation(10).tolist()
            assert stream.class_order == order
            for number, parts in enumerate(experiences(stream)):
                for rows, experience in zip((kept, held), parts, strict=True):
                    x, y, _ = everything(experience.dataset)
                    rows = np.concatenate([rows[targets[rows] == c] for c in set(order[2 * number : 2 * number + 2])])
                    assert torch.equal(x.flatten(1), torch.tensor(images[rows], dtype=torch.float32) / 16)
                    assert y == targets[rows].tolist()

    def test_mnist_comes_from_the_downloaded_files_as_floats_and_stays_bytes_in_memory(self, mnist):
        state = torch.get_rng_state()
        stream = make_stream("split_mnist", 0, data=str(mnist))
        assert torch.equal(torch.get_rng_state(), state)
        images, labels = digits_28(12, seed=0)
        first = stream.class_order[:2]
        x, y, t = everything(stream.benchmark.train_stream[0].dataset)
        rows = np.concatenate([np.flatnonzero(labels == c) for c in set(first)])
        assert torch.equal(x, torch.tensor(images[rows])[:, None].float() / 255)
        assert y == labels[rows].tolist()
        assert set(t) == {0}
        assert (stream.image_shape, stream.classes, stream.counts) == ((1, 28, 28), 10, [8] * 5)
        assert stream.experience_classes[0] == sorted(first)
        assert "120 training and 40 test images" in stream.description
        assert load("mnist", str(mnist)).train.x.dtype == torch.uint8

    def test_fashion_mnist_is_another_set_with_class_names(self, mnist):
        stream = make_stream("split_fmnist", 0, data=str(mnist))
        assert stream.class_names[:2] == ("T-shirt/top", "Trouser")
        assert not torch.equal(load("fmnist", str(mnist)).train.x, load("mnist", str(mnist)).train.x)

    def test_the_order_follows_the_seed_and_the_images_do_not(self, mnist):
        one, two, again = (make_stream("split_mnist", seed, data=str(mnist), train_images=50) for seed in (1, 2, 1))
        assert one.class_order == again.class_order != two.class_order

        def images(stream):
            return {
                bytes(x.numpy()) for e in stream.benchmark.train_stream for x, *_ in (e.dataset[i] for i in range(10))
            }

        assert images(one) == images(two)

    def test_task_labels_are_the_experiences_and_classes_keep_their_numbers(self, mnist):
        stream = make_stream("split_mnist", 1, data=str(mnist), scenario="task")
        for number, parts in enumerate(experiences(stream)):
            for experience in parts:
                _, y, t = everything(experience.dataset)
                assert set(t) == set(experience.task_labels) == {number}
                assert sorted(set(y)) == stream.experience_classes[number]

    def test_a_larger_first_experience(self):
        stream = make_stream("split_digits", 0, base_classes=6, experiences=5)
        assert [len(group) for group in stream.experience_classes] == [6, 1, 1, 1, 1]
        assert [len(set(everything(e.dataset)[1])) for e in stream.benchmark.test_stream] == [6, 1, 1, 1, 1]

    @pytest.mark.parametrize(
        ("arguments", "sizes"),
        [((100, 10), [10] * 10), ((100, 11, 50), [50, *[5] * 10]), ((10, 1), [10]), ((3, 2, 1), [1, 2])],
    )
    def test_sizes(self, arguments, sizes):
        assert class_sizes(*arguments) == sizes

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ((10, 3), r"3 experiences cannot share 10 classes equally. Possible: 1, 2, 5, 10, or"),
            ((4, 5), "5 experiences need at least as many classes; the data have 4"),
            ((100, 10, 50), r"10 experiences, the first of 50 classes, .* Possible: 2, 3, 6, 11, 26, 51\."),
            ((10, 1, 4), "Possible: 2, 3, 4, 7"),
            ((10, 2, 10), "base_classes = 10 leaves none of the 10 classes"),
        ],
    )
    def test_impossible_sizes_name_the_possible_ones(self, arguments, message):
        with pytest.raises(ValueError, match=message):
            class_sizes(*arguments)

    def test_default_experiences_of_own_data(self):
        expected = {2: [1, 1], 3: [2, 1], 4: [2, 2], 5: [3, 2], 6: [2, 2, 2], 7: [3, 2, 2], 9: [3, 3, 3], 10: [2] * 5}
        expected |= {11: [3, 2, 2, 2, 2], 13: [5, 2, 2, 2, 2], 14: [7, 7], 23: [7, 4, 4, 4, 4], 100: [20] * 5}
        assert {classes: default_sizes(classes) for classes in expected} == expected
        assert class_sizes(14, 0, 4) == [4, 2, 2, 2, 2, 2]

    @pytest.mark.parametrize(
        ("name", "options", "message"),
        [
            ("split_digit", {}, "no stream named 'split_digit'. Known: split_digits, split_mnist"),
            ("rotated_mnist", {"scenario": "class"}, "scenario must be one of domain; got 'class'"),
            ("split_digits", {"scenario": "clas"}, "scenario must be one of class, task, domain; got 'clas'"),
            ("split_digits", {"experiences": 20}, "20 experiences need at least as many classes; the data have 10"),
            ("split_digits", {"experiences": -1}, "must not be negative"),
            ("split_digits", {"base_classes": 2, "scenario": "domain"}, "base_classes means nothing"),
            ("split_digits", {"train_images": 9}, "number of training images: 9 images are too few .* 10 classes"),
            ("split_digits", {"test_images": 3}, "number of test images: 3 images are too few"),
            ("split_digits", {"scenario": "domain", "experiences": 1000}, "would have no test image"),
        ],
    )
    def test_refused(self, name, options, message):
        with pytest.raises(ValueError, match=message):
            make_stream(name, 0, **options)

    def test_every_kind_says_what_belongs_to_it(self):
        from avalanche_contrastive import BatchAugmentation

        for kind in STREAMS.values():
            assert BatchAugmentation(**kind.augmentation).flip in (0, 0.5)
            assert kind.scenarios
            assert kind.network


class TestParts:
    def test_validation_images_are_training_images_and_test_images_are_out(self, mnist):
        stream = make_stream("split_mnist", 0, data=str(mnist), validation=True)
        arrays = load("mnist", str(mnist))
        of = {
            part: {bytes(x.numpy()) for x in images}
            for part, images in (("train", arrays.train.x), ("test", arrays.test.x))
        }
        seen = [
            {bytes((x * 255).round().byte().numpy()) for x in everything(e.dataset)[0]}
            for pair in experiences(stream)
            for e in pair
        ]
        trained, held = set.union(*seen[::2]), set.union(*seen[1::2])
        assert trained | held == of["train"]
        assert not trained & held
        assert not (trained | held) & of["test"]
        assert (len(trained), len(held)) == (96, 24)
        assert "24 validation images" in stream.description

    def test_validation_images_of_the_source_come_first(self, npz):
        own = own_arrays(seed=5)
        path = npz(val_images=own["test_images"], val_labels=own["test_labels"])
        stream = make_stream("own", 0, data=path, validation=True)
        assert sum(stream.counts) == 12
        assert sum(len(e.dataset) for e in stream.benchmark.train_stream) == 40
        x, y, _ = everything(stream.benchmark.test_stream[0].dataset)
        rows = np.flatnonzero(own["test_labels"] == y[0])
        assert torch.equal(x[: len(rows), 0], torch.tensor(own["test_images"][rows]).float() / 255)

    def test_a_subset_is_stratified_nested_and_fixed(self):
        strata = torch.tensor([0] * 100 + [1] * 50 + [2] * 2)
        small, large = subset(strata, 30), subset(strata, 76)
        assert len(small) == 30
        assert set(small) < set(large)
        assert np.bincount(strata[large]).tolist() == [50, 25, 1]
        assert np.bincount(strata[subset(strata, 3)]).tolist() == [1, 1, 1]
        assert small.tolist() == subset(strata, 30).tolist() != subset(strata, 30, [1]).tolist()

    def test_caps(self):
        stream = make_stream("split_digits", 0, train_images=100, test_images=50)
        assert [len(e.dataset) for e in stream.benchmark.train_stream] == [20] * 5
        assert stream.counts == [10] * 5


class TestDomains:
    def test_each_rotation_is_avalanches_and_is_tested_as_it_was_trained(self, mnist):
        stream = make_stream("rotated_mnist", 4, data=str(mnist), experiences=6)
        assert stream.angles == np.random.default_rng(4).uniform(0, 180, 6).tolist()
        theirs = RotatedMNIST(
            6,
            rotations_list=stream.angles,
            return_task_id=True,
            train_transform=None,
            eval_transform=None,
            dataset_root=mnist,
        )
        other = [*zip(theirs.train_stream, theirs.test_stream, strict=True)]
        for domain, (ours, reference) in enumerate(zip(experiences(stream), other, strict=True)):
            for mine, avalanche in zip(ours, reference, strict=True):
                x, y, t = everything(mine.dataset)
                x2, y2, t2 = everything(avalanche.dataset)
                ours_by_class, theirs_by_class = (np.argsort(classes, kind="stable") for classes in (y, y2))
                assert torch.equal(x[ours_by_class], x2[theirs_by_class])
                assert sorted(y) == sorted(y2)
                assert set(t) == set(t2) == {domain}
                assert mine.classes_in_this_experience == list(range(10))
        assert stream.class_order == list(range(10))
        assert stream.experience_classes == [list(range(10))] * 6

    def test_twenty_rotations_each_with_images_of_its_own(self, mnist):
        stream = make_stream("rotated_mnist", 0, data=str(mnist), train_images=40, test_images=20)
        assert len(stream.angles) == 20
        assert stream.counts == [20] * 20
        chosen = [tuple(e.dataset.targets) for e in stream.benchmark.train_stream]
        assert len(set(chosen)) > 1
        assert all(np.bincount(y).tolist() == [4] * 10 for y in chosen)
        assert stream.angles != make_stream("rotated_mnist", 1, data=str(mnist), train_images=40).angles

    def test_a_quarter_turn_is_counter_clockwise(self):
        x = torch.tensor([[0, 1, 0], [0, 2, 0], [0, 0, 0]], dtype=torch.uint8)[None, None]
        turned = MemoryImages(x, torch.zeros(1, dtype=torch.long), pixels=rotation(90, 3, 3))[0][0]
        assert (turned * 255).round().tolist() == [[[0, 0, 0], [1, 2, 0], [0, 0, 0]]]

    def test_random_shares_hold_every_class_and_every_image_once(self, npz):
        stream = make_stream("own", 2, data=npz(), scenario="domain")
        counts = [np.bincount(e.dataset.targets).tolist() for e in stream.benchmark.train_stream]
        assert counts == [[2, 2, 2, 2]] * 5
        assert sum(stream.counts) == 12
        images = [bytes(x.numpy()) for e in stream.benchmark.train_stream for x in everything(e.dataset)[0]]
        assert len(set(images)) == 40
        other = make_stream("own", 3, data=npz(), scenario="domain")
        assert images[:8] != [bytes(x.numpy()) for x in everything(other.benchmark.train_stream[0].dataset)[0]]

    def test_domains_of_the_data_keep_their_order_and_their_classes(self, npz):
        own = own_arrays()
        train = np.where(own["train_labels"] == 1, 0, np.arange(40) % 3)  # class 1 is in the first domain only
        test = np.where(own["test_labels"] == 1, 0, np.arange(12) % 3)
        stream = make_stream("own", 0, data=npz(train_domains=train, test_domains=test), scenario="domain")
        assert stream.experience_classes == [[0, 1, 2, 3], [0, 2, 3], [0, 2, 3]]
        for domain, parts in enumerate(experiences(stream)):
            for name, ids, experience in zip(("train", "test"), (train, test), parts, strict=True):
                x, y, t = everything(experience.dataset)
                assert y == own[f"{name}_labels"][ids == domain].tolist()
                assert torch.equal(x[:, 0], torch.tensor(own[f"{name}_images"][ids == domain]).float() / 255)
                assert set(t) == {domain}
        with pytest.raises(ValueError, match="4 experiences asked for, but the data have 3 domains"):
            make_stream("own", 0, data=npz(train_domains=train, test_domains=test), scenario="domain", experiences=4)

    def test_named_streams_have_random_shares_too(self):
        stream = make_stream("split_digits", 0, scenario="domain", experiences=3)
        assert [set(e.dataset.targets) for e in stream.benchmark.test_stream] == [set(range(10))] * 3


class TestNpz:
    @pytest.mark.parametrize("shape", [(6, 5), (6, 5, 1), (6, 5, 3)])
    @pytest.mark.parametrize("dtype", [np.uint8, np.float64, np.float16])
    def test_forms(self, npz, shape, dtype):
        own = own_arrays(shape=shape, dtype=dtype)
        arrays = load_own(npz(**own | {"train_labels": own["train_labels"][:, None].astype(np.uint8)}))
        expected = own["train_images"].reshape(40, 6, 5, -1).transpose(0, 3, 1, 2)
        assert arrays.train.x.dtype == (torch.uint8 if dtype == np.uint8 else torch.float32)
        assert arrays.train.x.is_contiguous()
        assert np.array_equal(arrays.train.x.numpy(), expected.astype(arrays.train.x.numpy().dtype))
        assert arrays.train.y.tolist() == own["train_labels"].tolist()
        assert arrays.class_names == ("0", "1", "2", "3")

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"test_labels": None}, "missing test_labels; keys there: train_images, train_labels, test_images"),
            ({"val_images": np.zeros((2, 6, 5), np.uint8)}, "missing val_labels"),
            ({"train_domains": np.zeros(40, int)}, "missing test_domains"),
            ({"train_labels": np.array([None] * 40)}, "train_labels are Python objects"),
            (
                {"train_images": np.zeros((40, 6, 5), np.int64)},
                r"train_images: images must be bytes \(uint8\) .* got int64",
            ),
            (
                {"train_images": np.zeros((40, 30), np.uint8)},
                r"must be \(N, H, W\) or \(N, H, W, C\), got shape \(40, 30\)",
            ),
            ({"train_images": np.zeros((40, 3, 6, 5), np.uint8)}, r"last axis must be the channels .* \(40, 3, 6, 5\)"),
            ({"train_images": np.zeros((0, 6, 5), np.uint8)}, "train_images: no images"),
            ({"train_images": np.full((40, 6, 5), np.nan)}, "train_images: 1,200 values are not finite"),
            (
                {"train_images": np.full((40, 6, 5), 255.0)},
                r"floats must lie in \[0, 1\], got 255 to 255. Divide",
            ),
            ({"train_images": np.zeros((40, 6, 6), np.uint8)}, r"one shape and type, got .*'train': \(1, 6, 6\)"),
            ({"train_labels": np.zeros(39, int)}, "train_labels: 39 of them for 40 images"),
            ({"train_labels": np.zeros(40)}, "train_labels: must be integers from 0, got float64"),
            (
                {"train_labels": np.zeros((40, 4), int)},
                r"train_labels: must be \(N,\) or \(N, 1\).* got shape \(40, 4\)",
            ),
            ({"train_labels": np.arange(40) % 4 - 1}, "train_labels: must be integers from 0, the lowest is -1"),
            ({"train_labels": np.arange(40) % 4 + 1}, "and none is 0. They start at 1: subtract 1"),
            (
                {"train_labels": np.arange(40) % 4 * 10**12},
                "there are 4 different ones, up to 3000000000000, and none is 1, 2",
            ),
            ({"train_labels": np.zeros(40, int)}, "a single label in train_labels"),
            ({"test_labels": np.arange(12)}, "test_labels have 4, 5, .* which train_labels do not have"),
            ({"test_labels": np.arange(12) % 3}, "no image of label 3 in test_labels"),
            (
                {"train_domains": np.arange(40) % 2, "test_domains": np.zeros(12, int)},
                "no image of domain 1 in test_domains",
            ),
        ],
    )
    def test_refused(self, npz, changes, message):
        path = npz(**changes)
        with pytest.raises(ValueError, match=message) as caught:
            load_own(path)
        assert path in str(caught.value)

    def test_broken_files(self, npz, tmp_path):
        whole = Path(npz(**own_arrays(train=500))).read_bytes()
        damaged = bytearray(whole)
        damaged[len(whole) // 3] ^= 255
        np.save(tmp_path / "one.npy", np.zeros(3))
        files = {
            "cut.npz": whole[: len(whole) // 2],
            "empty.npz": b"",
            "text.npz": b"no such thing",
            "damaged.npz": bytes(damaged),
            "one.npz": (tmp_path / "one.npy").read_bytes(),
        }
        for name, content in files.items():
            (tmp_path / name).write_bytes(content)
            message = "cannot be read.*damaged" if name == "damaged.npz" else "not a readable .npz file"
            with pytest.raises(ValueError, match=message) as caught:
                load_own(str(tmp_path / name))
            assert name in str(caught.value)

    def test_nothing_there(self, tmp_path):
        with pytest.raises(ValueError, match=r"nichts.npz: no such file or folder"):
            load_own(str(tmp_path / "nichts.npz"))
        with pytest.raises(ValueError, match="'own' needs `data`"):
            make_stream("own", 0)

    def test_more_than_memory_holds_is_refused_before_it_is_read(self, npz):
        path = npz()
        with zipfile.ZipFile(path) as archive:
            members = {name: archive.read(name) for name in archive.namelist()}
        with zipfile.ZipFile(path, "w") as archive:
            for name, content in members.items():
                if name == "train_images.npy":  # the header of 10 TB, and no more of them
                    content = content.replace(b"(40, 6, 5), }" + b" " * 13, b"(10000000000, 32, 32), }" + b"  ")
                archive.writestr(name, content)
        with pytest.raises(ValueError, match=r"takes about 20480.0 GB of memory, and [\d.]+ GB are free"):
            load_own(path)


def write_images(root, folders, size=(5, 4), mode="RGB", suffix=".png"):
    for number, folder in enumerate(folders):
        (root / folder).mkdir(parents=True, exist_ok=True)
        for i in range(5):
            colour = (10 * i, number, 7) if mode == "RGB" else 10 * i + number
            Image.new(mode, size, colour).save(root / folder / f"Bild {i}{suffix}")


class TestFolder:
    def test_train_and_test_folders(self, tmp_path):
        root = tmp_path / PLACE
        write_images(root, ["train/Apfel", "train/Birne", "test/Apfel", "test/Birne"])
        (root / "train" / ".hidden").mkdir()
        (root / "train" / "Apfel" / "notes.txt").write_text("not an image")
        stream = make_stream("own", 0, data=str(root))
        assert stream.class_names == ("Apfel", "Birne")
        assert stream.image_shape == (3, 4, 5)
        arrays = load_own(str(root))
        assert arrays.train.y.tolist() == [0] * 5 + [1] * 5
        assert arrays.train.x[6, :, 0, 0].tolist() == [10, 1, 7]
        assert arrays.test.x[6, :, 0, 0].tolist() == [10, 3, 7]
        assert arrays.note.startswith("files left out: 1 .txt")

    def test_a_single_folder_is_split_always_the_same_way_and_grey_stays_one_channel(self, tmp_path):
        write_images(tmp_path, ["a", "b"], mode="L", suffix=".PNG")
        one, two = load_own(str(tmp_path)), load_own(str(tmp_path))
        assert one.train.x.shape == (8, 1, 4, 5)
        assert sorted(one.test.y.tolist()) == [0, 1]
        assert torch.equal(one.train.x, two.train.x)
        assert set(one.train.x[:, 0, 0, 0].tolist()) | set(one.test.x[:, 0, 0, 0].tolist()) == {
            10 * i + c for i in range(5) for c in range(2)
        }

    @pytest.mark.parametrize("name", ["val", "valid", "validation"])
    def test_validation_images_by_any_of_their_usual_names(self, tmp_path, name):
        write_images(tmp_path, [f"{part}/{c}" for part in ("train", "test", name) for c in "ab"])
        arrays = load_own(str(tmp_path))
        assert [len(x) for x in (arrays.train.x, arrays.test.x, arrays.val.x)] == [10, 10, 10]
        (tmp_path / name / "b").rename(tmp_path / name / "c")
        with pytest.raises(ValueError, match=f"train/ and {name}/ must have the same classes; .*: b, c"):
            load_own(str(tmp_path))

    @pytest.mark.parametrize("names", [("car", "train"), ("a", "test", "train"), ("b", "valid")])
    def test_classes_may_be_called_like_parts(self, tmp_path, names):
        write_images(tmp_path, names)
        arrays = load_own(str(tmp_path))
        assert arrays.class_names == names
        assert len(arrays.train.x) == 4 * len(names)
        assert arrays.val is None

    def test_several_sizes_become_one_square_and_the_description_says_so(self, tmp_path):
        write_images(tmp_path, ["a"], size=(9, 7))
        write_images(tmp_path, ["b"], size=(12, 5), mode="L")
        arrays = load_own(str(tmp_path))
        assert arrays.train.x.shape[1:] == (3, 6, 6)
        assert "2 sizes, each scaled and cut to 6 x 6" in make_stream("own", 0, data=str(tmp_path)).description

    def test_refused(self, tmp_path):
        def refused(root, message):
            with pytest.raises(ValueError, match=message):
                load_own(str(tmp_path / root))

        (tmp_path / "empty").mkdir()
        refused("empty", "no class folders. Expected CLASS/IMAGE")
        write_images(tmp_path, ["half/train/a", "half/train/b"])
        refused("half", "train/ holds folders, as a part .*; there are train. If these are classes, train/ must hold")
        write_images(tmp_path, ["extra/train/a", "extra/test/a", "extra/more/a"])
        refused("extra", "test/ holds folders, .* nothing else; there are more, test, train")
        write_images(tmp_path, ["twice/train/a", "twice/test/a", "twice/val/a", "twice/valid/a"])
        refused("twice", "test/ holds folders, .* at most one of val/, valid/, validation/")
        write_images(tmp_path, ["flat/train", "flat/test"])
        refused("flat", "flat/train: no class folders. Expected CLASS/IMAGE")
        write_images(tmp_path, ["void/a", "void/b"])
        (tmp_path / "void" / "c").mkdir()
        refused("void", "no valid file for the classes c")
        write_images(tmp_path, ["other/train/a", "other/train/b", "other/test/a", "other/test/z"])
        refused("other", "must have the same classes; in one of them only: b, z")
        write_images(tmp_path, ["single/a"])
        refused("single", "single label")
        write_images(tmp_path, ["few/a", "few/b"])
        for path in (tmp_path / "few" / "b").iterdir():
            if path.name != "Bild 0.png":
                path.unlink()
        refused("few", "too few images to hold out 20% of each class: .* b has 1")
        write_images(tmp_path, ["broken/a", "broken/b"])
        picture = tmp_path / "broken" / "a" / "Bild 2.png"
        whole = picture.read_bytes()
        picture.write_bytes(b"not an image")
        refused("broken", "Bild 2.png: not a readable image")
        picture.write_bytes(whole[: len(whole) // 2])
        refused("broken", "Bild 2.png: not a readable image")
        write_images(tmp_path, ["deep/a", "deep/b"], mode="I;16")
        refused("deep", r"more than eight bits \(mode I;16\)")


class TestDownloads:
    def test_a_file_cut_off_is_named_with_what_to_do(self, mnist):
        path = mnist / "MNIST" / "raw" / "train-images-idx3-ubyte"
        path.write_bytes(path.read_bytes()[:5000])
        with pytest.raises(ValueError, match="MNIST could not be loaded from") as caught:
            load("mnist", str(mnist))
        assert f"Incomplete: train-images-idx3-ubyte. Delete {mnist / 'MNIST' / 'raw'} and run again" in str(
            caught.value
        )
        assert path.stat().st_size == 5000  # ours to name, not to delete

    @pytest.mark.parametrize(
        ("labels", "message"),
        [
            (np.arange(40) % 9, "could not be loaded|no image of label 9"),
            (np.arange(39) % 10, "could not be loaded|39 of them for 40"),
        ],
    )
    def test_files_that_do_not_go_together(self, mnist, labels, message):
        write_idx(mnist / "MNIST" / "raw" / "t10k-labels-idx1-ubyte", labels.astype(np.uint8))
        with pytest.raises(ValueError, match=message):
            load("mnist", str(mnist))

    def test_without_a_network_nothing_is_left(self, tmp_path, monkeypatch):
        monkeypatch.setattr(TensorMNIST, "mirrors", ["http://127.0.0.1:9/"])
        with pytest.raises(ValueError, match=r"MNIST could not be loaded from .*Run again with a network"):
            load("mnist", str(tmp_path / "neu"))
        assert list(tmp_path.iterdir()) == []
        with pytest.raises(ValueError, match=r"name another folder \(--root\)"):
            load("mnist", str(tmp_path / "a" / "b"))
        assert list(tmp_path.iterdir()) == []

    def test_without_a_network_what_was_there_stays(self, tmp_path, monkeypatch):
        monkeypatch.setattr(TensorMNIST, "mirrors", ["http://127.0.0.1:9/"])
        there = [tmp_path / name for name in ("MNIST", "empty", ".download.lock", "notes.txt")]
        for path in there[:2]:
            path.mkdir()
        for path in there[2:]:
            path.touch()
        with pytest.raises(ValueError, match="MNIST could not be loaded"):
            load("mnist", str(tmp_path))
        assert sorted(tmp_path.rglob("*")) == sorted(there)

    def test_an_interrupted_download_leaves_nothing_that_looks_complete(self, tmp_path, monkeypatch):
        class Half(http.server.BaseHTTPRequestHandler):
            def do_HEAD(self):
                self.send_response(200)
                self.send_header("Content-Length", "1000")
                self.end_headers()

            def do_GET(self):
                self.do_HEAD()
                self.wfile.write(b"x" * 500)

            def log_message(self, *args):
                pass

        with http.server.HTTPServer(("127.0.0.1", 0), Half) as server:
            threading.Thread(target=server.serve_forever, daemon=True).start()
            monkeypatch.setattr(TensorMNIST, "mirrors", [f"http://127.0.0.1:{server.server_port}/"])
            with pytest.raises(ValueError, match="MNIST could not be loaded"):
                load("mnist", str(tmp_path))
            server.shutdown()
        assert not (tmp_path / "MNIST" / "raw").exists()

    def test_ctrl_c_leaves_nothing_either(self, tmp_path, monkeypatch):
        def interrupted(url, download_root, **kwargs):
            (tmp_path / "MNIST" / "raw" / "train-images-idx3-ubyte").write_bytes(b"half")
            raise KeyboardInterrupt

        monkeypatch.setattr("torchvision.datasets.mnist.download_and_extract_archive", interrupted)
        with pytest.raises(KeyboardInterrupt):
            load("mnist", str(tmp_path))
        assert not (tmp_path / "MNIST" / "raw").exists()

    @pytest.mark.parametrize(("source", "classes"), [("cifar10", 10), ("cifar100", 100)])
    def test_cifar_from_its_batches(self, tmp_path, monkeypatch, source, classes):
        batches(tmp_path, source, classes, monkeypatch)
        stream = make_stream(f"split_{source}", 0, data=str(tmp_path))
        assert stream.image_shape == (3, 32, 32)
        assert stream.classes == classes
        arrays = load(source, str(tmp_path))
        mean, std = (torch.tensor(v).reshape(3, 1, 1) for v in STREAMS[f"split_{source}"].normalise)
        x, y, _ = everything(stream.benchmark.test_stream[0].dataset)
        rows = torch.nonzero(arrays.test.y == y[0])[:, 0]
        assert torch.equal(x[0], (arrays.test.x[rows[0]].float() / 255 - mean) / std)
        assert arrays.test.x[0, :, 0, :3].tolist() == [[0, 1, 2], [255, 254, 253], [0, 0, 1]]  # planes, rows, columns

    def test_a_damaged_cifar_without_a_network(self, tmp_path, monkeypatch):
        folder = batches(tmp_path, "cifar10", 10, monkeypatch)
        monkeypatch.setattr("torchvision.datasets.CIFAR10.url", "http://127.0.0.1:9/cifar-10-python.tar.gz")
        path = folder / "data_batch_1"
        path.write_bytes(path.read_bytes()[:-10])
        with pytest.raises(ValueError, match=f"CIFAR-10 could not be loaded .* Delete .*{folder.name} and run again"):
            load("cifar10", str(tmp_path))

    def test_a_npz_stands_in_for_a_download(self, tmp_path):
        own = own_arrays(classes=10, shape=(32, 32, 3))
        np.savez(tmp_path / "cifar10.npz", **own)
        for place in (tmp_path, tmp_path / "cifar10.npz"):
            stream = make_stream("split_cifar10", 0, data=str(place))
            assert stream.description.startswith("CIFAR-10, class-incremental: 10 classes in 5 experiences of 2")
            assert everything(stream.benchmark.train_stream[0].dataset)[0].min() < -1  # normalised
        np.savez(tmp_path / "cifar100.npz", **own)
        with pytest.raises(ValueError, match="10 classes; CIFAR-100 has 100"):
            load("cifar100", str(tmp_path))

    def test_tiny_imagenet_is_decoded_from_its_files(self, tmp_path, monkeypatch):
        folder = tiny_imagenet(tmp_path)
        kind = sources.DOWNLOADS["tiny_imagenet"]
        with pytest.raises(
            ValueError, match=r"400 and 200 images instead of 100,000 and 10,000. Delete .*tiny-imagenet-200"
        ):
            load("tiny_imagenet", str(tmp_path))
        monkeypatch.setitem(sources.DOWNLOADS, "tiny_imagenet", dataclasses.replace(kind, sizes=(400, 200)))
        arrays = load("tiny_imagenet", str(tmp_path))
        assert arrays.train.x.shape == (400, 3, 64, 64)
        assert arrays.class_names[3] == "n0003"
        assert arrays.train.y.tolist() == np.repeat(np.arange(200), 2).tolist()
        assert arrays.test.x[7].flatten(1).unique(dim=1).flatten().tolist() == [7, 7, 7]  # grey files become colour
        load.cache_clear()
        (folder / "val" / "images" / "val_7.PNG").write_bytes(b"broken")
        with pytest.raises(ValueError, match=r"val_7.PNG: not a readable image"):
            load("tiny_imagenet", str(tmp_path))


def batches(root, source, classes, monkeypatch):
    """CIFAR's pickled batches with the checksums they should have."""
    kind = datasets.CIFAR10 if source == "cifar10" else datasets.CIFAR100
    folder = root / kind.base_folder
    folder.mkdir()
    plane = np.arange(1024) % 256
    data = np.concatenate([plane, plane[::-1], plane // 2]).astype(np.uint8)[None].repeat(classes, 0)

    def write(name, content):
        (folder / name).write_bytes(pickle.dumps(content))
        return hashlib.md5((folder / name).read_bytes()).hexdigest()

    key = "labels" if source == "cifar10" else "fine_labels"
    for which in ("train_list", "test_list"):
        listed = [[name, write(name, {"data": data, key: list(range(classes))})] for name, _ in getattr(kind, which)]
        monkeypatch.setattr(kind, which, listed)
    names = {kind.meta["key"]: [f"class {i}" for i in range(classes)]}
    monkeypatch.setattr(kind, "meta", {**kind.meta, "md5": write(kind.meta["filename"], names)})
    return folder


def tiny_imagenet(root):
    """The layout of the unpacked archive, two training images and a test image for each of 200 classes."""
    folder = root / "tiny-imagenet-200"
    names = [f"n{i:04d}" for i in range(200)]
    (folder / "val" / "images").mkdir(parents=True)
    (folder / "wnids.txt").write_text("\n".join(names) + "\n")
    lines = []
    for i, name in enumerate(names):
        images = folder / "train" / name / "images"
        images.mkdir(parents=True)
        for j in range(2):
            Image.new("RGB", (64, 64), (i, j, 0)).save(images / f"{name}_{j}.PNG")
        Image.new("L", (64, 64), i).save(folder / "val" / "images" / f"val_{i}.PNG")
        lines.append(f"val_{i}.PNG\t{name}\t0\t0\t62\t62")
    (folder / "val" / "val_annotations.txt").write_text("\n".join(lines) + "\n")
    return folder
