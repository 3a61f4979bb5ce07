from __future__ import annotations

import tomllib

import pytest
from pydantic import BaseModel, ValidationError

from foveal import recipes
from foveal.errors import RecipeError, UnknownNameError
from foveal.recipe import (
    AdamW,
    CustomTransform,
    Evaluation,
    Exponential,
    Flip,
    Frequency,
    Part,
    Recipe,
    RmsProp,
    describe,
    differences,
    from_toml,
    override,
    to_toml,
)

SMALL = {"name": "x", "batch_size": 10, "steps": 100, "optimizer": {"name": "sgd", "learning_rate": 0.1}}


def recipe(*settings, **changes):
    return override(Recipe.model_validate(SMALL | changes), settings)


def refusal(*settings, **changes):
    """The one line with which a recipe is refused."""
    with pytest.raises(RecipeError) as caught:
        recipe(*settings, **changes)
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.fixture(params=recipes.names())
def shipped(request):
    return recipes.load(request.param)


class TestShippedRecipes:
    def test_survive_being_written_as_toml_and_read(self, shipped, tmp_path):
        (tmp_path / "recipe.toml").write_text(to_toml(shipped), encoding="utf-8")
        assert from_toml(tmp_path / "recipe.toml") == shipped

    def test_survive_being_described_and_read(self, shipped, tmp_path):
        (tmp_path / "recipe.toml").write_text(describe(shipped), encoding="utf-8")
        assert from_toml(tmp_path / "recipe.toml") == shipped

    def test_are_called_what_their_files_are(self):
        assert [recipes.load(name).name for name in recipes.names()] == recipes.names()
        assert "digits" in recipes.names()

    def test_say_in_their_documentation_how_they_are_started(self):
        for name in recipes.names():
            assert f"foveal train {name}" in recipes.documentation(name)

    def test_of_an_unknown_name_are_refused_with_the_nearest(self):
        with pytest.raises(UnknownNameError, match="no recipe named 'digit': did you mean 'digits'"):
            recipes.load("digit")

    def test_of_this_name_only_are_found_and_no_other_modules(self):
        for name in ("", "..digits", "os", "mnist_tutorial"):
            with pytest.raises(UnknownNameError):
                recipes.load(name)


def parts(kind=Part):
    for part in kind.__subclasses__():
        yield part
        yield from parts(part)


class TestDocumentation:
    @pytest.mark.parametrize("part", list(parts()), ids=lambda part: part.__name__)
    def test_stands_under_every_field(self, part):
        for key, field in part.model_fields.items():
            kinds = [kind for kind in parts() if kind.__name__ in str(field.annotation)]
            is_tag = key == "name" and "Literal" in str(field.annotation)
            assert field.description or is_tag or kinds, key
        assert part.__doc__ or part.__name__.startswith("_")

    def test_and_whether_it_may_change_is_shown_above_every_field(self):
        text = describe(recipe("ema.decay=0.9"))
        lines = text.splitlines()
        place = lines.index("batch_size = 10")
        assert lines[place - 1] == "# Examples in a step, over all devices. [semantic]"
        assert lines[lines.index("# micro_batch =") - 1].endswith("[semantic]")
        assert lines[lines.index('threads = "auto"') - 1].endswith("[operational]")
        assert "[ema]  # An exponential moving average of the weights, which evaluation then uses." in lines

    def test_shows_fields_that_are_unset_as_comments(self):
        assert "# micro_batch =\n" in describe(recipe())
        assert "micro_batch" not in tomllib.loads(describe(recipe()))


