from __future__ import annotations

import contextlib
import re
from pathlib import Path

import pytest

from foveal.errors import DamagedCheckpointError
from foveal.tensorflow.bundle import Bundle
from foveal.tensorflow.object_graph import GRAPH_KEY, TrackableObjectGraph, read_object_graph
from foveal.tensorflow.table_writer import encode_varint

FILE = Path("ckpt.index")
END = "/.ATTRIBUTES/VARIABLE_VALUE"


def graph(*nodes):
    """A graph of nodes, each ``(children, key, slots)``; its bytes."""
    message = TrackableObjectGraph()
    for children, key, slots in nodes:
        node = message.nodes.add()
        for name, child in children.items():
            node.children.add(local_name=name, node_id=child)
        if key:
            node.attributes.add(name="VARIABLE_VALUE", full_name=f"full {key}", checkpoint_key=key)
        for name, variable, slot in slots:
            node.slot_variables.add(
                slot_name=name, original_variable_node_id=variable, slot_variable_node_id=slot
            )
    return message.SerializeToString()


def inner(**children):
    return children, "", ()


def variable(key, **children):
    return children, key, ()


def read(serialized, *keys):
    return read_object_graph(serialized, set(keys), FILE)


class TestNames:
    @pytest.mark.parametrize("prefix", ["object_graph/ckpt-1", "object_graph_keras/ckpt"])
    def test_are_the_keys_of_tensorflow_without_their_end(self, fixtures, prefix):
        bundle = Bundle(fixtures / prefix)
        keys = [key for key in bundle.names() if key != GRAPH_KEY]
        names = read(bundle.get(GRAPH_KEY).item(), *keys).names
        assert sorted(names) == keys
        assert all(key == name + END for key, name in names.items())

    def test_are_paths_whatever_the_keys_are(self):
        found = read(graph(inner(model=1), inner(w=2), variable("dense/kernel")), "dense/kernel")
        assert found.names == {"dense/kernel": "model/w"}
        assert found.full_names == {"model/w": "full dense/kernel"}

    def test_of_a_shared_variable_are_its_first_path_breadth_first(self):
        nodes = inner(deep=1, b=2, a=2), inner(w=3), inner(w=3, x=3), variable("k")
        assert read(graph(*nodes), "k").names == {"k": "deep/w"}
        nodes = inner(deep=1, b=3, a=3), inner(deeper=2), inner(w=3), variable("k")
        assert read(graph(*nodes), "k").names == {"k": "b"}

    def test_escape_dots_and_slashes_as_tensorflow_does(self):
        children = {"a/b": 1, "a.b": 2, "..": 3, ".S": 4, "ä": 5}
        keys = ["m/a.Sb", "m/a..b", "m/....", "m/..S", "m/ä"]
        nodes = inner(m=6), *(variable(key + END) for key in keys), (children, "", ())
        found = read(graph(*nodes), *(key + END for key in keys))
        assert list(found.names.values()) == keys

    def test_of_cycles_end(self):
        nodes = inner(child=1, me=0), inner(parent=0, w=2, me=1), variable("k", owner=1)
        assert read(graph(*nodes), "k").names == {"k": "child/w"}

    def test_of_variables_that_are_not_reached_are_their_keys(self):
        key = f"net/w/.OPTIMIZER_SLOT/optimizer/m{END}"
        assert read(graph(inner(), variable(key)), key).names == {key: key.removesuffix(END)}

    def test_of_the_root_is_its_key(self):
        assert read(graph(variable("root")), "root").names == {"root": "root"}

    def test_leave_out_what_is_no_variable(self):
        message = TrackableObjectGraph()
        message.nodes.add().attributes.add(name="OBJECT_CONFIG_JSON", checkpoint_key="a")
        found = read(message.SerializeToString())
        assert not found.names

    def test_ignore_fields_of_other_versions(self):
        assert read(graph(inner(w=1), variable("k")) + b"\x2a\x01x", "k").names == {"k": "w"}


