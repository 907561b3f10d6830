"""Data sets of torchvision and HuggingFace by name or path: images, classes, parts; and what is no such thing."""

import sys

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image

from avalanche_contrastive.bench import cli
from avalanche_contrastive.bench.data import named
from avalanche_contrastive.bench.data.kinds import absolute
from avalanche_contrastive.bench.data.own_stream import own_stream
from avalanche_contrastive.bench.data.streams import load_data, make_stream
from avalanche_contrastive.bench.files import read_json

FAKE = "torchvision:FakeData?size=60&num_classes=3&image_size=3,12,12"


class Toy(torchvision.datasets.VisionDataset):
    """Looks like one of torchvision's: a constructor by part, images of Pillow's."""

    classes = ("cat", "dog")
    sizes = ((8, 10), (10, 12), (8, 8))

    def __init__(self, root, train=True, download=False):
        self.train = train

    def __len__(self):
        return 40 if self.train else 10

    def __getitem__(self, index):
        width, height = self.sizes[index % 3]
        return Image.fromarray(np.full((height, width, 3), 10 * (index % 2) + self.train, np.uint8)), index % 2


class Split(Toy):
    """Likewise, with a named split, and no test images."""

    def __init__(self, root, split="train", download=False):
        if split not in ("train", "val"):
            raise ValueError(f"Unknown value '{split}' for argument split")
        super().__init__(root, train=split == "train")


class Words(Toy):
    """Its classes are words."""

    classes = ()

    def __getitem__(self, index):
        return super().__getitem__(index)[0], ("walk", "run")[index % 2]


class Boxes(Toy):
    """It is not for classification."""

    def __getitem__(self, index):
        return super().__getitem__(index)[0], {"box": (1, 2, 3, 4)}


@pytest.fixture
def toys(monkeypatch):
    for toy in (Toy, Split, Words, Boxes):
        monkeypatch.setattr(torchvision.datasets, toy.__name__, toy, raising=False)
    names = (*torchvision.datasets.__all__, "Toy", "Split", "Words", "Boxes")
    monkeypatch.setattr(torchvision.datasets, "__all__", names)


def test_a_set_without_parts_is_split_and_keeps_its_images():
    arrays = load_data(FAKE)
    source = torchvision.datasets.FakeData(size=60, num_classes=3, image_size=(3, 12, 12))
    assert len(arrays.train.y) + len(arrays.test.y) == 60
    assert arrays.class_names == ("0", "1", "2")
    every = {bytes(x.numpy().tobytes()) for x in (*arrays.train.x, *arrays.test.x)}
    assert np.asarray(source[7][0]).transpose(2, 0, 1).tobytes() in every


def test_parts_names_and_unequal_sizes_are_those_of_an_image_folder(toys):
    arrays = load_data("torchvision:Toy")
    assert arrays.train.x.shape == (40, 3, 8, 8)
    assert arrays.test.x.shape == (10, 3, 8, 8)
    assert arrays.class_names == ("cat", "dog")
    assert "images of 3 sizes, each scaled and cut to 8 x 8" in arrays.note
    assert arrays.train.y.tolist() == [0, 1] * 20
    assert arrays.train.x[:, 0, 0, 0].tolist() == [1, 11] * 20
    assert arrays.test.x[:, 0, 0, 0].tolist() == [0, 10] * 5
    assert load_data("torchvision:Toy", 6).train.x.shape == (40, 3, 6, 6)


def test_validation_images_stand_in_for_test_images_and_that_is_said(toys):
    arrays = load_data("torchvision:Split")
    assert len(arrays.test.y) == 10
    assert arrays.val is None
    assert named.NO_TEST in arrays.note


def test_classes_may_be_words(toys):
    arrays = load_data("torchvision:Words")
    assert arrays.class_names == ("run", "walk")
    assert arrays.train.y.tolist() == [1, 0] * 20


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("torchvision:FasionMNIST", "has no data set 'FasionMNIST'; did you mean 'FashionMNIST'"),
        ("torchvision:Boxes", "torchvision:Boxes: expected one class per image, a number or a word, got dict"),
        ("torchvision:Toy?colour=red", "could not be loaded from .*unexpected keyword argument 'colour'"),
        ("torchvision:EMNIST", r"could not be loaded from .*missing 1 required positional argument: 'split'"),
    ],
)
def test_what_cannot_be_taken_is_named(toys, data, message):
    with pytest.raises(ValueError, match=message):
        load_data(data, root="/nowhere")


