"""``foveal tensorflow``."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

from foveal.tensorflow.checkpoint import Checkpoint, save_checkpoint

CHECKPOINTS = {  # by folder: its checkpoints, their format; variables, step and optimizer of the last
    "cifar10_train": (["model.ckpt-60000"], "V2", 21, 60000, None),
    "dtypes_v1": (["model.ckpt-20", "model.ckpt-300"], "V1", 134, None, None),
    "dtypes_v2": (["model.ckpt-20", "model.ckpt-300"], "V2", 138, None, None),
    "mnist_convnet_model": (["model.ckpt-20000"], "V2", 9, 20000, None),
    "object_graph": (["ckpt-1"], "V2 objects", 5, 41, None),
    "object_graph_keras": (["ckpt"], "V2 objects", 14, 1, "Adam"),
    "partitioned": (["model.ckpt-7"], "V2", 2, None, None),
    "sharded": (["model.ckpt-5"], "V2", 4, None, None),
    "slots_adam": (["model.ckpt-3"], "V2", 9, 3, "Adam"),
    "slots_momentum": (["model.ckpt-3"], "V2", 5, 3, "Momentum"),
    "slots_rmsprop": (["model.ckpt-3"], "V2", 7, 3, "RMSProp"),
}
EVIL = "\x1b]0;owned\x07\n\u202e"

each_folder = pytest.mark.parametrize("folder", CHECKPOINTS)


@pytest.fixture
def copied(fixtures, tmp_path):
    """Copy a folder of TensorFlow's into the working folder."""
    return lambda folder: Path(shutil.copytree(fixtures / folder, tmp_path / folder)).relative_to(tmp_path)


class TestList:
    @each_folder
    def test_shows_the_checkpoints_of_a_folder(self, foveal, copied, folder):
        names, kind, *_ = CHECKPOINTS[folder]
        header, *rows = foveal("tensorflow", "list", copied(folder)).succeeded().out.splitlines()
        assert header.split() == ["checkpoint", "format", "step", "size", "age"]
        assert [row.split()[0] for row in rows] == names
        assert [row.endswith("  latest") for row in rows] == [False] * (len(names) - 1) + [True]
        assert all(f"  {kind}  " in row for row in rows)

    @each_folder
    def test_in_json(self, foveal, copied, folder):
        names, kind, *_ = CHECKPOINTS[folder]
        document = foveal("tensorflow", "list", copied(folder), "--json").succeeded().document
        assert document["path"] == folder
        for each, name in zip(document["checkpoints"], names, strict=True):
            prefix = Path(folder, name)
            nbytes = sum(path.stat().st_size for path in Checkpoint(prefix).files())
            assert each["age"] >= 0
            assert each | {"age": 0} == {
                "path": str(prefix),
                "step": int(name.split("-")[1]) if "-" in name else None,
                "format": kind,
                "bytes": nbytes,
                "age": 0,
                "latest": name == names[-1],
            }

    @pytest.mark.parametrize("name", ["model.ckpt-20", "model.ckpt-300.index"])
    def test_of_a_prefix_or_a_file_is_that_of_its_folder(self, foveal, copied, name):
        folder = copied("dtypes_v2")
        listed = foveal("tensorflow", "list", folder / name).succeeded()
        assert listed.out == foveal("tensorflow", "list", folder).out

    def test_names_a_checkpoint_that_lies_elsewhere_by_its_path(self, foveal, copied):
        there = copied("slots_adam") / "model.ckpt-3"
        Path("here").mkdir()
        Path("here", "checkpoint").write_text(f'model_checkpoint_path: "../{there}"\n')
        row = foveal("tensorflow", "list", "here").succeeded().out.splitlines()[1]
        assert row.split()[0] == f"../{there}"

    def test_lets_no_control_character_through(self, foveal):
        save_checkpoint(Path(f"a/{EVIL.replace('/', '')}"), {"x": np.ones(1)})
        out = foveal("tensorflow", "list", "a").succeeded().out
        assert "owned" in out
        assert all(letter.isprintable() for letter in out.replace("\n", ""))

    def test_of_a_folder_without_checkpoints(self, foveal):
        Path("empty").mkdir()
        assert foveal("tensorflow", "list", "empty").succeeded().out == "empty: no checkpoint\n"
        document = foveal("tensorflow", "list", "empty", "--json").succeeded().document
        assert document == {"path": "empty", "checkpoints": []}

    @pytest.mark.parametrize(
        ("path", "words"),
        [
            ("nothing", ["nothing"]),
            ("nothing/model.ckpt", ["nothing"]),
            ("dtypes_v2/model.ckpt-30", ["dtypes_v2/model.ckpt-30", "dtypes_v2/model.ckpt-300"]),
            ("notes.txt", ["notes.txt"]),
        ],
    )
    def test_refuses_what_is_no_checkpoint(self, foveal, copied, path, words):
        copied("dtypes_v2")
        Path("notes.txt").write_text("not a checkpoint\n" * 100)
        foveal("tensorflow", "list", path).refused(1, *words)


