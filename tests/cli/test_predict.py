"""``foveal predict``: bad files are reported one by one, the others classified; the formats agree."""

from __future__ import annotations

import csv
import io
import json
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, features

from foveal.data.catalog import open_data
from foveal.recipe import DataPart


@pytest.fixture(scope="module")
def digits():
    """The digits that the run was tested on."""
    return open_data(DataPart(name="digits")).test


@pytest.fixture
def image(digits, tmp_path):
    """A file of one of them."""
    path = tmp_path / "digit.png"
    Image.fromarray(digits.images[0, :, :, 0]).save(path)
    return path


@pytest.fixture
def predict(foveal, trained_run):
    return lambda *arguments: foveal("predict", trained_run, *arguments)


def png_of_size(path, width, height):
    """A PNG that claims a size, and holds no pixels."""

    def chunk(kind, content):
        return (
            struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + body)


def photo(path, **options):
    """A coloured picture, in the format its name says."""
    pixels = np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, **options)


def make_missing(_path):
    pass


BAD = {
    "missing.png": (make_missing, ("no such file",)),
    "empty.png": (lambda path: path.touch(), ("empty",)),
    "text.png": (lambda path: path.write_text("hello\n"), ("not an image",)),
    "folder.png": (lambda path: path.mkdir(), ("is a folder without images",)),
    "[1]*.png": (make_missing, ("no file matches",)),
    "huge.png": (lambda path: png_of_size(path, 20_000, 10_001), ("20000 x 10001", "200,000,000")),
    "hollow.png": (lambda path: png_of_size(path, 8, 8), ("cannot be read",)),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_file_is_reported_and_the_others_are_classified(predict, image, tmp_path, name):
    make, words = BAD[name]
    bad = tmp_path / name
    make(bad)
    outcome = predict(image, bad, image, "--json")
    assert outcome.code == 1
    first, failed, last = outcome.document["predictions"]
    assert first == last
    assert "top" in first
    assert failed.keys() == {"file", "error"}
    assert failed["file"] == str(bad)
    assert outcome.err == f"error: {failed['error']}\n"
    assert all(word in failed["error"] for word in (str(bad), *words))


SUFFIXES = ("png", "jpg", "gif", "bmp", "tiff", "webp", *(["avif"] if features.check("avif") else []))


def make_variants(tmp_path, suffix, spoil):
    """Files of a picture, each spoilt at another place: many are in its header."""
    whole = tmp_path / f"whole.{suffix}"
    photo(whole)
    content = whole.read_bytes()
    files = []
    for place in (*range(1, 400, 6), *range(401, len(content) - 1, len(content) // 20)):
        files.append(tmp_path / f"{place}.{suffix}")
        files[-1].write_bytes(spoil(content, place))
    return files


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_file_that_is_cut_off_anywhere_is_an_error_of_that_file_or_classified(
    predict, image, tmp_path, suffix
):
    files = make_variants(tmp_path, suffix, lambda content, place: content[:place])
    outcome = predict(*files, image, "--json")
    assert outcome.code == 1
    assert "a mistake in foveal" not in outcome.err
    *cut, good = outcome.document["predictions"]
    assert "error" in cut[0]
    assert "error" in cut[len(cut) // 2]
    assert "top" in good


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_file_with_wrong_bytes_anywhere_is_an_error_of_that_file_or_classified(
    predict, image, tmp_path, suffix, recwarn
):
    def spoil(content, place):
        return (
            content[:place] + bytes(255 - byte for byte in content[place : place + 3]) + content[place + 3 :]
        )

    outcome = predict(*make_variants(tmp_path, suffix, spoil), image, "--json")
    assert "a mistake in foveal" not in outcome.err
    assert "top" in outcome.document["predictions"][-1]
    # Python would print them on standard error. Those of other modules may be of an earlier test's garbage.
    assert [str(each.message) for each in recwarn if "PIL" in each.filename] == []


def test_image_of_just_the_limit_is_not_refused_for_its_size(predict, tmp_path):
    png_of_size(tmp_path / "a.png", 20_000, 10_000)
    assert "200,000,000" not in predict(tmp_path / "a.png").err


def test_a_folder_and_a_pattern_are_the_files_they_stand_for(predict, image, tmp_path):
    folder = tmp_path / "scans/of a digit"
    folder.mkdir(parents=True)
    for name in ("1.png", "ä 2.png"):
        (folder / name).write_bytes(image.read_bytes())
    (tmp_path / "scans/notes.txt").touch()
    names = (image, tmp_path / "scans", f"{tmp_path}/**/?.png")
    plain, *others = predict(*names, "--json").document["predictions"]
    assert [Path(each["file"]).name for each in others] == ["1.png", "ä 2.png", "1.png"]
    assert all(each["top"] == plain["top"] for each in others)


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such pipes")
def test_results_are_printed_while_others_are_still_to_come(start, trained_run, image, tmp_path):
    os.mkfifo(tmp_path / "late.png")
    process = start("predict", trained_run, *[image] * 64, "late.png", "--format", "jsonl", bufsize=1)
    results = [json.loads(process.stdout.readline()) for _ in range(64)]
    assert all(result["top"] for result in results)
    (tmp_path / "late.png").write_bytes(image.read_bytes())
    (last,) = process.communicate(timeout=60)[0].splitlines()
    assert json.loads(last)["file"] == "late.png"
    assert json.loads(last)["top"][0]["label"] == results[0]["top"][0]["label"]


def test_bad_files_among_many_keep_their_places(predict, image, tmp_path):
    names = [str(image)] * 75
    for place in (0, 31, 32, 74):
        names[place] = str(tmp_path / f"missing{place}.png")
    document = predict(*names, "--json").document
    assert [prediction["file"] for prediction in document["predictions"]] == names
    assert [n for n, p in enumerate(document["predictions"]) if "error" in p] == [0, 31, 32, 74]


def test_nothing_but_bad_files_gives_no_table(predict, tmp_path):
    outcome = predict(tmp_path / "a.png", tmp_path / "b.png")
    assert (outcome.code, outcome.out) == (1, "")
    assert [line[:6] for line in outcome.err.splitlines()] == ["error:"] * 2


def test_formats_agree(predict, image, tmp_path):
    bad = tmp_path / "missing.png"
    outcomes = {
        name: predict(image, bad, "--top", 3, "--format", name) for name in ("table", "csv", "json", "jsonl")
    }
    assert {outcome.code for outcome in outcomes.values()} == {1}
    documents = outcomes["json"].document["predictions"]
    assert [json.loads(line) for line in outcomes["jsonl"].out.splitlines()] == documents
    rows = list(csv.DictReader(io.StringIO(outcomes["csv"].out)))
    guesses = documents[0]["top"]
    assert len(guesses) == 3
    for rank, (row, guess) in enumerate(zip(rows[:3], guesses, strict=True), start=1):
        assert (row["file"], row["rank"], row["error"]) == (str(image), str(rank), "")
        assert {
            "label": row["label"],
            "index": int(row["index"]),
            "probability": float(row["probability"]),
        } == guess
    assert (rows[3]["file"], rows[3]["label"], rows[3]["error"]) == (str(bad), "", documents[1]["error"])
    (line,) = outcomes["table"].out.splitlines()
    expected = [f"{guess['label']} {guess['probability']:.1%}" for guess in guesses]
    assert line == f"{image}: {'  '.join(expected)}"


def test_json_is_short_for_format_json(predict, image):
    assert predict(image, "--json").out == predict(image, "--format", "json").out


def test_probabilities_are_sorted_and_the_top_is_five_by_default(predict, image):
    (prediction,) = predict(image, "--json").succeeded().document["predictions"]
    found = [guess["probability"] for guess in prediction["top"]]
    assert len(found) == 5
    assert found == sorted(found, reverse=True)
    assert prediction["top"][0].keys() == {"label", "index", "probability"}


def test_top_beyond_the_classes_names_all_of_them(predict, image):
    (prediction,) = predict(image, "--top", 100, "--json").succeeded().document["predictions"]
    assert sorted(guess["index"] for guess in prediction["top"]) == list(range(10))
    assert sum(guess["probability"] for guess in prediction["top"]) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--top", "0"), ("--top", "1")),
        (("--top", "x"), ("--top", "integer")),
        (("--format", "xml"), ("--format", "xml", "csv", "jsonl")),
        (("--split", "test"), ("--split",)),
        (("--device", "tpu"), ("device", "tpu")),
    ],
)
def test_wrong_options_are_refused(predict, image, arguments, words):
    predict(image, *arguments).refused(2, *words)


def test_step_that_has_no_checkpoint_is_refused(predict, image):
    predict(image, "--checkpoint", 999).refused(1, "999", "20, 30, 40")


def test_digits_are_recognised(predict, digits, tmp_path):
    for number in range(50):
        Image.fromarray(digits.images[number, :, :, 0]).save(tmp_path / f"{number}.png")
    outcome = predict(*(tmp_path / f"{number}.png" for number in range(50)), "--top", 1, "--json")
    found = [prediction["top"][0]["index"] for prediction in outcome.succeeded().document["predictions"]]
    assert sum(map(int.__eq__, found, digits.targets[:50].tolist())) > 35


def test_colours_and_transparency_become_grey(predict, image, tmp_path):
    grey = Image.open(image).resize((64, 48), Image.Resampling.NEAREST)
    names = [tmp_path / f"{mode}.png" for mode in ("L", "RGB", "LA", "RGBA")]
    for name in names:
        grey.convert(name.stem).save(name)
    plain, *others = predict(*names, "--json").succeeded().document["predictions"]
    assert [other["top"] for other in others] == [plain["top"]] * 3


def test_inverted_image_is_read_with_invert(predict, image, tmp_path):
    Image.fromarray(255 - np.asarray(Image.open(image))).save(tmp_path / "black.png")
    plain = predict(image, "--json").succeeded().document["predictions"][0]["top"]
    inverted = predict(tmp_path / "black.png", "--invert", "--json").document["predictions"][0]["top"]
    assert inverted == plain


def test_the_network_is_compiled_where_that_is_asked_for(predict, image, monkeypatch):
    compiled = []
    monkeypatch.setattr("foveal.answering.frozen", lambda network: compiled.append(network) or network)
    plain, quick = (
        predict(image, "--json", *more).succeeded().document["predictions"][0]["top"]
        for more in ((), ("--compile",))
    )
    assert len(compiled) == 1
    for ours, theirs in zip(quick, plain, strict=True):
        assert ours["label"] == theirs["label"]
        assert ours["probability"] == pytest.approx(theirs["probability"], abs=1e-5)


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such names")
def test_name_that_is_not_unicode_or_has_a_newline_is_one_file(predict, image, tmp_path):
    odd = tmp_path / "two\nlines.png"
    odd.write_bytes(image.read_bytes())
    (prediction,) = predict(odd, "--json").succeeded().document["predictions"]
    assert prediction["file"] == str(odd)
    undecodable = os.fsdecode(os.fsencode(tmp_path) + b"/\xff.png")
    with open(undecodable, "wb") as file:  # noqa: PTH123 - the name is not text
        file.write(image.read_bytes())
    for output in ("json", "csv", "table"):
        outcome = predict(undecodable, "--format", output)
        assert "a mistake in foveal" not in outcome.err
        assert outcome.code == 0


def test_real_photographs_are_classified(predict, shared_data):
    photographs = sorted((shared_data / "imagenet-sample").iterdir())[:20]
    document = predict(*photographs, "--json", "--top", 1).succeeded().document
    assert all(len(prediction["top"]) == 1 for prediction in document["predictions"])