class TestReading:
    def test_of_a_missing_file_is_refused(self, tmp_path):
        with pytest.raises(RecipeError) as caught:
            from_toml(tmp_path / "none.toml")
        assert str(caught.value) == f"{tmp_path / 'none.toml'}: there is no such file"

    @pytest.mark.parametrize("content", [b"steps = ", b"\xff\xfe", b"a = 1\na = 2\n", b"just text"])
    def test_of_something_else_is_refused(self, tmp_path, content):
        (tmp_path / "bad.toml").write_bytes(content)
        with pytest.raises(RecipeError, match=r"bad\.toml: not a recipe in TOML: ") as caught:
            from_toml(tmp_path / "bad.toml")
        assert "\n" not in str(caught.value)

    def test_of_a_folder_is_refused(self, tmp_path):
        with pytest.raises(RecipeError, match="not a recipe in TOML"):
            from_toml(tmp_path)

    def test_of_an_empty_file_names_what_is_missing(self, tmp_path):
        (tmp_path / "empty.toml").touch()
        with pytest.raises(RecipeError, match=r"empty\.toml: name is missing"):
            from_toml(tmp_path / "empty.toml")

    def test_of_a_mistake_names_the_file_and_the_field(self, tmp_path):
        (tmp_path / "bad.toml").write_text(
            to_toml(recipe()).replace("learning_rate = 0.1", "learning_rte = 1")
        )
        with pytest.raises(RecipeError) as caught:
            from_toml(tmp_path / "bad.toml")
        assert str(caught.value) == (
            f"{tmp_path / 'bad.toml'}: there is no field 'optimizer.learning_rte': "
            "did you mean 'learning_rate'?"
        )


@pytest.mark.parametrize(
    ("setting", "suggestion"),
    [
        ("batchsize=1", "'batchsize': did you mean 'batch_size'?"),
        ("optimiser.name=sgd", "'optimiser': did you mean 'optimizer'?"),
        ("data.pth=x", "'data.pth': did you mean 'path'?"),
        ("model.option={}", "'model.option': did you mean 'options'?"),
        ("normalization.deviations=[1]", "'normalization.deviations': did you mean 'deviation'?"),
        ("loss.smoothing=0.1", "'loss.smoothing': did you mean 'label_smoothing'?"),
        ("optimizer.momentm=0.9", "'optimizer.momentm': did you mean 'momentum'?"),
        ("schedule.warmap_steps=3", "'schedule.warmap_steps': did you mean 'warmup_steps'?"),
        ("ema={dekay=0.9}", "'ema.dekay': did you mean 'decay'?"),
        ("seed.dat=1", "'seed.dat': did you mean 'data'?"),
        ("evaluation.evry=1", "'evaluation.evry': did you mean 'every'?"),
        ("logging.activation=[]", "'logging.activation': did you mean 'activations'?"),
        ("checkpoint.keeplast=1", "'checkpoint.keeplast': did you mean 'keep_last'?"),
        ("augmentation=[{name='cutout', sise=3}]", "'augmentation.0.sise': did you mean 'size'?"),
        ("augmentation=[{name='a.b:c', optons={}}]", "'augmentation.0.optons': did you mean 'options'?"),
        ("seed.xyz=1", "'seed.xyz': known: data, init"),
    ],
)
def test_an_unknown_field_is_refused_with_the_nearest_one(setting, suggestion):
    assert refusal(setting) == f"there is no field {suggestion}"


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("optimizer.name=adam", "there is no optimizer named 'adam': did you mean 'adamw'?"),
        ("schedule.name=cosin", "there is no schedule named 'cosin': did you mean 'cosine'?"),
        ("augmentation=[{name='flp'}]", "there is no augmentation.0 named 'flp': did you mean 'flip'?"),
        ("augmentation=[{pixels=1}]", "augmentation.0.name is missing"),
        ("augmentation=[{name='translate'}]", "augmentation.0.pixels is missing"),
        ("schedule.name=exponential", "schedule.factor is missing"),
        ("schedule={warmup=3}", "schedule.name is missing"),
        ("ema={}", "ema.decay is missing"),
    ],
)
def test_an_unknown_kind_or_a_missing_field_is_refused(setting, message):
    assert refusal(setting) == message