class TestShow:
    @each_folder
    def test_describes_every_variable(self, foveal, copied, folder):
        names, kind, count, step, optimizer = CHECKPOINTS[folder]
        header, *rows, total = foveal("tensorflow", "show", copied(folder)).succeeded().out.splitlines()
        assert header.split()[:5] == ["tensor", "dtype", "shape", "role", "mean"]
        assert len(rows) == count
        described = kind if step is None else f"{kind}, step {step}"
        assert total.startswith(f"{folder}/{names[-1]} ({described}): {count} variables, ")
        assert total.endswith(f", {optimizer}") == (optimizer is not None)

    @each_folder
    def test_in_json(self, foveal, copied, folder):
        names, kind, count, step, optimizer = CHECKPOINTS[folder]
        document = foveal("tensorflow", "show", copied(folder), "--json").succeeded().document
        tensors = document.pop("tensors")
        assert document == {
            "path": f"{folder}/{names[-1]}",
            "format": kind,
            "global_step": step,
            "optimizer": optimizer,
            "elements": sum(each["elements"] for each in tensors),
            "bytes": sum(each["nbytes"] for each in tensors),
        }
        checkpoint = Checkpoint(folder)
        assert [(each["name"], tuple(each["shape"])) for each in tensors] == [
            (name, checkpoint.shape(name)) for name in checkpoint
        ]
        assert len(tensors) == count

    def test_says_what_each_variable_is_for(self, foveal, copied):
        adam = copied("slots_adam")
        out = foveal("tensorflow", "show", adam).succeeded().out
        for text in ("slot m of dense/kernel", "slot v of dense/bias", "optimizer scalar", "  step  "):
            assert text in out
        tensors = foveal("tensorflow", "show", adam, "--json", "--filter", "Adam_1").document["tensors"]
        assert [(each["role"], each["of"], each["slot"]) for each in tensors] == [
            ("slot", "dense/bias", "v"),
            ("slot", "dense/kernel", "v"),
        ]
        out = (
            foveal("tensorflow", "show", copied("cifar10_train"), "--filter", "conv1/biases").succeeded().out
        )
        assert "moving average of conv1/biases" in out

    def test_has_the_statistics_of_the_expected_values(self, foveal, fixtures, copied):
        document = foveal("tensorflow", "show", copied("slots_rmsprop"), "--json").succeeded().document
        tensors = {each["name"]: each for each in document["tensors"]}
        expected = np.load(fixtures / "slots_rmsprop_expected.npz")
        for key in expected:
            found, values = tensors[key.replace("|", "/")], expected[key].astype(np.float64)
            measured = [found[each] for each in ("mean", "std", "min", "max")]
            assert measured == pytest.approx([values.mean(), values.std(), values.min(), values.max()])

    def test_prints_values_of_those_that_match(self, foveal):
        save_checkpoint(
            "a/model", {"x": np.float32([0.5, 1.5]), "y": np.arange(3000), "s": np.array(b"\x1b", object)}
        )
        outcome = foveal("tensorflow", "show", "a", "--filter", "^x$", "--values").succeeded()
        assert outcome.out.endswith("\nx =\n[0.5 1.5]\na/model (V2): 1 variables, 2 numbers, 8 bytes\n")
        outcome = foveal("tensorflow", "show", "a", "--values").succeeded()
        assert "[   0    1    2 ... 2997 2998 2999]" in outcome.out
        assert r"b'\x1b'" in outcome.out
        document = foveal("tensorflow", "show", "a", "--values", "--json").document
        assert [each["values"][:4] for each in document["tensors"]] == [r"b'\x", "[0.5", "[   "]

    def test_of_an_older_one_names_its_prefix(self, foveal, copied):
        prefix = copied("dtypes_v1") / "model.ckpt-20"
        total = foveal("tensorflow", "show", prefix, "--filter", "^f32$").succeeded().out.splitlines()[-1]
        assert total == f"{prefix} (V1): 1 variables, 12 numbers, 48 bytes"

    def test_of_one_without_variables_is_a_line(self, foveal):
        save_checkpoint("a/model", {})
        out = foveal("tensorflow", "show", "a").succeeded().out
        assert out == "a/model (V2): 0 variables, 0 numbers, 0 bytes\n"

    def test_lets_no_control_character_through(self, foveal):
        for name, value in (("a", 0.0), ("b", 1.0)):
            save_checkpoint(Path(name, "model"), {EVIL: np.array(value), f"{EVIL}/Momentum": np.array(value)})
        for arguments in (["show", "a", "--values"], ["diff", "a", "b"]):
            out = foveal("tensorflow", *arguments).out
            assert "owned" in out
            assert all(letter.isprintable() for letter in out.replace("\n", ""))


