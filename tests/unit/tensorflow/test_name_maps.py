from __future__ import annotations

import re
from importlib import resources

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from foveal.errors import CheckpointError, UsageError
from foveal.models.registry import MODELS, build_model
from foveal.recipe import ModelPart
from foveal.tensorflow.bundle import Bundle
from foveal.tensorflow.name_maps import NameMap, Placement, load_name_map, read_name_map

# The image shape each built-in map's network has in the tutorial, and the checkpoint of TensorFlow's.
TUTORIALS = {
    "cifar10_cnn": ((24, 24, 3), "cifar10_train/model.ckpt-60000"),
    "mnist_cnn": ((28, 28, 1), "mnist_convnet_model/model.ckpt-20000"),
}
DTYPES = [np.float32, np.float64, np.float16, ml_dtypes.bfloat16, np.int64, np.bool_]
IN_QUOTES = "(write a name with dots in quotes)"
NO_TOML = "not a name map in TOML: "


def repeated(layers, tensor, variable):
    """A map with a tensor of its own, and one that these layers have."""
    table = f'[[repeated]]\nlayers = {layers}\ntensors = {{ "{tensor}" = {{ variable = "{variable}" }} }}'
    return f'[tensors]\nx = {{ variable = "own" }}\n{table}'


# By what is wrong: a map, and what is said of it.
MISTAKES = {
    "no table": ("", "tensors is missing"),
    "an empty table": ("[tensors]", "tensors is missing"),
    "no tables": ("tensors = 3", "tensors: should be a table"),
    "a misspelt table": ("[tensor]", "there is no field tensor: did you mean 'tensors'?"),
    "another table": (
        'x = 1\n[tensors]\na = {variable = "v"}',
        "there is no field x: known: repeated, tensors",
    ),
    "a misspelt field": (
        '[tensors]\n"a.b" = {variabel = "v"}',
        "there is no field tensors.'a.b'.variabel: did you mean 'variable'?",
    ),
    "a name without quotes": (
        '[tensors]\na.b = {variable = "v"}',
        "there is no field tensors.a.b: known: flattened, layout, multiplier, optional, variable "
        + IN_QUOTES,
    ),
    "no variable": ('[tensors]\na = {layout = "IO"}', "tensors.a.variable is missing"),
    "no table of a tensor": ('[tensors]\na = "v"', "tensors.a = 'v': should be a table"),
    "an empty variable": (
        '[tensors]\na = {variable = ""}',
        "tensors.a.variable = '': should be the name of a variable",
    ),
    "no text": ("[tensors]\na = {variable = 3}", "tensors.a.variable: should be a text"),
    "an unknown layout": (
        '[tensors]\na = {variable = "v", layout = "OIHW"}',
        "tensors.a.layout = 'OIHW': should be '', 'HWIO', 'HWIM' or 'IO'",
    ),
    "flattened alone": (
        '[tensors]\na = {variable = "v", flattened = [1, 2, 3]}',
        "tensors.a: flattened is for dense layers: it needs layout = 'IO'",
    ),
    "two sizes": (
        '[tensors]\na = {variable = "v", layout = "IO", flattened = [1, 2]}',
        "tensors.a.flattened.2 is missing",
    ),
    "four sizes": (
        '[tensors]\na = {variable = "v", layout = "IO", flattened = [1, 2, 3, 4]}',
        "tensors.a.flattened: should be a list of height, width and channels",
    ),
    "a size of zero": (
        '[tensors]\na = {variable = "v", layout = "IO", flattened = [1, 2, 0]}',
        "tensors.a.flattened.2: should be above 0",
    ),
    "a size that is true": (
        '[tensors]\na = {variable = "v", layout = "IO", flattened = [true, 2, 3]}',
        "tensors.a.flattened.0: should be a whole number",
    ),
    "a size beyond any": (
        '[tensors]\na = {variable = "v", layout = "IO", flattened = [1, 2, 0x' + "f" * 5000 + "]}",
        "tensors.a.flattened.2: should be below 2147483648",
    ),
    "a name of two lines": (
        '[tensors]\n"a\\nb" = {variable = ""}',
        "tensors.'a\\nb'.variable = '': should be the name of a variable",
    ),
    "a multiplier elsewhere": (
        '[tensors]\na = {variable = "v", layout = "IO", multiplier = 2}',
        "tensors.a: multiplier is for depthwise convolutions: it needs layout = 'HWIM'",
    ),
    "one variable twice": (
        '[tensors]\na = {variable = "v"}\nb = {variable = "w"}\nc = {variable = "v"}',
        "tensors: 'a' and 'c' are both the variable 'v'",
    ),
    "one tensor twice": (
        '[tensors]\na = {variable = "v"}\na = {variable = "w"}',
        NO_TOML + "Cannot overwrite a value",
    ),
    "an option that is neither true nor false": (
        '[tensors]\na = {variable = "v", optional = 1}',
        "tensors.a.optional: should be true or false",
    ),
    "no layers": (repeated("[]", "{layer}", "{layer}"), "repeated.0.layers is missing"),
    "layers that are no list": (repeated("3", "{layer}", "{layer}"), "repeated.0.layers: should be a list"),
    "a misspelt field of a repetition": (
        repeated("['a']\nlayer = 3", "{layer}", "{layer}"),
        "there is no field repeated.0.layer: did you mean 'layers'?",
    ),
    "a repetition of one tensor": (
        repeated("['a', 'b']", "w", "{layer}"),
        "repeated.0: 'w': the tensor and its variable both need {layer}",
    ),
    "a repetition of one variable": (
        repeated("['a', 'b']", "{layer}", "v"),
        "repeated.0: '{layer}': the tensor and its variable both need {layer}",
    ),
    "one layer twice": (repeated("['a', 'a']", "{layer}", "{layer}"), "repeated: 'a' is there already"),
    "a tensor that is repeated too": (
        repeated("['x']", "{layer}", "{layer}"),
        "repeated: 'x' is there already",
    ),
    "one variable for two layers": (
        repeated("['a.b', 'a/b']", "{layer}", "{layer}"),
        "tensors: 'a.b' and 'a/b' are both the variable 'a/b'",
    ),
    "more tensors than memory": (
        repeated([f"l{number}" for number in range(100_001)], "{layer}", "{layer}"),
        "repeated: makes more than 100,000 tensors",
    ),
    "no TOML": ("[tensors", NO_TOML),
    "TOML that is nested too deep": ("x = " + "[" * 50_000, NO_TOML),
}
sides = st.integers(0, 4)
positive = st.integers(1, 4)


