from __future__ import annotations

import os
from pathlib import Path

import pytest

from foveal.data.listing import NamedImage, find_images


@pytest.fixture(autouse=True)
def _photos(tmp_path, monkeypatch):
    """photos/a.jpg, photos/b/[c].png, photos/b/ü d.jpg, and what is no image."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos/b/empty").mkdir(parents=True)
    for name in ("a.jpg", ".hidden.jpg", "notes.txt", "b/[c].png", "b/ü d.jpg"):
        (tmp_path / "photos" / name).touch()


def found(*names):
    return [each.path if each.error is None else each for each in find_images(names)]


def test_a_file_is_itself_whatever_is_there():
    assert found("photos/a.jpg", "photos/notes.txt", "photos/b/[c].png", "none.jpg") == [
        "photos/a.jpg",
        "photos/notes.txt",
        "photos/b/[c].png",
        "none.jpg",
    ]


@pytest.mark.parametrize("name", ["photos", "photos/"])
def test_a_folder_is_all_that_may_be_an_image_below_it(name):
    assert found(name) == ["photos/a.jpg", "photos/b/[c].png", "photos/b/ü d.jpg"]


def test_a_pattern_is_the_files_it_matches():
    assert found("photos/*") == ["photos/a.jpg", "photos/notes.txt"]
    assert found("photos/**/*.jpg", "photos/?.jpg") == ["photos/a.jpg", "photos/b/ü d.jpg", "photos/a.jpg"]


def test_what_leads_to_nothing_is_told_in_its_place():
    assert found("photos/*.gif", "photos/a.jpg", "photos/b/empty") == [
        NamedImage("photos/*.gif", "photos/*.gif: no file matches"),
        "photos/a.jpg",
        NamedImage("photos/b/empty", "photos/b/empty: is a folder without images"),
    ]


def test_a_link_to_nothing_is_told():
    path = "photos/b/empty/x.jpg"
    Path(path).symlink_to("nowhere.jpg")
    assert found("photos/b/empty") == [NamedImage(path, f"{path}: is a link to nothing")]


def test_a_folder_that_cannot_be_read_is_told_and_the_others_are_listed(monkeypatch):
    scandir = os.scandir

    def refuse(path):
        if path == "photos/b":
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    reason = "photos/b: the folder cannot be read: Permission denied"
    assert found("photos/b", "photos/a.jpg") == [NamedImage("photos/b", reason), "photos/a.jpg"]