class TestWrongInput:
    @pytest.mark.parametrize("command", ["show", "diff", "import"])
    @pytest.mark.parametrize(
        ("path", "words"),
        [
            ("nothing", ["nothing"]),
            ("empty", ["empty"]),
            ("model.meta", ["model.meta"]),
            ("notes.txt", ["notes.txt"]),
            ("evil", ["checkpoint", "owned"]),
        ],
    )
    def test_that_is_no_checkpoint_is_refused(self, foveal, copied, tmp_path, command, path, words):
        good = copied("slots_adam")
        (tmp_path / "empty").mkdir()
        (tmp_path / "model.meta").write_bytes(b"\n\x0a" + bytes(100))
        (tmp_path / "notes.txt").write_text("not a checkpoint\n" * 100)
        (tmp_path / "evil").mkdir()
        (tmp_path / "evil" / "checkpoint").write_text(f"model_checkpoint_path: {json.dumps(EVIL)}\n")
        more = {"diff": [good], "import": ["--model", "mnist_cnn", "--out", "x.safetensors"]}.get(command, [])
        line = foveal("tensorflow", command, path, *more).refused(1, *words)
        assert line.isprintable()

    @pytest.mark.parametrize("command", ["show", "diff", "import"])
    def test_flipped_byte_of_the_data_is_named_with_its_tensor(self, foveal, copied, command):
        folder = copied("mnist_convnet_model")
        data = folder / "model.ckpt-20000.data-00000-of-00001"
        content = bytearray(data.read_bytes())
        content[10] ^= 1
        data.write_bytes(content)
        more = {"diff": [folder], "import": ["--model", "mnist_cnn", "--out", "x.safetensors"]}.get(
            command, []
        )
        foveal("tensorflow", command, folder, *more).refused(1, str(data), "checksum", "'conv2d/bias'")
        assert not Path("x.safetensors").exists()

    @pytest.mark.parametrize("command", ["show", "diff"])
    def test_damaged_index_is_named_with_the_place(self, foveal, copied, command):
        folder = copied("slots_adam")
        index = folder / "model.ckpt-3.index"
        content = bytearray(index.read_bytes())
        content[20] ^= 1
        index.write_bytes(content)
        more = [folder] if command == "diff" else []
        foveal("tensorflow", command, folder, *more).refused(1, str(index), "byte")
        assert "model.ckpt-3 " in foveal("tensorflow", "list", folder).succeeded().out

    def test_missing_data_are_named(self, foveal, copied):
        folder = copied("sharded")
        gone = folder / "model.ckpt-5.data-00001-of-00002"
        gone.unlink()
        foveal("tensorflow", "show", folder).refused(1, str(gone))

    @pytest.mark.parametrize(
        ("pattern", "words"), [("(", ["'('", "regular expression"]), ("zzz", ["'zzz'", "no tensor's name"])]
    )
    def test_filter_that_finds_nothing_is_wrong_usage(self, foveal, copied, pattern, words):
        folder = copied("slots_adam")
        foveal("tensorflow", "show", folder, "--filter", pattern).refused(2, *words)
        foveal("tensorflow", "diff", folder, folder, "--filter", pattern).refused(2, *words)

    @pytest.mark.parametrize("command", ["list", "show", "diff", "import", "export"])
    def test_without_arguments_is_wrong_usage(self, foveal, command):
        foveal("tensorflow", command).refused(2, "Missing", "--help")


