"""Starting from other weights: what is read, what fits, what is refused, and what is said of it."""

from __future__ import annotations

import hashlib
import shutil

import pytest
import torch
from torch import nn

from foveal.checkpoints.layout import read_part
from foveal.checkpoints.tensor_file import write_tensor_file
from foveal.checkpoints.transfer import InitialWeights, load_initial, transfer
from foveal.errors import CheckpointError, RecipeError, RunError
from foveal.models.registry import build_model
from foveal.recipe.schema import Init, ModelPart

SMALL = ModelPart(name="small_cnn", options={"widths": [4, 8], "kernel": 3, "stride": 1, "padding": True})


def network(classes=10, seed=0):
    """A small network; with another seed, every value in it is another."""
    model = build_model(SMALL, classes, (8, 8, 1), seed)
    generator = torch.Generator().manual_seed(seed)
    for value in model.state_dict().values():
        value.copy_(torch.rand(value.shape, generator=generator)) if value.ndim else value.fill_(seed)
    return model


def state(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def weights(tensors):
    return InitialWeights(tensors, "weights.pt", "0" * 64)


def init(**changes):
    return Init.model_validate({"path": "weights.pt", **changes})


def load(start):
    return load_initial(start, SMALL.name)


def differing(before, after):
    return {name for name in before if not torch.equal(before[name], after[name])}


def refused(tensors, *words, kind=CheckpointError, classes=10, **changes):
    """The weights are refused in one line, and the network is as it was."""
    model = network(classes, seed=1)
    before = state(model)
    with pytest.raises(kind) as caught:
        transfer(model, weights(tensors), init(**changes), classes)
    assert "\n" not in str(caught.value)
    assert [word for word in words if word not in str(caught.value)] == [], str(caught.value)
    assert differing(before, state(model)) == set()


class TestReading:
    @pytest.fixture
    def tensors(self):
        return {"w": torch.arange(6.0).view(2, 3), "n": torch.tensor(3)}

    @pytest.mark.parametrize("legacy", [False, True])
    @pytest.mark.parametrize("suffix", [".pt", ".pth", ""])
    def test_a_pytorch_state_dict_of_both_formats_under_any_name(self, tmp_path, tensors, legacy, suffix):
        path = tmp_path / f"weights{suffix}"
        torch.save(tensors, path, _use_new_zipfile_serialization=not legacy)
        initial = load(init(path=path))
        assert initial.tensors.keys() == tensors.keys()
        assert all(torch.equal(initial.tensors[name], tensors[name]) for name in tensors)
        assert initial.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
        assert str(path) in initial.origin

    def test_a_safetensors_file(self, tmp_path, tensors):
        path = tmp_path / "weights.safetensors"
        write_tensor_file(path, tensors)
        initial = load(init(path=path))
        assert all(torch.equal(initial.tensors[name], tensors[name]) for name in tensors)
        assert initial.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()

    @pytest.mark.parametrize(
        "keys", [["state_dict"], ["model"], ["model_state_dict"], ["model", "state_dict"]]
    )
    def test_state_dicts_in_a_trainers_checkpoint_are_unwrapped_and_that_is_said(
        self, tmp_path, tensors, keys
    ):
        content = tensors
        for key in reversed(keys):
            content = {"epoch": 3, key: content, "optimizer": {"lr": 0.1}}
        torch.save(content, tmp_path / "weights.pt")
        initial = load(init(path=tmp_path / "weights.pt"))
        assert initial.tensors.keys() == tensors.keys()
        assert all(any(key in note for note in initial.notes) for key in keys)

    @pytest.mark.parametrize("choice", ["auto", "ema", "raw"])
    @pytest.mark.parametrize("what", ["run", "checkpoint"])
    def test_the_chosen_weights_of_a_run_or_a_checkpoint(self, trained_run, what, choice):
        folder = trained_run / "checkpoints/step-000000040"
        initial = load(init(path=trained_run if what == "run" else folder, weights=choice))
        expected, ema = read_part(folder, "model"), read_part(folder, "ema")
        assert differing({name: expected[name] for name in ema}, ema)
        files = ["model"]
        if choice != "raw":
            expected |= ema
            files.append("ema")
        assert initial.tensors.keys() == expected.keys()
        assert differing(expected, initial.tensors) == set()
        content = b"".join((folder / f"{name}.safetensors").read_bytes() for name in files)
        assert initial.sha256 == hashlib.sha256(content).hexdigest()
        assert ("averaged" in initial.origin) == (choice != "raw")

    def test_another_file_than_the_one_the_run_was_begun_with_is_refused(self, tmp_path, tensors):
        path = tmp_path / "weights.pt"
        torch.save(tensors, path)
        begun = init(path=path, sha256=load(init(path=path)).sha256)
        assert load(begun).sha256 == begun.sha256
        torch.save(tensors | {"w": tensors["w"] + 1}, path)
        with pytest.raises(CheckpointError, match="is not the file that the run was begun with"):
            load(begun)

    def test_averages_that_are_not_there_are_refused(self, tmp_path, trained_run, tensors):
        folder = shutil.copytree(trained_run / "checkpoints/step-000000040", tmp_path / "one")
        torch.save(tensors, tmp_path / "weights.pt")
        with pytest.raises(CheckpointError, match="for runs and checkpoints"):
            load(init(path=tmp_path / "weights.pt", weights="ema"))
        (folder / "ema.safetensors").unlink()
        with pytest.raises(CheckpointError, match=r"ema\.safetensors"):
            load(init(path=folder))

    def test_what_is_no_place_of_weights_is_refused(self, tmp_path):
        (tmp_path / "notes.txt").write_text("hello")
        (tmp_path / "empty.pt").touch()
        for name, words in [
            ("", "neither a run"),
            ("missing.pt", "No such file"),
            ("missing.safetensors", "No such file"),
            ("notes.txt", "neither a .safetensors file nor"),
            ("empty.pt", "neither a .safetensors file nor"),
        ]:
            with pytest.raises(CheckpointError, match=words):
                load(init(path=tmp_path / name))

    def test_a_run_without_a_checkpoint_is_refused(self, tmp_path, trained_run):
        shutil.copy(trained_run / "recipe.toml", tmp_path)
        with pytest.raises(RunError, match="no checkpoint yet"):
            load(init(path=tmp_path))


class TestMatching:
    def test_all_tensors_are_loaded_batch_norms_statistics_among_them(self):
        source, model = network(seed=0), network(seed=1)
        report = transfer(model, weights(state(source)), init(), 10)
        assert differing(state(source), state(model)) == set()
        assert set(report.loaded) == set(state(source))
        assert (report.skipped, report.missing, report.unused, report.notes) == ({}, (), (), ())

    @pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."])
    def test_prefixes_of_wrappers_are_taken_off_and_that_is_said(self, prefix):
        source, model = network(seed=0), network(seed=1)
        named = {prefix + name: value for name, value in state(source).items()}
        report = transfer(model, weights(named), init(), 10)
        assert differing(state(source), state(model)) == set()
        assert all(
            any(part in note for note in report.notes)
            for part in ("module.", "_orig_mod.")[:1]
            if part in prefix
        )
        assert len(report.notes) == prefix.count(".")

    def test_a_networks_own_prefix_stays(self):
        source, model = (nn.ModuleDict({"module": nn.Linear(2, 3)}) for _ in range(2))
        report = transfer(model, weights(state(source)), init(), 3)
        assert differing(state(source), state(model)) == set()
        assert report.notes == ()

    def test_a_head_of_another_size_keeps_its_first_values_and_that_is_said(self):
        source, model = network(10, seed=0), network(5, seed=1)
        before = state(model)
        report = transfer(model, weights(state(source)), init(), 5)
        assert report.skipped.keys() == {"logits.weight", "logits.bias"}
        assert differing(before, state(model)) == set(report.loaded)
        assert not {"logits.weight", "logits.bias"} & set(report.loaded)
        assert "logits.weight, logits.bias: the file's head has 10 outputs, here there are 5" in "\n".join(
            report.lines()
        )

    def test_names_are_rewritten_by_all_maps_in_order(self):
        source, model = network(seed=0), network(seed=1)
        named = {name.replace("features.", "body/"): value for name, value in state(source).items()}
        maps = [r"^body/(\d+)=trunk.\1", "^trunk=features"]
        report = transfer(model, weights(named), init(map=maps), 10)
        assert differing(state(source), state(model)) == set()
        assert report.unused == ()

    def test_skipped_tensors_keep_their_first_values(self):
        source, model = network(seed=0), network(seed=1)
        before = state(model)
        report = transfer(model, weights(state(source)), init(skip=["^logits", r"features\.1\."]), 10)
        kept = set(state(source)) - set(report.loaded)
        assert (
            kept
            == {name for name in before if name.startswith(("logits", "features.1."))}
            == set(report.skipped)
        )
        assert not differing(before, state(model)) & kept
        assert report.unused == ()

    def test_floats_become_the_networks_float32(self):
        source, model = network(seed=0), network(seed=1)
        source.logits.bias.detach().copy_(torch.arange(10))  # exact in any of these
        tensors = {name: v.double() if v.ndim else v for name, v in state(source).items()}
        tensors["logits.bias"] = tensors["logits.bias"].bfloat16()
        transfer(model, weights(tensors), init(), 10)
        assert differing(state(source), state(model)) == set()
        assert {value.dtype for value in model.parameters()} == {torch.float32}

    def test_counts_of_batches_may_be_missing(self):
        source, model = network(seed=0), network(seed=1)
        tensors = {name: v for name, v in state(source).items() if not name.endswith("num_batches_tracked")}
        assert transfer(model, weights(tensors), init(), 10).missing == ()

    def test_with_partial_what_is_missing_or_misshapen_keeps_its_first_values(self):
        source, model = network(seed=0), network(seed=1)
        tensors = state(source)
        del tensors["features.1.weight"]
        tensors["features.0.weight"] = torch.zeros(4, 3, 3, 3)
        tensors["extra"] = torch.zeros(2)
        before = state(model)
        report = transfer(model, weights(tensors), init(partial=True), 10)
        kept = {"features.0.weight", "features.1.weight"}
        assert not differing(before, state(model)) & kept
        assert report.missing == ("features.1.weight",)
        assert report.skipped.keys() == {"features.0.weight"}
        assert report.unused == ("extra",)
        said = "\n".join(report.lines())
        assert "[4, 3, 3, 3] in the file, [4, 1, 3, 3] in the network" in said
        assert "missing from the file, first values kept: features.1.weight" in said
        assert "unused tensors of the file: extra" in said
        assert f"loaded {len(report.loaded)} tensors" in said

    def test_names_from_a_file_stay_on_their_line(self):
        source = state(network()) | {"a\nerror: b\x1b[2J": torch.zeros(1), "c" * 10_000: torch.zeros(1)}
        lines = list(transfer(network(), weights(source), init(), 10).lines())
        assert all(line.isprintable() and len(line) < 500 for line in lines)


class TestRefusals:
    def test_a_missing_tensor_names_the_first_few_and_the_remedies(self):
        tensors = state(network())
        for name in [name for name in tensors if name.startswith("features.")]:
            tensors[f"body.{name}"] = tensors.pop(name)
        refused(
            tensors,
            *("lacks features.0.weight, features.1.weight", "and 6 more", "it has body.features.0.weight"),
            *("--init-map", "--init-skip", "--init-partial"),
        )

    def test_another_shape(self):
        tensors = state(network()) | {"features.3.weight": torch.zeros(8, 4, 5, 5)}
        refused(tensors, "features.3.weight is [8, 4, 5, 5] in the file, [8, 4, 3, 3] in the network")

    def test_a_difference_in_the_first_dimension_alone_where_that_is_not_the_number_of_classes(self):
        refused(state(network()) | {"features.0.weight": torch.zeros(6, 1, 3, 3)}, "features.0.weight is [6")

    @pytest.mark.parametrize("partial", [False, True])
    def test_weights_of_which_nothing_fits_even_with_partial(self, partial):
        refused({"x.weight": torch.zeros(3)}, "none of its tensors", "it has x.weight", partial=partial)
        refused({}, "none of its tensors", partial=partial)

    @pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.complex64])
    def test_what_is_not_a_float_in_the_place_of_one(self, dtype):
        tensors = state(network())
        tensors["logits.bias"] = tensors["logits.bias"].to(dtype)
        refused(tensors, "logits.bias", str(dtype), partial=True)

    @pytest.mark.parametrize(
        "value", [torch.full((10,), torch.nan), torch.full((10,), 1e300, dtype=torch.float64)]
    )
    def test_values_that_are_not_finite_in_float32(self, value):
        refused(state(network()) | {"logits.bias": value}, "logits.bias", "not finite")

    def test_two_tensors_of_one_name(self):
        tensors = state(network()) | {"old.bias": torch.zeros(10)}
        words = ("logits.bias of 2 tensors", "old.bias")
        refused(tensors, *words, kind=RecipeError, map=["^old=logits"])

    def test_a_map_or_a_skip_that_matches_nothing_suggests_what_may_be_meant(self):
        tensors = state(network())
        refused(tensors, "init.skip", "'logit$'", "did you mean 'logits'?", kind=RecipeError, skip=["logit$"])
        refused(tensors, "init.map", "did you mean 'features'?", kind=RecipeError, map=["^featurs=x"])