@pytest.mark.parametrize(
    ("setting", "start"),
    [
        ("batch_size=0", "batch_size = 0: should be greater than 0"),
        ("batch_size=1.5", "batch_size = 1.5: should be a"),
        ("batch_size=many", "batch_size = 'many': should be a"),
        ("batch_size=true", "batch_size = True: should be a"),
        ("batch_size='5'", "batch_size = '5': should be a"),
        ("deterministic=1", "deterministic = 1: should be "),
        ("compile=maybe", "compile = 'maybe': should be "),
        ("threads=0", "threads = 0: should be greater than 0"),
        ("name=a/b", "name = 'a/b': should "),
        ("seed.init=-1", "seed.init = -1: should be greater than or equal to 0"),
        ("seed.data=9223372036854775808", "seed.data = 9223372036854775808: should be less than"),
        ("optimizer.decayed=(", "optimizer.decayed: '(' is not a regular expression"),
        ("steps=-5", "steps = -5: should be greater than 0"),
        ("epochs=0", "epochs = 0: should be greater than 0"),
        ("epochs=inf", "epochs = inf: should be a finite number"),
        ("name=3", "name = 3: should be a"),
        ("precision=float16", "precision = 'float16': should be 'auto', 'float32' or 'bfloat16'"),
        ("deterministic=perhaps", "deterministic = 'perhaps': should be "),
        (
            "data.batching=never",
            "data.batching = 'never': should be 'continuous', 'drop_last' or 'keep_last'",
        ),
        ("data.validation=-1", "data.validation = -1: should be greater than or equal to 0"),
        ("data=3", "data = 3: should be a"),
        ("optimizer.learning_rate=0", "optimizer.learning_rate = 0: should be greater than 0"),
        ("optimizer.learning_rate=nan", "optimizer.learning_rate = nan: should be a finite number"),
        ("optimizer.momentum=1.0", "optimizer.momentum = 1.0: should be less than 1"),
        ("optimizer.weight_decay=-1e-4", "optimizer.weight_decay = -0.0001: should be greater than or equal"),
        ("optimizer=sgd", "optimizer = 'sgd': should be a"),
        ("ema.decay=1", "ema.decay = 1: should be less than 1"),
        ("loss.label_smoothing=1.0", "loss.label_smoothing = 1.0: should be less than 1"),
        ("normalization.deviation=[0.0]", "normalization.deviation.0 = 0.0: should be greater than 0"),
        ("normalization.mean=0.5", "normalization.mean = 0.5: should be a"),
        ("seed.data=1.5", "seed.data = 1.5: should be a"),
        ("checkpoint.keep_last=0", "checkpoint.keep_last = 0: should be greater than 0"),
        ("augmentation=5", "augmentation = 5: should be a"),
        (
            "augmentation=[{name='flip', probability=2}]",
            "augmentation.0.probability = 2: should be less than or",
        ),
        ("augmentation=[{name='affine', shear=90}]", "augmentation.0: shear must be below 90 degrees"),
        ("evaluation.every=10", "evaluation.every: write it as '1000 steps', '1 epoch', '10 min' or 'never'"),
        ("checkpoint.every=0 steps", "checkpoint.every: must be a whole number of steps, or a positive"),
    ],
)
def test_a_value_of_a_wrong_kind_or_out_of_range_is_refused(setting, start):
    assert refusal(setting).startswith(start)