def read(folder, text):
    path = folder / "map.toml"
    path.write_text(text)
    return read_name_map(path)


def counted(*shape):
    return np.arange(np.prod(shape), dtype=np.float32).reshape(shape)


class TestLayouts:
    def test_of_a_convolution_turn_hwio_into_oihw(self):
        array = counted(2, 3, 4, 5)
        turned = Placement("v", "HWIO").to_network(array)
        assert turned.shape == (5, 4, 2, 3)
        for h, w, i, o in np.ndindex(array.shape):
            assert turned[o, i, h, w] == array[h, w, i, o]

    def test_of_a_depthwise_convolution_put_the_outputs_of_an_input_side_by_side(self):
        array = counted(2, 3, 4, 5)
        turned = Placement("v", "HWIM", multiplier=5).to_network(array)
        assert turned.shape == (20, 1, 2, 3)
        for h, w, i, m in np.ndindex(array.shape):
            assert turned[i * 5 + m, 0, h, w] == array[h, w, i, m]

    def test_of_a_dense_layer_turn_io_into_oi(self):
        array = counted(4, 3)
        assert Placement("v", "IO").to_network(array).tolist() == array.T.tolist()

    def test_of_a_dense_layer_after_a_flatten_move_the_channels_to_the_front(self):
        array = counted(2 * 3 * 4, 5)
        turned = Placement("v", "IO", (2, 3, 4)).to_network(array)
        assert turned.shape == (5, 24)
        for h, w, c, o in np.ndindex(2, 3, 4, 5):
            assert turned[o, (c * 2 + h) * 3 + w] == array[(h * 3 + w) * 4 + c, o]

    def test_none_leaves_an_array_as_it_is(self):
        for array in (np.float32(2.5), counted(3), np.array([b"a", b""], dtype=object)):
            for placed in (Placement("v").to_network(array), Placement("v").to_tensorflow(array)):
                assert placed.shape == np.shape(array)
                assert placed.tolist() == array.tolist()

    def test_after_a_flatten_give_the_same_outputs_as_tensorflows_order_does(self):
        image, kernel = counted(2, 3, 4), counted(24, 5)
        weight = Placement("v", "IO", (2, 3, 4)).to_network(kernel)
        np.testing.assert_array_equal(weight @ image.transpose(2, 0, 1).ravel(), image.ravel() @ kernel)