def test_one_name_on_the_command_line_is_enough(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ["--seeds", "0", "--jobs", "1", "--set", "epochs=1", "--set", "experiences=3"]
    assert cli.main(["run", "naive", "--data", FAKE, *words]) == 0
    result = read_json(tmp_path / "out" / "FakeData" / "naive-seed0.json")
    assert result["config"]["data"] == FAKE
    assert result["class_names"] == ["0", "1", "2"]
    assert cli.main(["run", "naive", "--data", FAKE, *words]) == 0  # the same run
    assert "1 in out/FakeData already" in capsys.readouterr().err


def test_a_path_is_kept_whole_and_a_name_as_it_is(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    assert absolute("photos") == str(tmp_path / "photos")
    assert absolute("hf:photos?label=kind") == f"hf:{tmp_path / 'photos'}?label=kind"
    assert absolute("hf:someone/pets") == "hf:someone/pets"
    assert absolute("torchvision:MNIST") == "torchvision:MNIST"


def test_a_stream_of_dictionaries_is_named(tmp_path, monkeypatch):
    (tmp_path / "mine_dicts.py").write_text(
        "import torch\n"
        "from types import SimpleNamespace as N\n"
        "def stream():\n"
        "    e = [N(dataset=[{'image': torch.zeros(3, 8, 8), 'label': 0}])]\n"
        "    return N(train_stream=e, test_stream=e)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ValueError, match=r"must be a tuple .* got a dictionary with 'image', 'label'"):
        own_stream("mine_dicts:stream", 0, validation=False, root="", wanted={})


# ---- HuggingFace

# It hashes what it is given by dill, which remarks on classes of pyarrow.
hashed = pytest.mark.filterwarnings("ignore:Cannot")


def test_without_datasets_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ValueError, match=r"hf:pets needs datasets: pip install 'avalanche-contrastive\[hf\]'"):
        load_data("hf:pets")


@pytest.fixture
def pets(tmp_path):
    """A data set as HuggingFace keeps it on disk."""
    datasets = pytest.importorskip("datasets")
    names = ["cat", "dog", "owl"]
    features = datasets.Features(
        {"id": datasets.Value("int64"), "photo": datasets.Image(), "kind": datasets.ClassLabel(names=names)}
    )

    def part(size, grey):
        images = [Image.fromarray(np.full((8 + i % 2, 8, 3), grey, np.uint8)) for i in range(size)]
        columns = {"id": list(range(size)), "photo": images, "kind": [i % 3 for i in range(size)]}
        return datasets.Dataset.from_dict(columns, features=features)

    def save(**parts):
        path = tmp_path / "_".join(parts)
        found = {name: part(size, 50 * number) for number, (name, size) in enumerate(parts.items())}
        whole = datasets.DatasetDict(found) if parts.keys() != {"alone"} else found["alone"]
        whole.save_to_disk(str(path))
        return f"hf:{path}"

    return save


@hashed
def test_a_data_set_on_disk_is_a_stream_with_the_names_of_its_classes(pets):
    stream = make_stream("own", 0, data=pets(train=30, validation=9, test=12), experiences=3)
    assert stream.class_names == ("cat", "dog", "owl")
    assert stream.image_shape == (3, 8, 8)
    assert stream.counts == [4, 4, 4]
    assert "images of 2 sizes" in stream.note
    arrays = load_data(pets(train=30, validation=9))
    assert torch.unique(arrays.test.x).tolist() == [50]
    assert named.NO_TEST in arrays.note
    alone = load_data(pets(alone=30))
    assert (len(alone.train.y), len(alone.test.y)) == (24, 6)


@hashed
def test_a_column_that_is_not_there_or_not_clear_is_named(pets):
    data = pets(train=30, test=12)
    with pytest.raises(ValueError, match="there is no column 'kinds'; did you mean 'kind'"):
        load_data(f"{data}?label=kinds")
    with pytest.raises(ValueError, match="expected images, got int"):
        load_data(f"{data}?image=id")
    with pytest.raises(ValueError, match="hf:/nowhere/at/all: could not be loaded"):
        load_data("hf:/nowhere/at/all")