class TestCombinations:
    @pytest.mark.parametrize("length", [{"steps": 10, "epochs": 2}, {"steps": None}])
    def test_of_steps_and_epochs_must_be_one_of_the_two(self, length):
        with pytest.raises(ValidationError, match="give steps or epochs, one of the two"):
            Recipe.model_validate(SMALL | length)

    def test_a_file_with_both_lengths_is_refused_in_one_line(self, tmp_path):
        (tmp_path / "both.toml").write_text(f"epochs = 2\n{to_toml(recipe())}")
        with pytest.raises(RecipeError) as caught:
            from_toml(tmp_path / "both.toml")
        assert str(caught.value) == f"{tmp_path / 'both.toml'}: give steps or epochs, one of the two"

    def test_a_micro_batch_must_divide_the_batch(self):
        assert refusal("micro_batch=3") == "micro_batch = 3 must divide batch_size = 10"
        assert refusal("micro_batch=20") == "micro_batch = 20 must divide batch_size = 10"
        assert recipe("micro_batch=5").micro_batch == 5

    @pytest.mark.parametrize(
        "schedule", [{"name": "constant"}, {"name": "exponential", "factor": 0.5, "every": 10}]
    )
    def test_warm_up_must_end_before_training_does(self, schedule):
        message = refusal("schedule.warmup_steps=100", schedule=schedule)
        assert message == "schedule.warmup_steps = 100 must be below steps = 100"
        longer = recipe("schedule.warmup_steps=100", "steps=101", schedule=schedule)
        assert longer.schedule.warmup_steps == 100

    @pytest.mark.parametrize("name", ["cosine", "linear"])
    def test_warm_up_as_a_share_of_training_must_be_below_all_of_it(self, name):
        message = refusal(f"schedule.name={name}", "schedule.warmup=1.0")
        assert message == "schedule.warmup = 1.0: should be less than 1"

    def test_nesterov_needs_momentum(self):
        assert "nesterov = true needs a momentum above 0" in refusal("optimizer.nesterov=true")
        assert recipe("optimizer.nesterov=true", "optimizer.momentum=0.9").optimizer.nesterov

    @pytest.mark.parametrize("field", ["evaluation.every", "logging.every", "logging.activations_every"])
    def test_what_must_be_reproducible_is_not_timed_by_the_clock(self, field):
        assert refusal(f"{field}=10 min").startswith(f"{field} must be in steps or epochs")

    def test_checkpoints_may_be_timed_by_the_clock(self):
        assert str(recipe("checkpoint.every=10 min").checkpoint.every) == "10 min"

    def test_scale_is_the_smallest_then_the_largest(self):
        message = refusal("augmentation=[{name='affine', scale=[1.2, 0.8]}]")
        assert message == "augmentation.0: scale is the smallest magnification, then the largest"


