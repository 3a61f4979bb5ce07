"""``foveal data``: each command on every format, what it prints, and how it refuses."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image
from rich.console import Console
from tests.formats import test_training as written

from foveal.cli.progress import DownloadBar

COMMANDS = ("info", "index", "verify", "convert", "preview")
WRITERS = (
    written.fixed_length,
    written.idx,
    written.arrays,
    written.csv_of_pixels,
    written.csv_of_files,
    written.records_of_files,
    written.records_of_pixels,
    written.parquet,
    written.images_in_folders,
)


@pytest.fixture(params=WRITERS, ids=lambda write: write.__name__)
def digits(request, tmp_path, monkeypatch):
    """The first of the digits in some format: the path, the format, and what to append to a command."""
    first = [(name, images[:60], labels[:60]) for name, images, labels in written.parts()]
    monkeypatch.setattr(written, "parts", lambda: first)
    folder = tmp_path / "данные"
    folder.mkdir()
    kind, options = request.param(folder)
    settings = [argument for key, value in options.items() for argument in ("--set", f"{key}={value!r}")]
    return folder, kind, settings


class TestEveryFormat:
    def test_is_described_alike(self, foveal, digits):
        folder, kind, settings = digits
        if kind == "fixed_length":  # nothing in the files tells
            settings += ["--format", kind]
        found = foveal("data", "info", folder, *settings, "--json").succeeded().document
        assert (found["format"], found["parts"]) == (kind, {"train": 60, "test": 60})
        (_, images, labels), _ = written.parts()
        assert found["statistics"]["mean"] == [pytest.approx(images.mean() / 255, abs=1e-6)]
        assert found["statistics"]["deviation"] == [pytest.approx(images.std() / 255, abs=1e-6)]
        assert [each["train"] for each in found["classes"]] == np.bincount(labels).tolist()
        assert (found["sizes"], found["grey"]) == (1, 120)

    def test_is_verified_indexed_previewed_and_converted(self, foveal, digits, tmp_path):
        folder, kind, settings = digits
        arguments = (folder, "--format", kind, *settings)
        found = foveal("data", "verify", *arguments, "--json").succeeded().document
        assert (found["good"], found["examples"], found["bad"]) == (True, 120, [])
        found = foveal("data", "index", *arguments, "--json").succeeded().document
        assert found["parts"] == {"train": 60, "test": 60}
        foveal("data", "preview", *arguments, "--recipe", "digits", "--out", "sheet.png").succeeded()
        assert Image.open(tmp_path / "sheet.png").format == "PNG"
        foveal("data", "convert", *arguments, "new/some.tfrecord").succeeded()
        again = foveal("data", "info", "new", "--json").succeeded().document
        before = foveal("data", "info", *arguments, "--json").succeeded().document
        for key in ("parts", "statistics", "sizes", "grey", "imbalance"):
            assert again[key] == before[key]


def jpeg(seed, size=(20, 30)):
    content = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8)
    Image.fromarray(pixels).save(content, "jpeg")
    return content.getvalue()


@pytest.fixture
def photos(tmp_path):
    """A folder of photographs: a copy under another label, and two files that are damaged."""
    for number in range(10):
        path = tmp_path / "photos" / ("cats" if number % 2 else "собаки") / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(jpeg(number, (20, 30 + number)))
    (tmp_path / "photos" / "cats" / "copy.jpg").write_bytes(jpeg(2, (20, 32)))
    (tmp_path / "photos" / "cats" / "cut.jpg").write_bytes(jpeg(11)[:-90])
    (tmp_path / "photos" / "cats" / "not.jpg").write_bytes(b"hello")
    return tmp_path / "photos"


class TestInfo:
    def test_prints_classes_sizes_statistics_and_what_is_wrong(self, foveal, photos):
        text = foveal("data", "info", photos).succeeded().out
        for part in (
            "folder: 12 examples (12 train)",
            "собаки      5",
            "2 classes; the largest is 1.20 x the smallest",
            "10 sizes; height 20 to 20 (median 20), width 30 to 39",
            "[normalization]  # of the train part\nmean = [0.",
            "stored in the same bytes: 2 examples",
            "with several labels 1",
            "look alike: none",
            "1 cannot be read",
            "cut.jpg: ",
            "1 are no images",
        ):
            assert part in text, part

    def test_prints_a_normalization_that_is_part_of_a_recipe(self, foveal, tmp_path):
        text = foveal("data", "info", "digits").succeeded().out
        start = text.index("[normalization]")
        lines = text[start:].split("\n\n")[0]
        recipe = foveal("recipes", "digits").out.split("[normalization]")[0]
        (tmp_path / "mine.toml").write_text(f"{recipe}{lines}\n[optimizer]\nname='sgd'\nlearning_rate=0.1\n")
        foveal("bench", "data", "mine.toml", "--seconds", 0).succeeded()

    def test_of_many_classes_shows_the_largest_and_the_smallest(self, foveal, tmp_path):
        rows = [f"{c},{c % 7},1.5" for c in range(30) for _ in range(c + 1)]
        (tmp_path / "many.csv").write_text("\n".join(["label,a,b", *rows]))
        text = foveal("data", "info", "many.csv").succeeded().out
        table = [line.split() for line in text.split("\n\n")[1].splitlines()]
        assert [row[0] for row in table[1:11]] == [str(c) for c in range(29, 19, -1)]
        assert table[11] == ["..."]
        assert ["column", "mean", "deviation", "min", "max"] in [line.split() for line in text.splitlines()]

    def test_of_a_sample_says_so(self, foveal):
        outcome = foveal("data", "info", "digits", "--sample", 50).succeeded()
        assert "150 of them were looked at" in outcome.out

    def test_of_a_known_data_set_needs_no_path(self, foveal):
        found = foveal("data", "info", "digits", "--json").succeeded().document
        assert found["parts"] == {"train": 1200, "validation": 197, "test": 400}

    def test_takes_a_factory_of_your_own(self, foveal):
        found = foveal("data", "info", f"{written.__name__}:digits", "--json").succeeded().document
        assert found["parts"] == {"train": 1200, "test": 400}

    def test_takes_options_of_the_format(self, foveal, tmp_path):
        (tmp_path / "rows.csv").write_text("1,2,b\n3,4,a\n")
        found = foveal("data", "info", "rows.csv", "--set", "label=2", "--json").succeeded().document
        assert [each["label"] for each in found["classes"]] == ["a", "b"]
        assert found["statistics"]["mean"] == [2.0, 3.0]
        assert found["numeric"]


class TestIndex:
    def test_is_built_once_and_again_when_asked(self, foveal, photos):
        built = [
            foveal("data", "index", photos, *more, "--json").succeeded().document["indexes"]
            for more in ((), (), ("--rebuild",))
        ]
        assert [each["built"] for (each,) in built] == [True, False, True]
        assert len({each["path"] for (each,) in built}) == 1
        assert "/.foveal-folder-" in built[0][0]["path"]

    def test_says_where_it_is(self, foveal, photos):
        text = foveal("data", "index", photos).succeeded().out
        assert "folder: 12 train, 2 classes" in text
        assert ".index: built" in text

    def test_of_a_format_without_one_says_so(self, foveal):
        assert "needs no index" in foveal("data", "index", "digits").succeeded().out


class TestVerify:
    def test_lists_what_is_bad_and_fails(self, foveal, photos):
        outcome = foveal("data", "verify", photos)
        assert outcome.code == 1
        assert [line.split(": ")[0].rpartition("/")[2] for line in outcome.out.splitlines()[:-1]] == [
            "not.jpg",
            "cut.jpg",
        ]
        assert outcome.out.splitlines()[-1] == "12 train: 2 bad"

    def test_prints_json_and_fails(self, foveal, photos):
        outcome = foveal("data", "verify", photos, "--json")
        assert (outcome.code, outcome.document["good"]) == (1, False)
        assert len(outcome.document["bad"]) == 2

    def test_reports_a_file_that_is_cut_off(self, foveal, tmp_path):
        foveal("data", "convert", "digits", "d.tfrecord").succeeded()
        path = next(tmp_path.glob("d-test*"))
        path.write_bytes(path.read_bytes()[:-5])
        outcome = foveal("data", "verify", path, "--json")
        assert outcome.code == 1
        (bad,) = outcome.document["bad"]
        assert path.name in bad["key"] + bad["reason"]


class TestConvert:
    def test_writes_shards_and_names_them(self, foveal, tmp_path):
        options = ("--shards", 3, "--compression", "gzip")
        outcome = foveal("data", "convert", "digits", "out/d.tfrecord", *options).succeeded()
        lines = outcome.out.splitlines()
        assert len(lines) == 10
        assert all((tmp_path / line).is_file() for line in lines[:-1])
        assert lines[-1] == "1,200 train, 197 validation, 400 test"

    def test_does_not_replace_files_unless_asked(self, foveal):
        foveal("data", "convert", "digits", "d.tfrecord").succeeded()
        foveal("data", "convert", "digits", "d.tfrecord").refused(2, "there already")
        foveal("data", "convert", "digits", "d.tfrecord", "--overwrite").succeeded()


class TestPreview:
    ARGUMENTS = ("data", "preview", "digits", "--recipe", "digits", "--out")

    def test_draws_what_is_asked_for(self, foveal, tmp_path):
        foveal(*self.ARGUMENTS, "a.png", "--count", 2, "--versions", 1).succeeded()
        found = foveal(*self.ARGUMENTS, "b.png", "--count", 4, "--versions", 3, "--json").succeeded().document
        small, large = (Image.open(tmp_path / name) for name in ("a.png", "b.png"))
        assert large.size == (found["width"], found["height"])
        assert large.width > small.width
        assert large.height > small.height

    def test_with_the_same_seed_is_the_same_picture(self, foveal, tmp_path):
        for name, seed in (("a", 1), ("b", 1), ("c", 2)):
            foveal(*self.ARGUMENTS, f"{name}.png", "--seed", seed).succeeded()
        a, b, c = ((tmp_path / f"{name}.png").read_bytes() for name in "abc")
        assert a == b != c

    def test_of_another_kind_of_picture_is_refused(self, foveal):
        foveal(*self.ARGUMENTS, "a.jpg").refused(2, "a.jpg", ".png")

    def test_where_nothing_can_be_written_is_one_line(self, foveal, tmp_path):
        (tmp_path / "file").write_text("")
        foveal(*self.ARGUMENTS, "file/a.png").refused(1, "file")


class TestMistakes:
    @pytest.mark.parametrize("command", COMMANDS)
    def test_of_paths_are_one_line(self, foveal, command):
        more = {"convert": ("o.tfrecord",), "preview": ("--recipe", "digits", "--out", "o.png")}.get(
            command, ()
        )
        foveal("data", command, "mnsit", *more).refused(2, "mnsit", "mnist")
        foveal("data", command, "./nowhere", *more).refused(1, "nowhere")
        foveal("data", command, "digits", *more, "--set", "colour=3").refused(2, "colour")
        foveal("data", command, "digits", *more, "--set", "colour").refused(2, "KEY=VALUE")

    def test_of_the_format_are_one_line_with_a_suggestion(self, foveal, photos):
        foveal("data", "info", photos, "--format", "foldr").refused(2, "'folder'")

    def test_to_look_through_a_stream_is_one_line(self, foveal):
        foveal("data", "info", f"{written.__name__}:stream").refused(2, "stream")

    def test_of_a_recipe_are_one_line_with_a_suggestion(self, foveal):
        foveal("data", "preview", "digits", "--recipe", "digit", "--out", "o.png").refused(2, "'digits'")

    @pytest.mark.parametrize("arguments", [("data",), ("data", "inform"), ("data", "info")])
    def test_of_usage_are_one_line(self, foveal, arguments):
        foveal(*arguments).refused(2, "--help")

    def test_of_an_empty_file_and_folder_are_one_line(self, foveal, tmp_path):
        (tmp_path / "empty.csv").write_bytes(b"")
        (tmp_path / "nothing").mkdir()
        foveal("data", "info", "empty.csv").refused(1, "empty.csv", after=True)
        foveal("data", "info", "nothing").refused(1, "nothing")


@pytest.mark.parametrize("command", COMMANDS)
def test_help_shows_an_example(foveal, command):
    text = " ".join(foveal("data", command, "--help").succeeded().out.split())
    assert f"Example: foveal data {command} " in text


def test_help_lists_the_commands(foveal):
    text = foveal("data", "--help").succeeded().out
    assert all(f"  {command} " in text for command in COMMANDS)


class TestProgress:
    @staticmethod
    def shown(name, **options):
        screen = io.StringIO()
        bar = DownloadBar(Console(file=screen, width=100, **options))
        bar.start(name, 5000, 0)
        bar.advance(2500)
        bar.finish()
        return screen.getvalue()

    @pytest.mark.parametrize("name", ["indexing photos", "decoding"])
    def test_of_work_in_a_log_is_its_name(self, name):
        assert self.shown(name) == f"{name}\n"

    def test_of_work_on_a_terminal_is_the_share_that_is_done(self):
        shown = self.shown("verifying train", force_terminal=True)
        assert "verifying train" in shown
        assert "50%" in shown
        assert "kB" not in shown

    @pytest.mark.parametrize("name", ["king.bin", "training-images.gz", "string"])
    def test_of_files_is_that_of_a_download(self, name):
        expected = f"downloading {name} (5.0 kB)\n" if name != "string" else "string\n"
        assert self.shown(name) == expected