@st.composite
def placed(draw):
    """A placement, and an array of TensorFlow's that suits it."""
    layout = draw(st.sampled_from(["", "HWIO", "HWIM", "IO", "flattened"]))
    flattened, multiplier = None, 1
    if layout == "flattened":
        layout, flattened = "IO", draw(st.tuples(positive, positive, positive))
        shape = (int(np.prod(flattened)), draw(sides))
    elif layout == "HWIM":
        multiplier = draw(positive)
        shape = (*draw(st.tuples(sides, sides, sides)), multiplier)
    else:
        shape = tuple(draw(st.lists(sides, min_size=len(layout), max_size=len(layout) or 3)))
    dtype = np.dtype(draw(st.sampled_from(DTYPES)))
    bits = draw(arrays.arrays(np.uint8, (int(np.prod(shape)) * dtype.itemsize,), elements=st.integers(0, 1)))
    return Placement("v", layout, flattened, multiplier), bits.view(dtype).reshape(shape)


class TestPlacements:
    @given(placed())
    def test_are_undone_exactly_and_give_contiguous_arrays(self, example):
        placement, array = example
        there = placement.to_network(array)
        back = placement.to_tensorflow(there)
        assert there.flags.c_contiguous
        assert back.flags.c_contiguous
        assert (back.dtype, back.shape, back.tobytes()) == (array.dtype, array.shape, array.tobytes())
        again = placement.to_network(back)
        assert (again.dtype, again.shape, again.tobytes()) == (there.dtype, there.shape, there.tobytes())

    def test_take_arrays_that_are_not_contiguous(self):
        array = counted(5, 4, 3, 2).T[::2]
        placement = Placement("v", "HWIO")
        np.testing.assert_array_equal(placement.to_tensorflow(placement.to_network(array)), array)

    @pytest.mark.parametrize(
        ("placement", "shape", "wanted"),
        [
            (Placement("a/b", "HWIO"), (3, 4), "height, width, inputs, outputs"),
            (Placement("a/b", "HWIM", multiplier=2), (3, 3, 4, 1), "height, width, inputs, 2"),
            (Placement("a/b", "HWIM"), (3, 3, 4), "height, width, inputs, 1"),
            (Placement("a/b", "IO"), (5,), "inputs, outputs"),
            (Placement("a/b", "IO", (2, 3, 4)), (23, 5), "24 inputs, outputs"),
            (Placement("a/b", "IO", (2, 3, 4)), (2, 3, 4, 5), "24 inputs, outputs"),
        ],
        ids=["HWIO", "HWIM", "HWIM of three axes", "IO", "rows", "axes"],
    )
    def test_refuse_a_variable_of_another_shape(self, placement, shape, wanted):
        with pytest.raises(CheckpointError) as error:
            placement.to_network(np.zeros(shape))
        assert str(error.value) == (
            f"variable 'a/b' has the shape {list(shape)}: layout {placement.layout!r} of the name map wants "
            f"[{wanted}]"
        )

    @pytest.mark.parametrize(
        ("placement", "shape", "wanted"),
        [
            (Placement("a/b", "HWIO"), (3,), "outputs, inputs, height, width"),
            (Placement("a/b", "HWIM", multiplier=2), (3, 1, 4, 4), "inputs * 2, 1, height, width"),
            (Placement("a/b", "HWIM"), (3, 2, 4, 4), "inputs * 1, 1, height, width"),
            (Placement("a/b", "IO"), (5, 1, 1), "outputs, inputs"),
            (Placement("a/b", "IO", (2, 3, 4)), (5, 23), "outputs, 24 inputs"),
        ],
        ids=["HWIO", "HWIM", "HWIM of groups", "IO", "columns"],
    )
    def test_refuse_a_tensor_of_another_shape(self, placement, shape, wanted):
        with pytest.raises(CheckpointError) as error:
            placement.to_tensorflow(np.zeros(shape))
        assert str(error.value).startswith(f"the tensor for 'a/b' has the shape {list(shape)}: ")
        assert str(error.value).endswith(f"[{wanted}]")