class TestDiff:
    @each_folder
    def test_is_silent_about_equal_ones(self, foveal, copied, folder):
        place, count = copied(folder), CHECKPOINTS[folder][2]
        outcome = foveal("tensorflow", "diff", place, place / CHECKPOINTS[folder][0][-1]).succeeded()
        assert outcome.out == f"{count} variables are equal, 0 differ\n"

    def test_exits_with_1_and_says_by_how_much(self, foveal):
        save_checkpoint(
            "a/model", {"x": np.array([1.0, 2.0]), "s": np.ones(2), "t": np.array([b"a"], object)}
        )
        save_checkpoint(
            "b/model", {"x": np.array([1.0, 3.0]), "y": np.ones(1), "t": np.array([b"b"], object)}
        )
        outcome = foveal("tensorflow", "diff", "a", "b")
        assert (outcome.code, outcome.err) == (1, "")
        header, *rows, total = (line.split() for line in outcome.out.splitlines())
        assert header == ["tensor", "differs", "in", "elements", "at", "most", "relative"]
        assert rows == [
            ["s", "only", "in", "the", "first", "-", "-", "-"],
            ["t", "values", "1", "-", "-"],
            ["x", "values", "1", "1", "0.3333"],
            ["y", "only", "in", "the", "second", "-", "-", "-"],
        ]
        assert " ".join(total) == "0 variables are equal, 4 differ"
        document = foveal("tensorflow", "diff", "a", "b", "--filter", "x", "--json").document
        assert document == {
            "first": "a/model",
            "second": "b/model",
            "equal": 0,
            "differences": [
                {
                    "name": "x",
                    "kind": "values",
                    "forms": ["float64 [2]", "float64 [2]"],
                    "elements": 1,
                    "max_abs": 1.0,
                    "max_relative": 1 / 3,
                }
            ],
        }


