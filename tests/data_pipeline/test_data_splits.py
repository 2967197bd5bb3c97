"""Drawing held-out pictures and folds: counts by arithmetic, properties by hypothesis."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jgraph._errors import InputError
from jgraph.data import stratified_folds, stratified_holdout

LABELS = st.lists(st.integers(0, 4), min_size=1, max_size=60)


@given(LABELS, st.floats(0.01, 0.99), st.integers(0, 9))
def test_holdout_is_a_partition_with_the_rounded_share_of_every_class(labels, fraction, seed):
    train, held = stratified_holdout(labels, fraction, seed)
    assert sorted([*train, *held]) == list(range(len(labels)))
    assert train.tolist() == sorted(train)
    assert held.tolist() == sorted(held)
    for label in set(labels):
        size = labels.count(label)
        count = sum(labels[i] == label for i in held)
        nearest = int(np.floor(fraction * size + 0.5))
        assert count == max(0, min(max(nearest, 1), size - 2))


def test_a_fifth_of_every_class_is_held_out():
    labels = [0] * 80 + [1] * 10 + [2] * 2
    _, held = stratified_holdout(labels, 0.2)
    assert np.bincount(np.array(labels)[held], minlength=3).tolist() == [16, 2, 0]


def test_the_draw_depends_on_the_seed_and_on_the_class_alone():
    held = stratified_holdout([0] * 50, seed=1)[1].tolist()
    assert held == stratified_holdout([0] * 50, seed=1)[1].tolist()
    assert held != stratified_holdout([0] * 50, seed=2)[1].tolist()
    assert held == [i for i in stratified_holdout([0] * 50 + [1] * 7, seed=1)[1] if i < 50]


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.1, float("nan")])
def test_a_fraction_out_of_range_is_refused(fraction):
    with pytest.raises(InputError, match="fraction must lie between 0 and 1, got"):
        stratified_holdout([0, 1], fraction)


@given(LABELS, st.integers(2, 7), st.integers(0, 9))
def test_folds_share_out_every_class_and_all_pictures_evenly(labels, folds, seed):
    fold = stratified_folds(labels, folds, seed)
    assert fold.dtype == np.int32
    dealt = np.bincount(fold[fold >= 0], minlength=folds)
    assert dealt.max() - dealt.min() <= 1
    for label in set(labels):
        of_class = fold[np.array(labels) == label]
        if len(of_class) == 1:
            assert of_class.tolist() == [-1]
        else:
            counts = np.bincount(of_class, minlength=folds)
            assert counts.sum() == len(of_class)
            assert counts.max() - counts.min() <= 1


def test_folds_depend_on_the_seed():
    labels = [0, 1] * 20
    assert stratified_folds(labels, seed=3).tolist() == stratified_folds(labels, seed=3).tolist()
    assert stratified_folds(labels, seed=3).tolist() != stratified_folds(labels, seed=4).tolist()


def test_one_fold_is_refused():
    with pytest.raises(InputError, match="at least two folds, got 1"):
        stratified_folds([0, 0, 1, 1], folds=1)