class TestSettings:
    @pytest.mark.parametrize(
        ("setting", "path", "value"),
        [
            ("batch_size=20", "batch_size", 20),
            (" batch_size = 1_000 ", "batch_size", 1000),
            ("optimizer.learning_rate=1e-3", "optimizer.learning_rate", 0.001),
            ("optimizer.learning_rate=1", "optimizer.learning_rate", 1.0),
            ("data.name=mnist", "data.name", "mnist"),
            ('data.name="mnist"', "data.name", "mnist"),
            ("device=a=b", "device", "a=b"),
            ("device=2 words", "device", "2 words"),
            ("optimizer.decayed=^conv.*weight$", "optimizer.decayed", "^conv.*weight$"),
            ("deterministic=false", "deterministic", False),
            ("compile=auto", "compile", "auto"),
            ("compile=true", "compile", True),
            ("threads=3", "threads", 3),
            ("threads=auto", "threads", "auto"),
            ("normalization.mean=[0.1, 0.2]", "normalization.mean", (0.1, 0.2)),
            ("evaluation.metrics=['f1_score']", "evaluation.metrics", ("f1_score",)),
            ("evaluation.every=5 epochs", "evaluation.every", Frequency(5, "epochs")),
            ("model.options.dropout=0.5", "model.options", {"dropout": 0.5}),
            ("model.options={a = 1, b = [2, 3]}", "model.options", {"a": 1, "b": [2, 3]}),
            ("data.options.deep.er=x", "data.options", {"deep": {"er": "x"}}),
            ("ema.decay=0.99", "ema.decay", 0.99),
            ("augmentation=[{name='flip'}]", "augmentation", (Flip(),)),
            ("augmentation=[{name='m:f'}]", "augmentation", (CustomTransform(name="m:f"),)),
        ],
    )
    def test_are_toml_values_or_else_strings(self, setting, path, value):
        result = recipe(setting)
        for key in path.split("."):
            result = getattr(result, key)
        assert result == value
        assert type(result) is type(value)

    def test_apply_in_order_and_leave_the_rest(self):
        before = recipe()
        after = recipe("seed.data=1", "seed.data=2", "seed.init=3")
        assert (after.seed.data, after.seed.init) == (2, 3)
        assert after.model_copy(update={"seed": before.seed}) == before
        assert recipe() == before

    def test_of_another_optimizer_keep_the_fields_both_have(self):
        sgd = recipe("optimizer.momentum=0.9", "optimizer.weight_decay=0.01", "optimizer.decayed=all")
        assert override(sgd, ["optimizer.name=adamw"]).optimizer == AdamW(
            learning_rate=0.1, weight_decay=0.01, decayed="all"
        )
        assert override(sgd, ["optimizer.name=rmsprop"]).optimizer == RmsProp(
            learning_rate=0.1, weight_decay=0.01, decayed="all", momentum=0.9
        )
        assert override(sgd, ["optimizer.name=sgd"]) == sgd

    def test_of_a_kind_come_before_its_fields_wherever_they_stand(self):
        settings = [
            "schedule.factor=0.5",
            "schedule.every=10",
            "schedule.warmup_steps=3",
            "schedule.name=exponential",
        ]
        assert recipe(*settings).schedule == Exponential(factor=0.5, every=10, warmup_steps=3)
        assert recipe("optimizer.betas=[0.8, 0.9]", "optimizer.name=adamw").optimizer.betas == (0.8, 0.9)

    def test_of_a_field_that_the_new_kind_lacks_are_refused_wherever_they_stand(self):
        message = refusal("optimizer.beta=[0.8, 0.9]", "optimizer.name=adamw")
        assert message == "there is no field 'optimizer.beta': did you mean 'betas'?"

    def test_of_one_length_replace_the_other_but_both_at_once_are_refused(self):
        in_epochs = recipe("epochs=2.5")
        assert (in_epochs.steps, in_epochs.epochs) == (None, 2.5)
        again = override(in_epochs, ["steps=7"])
        assert (again.steps, again.epochs) == (7, None)
        assert refusal("steps=7", "epochs=2") == "give steps or epochs, one of the two"

    def test_of_another_model_or_data_set_forget_the_options_of_the_old_one(self):
        before = recipe("model.options.a=1", "data.options.b=2")
        after = override(before, ["model.name=other", "data.name=another", "data.options.c=3"])
        assert (after.model.options, after.data.options) == ({}, {"c": 3})

    @pytest.mark.parametrize("setting", ["steps", "=3", "", " =3"])
    def test_without_a_key_and_a_value_are_refused(self, setting):
        with pytest.raises(RecipeError, match="write KEY=VALUE, for example"):
            recipe(setting)

    @pytest.mark.parametrize(
        ("setting", "key"), [("batch_size.x=1", "batch_size"), ("augmentation.0.size=1", "augmentation")]
    )
    def test_inside_what_is_not_a_table_are_refused(self, setting, key):
        with pytest.raises(RecipeError, match=f"{key} is not a table; set the whole of it"):
            recipe(setting)


