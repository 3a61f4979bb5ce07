from __future__ import annotations

import pytest

from foveal.tensorflow.object_graph import ObjectGraph
from foveal.tensorflow.roles import find_object_roles, find_roles, step_candidates

VARIABLES = {"dense/bias": (3,), "dense/kernel": (4, 3)}


def kept(*ways, scalars=()):
    """The shapes of two variables, and of what is kept for each of them in some ways."""
    more = {way.format(name): shape for way in ways for name, shape in VARIABLES.items()}
    return VARIABLES | more | dict.fromkeys(scalars, ())


def pairs(way):
    return {name: way.format(name) for name in VARIABLES}


def weights(shapes):
    return [name for name in shapes if name not in find_roles(shapes).others]


class TestSlotsOfTensorFlow1:
    @pytest.mark.parametrize(
        ("optimizer", "slots"),
        {
            "Momentum": ["momentum"],
            "Adam": ["m", "v"],
            "RMSProp": ["rms", "momentum"],
            "Adagrad": ["accumulator"],
            "ProximalAdagrad": ["accumulator"],
            "AdagradDA": ["gradient_accumulator", "gradient_squared_accumulator"],
            "Adadelta": ["accum", "accum_update"],
            "Ftrl": ["accum", "linear"],
        }.items(),
    )
    @pytest.mark.parametrize("scope", ["", "OptimizeLoss/", "a/b/"])
    def test_are_numbered_in_the_order_of_the_optimizer(self, optimizer, slots, scope):
        ways = [f"{scope}{{}}/{optimizer}{f'_{number}' if number else ''}" for number in range(len(slots))]
        shapes = kept(*ways)
        found = find_roles(shapes)
        assert found.optimizer == optimizer
        assert found.slots == {slot: pairs(way) for slot, way in zip(slots, ways, strict=True)}
        assert list(found.slots) == slots
        assert weights(shapes) == list(VARIABLES)

    def test_of_centered_rmsprop_are_three(self):
        found = find_roles(kept("{}/RMSProp", "{}/RMSProp_1", "{}/RMSProp_2"))
        assert found.slots == {
            "rms": pairs("{}/RMSProp"),
            "mg": pairs("{}/RMSProp_1"),
            "momentum": pairs("{}/RMSProp_2"),
        }

    def test_of_a_second_optimizer_are_no_weights_and_not_paired(self):
        shapes = kept("{}/Adam", "{}/Adam_1", "{}/Adam_2", "{}/Adam_3")
        found = find_roles(shapes)
        assert found.slots == {"m": pairs("{}/Adam"), "v": pairs("{}/Adam_1")}
        assert weights(shapes) == list(VARIABLES)

    def test_of_two_optimizers_of_different_variables_are_paired_with_theirs(self):
        shapes = {"a": (2,), "a/Adam": (2,), "a/Adam_1": (2,), "b": (2,), "b/Momentum": (2,)}
        found = find_roles(shapes)
        assert found.slots == {"m": {"a": "a/Adam"}, "v": {"a": "a/Adam_1"}, "momentum": {"b": "b/Momentum"}}
        assert found.optimizer == "Adam"

    @pytest.mark.parametrize("name", ["dense/kernel/Adam", "gone/Adam", "Adam", "dense/kernel/Adamant"])
    def test_need_a_variable_of_their_shape(self, name):
        shapes = VARIABLES | {name: (7, 7)}
        found = find_roles(shapes)
        assert (found.slots, found.optimizer) == ({}, None)
        assert name in weights(shapes)

    @pytest.mark.parametrize(
        "name", ["beta1_power", "beta2_power", "OptimizeLoss/beta1_power_1", "x/learning_rate"]
    )
    def test_come_with_scalars_that_are_no_weights(self, name):
        assert weights(VARIABLES | {name: ()}) == list(VARIABLES)
        assert name in weights(VARIABLES | {name: (2,)})


class TestSlotsOfKeras:
    @pytest.mark.parametrize(
        ("optimizer", "ways"),
        {
            "Adam": {"m": "Adam/{}/m", "v": "Adam/{}/v"},
            "SGD": {"momentum": "training/SGD/{}/momentum"},
            "RMSprop": {"rms": "RMSprop/{}/rms", "mg": "RMSprop/{}/mg", "momentum": "RMSprop/{}/momentum"},
            "Adadelta": {"accum": "Adadelta/{}/accum_grad", "accum_update": "Adadelta/{}/accum_var"},
        }.items(),
    )
    def test_until_2_10_end_their_names(self, optimizer, ways):
        scope = next(iter(ways.values())).partition("{}")[0]
        shapes = kept(*ways.values(), scalars=[f"{scope}iter", f"{scope}decay", f"{scope}momentum"])
        found = find_roles(shapes)
        assert found.slots == {slot: pairs(way) for slot, way in ways.items()}
        assert found.optimizer == optimizer
        assert weights(shapes) == list(VARIABLES)

    @pytest.mark.parametrize(
        ("optimizer", "ways"),
        {
            "Adam": {"m": "Adam/m/{}", "v": "Adam/v/{}"},
            "AdamW": {"m": "AdamW/m/{}", "v": "AdamW/v/{}", "vhat": "AdamW/vhat/{}"},
            "SGD": {"momentum": "SGD_1/m/{}"},
            "RMSprop": {"rms": "RMSprop/velocity/{}", "mg": "RMSprop/average_gradient/{}"},
        }.items(),
    )
    def test_from_2_11_stand_in_front(self, optimizer, ways):
        shapes = kept(*ways.values(), "Adam/average/{}")
        found = find_roles(shapes)
        assert found.slots == {slot: pairs(way) for slot, way in ways.items()}
        assert found.averages == pairs("Adam/average/{}")
        assert found.optimizer == optimizer
        assert weights(shapes) == list(VARIABLES)

    def test_of_keras_3_have_underscores_for_slashes(self):
        ways = {"rms": "rm_sprop/dense_{}_velocity", "mg": "rm_sprop/dense_{}_average_gradient"}
        shapes = VARIABLES | {
            way.format(name): VARIABLES[f"dense/{name}"]
            for way in ways.values()
            for name in ("bias", "kernel")
        }
        found = find_roles(shapes)
        assert found.optimizer == "RMSprop"
        assert found.slots == {
            slot: {f"dense/{name}": way.format(name) for name in ("bias", "kernel")}
            for slot, way in ways.items()
        }