class TestOptimizers:
    def test_slots_are_paired_with_their_variables(self):
        nodes = (
            inner(w=1, optimizer=3),
            variable("w"),
            variable("w/m"),
            ({"iter": 4, "decay": 5}, "", [("m", 1, 2)]),
            variable("iter"),
            variable("decay"),
        )
        found = read(graph(*nodes), "w", "w/m", "iter", "decay")
        assert found.slots == [("m", "w", "w/m")]
        assert found.inside == {"optimizer/iter", "optimizer/decay"}

    @pytest.mark.parametrize("child", ["_iterations", "_variables", "iter", "beta1_power"])
    def test_one_attribute_does_not_make_an_optimizer(self, child):
        assert not read(graph(inner(o=1), inner(**{child: 2}), variable("k")), "k").inside

    def test_weights_that_keras_3_keeps_in_its_optimizer_are_not_inside(self):
        optimizer = inner(_iterations=2, _variables=3, _trainable_variables=4)
        nodes = inner(o=1), optimizer, variable("step"), inner(**{"0": 2, "1": 5}), inner(**{"0": 6})
        found = read(graph(*nodes, variable("m"), variable("w")), "step", "m", "w")
        assert found.inside == {"o/_iterations", "o/_variables/1"}
        assert found.names["w"] == "o/_trainable_variables/0"

    def test_slots_of_what_is_not_stored_are_left_out(self):
        assert not read(graph(({}, "", [("m", 1, 2)]), inner(), inner())).slots


DAMAGE = {
    "no_root": (graph(), "it has no root"),
    "child_beyond": (graph(inner(a=2), inner()), "node 0 has node 2 of 2 as child 'a'"),
    "child_below": (graph(inner(a=-1)), "node 0 has node -1 of 1 as child 'a'"),
    "slot_beyond": (graph(({}, "", [("m", 0, 7)])), "node 0 has node 7 of 1 as slot 'm'"),
    "variable_below": (graph(({}, "", [("m", -3, 0)])), "node 0 has node -3 of 1 as slot 'm'"),
    "key_missing": (graph(variable("lost")), "node 0 is the tensor 'lost', which is not there"),
    "same_children": (b"\x0a\x08" + b"\x0a\x02\x08\x00" * 2, "node 0 calls two of its children the same"),
    "same_variables": (graph(inner(w=1), variable("k"), variable("w" + END)), "node 2 is called 'w'"),
    "no_message": (b"\x0a\xff", "it cannot be decoded"),
    "no_text": (b"\x0a\x05\x0a\x03\x12\x01\xff", "it cannot be decoded"),
}


class TestDamage:
    @pytest.mark.parametrize("case", DAMAGE)
    def test_is_named_with_the_file(self, case):
        serialized, problem = DAMAGE[case]
        with pytest.raises(DamagedCheckpointError, match=re.escape(problem)) as caught:
            read(serialized, "k", "w" + END)
        assert str(caught.value).startswith("ckpt.index: the object graph: ")
        assert "\n" not in str(caught.value)

    def test_of_a_chain_with_paths_of_ever_greater_length_takes_no_memory(self):
        count = 3000
        nodes = [variable(f"k{number}", a=number + 1) for number in range(count)]
        with pytest.raises(DamagedCheckpointError, match="its paths are more than 4 times as long"):
            read(graph(*nodes, inner()), *(f"k{number}" for number in range(count)))

    @pytest.mark.parametrize("number", [1, 2, 3])
    def test_of_very_many_empty_parts_ends_soon(self, number):
        part = bytes([number << 3 | 2, 0]) * 100_000  # children, attributes, slots
        serialized = b"\x0a" + encode_varint(len(part)) + part
        if number == 1:
            with pytest.raises(DamagedCheckpointError, match="two of its children"):
                read(serialized)
        else:
            assert not read(serialized).names

    def test_in_any_byte_is_found_or_harmless(self, fixtures):
        bundle = Bundle(fixtures / "object_graph_keras/ckpt")
        serialized, keys = bundle.get(GRAPH_KEY).item(), bundle.names()
        for at in range(len(serialized)):
            for changed in (serialized[:at], serialized[:at] + b"\xff" + serialized[at + 1 :]):
                with contextlib.suppress(DamagedCheckpointError):
                    found = read(changed, *keys)
                    assert set(found.names) <= set(keys)
