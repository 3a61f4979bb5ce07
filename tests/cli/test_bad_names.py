"""Names that stand for nothing: refused with the nearest one that does, and nothing is left behind."""

from __future__ import annotations

import pytest


@pytest.fixture
def train(foveal, tiny, tmp_path):
    """Train a new run with settings."""

    def run(*settings):
        changes = [text for setting in settings for text in ("--set", setting)]
        return foveal("train", tiny, "--steps", 2, "--run", tmp_path / "run", *changes)

    return run


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("train", "digit"), ("recipe", "'digit'", "did you mean 'digits'")),
        (("train", "zzzzz"), ("recipe", "'zzzzz'", "digits", "mnist-tutorial")),
        (("recipes", "mnist-tutoria"), ("recipe", "did you mean 'mnist-tutorial'")),
        (("train", "./photos"), ("./photos", "no such folder", "recipe")),
        (("trian", "digits"), ("'trian'", "'train'")),
        (("zzz",), ("command", "'zzz'", "--help")),
        (("train", "digits", "--stepz", "3"), ("--stepz", "--steps")),
        (("--verzion",), ("--verzion", "--version")),
        (("train",), ("Missing", "RECIPE|FOLDER", "--help")),
        (("evaluate",), ("Missing", "RUN", "--help")),
        (("predict",), ("Missing", "RUN|MODEL", "--help")),
        (("predict", "run"), ("Missing", "IMAGE", "--help")),
        (("train", "digits", "--run"), ("--run", "argument", "--help")),
        (("train", "digits", "photos"), ("unexpected", "photos", "--help")),
    ],
)
def test_unknown_or_missing_words_of_a_command_are_wrong_usage(foveal, tmp_path, arguments, words):
    foveal(*arguments).refused(2, *words)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("batchsize=3", ("'batchsize'", "'batch_size'")),
        ("optimizer.learnig_rate=1", ("'optimizer.learnig_rate'", "'learning_rate'")),
        ("schedule.warmup_step=1", ("'schedule.warmup_step'", "'warmup_steps'")),
        ("evaluation.evry=1", ("'evaluation.evry'", "'every'")),
        ("ema.deca=0.9", ("'ema.deca'", "'decay'")),
        ("checkpoint.zzz=1", ("'checkpoint.zzz'", "keep_last")),
        ("zzz.key=1", ("'zzz'", "optimizer", "data")),
        ('augmentation=[{name="translate",pixel=1}]', ("augmentation.0.pixel", "'pixels'")),
        ("optimizer.name=adam", ("optimizer", "'adam'", "'adamw'")),
        ("schedule.name=coside", ("schedule", "'coside'", "'cosine'")),
        ('augmentation=[{name="flop"}]', ("augmentation.0", "'flop'", "'flip'")),
    ],
)
def test_unknown_key_or_kind_is_refused_with_the_nearest(train, tmp_path, setting, words):
    train(setting).refused(2, *words)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("model.name=smal_cnn", ("model", "'smal_cnn'", "'small_cnn'")),
        ("model.name=zzzz", ("model", "'zzzz'", "mnist_cnn, small_cnn", "package.module:factory")),
        ("model.options.widht=3", ("small_cnn", "'widht'", "'widths'")),
        ("data.name=digitz", ("data set", "'digitz'", "'digits'")),
    ],
)
def test_unknown_model_option_or_data_set_is_refused_with_the_nearest(train, setting, words):
    train(setting).refused(2, *words)


def test_another_network_begins_with_its_own_options(train):
    train("model.name=mnist_cnn").succeeded()


def test_unknown_option_of_data_that_take_none_is_refused(train):
    train("data.options.size=3").refused(2, "data.options", "size")


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("model.name=nosuch:thing", ("model.name", "nosuch:thing", "cannot import nosuch")),
        ("data.name=nosuch:thing", ("data.name", "nosuch:thing", "cannot import nosuch")),
        ('augmentation=[{name="nosuch:thing"}]', ("augmentation", "nosuch:thing", "cannot import nosuch")),
        ("model.name=json:lods", ("model.name", "json", "'lods'", "'loads'")),
        ("model.name=json:", ("model.name", "json", "package.module:factory")),
        ("model.name=:build", ("model.name", ":build")),
        ("model.name=.models:build", ("model.name", ".models:build")),
        ("model.name=json:dumps", ("json:dumps", "model.options")),
        ("model.name=builtins:dict", ("builtins:dict",)),
        ("model.name=broken:build", ("broken",)),
        ('model={name="other:build"}', ("other:build", "int", "torch.nn.Module")),
        ("data.name=other:build_data", ("other:build_data", "int", "DataSet")),
        ("data.name=other:load", ("other:load", "path")),
    ],
)
def test_reference_to_code_that_cannot_be_used_is_the_users_mistake(train, tmp_path, setting, words):
    (tmp_path / "broken.py").write_text("def build(:\n")
    (tmp_path / "other.py").write_text(
        "def build(num_classes, image_shape):\n    return 3\n\n\n"
        "def build_data():\n    return 3\n\n\n"
        "def load(path):\n    return path\n"
    )
    train(setting).refused(2, *words)


def test_unknown_metric_is_refused_before_training(train, tmp_path):
    train('evaluation.metrics=["f1_scor"]').refused(2, "metric", "'f1_scor'", "'f1_score'")
    assert not (tmp_path / "run").exists()


def test_unknown_activation_is_refused_before_training(train, tmp_path):
    train('logging.activations=["logit"]').refused(2, "activation", "'logit'", "'logits'")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "setting",
    [
        "model.name=smal_cnn",
        "model.options.widht=3",
        "model.name=nosuch:thing",
        'augmentation=[{name="nosuch:thing"}]',
        'augmentation=[{name="translate",pixels=9}]',
        "normalization.mean=[0.1,0.2]",
        "device=tpu",
    ],
)
def test_what_does_not_fit_is_refused_before_a_folder_is_made(train, tmp_path, setting):
    assert train(setting).code == 2
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("setting", ["model.name=smal_cnn", "device=tpu", "optimizer.decayed=(", "name=5"])
def test_fresh_with_a_mistake_leaves_the_old_run_where_it_was(retrain, run_copy, snapshot, tmp_path, setting):
    before = snapshot(run_copy)
    assert retrain("--fresh", "--set", setting).code in (1, 2)
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    assert snapshot(run_copy) == before
