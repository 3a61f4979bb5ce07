from __future__ import annotations

from foveal.data.imagenet import imagenet_classes


def test_there_are_a_thousand_classes_each_of_another_name():
    classes = imagenet_classes()
    assert len(classes) == len(set(classes)) == 1000
    assert all(name.isprintable() and name == name.strip() for name in classes)


def test_classes_stand_at_their_usual_places():
    classes = imagenet_classes()
    expected = {
        0: "tench",
        1: "goldfish",
        207: "golden retriever",
        291: "lion",
        340: "zebra",
        508: "computer keyboard",
        999: "toilet tissue",
    }
    assert {index: classes[index] for index in expected} == expected


def test_classes_of_one_name_are_told_apart():
    assert {name for name in imagenet_classes() if name.startswith(("crane", "maillot"))} == {
        "crane (bird)",
        "crane (machine)",
        "maillot",
        "maillot (tank suit)",
    }