class TestFiles:
    def test_give_every_field(self, tmp_path):
        found = read(
            tmp_path,
            """
            [tensors]
            "conv.weight" = { variable = "conv2d/kernel", layout = "HWIO" }
            "conv.bias" = { variable = "conv2d/bias" }
            "depthwise.weight" = { variable = "d/depthwise_weights", layout = "HWIM", multiplier = 2 }
            "fc.weight" = { variable = "fc/kernel", layout = "IO", flattened = [7, 7, 64] }
            """,
        )
        assert found == NameMap(
            tensors={
                "conv.weight": Placement("conv2d/kernel", "HWIO"),
                "conv.bias": Placement("conv2d/bias"),
                "depthwise.weight": Placement("d/depthwise_weights", "HWIM", multiplier=2),
                "fc.weight": Placement("fc/kernel", "IO", (7, 7, 64)),
            }
        )

    def test_say_once_what_layers_have_alike(self, tmp_path):
        found = read(
            tmp_path,
            """
            [tensors]
            "fc.bias" = { variable = "fc/biases" }
            [[repeated]]
            layers = ["a", "b.c"]
            [repeated.tensors]
            "net.{layer}.weight" = { variable = "n/{layer}/w", layout = "HWIO", optional = true }
            "{layer}.bias" = { variable = "{layer}/b" }
            """,
        )
        assert found.tensors == {
            "fc.bias": Placement("fc/biases"),
            "net.a.weight": Placement("n/a/w", "HWIO", optional=True),
            "a.bias": Placement("a/b"),
            "net.b.c.weight": Placement("n/b/c/w", "HWIO", optional=True),
            "b.c.bias": Placement("b/c/b"),
        }

    @pytest.mark.parametrize("kind", MISTAKES)
    def test_with_a_mistake_are_refused_in_one_line_that_names_it(self, tmp_path, kind):
        text, mistake = MISTAKES[kind]
        with pytest.raises(UsageError) as error:
            read(tmp_path, text)
        said = str(error.value).removeprefix(f"{tmp_path / 'map.toml'}: ")
        assert said.startswith(mistake) if mistake.startswith(NO_TOML) else said == mistake
        assert "\n" not in said

    def test_that_are_not_utf8_are_refused(self, tmp_path):
        (tmp_path / "map.toml").write_bytes(b"\xff")
        with pytest.raises(UsageError, match=r"map\.toml: not a name map in TOML: 'utf-8' codec"):
            read_name_map(tmp_path / "map.toml")

    def test_that_are_missing_or_no_files_are_refused(self, tmp_path):
        with pytest.raises(CheckpointError, match=r"cannot read .*map\.toml: No such file"):
            read_name_map(tmp_path / "map.toml")
        with pytest.raises(CheckpointError, match="cannot read"):
            read_name_map(tmp_path)

    def test_cannot_be_changed_once_read(self):
        placement = load_name_map("mnist_cnn").tensors["conv1.weight"]
        with pytest.raises(AttributeError):
            placement.layout = ""


class TestBuiltInMaps:
    def test_are_those_of_the_tutorials_and_of_slims_network(self):
        folder = resources.files("foveal.tensorflow") / "maps"
        assert sorted(each.name for each in folder.iterdir()) == [
            f"{name}.toml" for name in sorted([*TUTORIALS, "inception_v3"])
        ]
        assert {*TUTORIALS, "inception_v3"} <= set(MODELS)

    @pytest.mark.parametrize("name", ["dense", "package.module:factory", "../mnist_cnn", ""])
    def test_for_another_model_are_refused_with_a_hint(self, name):
        message = (
            f"there is no name map for the model {name!r}, only for cifar10_cnn, inception_v3, mnist_cnn: "
            "write one (docs/tensorflow.md shows how) and give its file (--names, or --init-names to train)"
        )
        with pytest.raises(UsageError, match=re.escape(message)):
            load_name_map(name)

    @pytest.mark.parametrize("name", TUTORIALS)
    def test_place_exactly_the_tensors_of_their_network(self, name, fixtures):
        shape, prefix = TUTORIALS[name]
        bundle = Bundle(fixtures / prefix)
        network = build_model(ModelPart(name=name), 10, shape, seed=0).state_dict()
        placements = load_name_map(name).tensors
        assert {tensor: tuple(value.shape) for tensor, value in network.items()} == {
            tensor: each.to_network(bundle.get(each.variable)).shape for tensor, each in placements.items()
        }
        ours = {each.variable for each in placements.values()}
        rest = {each for each in bundle.names() if not each.endswith("/ExponentialMovingAverage")} - ours
        assert rest == {"global_step"}

    @pytest.mark.parametrize("name", TUTORIALS)
    def test_are_exact_in_both_directions(self, name, fixtures):
        bundle = Bundle(fixtures / TUTORIALS[name][1])
        for placement in load_name_map(name).tensors.values():
            array = bundle.get(placement.variable)
            back = placement.to_tensorflow(placement.to_network(array))
            assert (back.dtype, back.shape, back.tobytes()) == (array.dtype, array.shape, array.tobytes())