class TestDifferences:
    def test_of_equal_recipes_are_none(self, shipped):
        assert differences(shipped, shipped) == {}

    @pytest.mark.parametrize(
        ("setting", "expected"),
        [
            ("batch_size=20", {"batch_size": (10, 20)}),
            ("optimizer.learning_rate=0.2", {"optimizer.learning_rate": (0.1, 0.2)}),
            ("seed.data=5", {"seed.data": (0, 5)}),
            ("evaluation.final=false", {"evaluation.final": (True, False)}),
            ("model.options.a=1", {"model.options": ({}, {"a": 1})}),
            ("data.validation=3", {"data.validation": (None, 3)}),
        ],
    )
    def test_name_each_semantic_field_with_both_values(self, setting, expected):
        assert differences(recipe(), recipe(setting)) == expected

    def test_of_another_optimizer_name_its_name(self):
        found = differences(recipe(), recipe("optimizer.name=adamw"))
        assert found == {"optimizer.name": ("sgd", "adamw")}

    def test_of_a_table_that_one_of_the_two_lacks_name_the_table(self):
        (key, (old, new)), *others = differences(recipe(), recipe("ema.decay=0.5")).items()
        assert (key, old, new["decay"], others) == ("ema", None, 0.5, [])

    @pytest.mark.parametrize(
        "setting",
        [
            "data.path=/elsewhere",
            "device=cuda",
            "threads=7",
            "loader_threads=7",
            "logging.every=3 steps",
            "logging.activations=['conv1']",
            "checkpoint.every=1 min",
            "checkpoint.keep_last=9",
            "evaluation.batch_size=3",
            "steps=200",
            "epochs=2",
        ],
    )
    def test_do_not_count_operational_fields(self, setting):
        assert differences(recipe(), recipe(setting)) == {}

    def test_do_not_count_what_is_left_to_be_measured(self):
        settled = recipe("precision=bfloat16", "compile=true")
        assert differences(settled, recipe("precision=auto", "compile=auto")) == {}
        assert differences(settled, recipe("precision=float32", "compile=true")) == {
            "precision": ("bfloat16", "float32")
        }

    @pytest.mark.parametrize(
        ("schedule", "matters"),
        [
            ({"name": "constant"}, False),
            ({"name": "exponential", "factor": 0.5, "every": 10}, False),
            ({"name": "cosine"}, True),
            ({"name": "linear"}, True),
            ({"name": "one_cycle"}, True),
        ],
    )
    def test_count_the_length_where_the_learning_rate_depends_on_it(self, schedule, matters):
        short, long = recipe(schedule=schedule), recipe("steps=200", schedule=schedule)
        assert differences(short, long) == ({"steps": (100, 200)} if matters else {})
        assert short.depends_on_total is matters

    def test_count_epochs_for_steps_too_where_the_learning_rate_depends_on_it(self):
        found = differences(
            recipe(schedule={"name": "cosine"}), recipe("epochs=3", schedule={"name": "cosine"})
        )
        assert found == {"steps": (100, None), "epochs": (None, 3.0)}


class TestFrozen:
    def test_a_recipe_cannot_be_changed(self, shipped):
        with pytest.raises(ValidationError, match="frozen"):
            shipped.batch_size = 3
        with pytest.raises(ValidationError, match="frozen"):
            shipped.optimizer.learning_rate = 3.0

    def test_every_table_is_frozen_and_refuses_unknown_fields(self):
        for part in parts():
            assert issubclass(part, BaseModel)
            assert part.model_config["frozen"]
            assert part.model_config["extra"] == "forbid"


class TestFrequency:
    @pytest.mark.parametrize(
        ("text", "amount", "unit", "written"),
        [
            ("1000 steps", 1000, "steps", "1000 steps"),
            ("1 step", 1, "steps", "1 step"),
            ("1 steps", 1, "steps", "1 step"),
            ("2.0 steps", 2, "steps", "2 steps"),
            ("1 epoch", 1, "epochs", "1 epoch"),
            ("0.5 epochs", 0.5, "epochs", "0.5 epochs"),
            ("10 min", 10, "min", "10 min"),
            ("1.5 minutes", 1.5, "min", "1.5 min"),
            ("1 min", 1, "min", "1 min"),
            (" 5epochs ", 5, "epochs", "5 epochs"),
            ("never", 0, "never", "never"),
        ],
    )
    def test_is_read_and_written(self, text, amount, unit, written):
        frequency = Frequency.parse(text)
        assert frequency == Frequency(amount, unit)
        assert str(frequency) == written
        assert Frequency.parse(written) == frequency
        assert Frequency.parse(frequency) is frequency

    @pytest.mark.parametrize(
        "text",
        ["", "5", "steps", "5 hours", "1k steps", "-1 steps", "+1 step", "1 Steps", "one step", None, 5, []],
    )
    def test_of_another_form_is_refused(self, text):
        with pytest.raises(ValueError, match="write it as '1000 steps', '1 epoch', '10 min' or 'never'"):
            Frequency.parse(text)

    @pytest.mark.parametrize("text", ["0 steps", "1.5 steps", "0 epochs", "0.0 min"])
    def test_of_an_impossible_amount_is_refused(self, text):
        with pytest.raises(ValueError, match="must be a whole number of steps, or a positive number"):
            Frequency.parse(text)

    def test_is_written_in_a_recipe_as_text(self):
        written = tomllib.loads(to_toml(recipe("evaluation.every=3 epochs")))
        assert written["evaluation"]["every"] == "3 epochs"
        assert Evaluation(every="3 epochs").every == Frequency(3, "epochs")