class TestImport:
    def test_writes_the_weights_of_a_network_of_ours(self, foveal, copied):
        folder = copied("mnist_convnet_model")
        outcome = foveal("tensorflow", "import", folder, "--model", "mnist_cnn", "--out", "mnist.safetensors")
        assert outcome.succeeded().out == (
            f"mnist.safetensors: 8 tensors, 13.1 MB, of {folder}/model.ckpt-20000 (V2, step 20000)\n"
        )
        tensors = safetensors.numpy.load_file("mnist.safetensors")
        source = Checkpoint(folder)
        assert np.array_equal(tensors["conv1.weight"], source.get("conv2d/kernel").transpose(3, 2, 0, 1))
        assert np.array_equal(tensors["logits.weight"], source.get("dense_1/kernel").T)
        foveal("checkpoints", "show", "mnist.safetensors").succeeded()

    def test_takes_moving_averages_if_asked(self, foveal, copied):
        folder = copied("cifar10_train")
        arguments = ("tensorflow", "import", folder, "--model", "cifar10_cnn", "--out")
        foveal(*arguments, "raw.safetensors").succeeded()
        outcome = foveal(*arguments, "ema.safetensors", "--ema").succeeded()
        assert outcome.out.startswith("ema.safetensors: 10 tensors, 10 of them moving averages, ")
        raw, ema = (safetensors.numpy.load_file(f"{name}.safetensors") for name in ("raw", "ema"))
        source = Checkpoint(folder)
        assert np.array_equal(raw["conv1.bias"], source.get("conv1/biases"))
        assert np.array_equal(ema["conv1.bias"], source.get("conv1/biases/ExponentialMovingAverage"))

    def test_follows_a_name_map_of_the_users_and_says_what_it_leaves(self, foveal, copied):
        folder = copied("slots_adam")
        Path("names.toml").write_text(
            '[tensors]\n"fc.weight" = { variable = "dense/kernel", layout = "IO" }\n'
        )
        arguments = ("tensorflow", "import", folder, "--names", "names.toml", "--out")
        assert foveal(*arguments, "a.safetensors").succeeded().out == (
            "a.safetensors: 1 tensors, 48 bytes, of slots_adam/model.ckpt-3 (V2, step 3)\n"
            "unused variables: dense/bias\n"
        )
        assert foveal(*arguments, "b.safetensors", "--json").succeeded().document == {
            "path": "slots_adam/model.ckpt-3",
            "out": "b.safetensors",
            "global_step": 3,
            "tensors": ["fc.weight"],
            "averages": 0,
            "unused": ["dense/bias"],
            "bytes": 48,
        }
        kernel = Checkpoint(folder).get("dense/kernel")
        assert np.array_equal(safetensors.numpy.load_file("a.safetensors")["fc.weight"], kernel.T)

    def test_escapes_names_that_could_steer_the_terminal(self, foveal):
        save_checkpoint("a/model", {EVIL: np.ones(1), "x": np.ones(1)})
        Path("names.toml").write_text('[tensors]\nx = { variable = "x" }\n')
        outcome = foveal("tensorflow", "import", "a", "--names", "names.toml", "--out", "a.safetensors")
        assert outcome.succeeded().out.splitlines()[1] == f"unused variables: {EVIL!r}"

    @pytest.mark.parametrize(
        ("arguments", "code", "words"),
        [
            ([], 2, ["--model NAME", "--names FILE.toml"]),
            (["--model", "mnist_cnn", "--names", "names.toml"], 2, ["either --model NAME or"]),
            (["--model", "wide_resnet"], 2, ["'wide_resnet'", "mnist_cnn", "write one"]),
            (["--model", "mnist_cnn"], 1, ["'conv2d/kernel'", "'conv1.weight'", "and 5 more"]),
            (["--model", "mnist_cnn", "--ema"], 1, ["slots_adam", "no moving averages"]),
            (["--names", "missing.toml"], 1, ["missing.toml"]),
            (["--names", "broken.toml"], 2, ["broken.toml", "TOML"]),
            (["--names", "other.toml"], 1, ["'dense/weights'", "'fc.weight'"]),
            (["--names", "shape.toml"], 1, ["'dense/kernel'", "HWIO"]),
            (["--model", "mnist_cnn", "--out", "x.pt"], 2, ["x.pt", ".safetensors"]),
            (
                ["--names", "names.toml", "--out", "there.safetensors"],
                1,
                ["there.safetensors", "exists already"],
            ),
            (["--names", "names.toml", "--out", "no/x.safetensors"], 1, ["no/x.safetensors"]),
        ],
        ids=lambda value: " ".join(value) if isinstance(value, list) else None,
    )
    def test_refuses_wrong_input_with_one_line(self, foveal, copied, arguments, code, words):
        folder = copied("slots_adam")
        line = '[tensors]\n"fc.weight" = {{ variable = "{}", layout = "{}" }}\n'
        Path("names.toml").write_text(line.format("dense/kernel", "IO"))
        Path("other.toml").write_text(line.format("dense/weights", "IO"))
        Path("shape.toml").write_text(line.format("dense/kernel", "HWIO"))
        Path("broken.toml").write_text("[tensors")
        Path("there.safetensors").write_bytes(b"precious")
        before = sorted(Path().iterdir())
        out = [] if "--out" in arguments else ["--out", "x.safetensors"]
        foveal("tensorflow", "import", folder, *arguments, *out).refused(code, *words)
        assert sorted(Path().iterdir()) == before
        assert Path("there.safetensors").read_bytes() == b"precious"


