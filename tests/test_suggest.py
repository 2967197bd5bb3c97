from __future__ import annotations

from pathlib import Path

import pytest

from jgraph._suggest import did_you_mean, did_you_mean_path


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("fintune", "; did you mean finetune?"),
        ("evalute", "; did you mean evaluate?"),
        ("zzz", ""),
        ("", ""),
    ],
)
def test_the_nearest_name_is_meant(name, hint):
    assert did_you_mean(name, ("finetune", "predict", "evaluate")) == hint


def test_a_path_is_corrected_at_its_first_wrong_part(tmp_path):
    (tmp_path / "pictures" / "train").mkdir(parents=True)
    right = tmp_path / "pictures"
    assert did_you_mean_path(tmp_path / "picturs") == f"; did you mean {right}?"
    assert did_you_mean_path(tmp_path / "picturs" / "train" / "cat") == f"; did you mean {right}?"
    assert did_you_mean_path(right / "trian") == f"; did you mean {right / 'train'}?"
    assert did_you_mean_path(tmp_path / "zzz") == ""


def test_a_relative_path_is_corrected_relatively(tmp_path, monkeypatch):
    (tmp_path / "pictures").mkdir()
    monkeypatch.chdir(tmp_path)
    assert did_you_mean_path(Path("pictuers")) == "; did you mean pictures?"


def test_a_link_to_what_is_gone_is_not_meant(tmp_path):
    (tmp_path / "latest").symlink_to("pets-001")
    assert did_you_mean_path(tmp_path / "latest") == ""
