"""Scanning folders: order, classes, what is ignored, and the sentence for each thing wrong."""

import os
from pathlib import Path

import numpy as np
import pytest

from jgraph._errors import InputError
from jgraph.data import PictureSet, check_trainable, find_splits, scan


def touch(folder: Path, *names: str) -> Path:
    """Make files whose content scanning must not look at."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"not decoded here")
    return folder


def relative(pictures: PictureSet, folder: Path) -> list[str]:
    return [path.relative_to(folder).as_posix() for path in pictures.paths]


def test_lists_pictures_sorted_with_labels_of_sorted_class_names(tmp_path):
    touch(tmp_path, "dog/b.PNG", "dog/a.jpeg", "cat/2.jpg", "cat/10.webp", "ant/x.TIF")
    pictures = scan(tmp_path)
    assert pictures.class_names == ("ant", "cat", "dog")
    assert relative(pictures, tmp_path) == [
        "ant/x.TIF", "cat/10.webp", "cat/2.jpg", "dog/a.jpeg", "dog/b.PNG",
    ]  # fmt: skip
    assert pictures.labels.dtype == np.int32
    assert pictures.labels.tolist() == [0, 1, 1, 2, 2]
    assert pictures.counts.tolist() == [1, 2, 2]
    assert len(pictures) == 5


@pytest.mark.parametrize(
    "ending", ["jpg", "jpeg", "png", "bmp", "gif", "webp", "tif", "tiff", "JPG", "Tiff"]
)
def test_every_promised_ending_is_a_picture(tmp_path, ending):
    assert len(scan(touch(tmp_path, f"cat/a.{ending}"))) == 1


def test_folders_below_a_class_belong_to_it(tmp_path):
    touch(tmp_path, "cat/a.jpg", "cat/more/b.jpg", "cat/more/still/c.jpg")
    pictures = scan(tmp_path)
    assert pictures.class_names == ("cat",)
    assert relative(pictures, tmp_path) == ["cat/a.jpg", "cat/more/b.jpg", "cat/more/still/c.jpg"]


def test_hidden_things_are_passed_over_and_other_files_are_reported(tmp_path):
    touch(
        tmp_path, "cat/a.jpg", "cat/.b.jpg", ".git/c.jpg", "__MACOSX/cat/a.jpg",
        "cat/notes.txt", "README.md",
    )  # fmt: skip
    pictures = scan(tmp_path)
    assert relative(pictures, tmp_path) == ["cat/a.jpg"]
    assert pictures.class_names == ("cat",)
    assert pictures.ignored == (tmp_path / "README.md", tmp_path / "cat" / "notes.txt")


def test_links_are_followed_and_a_circle_of_links_ends(tmp_path):
    elsewhere = touch(tmp_path / "elsewhere", "a.jpg")
    data = touch(tmp_path / "data", "dog/b.jpg")
    (data / "cat").symlink_to(elsewhere, target_is_directory=True)
    (data / "dog" / "again").symlink_to(data / "dog", target_is_directory=True)
    (data / "dog" / "c.jpg").symlink_to(elsewhere / "a.jpg")
    assert relative(scan(data), data) == ["cat/a.jpg", "dog/b.jpg", "dog/c.jpg"]


def test_given_class_names_decide_the_labels(tmp_path):
    touch(tmp_path, "dog/a.jpg", "ant/b.jpg", "notes/readme.txt")
    pictures = scan(tmp_path, ["dog", "cat", "ant"])
    assert pictures.class_names == ("dog", "cat", "ant")
    assert relative(pictures, tmp_path) == ["dog/a.jpg", "ant/b.jpg"]
    assert pictures.labels.tolist() == [0, 2]
    assert pictures.counts.tolist() == [1, 0, 1]


def test_a_class_unknown_to_the_model_is_refused(tmp_path):
    touch(tmp_path, "dog/a.jpg", "bee/b.jpg")
    with pytest.raises(InputError, match="was not trained on: 'bee'; its classes are 'cat', 'dog'"):
        scan(tmp_path, ("cat", "dog"))


def test_subset_keeps_order_and_classes(tmp_path):
    pictures = scan(touch(tmp_path, "cat/a.jpg", "dog/b.jpg", "dog/c.jpg"))
    part = pictures.subset(np.array([2, 0]))
    assert relative(part, tmp_path) == ["dog/c.jpg", "cat/a.jpg"]
    assert part.labels.tolist() == [1, 0]
    assert part.class_names == ("cat", "dog")
    assert len(pictures.subset([])) == 0


def test_a_missing_folder_names_the_one_that_was_meant(tmp_path):
    touch(tmp_path, "pictures/cat/a.jpg")
    with pytest.raises(InputError, match=r"no folder .*pictuers; did you mean .*/pictures\?"):
        scan(tmp_path / "pictuers")


def test_the_misspelt_part_may_be_further_up(tmp_path):
    touch(tmp_path, "pictures/train/cat/a.jpg")
    with pytest.raises(InputError, match=r"did you mean .*/pictures\?"):
        scan(tmp_path / "pictuers" / "train")


def test_nothing_is_suggested_where_nothing_is_close(tmp_path):
    touch(tmp_path, "pictures/cat/a.jpg")
    with pytest.raises(InputError, match=r"no folder .*zebra$"):
        scan(tmp_path / "zebra")


def test_a_file_is_not_a_folder(tmp_path):
    touch(tmp_path, "a.jpg")
    with pytest.raises(InputError, match=r"a\.jpg is a file; .*one sub-folder per class"):
        scan(tmp_path / "a.jpg")


def test_a_folder_without_pictures_says_what_counts_as_one(tmp_path):
    touch(tmp_path, "cat/notes.txt")
    with pytest.raises(InputError, match=r"no pictures \(\.jpg, .*\.tiff\) in .*sub-folder per cl"):
        scan(tmp_path)


def test_pictures_outside_class_folders_are_explained(tmp_path):
    touch(tmp_path, "a.jpg", "b.jpg")
    with pytest.raises(
        InputError, match=r"holds 2 pictures directly, such as a\.jpg, and no class"
    ):
        scan(tmp_path)


def test_one_class_cannot_be_trained(tmp_path):
    with pytest.raises(InputError, match=r"at least two classes, got one \('cat'\)"):
        check_trainable(scan(touch(tmp_path, "cat/a.jpg", "cat/b.jpg")))


def test_classes_with_fewer_than_two_pictures_are_named(tmp_path):
    (tmp_path / "bee").mkdir()
    touch(tmp_path, "ant/a.jpg", "cat/a.jpg", "cat/b.jpg")
    with pytest.raises(InputError, match=r"two pictures.*'ant' has 1, 'bee' has 0; add pictures"):
        check_trainable(scan(tmp_path))


def test_two_classes_of_two_can_be_trained(tmp_path):
    check_trainable(scan(touch(tmp_path, "ant/a.jpg", "ant/b.jpg", "cat/a.jpg", "cat/b.jpg")))


def test_many_names_are_cut_short(tmp_path):
    touch(tmp_path, *(f"class{i:02}/a.jpg" for i in range(12)))
    with pytest.raises(InputError, match=r"'class09', … \(12 in all\); its classes are 'cat'"):
        scan(tmp_path, ["cat"])


def test_a_folder_of_classes_is_one_training_set(tmp_path):
    splits = find_splits(touch(tmp_path, "cat/a.jpg", "dog/b.jpg"))
    assert relative(splits.train, tmp_path) == ["cat/a.jpg", "dog/b.jpg"]
    assert splits.val is None
    assert splits.test is None


@pytest.mark.parametrize("val", [None, "val", "valid", "validation", "Val"])
@pytest.mark.parametrize("test", [None, "test", "TEST"])
def test_splits_are_recognised_in_any_combination(tmp_path, val, test):
    touch(tmp_path, "train/cat/a.jpg", "train/dog/b.jpg")
    for name in filter(None, (val, test)):
        touch(tmp_path, f"{name}/dog/c.jpg")
    splits = find_splits(tmp_path)
    assert relative(splits.train, tmp_path) == ["train/cat/a.jpg", "train/dog/b.jpg"]
    for found, name in ((splits.val, val), (splits.test, test)):
        if name is None:
            assert found is None
        else:
            assert found is not None
            assert relative(found, tmp_path) == [f"{name}/dog/c.jpg"]
            assert found.labels.tolist() == [1]
            assert found.class_names == ("cat", "dog")


def test_a_class_may_be_called_train_or_test(tmp_path):
    splits = find_splits(touch(tmp_path, "bus/a.jpg", "test/b.jpg", "train/c.jpg"))
    assert splits.train.class_names == ("bus", "test", "train")
    assert splits.test is None


def test_a_class_called_test_may_have_folders(tmp_path):
    splits = find_splits(touch(tmp_path, "bus/a.jpg", "test/deep/b.jpg"))
    assert splits.train.class_names == ("bus", "test")


def test_a_model_can_be_tried_on_a_folder_without_train(tmp_path):
    splits = find_splits(touch(tmp_path, "test/dog/a.jpg"), class_names=("cat", "dog"))
    assert len(splits.train) == 0
    assert splits.train.class_names == ("cat", "dog")
    assert splits.test is not None
    assert splits.test.labels.tolist() == [1]


def test_held_out_pictures_without_training_pictures_are_refused(tmp_path):
    touch(tmp_path, "val/cat/a.jpg", "test/dog/a.jpg")
    with pytest.raises(InputError, match="has val/, test/ but no train/; put the training"):
        find_splits(tmp_path)


def test_a_class_that_was_not_trained_is_named(tmp_path):
    touch(tmp_path, "train/cat/a.jpg", "train/dog/b.jpg", "test/bird/c.jpg", "test/cat/d.jpg")
    with pytest.raises(
        InputError, match=r"test has classes .* lack: 'bird'; the classes are 'cat'"
    ):
        find_splits(tmp_path)


def test_two_names_for_one_split_are_refused(tmp_path):
    touch(tmp_path, "train/cat/a.jpg", "val/cat/b.jpg", "valid/cat/c.jpg")
    with pytest.raises(InputError, match="val/ and valid/, two names for one set of pictures"):
        find_splits(tmp_path)


def test_splits_of_a_missing_folder(tmp_path):
    with pytest.raises(InputError, match="there is no folder"):
        find_splits(tmp_path / "nowhere")


def test_the_home_folder_is_expanded(tmp_path, monkeypatch):
    monkeypatch.setitem(os.environ, "HOME", str(touch(tmp_path, "data/cat/a.jpg")))
    assert len(scan("~/data")) == 1


def test_a_split_with_loose_pictures_is_refused_and_other_folders_are_named(tmp_path):
    touch(tmp_path, "train/a/1.png", "train/b/1.png", "test/1.png", "notes/1.png")
    with pytest.raises(InputError, match="test holds pictures directly, so their classes are unk"):
        find_splits(tmp_path)
    (tmp_path / "test").rename(tmp_path / "unlabelled")
    assert find_splits(tmp_path).train.ignored == (tmp_path / "notes", tmp_path / "unlabelled")


def test_a_pipe_is_no_picture(tmp_path):
    touch(tmp_path, "a/1.png")
    os.mkfifo(tmp_path / "a" / "2.png")
    pictures = scan(tmp_path)
    assert relative(pictures, tmp_path) == ["a/1.png"]
    assert pictures.ignored == (tmp_path / "a" / "2.png",)