class TestExport:
    @pytest.fixture
    def names(self, trained_run):
        """A name map for the network of the tiny run."""
        weights = safetensors.numpy.load_file(max(trained_run.glob("checkpoints/step-*/model.safetensors")))
        layouts = {4: "HWIO", 2: "IO"}
        lines = [
            f'"{name}" = {{ variable = "net/{name}", layout = "{layouts.get(each.ndim, "")}" }}\n'
            for name, each in weights.items()
            if not name.endswith("num_batches_tracked")
        ]
        Path("names.toml").write_text(f"[tensors]\n{''.join(lines)}")
        return "names.toml"

    def test_writes_what_import_reads_back(self, foveal, trained_run, names):
        outcome = foveal("tensorflow", "export", trained_run, "--out", "out/model.ckpt-40", "--names", names)
        latest = trained_run / "checkpoints" / "step-000000040"
        (line,) = outcome.succeeded().out.splitlines()
        assert line.startswith("out/model.ckpt-40: ")
        assert line.endswith(f", of {latest}")
        (listed,) = foveal("tensorflow", "list", "out", "--json").succeeded().document["checkpoints"]
        assert (listed["path"], listed["step"], listed["latest"]) == ("out/model.ckpt-40", 40, True)
        shown = foveal("tensorflow", "show", "out", "--json").succeeded().document
        assert (shown["global_step"], shown["optimizer"]) == (40, "Adam")
        for option, part in (([], "model"), (["--ema"], "ema")):
            arguments = ("--names", names, "--out", f"{part}.safetensors", *option)
            foveal("tensorflow", "import", "out", *arguments).succeeded()
            read = safetensors.numpy.load_file(f"{part}.safetensors")
            for name, expected in safetensors.numpy.load_file(latest / f"{part}.safetensors").items():
                assert name.endswith("num_batches_tracked") or np.array_equal(read[name], expected), name

    def test_of_a_step_in_json(self, foveal, trained_run, names):
        arguments = ("--out", "out/model", "--names", names, "--checkpoint", 20, "--json")
        document = foveal("tensorflow", "export", trained_run, *arguments).succeeded().document
        counts = document["weights"], document["averages"], document["slots"]
        assert all(count > 0 for count in counts)
        assert document == {
            "path": "out/model",
            "checkpoint": str(trained_run / "checkpoints" / "step-000000020"),
            "step": 20,
            "weights": counts[0],
            "averages": counts[1],
            "slots": counts[2],
            "bytes": document["bytes"],
        }
        shown = foveal("tensorflow", "show", "out/model", "--json").document
        assert shown["bytes"] == document["bytes"]

    @pytest.mark.parametrize(
        ("run", "arguments", "code", "words"),
        [
            ("nothing", [], 1, ["nothing", "not a run folder"]),
            (None, [], 2, ["'small_cnn'", "write one"]),
            (None, ["--names", "missing.toml"], 1, ["missing.toml"]),
            (None, ["--names", "short.toml"], 1, ["no variable for", "--names"]),
            (None, ["--names", "names.toml", "--checkpoint", "25"], 1, ["no checkpoint of step 25"]),
            (None, ["--names", "names.toml", "--checkpoint", "first"], 2, ["first", "latest, best"]),
            (None, ["--names", "names.toml", "--out", "file/model"], 1, ["file/model"]),
        ],
        ids=lambda value: " ".join(value) if isinstance(value, list) else None,
    )
    @pytest.mark.usefixtures("names")
    def test_refuses_wrong_input_with_one_line(self, foveal, trained_run, run, arguments, code, words):
        Path("short.toml").write_text('[tensors]\nx = { variable = "x" }\n')
        Path("file").write_bytes(b"")
        out = [] if "--out" in arguments else ["--out", "out/model"]
        foveal("tensorflow", "export", run or trained_run, *arguments, *out).refused(code, *words)
        assert not Path("out").exists()


@pytest.mark.parametrize("command", ["list", "show", "diff", "import", "export"])
def test_help_shows_an_example(foveal, command):
    text = " ".join(foveal("tensorflow", command, "--help").succeeded().out.split())
    assert f"Example: foveal tensorflow {command} " in text
    assert f"  {command} " in foveal("tensorflow", "--help").succeeded().out