class TestAverages:
    @pytest.mark.parametrize("scope", ["", "train/ema/"])
    def test_are_paired_with_their_variables(self, scope):
        way = scope + "{}/ExponentialMovingAverage"
        shapes = kept(way, way + "/biased")
        assert find_roles(shapes).averages == pairs(way)
        assert weights(shapes) == list(VARIABLES)

    def test_of_which_there_are_two_are_the_first(self):
        shapes = kept("{}/ExponentialMovingAverage_1", "{}/ExponentialMovingAverage")
        assert find_roles(shapes).averages == pairs("{}/ExponentialMovingAverage")
        assert weights(shapes) == list(VARIABLES)

    def test_need_a_variable(self):
        assert not find_roles({"gone/ExponentialMovingAverage": (2,)}).averages


class TestSteps:
    def test_come_with_the_likeliest_first(self):
        names = ["step", "x/step", "Adam/iter", "optimizer/_iterations", "a/global_step", "global_step", "w"]
        assert step_candidates(names) == [
            "global_step",
            "a/global_step",
            "Adam/iter",
            "optimizer/_iterations",
            "step",
            "x/step",
        ]

    @pytest.mark.parametrize("name", ["global_step", "step", "Adam/iterations", "save_counter"])
    def test_are_no_weights(self, name):
        assert weights(VARIABLES | {name: ()}) == list(VARIABLES)
        assert name in weights(VARIABLES | {name: (2,)})


class TestObjects:
    def roles(self, full_names, slots=(), inside=(), shapes=None):
        shapes = shapes or dict.fromkeys(full_names, (2,))
        return find_object_roles(shapes, ObjectGraph({}, full_names, list(slots), set(inside)))

    def test_slots_of_the_graph_need_no_other_names(self):
        found = self.roles(
            {"w": "v", "b": "v", "w/m": "Adam/v/m", "b/m": "Adam/v/m"}, [("m", "w", "w/m"), ("m", "b", "b/m")]
        )
        assert found.slots == {"m": {"w": "w/m", "b": "b/m"}}
        assert found.optimizer == "Adam"
        assert found.others == {"w/m", "b/m"}

    def test_slots_of_the_graph_are_called_as_in_tensorflow_1(self):
        found = self.roles({"w": "w", "s": "Adadelta/w/accum_grad"}, [("accum_grad", "w", "s")])
        assert found.slots == {"accum": {"w": "s"}}

    def test_other_slots_and_averages_are_found_by_the_names_that_variables_have_besides(self):
        names = {
            "net/w": "d/kernel",
            "o/_variables/1": "Adam/m/d/kernel",
            "o/_variables/2": "Adam/average/d/kernel",
        }
        found = self.roles(names, inside=["o/_variables/1", "o/_variables/2"])
        assert found.slots == {"m": {"net/w": "o/_variables/1"}}
        assert found.averages == {"net/w": "o/_variables/2"}

    def test_slots_are_not_paired_where_two_variables_have_one_name(self):
        names = {"a/w": "d/kernel", "b/w": "d/kernel", "o/_variables/1": "Adam/m/d/kernel"}
        found = self.roles(names, inside=["o/_variables/1"])
        assert found.slots == {}
        assert found.others == {"o/_variables/1"}

    def test_what_is_no_variable_is_told_apart(self):
        shapes = {"w": (2,), "net/.ATTRIBUTES/OBJECT_CONFIG_JSON": (), ".ATTRIBUTES/table-keys": (3,)}
        assert self.roles({"w": "w"}, shapes=shapes).others == set(shapes) - {"w"}

    def test_a_name_that_only_looks_like_that_is_a_variable(self):
        assert not self.roles({"w/..ATTRIBUTES/x": "x"}).others


@pytest.mark.parametrize(
    ("front", "part", "end"),
    [("", "a/", "Adam"), ("", "1_", ""), ("x/", "_1", ""), ("adam/", "_m", "")],
)
def test_names_of_any_length_take_no_time(front, part, end):
    name = front + part * 200_000 + end
    assert weights({name: (2,)}) == [name]
