from __future__ import annotations

import contextlib
import json
import subprocess
import sys

import numpy as np
import pytest
from google.protobuf import descriptor_pool
from hypothesis import given, settings
from hypothesis import strategies as st

from foveal.errors import UsageError
from foveal.tensorflow.example import (
    ExampleError,
    FeatureLengthError,
    FeatureTypeError,
    FixedLength,
    MalformedExampleError,
    MissingFeatureError,
    Ragged,
    VariableLength,
    build_example,
    build_sequence_example,
    parse_batch,
    parse_example,
    parse_sequence_batch,
)
from foveal.tensorflow.example_messages import Example
from foveal.tensorflow.record_writer import RecordWriter
from foveal.tensorflow.records import read_records

# The SequenceExample in sequence.tfrecord, as TensorFlow 2.15.1 wrote it
SEQUENCE = bytes.fromhex(
    "0a110a0f0a066c656e67746812051a030a010312240a220a06746f6b656e7312180a061a040a0200000a061a040a0201010a061a"
    "040a020204"
)


def delimited(field, content):
    """A protobuf field of wire type 2; short ones only."""
    assert len(content) < 128
    return bytes([field << 3 | 2, len(content)]) + content


def entry(name, feature):
    return delimited(1, delimited(1, name) + delimited(2, feature))


def example(*entries):
    return delimited(1, b"".join(entries))


def key(position):
    return f"f.tfrecord record {position}"


def same(found, expected):
    assert found.dtype == expected.dtype
    assert found.shape == expected.shape
    assert found.tolist() == expected.tolist()


def strings(*values):
    return np.array(values, object)


class TestWhatTensorFlowWrote:
    @pytest.mark.parametrize("name", ["examples.tfrecord", "examples.tfrecord.gz", "examples.tfrecord.zlib"])
    def test_has_the_expected_values(self, fixtures, name):
        expected = json.loads((fixtures / "examples_expected.json").read_text())
        records = [record.data for record in read_records(fixtures / name)]
        assert len(records) == len(expected) == 57
        for record, features in zip(records, expected, strict=True):
            found = parse_example(record)
            assert found.keys() == features.keys()
            for feature, values in features.items():
                if found[feature].dtype == object:
                    assert [value.hex() for value in found[feature]] == values
                else:
                    np.testing.assert_allclose(found[feature].astype(float), values, rtol=0, atol=1e-9)

    def test_has_the_expected_values_by_the_batch(self, fixtures):
        expected = json.loads((fixtures / "examples_expected.json").read_text())
        records = [record.data for record in read_records(fixtures / "examples.tfrecord")]
        found = parse_batch(
            records,
            {
                "image/class/label": FixedLength((), np.int64),
                "image/encoded": FixedLength((1,), bytes),
                "rare": FixedLength((), np.float32, default=-1),
                "image/object/bbox/xmin": VariableLength(np.float32),
                "ids": VariableLength(np.int64),
            },
        )
        assert found["image/class/label"].tolist() == [each["image/class/label"][0] for each in expected]
        assert [[row[0].hex()] for row in found["image/encoded"]] == [e["image/encoded"] for e in expected]
        rare = [each.get("rare", [-1])[0] for each in expected]
        assert len(set(rare)) > 1
        np.testing.assert_allclose(found["rare"], np.float32(rare))
        for row, each in enumerate(expected):
            assert found["ids"][row].tolist() == each["ids"]
            boxes = np.float32(each["image/object/bbox/xmin"])
            np.testing.assert_allclose(found["image/object/bbox/xmin"][row], boxes, atol=1e-9)

    @pytest.mark.parametrize("wanted", [FixedLength((2,), np.int64), VariableLength(np.int64)])
    def test_of_sequences_has_the_expected_values(self, fixtures, wanted):
        assert [record.data for record in read_records(fixtures / "sequence.tfrecord")] == [SEQUENCE]
        context, sequences = parse_sequence_batch(
            [SEQUENCE, SEQUENCE], {"length": FixedLength((), np.int64)}, {"tokens": wanted}
        )
        same(context["length"], np.array([3, 3]))
        assert sequences["tokens"].row_splits.tolist() == [0, 3, 6]
        assert [sequences["tokens"][1][step].tolist() for step in range(3)] == [[0, 0], [1, 1], [2, 4]]

    def test_is_what_we_build(self):
        tokens = [[0, 0], [1, 1], [2, 4]]
        assert build_sequence_example({"length": 3}, {"tokens": tokens}) == SEQUENCE


class TestBytes:
    """The wire format, written by hand: https://protobuf.dev/programming-guides/encoding/."""

    INTEGERS = (b"\x1a\x0d\x0a\x0b" + b"\x01" + b"\xff" * 9 + b"\x01", [1, -1])
    FLOATS = (b"\x12\x06\x0a\x04\x00\x00\xc0\x3f", [1.5])
    STRINGS = (b"\x0a\x06\x0a\x02x\x00\x0a\x00", [b"x\0", b""])

    @pytest.mark.parametrize(("feature", "values"), [INTEGERS, FLOATS, STRINGS])
    def test_are_these(self, feature, values):
        assert build_example({"a": values}) == example(entry(b"a", feature))
        assert parse_example(example(entry(b"a", feature)))["a"].tolist() == values

    @pytest.mark.parametrize(
        ("feature", "values"),
        [
            (b"\x1a\x04\x08\x01\x08\x02", [1, 2]),  # integers one by one, not packed
            (b"\x12\x05\x0d\x00\x00\xc0\x3f", [1.5]),  # a float likewise
            (b"\x1a\x05\x0a\x01\x01\x08\x02", [1, 2]),  # both ways in one list
            (b"\x1a\x03\x0a\x01\x01" * 2, [1, 1]),  # a list in two parts is merged
            (b"\x12\x06\x0a\x04\x00\x00\xc0\x3f\x1a\x03\x0a\x01\x01", [1]),  # of two kinds the last holds
            (b"\x1a\x03\x0a\x01\x01\x22\x01z", [1]),  # a field that nobody knows
        ],
    )
    def test_of_other_writers_mean_what_protobuf_says(self, feature, values):
        assert parse_example(example(entry(b"a", feature)))["a"].tolist() == values

    def test_with_a_name_twice_hold_the_last(self):
        twice = example(entry(b"a", b"\x1a\x03\x0a\x01\x01"), entry(b"a", b"\x1a\x03\x0a\x01\x02"))
        assert parse_example(twice)["a"].tolist() == [2]

    def test_of_a_feature_without_a_kind_are_as_if_it_were_missing(self):
        record = example(entry(b"a", b""))
        assert parse_example(record) == {}
        with pytest.raises(MissingFeatureError):
            parse_batch([record], {"a": FixedLength((), np.int64)})
        assert parse_batch([record], {"a": FixedLength((), np.int64, 7)})["a"].tolist() == [7]

    def test_cut_off_anywhere_are_an_error_or_hold_less(self):
        record = build_example({"a": [1, 300], "b": [1.5], "c": b"text"})
        assert parse_example(b"") == {}
        for size in range(1, len(record)):
            with pytest.raises(MalformedExampleError, match=r"^here: is not a tf.train.Example"):
                parse_example(record[:size], "here")

    def test_changed_anywhere_give_values_or_a_named_error(self):
        record = build_example({"a": [1, 300], "b": [1.5], "c": b"text"})
        specification = {"a": VariableLength(np.int64), "b": FixedLength((1,), np.float32)}
        for bit in range(8 * len(record)):
            flipped = bytearray(record)
            flipped[bit // 8] ^= 1 << bit % 8
            with contextlib.suppress(ExampleError):
                assert parse_batch([bytes(flipped)], specification)["b"].shape == (1, 1)


class TestFixedLength:
    def test_gives_dense_arrays(self):
        records = [
            build_example({"i": [[1, 2], [3, each]], "f": 0.5 * each, "b": bytes([each]), "other": 1})
            for each in range(3)
        ]
        found = parse_batch(
            records,
            {
                "i": FixedLength((2, 2), np.int64),
                "f": FixedLength((), "float32"),
                "b": FixedLength((1,), bytes),
            },
        )
        assert list(found) == ["i", "f", "b"]
        same(found["i"], np.array([[[1, 2], [3, each]] for each in range(3)]))
        same(found["f"], np.array([0, 0.5, 1], np.float32))
        same(found["b"], strings(b"\0", b"\1", b"\2").reshape(3, 1))

    @pytest.mark.parametrize(
        ("shape", "dtype", "default", "expected"),
        [
            ((), np.int64, 5, 5),
            ((), np.float32, 5, 5.0),
            ((2,), np.float32, [0.5, 1.5], [0.5, 1.5]),
            ((2, 2), np.int64, [1, 2], [[1, 2], [1, 2]]),
            ((), bytes, b"", b""),
            ((2,), bytes, [b"a\0", b"b"], [b"a\0", b"b"]),
        ],
    )
    def test_takes_the_default_for_what_is_missing(self, shape, dtype, default, expected):
        found = parse_batch([b"", b""], {"a": FixedLength(shape, dtype, default)})
        assert found["a"].tolist() == [expected, expected]

    @pytest.mark.parametrize(
        ("shape", "dtype", "default"),
        [
            ((), np.int64, 1.5),
            ((), np.int64, b"1"),
            ((), bytes, 0),
            ((), bytes, "text"),
            ((3,), np.int64, [1, 2]),
            ((), np.int64, 1 << 63),
            ((), np.float32, 1e300),
            ((2,), np.int64, []),
        ],
    )
    def test_refuses_a_default_that_does_not_fit(self, shape, dtype, default):
        with pytest.raises(UsageError, match=r"the default .* does not give"):
            FixedLength(shape, dtype, default)

    def test_refuses_shapes_that_cannot_be(self):
        with pytest.raises(UsageError, match="no sizes below 0"):
            FixedLength((-1,), bytes)

    def test_of_no_records_gives_no_rows(self):
        found = parse_batch([], {"a": FixedLength((2, 3), np.float32), "b": VariableLength(bytes)})
        same(found["a"], np.empty((0, 2, 3), np.float32))
        assert len(found["b"]) == 0


@pytest.mark.parametrize("kind", [lambda dtype: FixedLength((), dtype), VariableLength])
class TestDtypes:
    @pytest.mark.parametrize("dtype", [float, np.int32, str, "S5", object, None, "nonsense", ">f4"])
    def test_are_three(self, kind, dtype):
        with pytest.raises(UsageError, match="is bytes, float32 or int64, not"):
            kind(dtype)

    @pytest.mark.parametrize("dtype", [bytes, np.float32, "float32", np.dtype(np.int64), "int64"])
    def test_have_their_usual_names(self, kind, dtype):
        assert kind(dtype).kind


class TestVariableLength:
    def test_gives_values_and_where_rows_begin(self):
        values = [[1, 2, 3], [], [4]]
        records = [build_example({"a": np.array(each, np.int64)}) for each in values]
        found = parse_batch([*records, b""], {"a": VariableLength(np.int64)})["a"]
        same(found.values, np.array([1, 2, 3, 4]))
        same(found.row_splits, np.array([0, 3, 3, 4, 4]))
        assert [found[row].tolist() for row in range(len(found))] == [*values, []]

    @pytest.mark.parametrize(("dtype", "values"), [(bytes, [b"a", b""]), (np.float32, [0.5])])
    def test_of_each_type(self, dtype, values):
        found = parse_batch([build_example({"a": values})], {"a": VariableLength(dtype)})["a"]
        same(found.values, np.array(values, object if dtype is bytes else dtype))


class TestErrors:
    """Each names the record's key, the feature, and what is wrong."""

    @pytest.mark.parametrize(
        ("features", "wanted", "error", "problem"),
        [
            ({"labels": 1}, FixedLength((), np.int64), MissingFeatureError, "is missing, and has no default"),
            ({"label": 1.0}, FixedLength((), np.int64), FeatureTypeError, "holds float32, not int64"),
            ({"label": b"1"}, VariableLength(np.int64), FeatureTypeError, "holds bytes, not int64"),
            ({"label": strings()}, VariableLength(np.int64), FeatureTypeError, "holds bytes, not int64"),
            ({"label": [1, 2, 3]}, FixedLength((), np.int64), FeatureLengthError, "has 3 values, not the 1"),
            ({"label": [1, 2]}, FixedLength((3,), np.int64), FeatureLengthError, "has 2 values, not the 3"),
            ({"label": np.arange(0)}, FixedLength((), np.int64, 5), FeatureLengthError, "has 0 values, not"),
        ],
    )
    def test_of_a_feature(self, features, wanted, error, problem):
        size = wanted.size if isinstance(wanted, FixedLength) else 4
        good = build_example({"label": [1] * size})
        with pytest.raises(error) as caught:
            parse_batch([good, good, build_example(features)], {"label": wanted}, key)
        assert str(caught.value).startswith(f"f.tfrecord record 2: feature 'label' {problem}")
        assert (caught.value.key, caught.value.feature, caught.value.step) == (key(2), "label", None)

    @pytest.mark.parametrize("position", [0, 1])
    def test_of_a_record(self, position):
        records = [b"", b""]
        records[position] = b"\xff\xff"
        start = rf"^f.tfrecord record {position}: is not a tf.train."
        with pytest.raises(MalformedExampleError, match=start + "Example: ") as caught:
            parse_batch(records, {}, key)
        assert (caught.value.key, caught.value.feature) == (key(position), None)
        with pytest.raises(MalformedExampleError, match=start + "SequenceExample: "):
            parse_sequence_batch(records, {}, {}, key)

    def test_of_a_step(self):
        good = build_sequence_example({}, {"s": [[1, 2]] * 3})
        bad = build_sequence_example({}, {"s": [[1, 2], [1, 2, 3]]})
        with pytest.raises(FeatureLengthError) as caught:
            parse_sequence_batch([good, bad], {}, {"s": FixedLength((2,), np.int64)}, key)
        assert str(caught.value) == (
            "f.tfrecord record 1: feature 's' in step 1 has 3 values, not the 2 of shape (2,)"
        )
        assert (caught.value.key, caught.value.feature, caught.value.step) == (key(1), "s", 1)

    def test_of_a_step_after_a_record_without_any(self):
        empty, bad = build_sequence_example({}, {"s": []}), build_sequence_example({}, {"s": [1.5]})
        with pytest.raises(
            FeatureTypeError, match=r"^f.tfrecord record 2: feature 's' in step 0 holds float32"
        ):
            parse_sequence_batch([empty, empty, bad], {}, {"s": VariableLength(np.int64)}, key)

    def test_of_a_sequence(self):
        wanted = {"s": FixedLength((), np.int64)}
        with pytest.raises(MissingFeatureError, match=r"^f.tfrecord record 1: feature 's' is missing"):
            parse_sequence_batch([build_sequence_example({}, {"s": []}), b""], {}, wanted, key)

    def test_of_the_context(self):
        with pytest.raises(MissingFeatureError, match=r"^f.tfrecord record 0: feature 'c' is missing"):
            parse_sequence_batch([SEQUENCE], {"c": FixedLength((), np.int64)}, {}, key)


class TestSequences:
    RECORDS = (
        build_sequence_example({"n": 2}, {"s": [[1, 2], [3]], "x": [b"a", b"b"]}),
        build_sequence_example({"n": 0}, {}),
        build_sequence_example({"n": 1}, {"s": [np.empty(0, np.int64)], "x": []}),
    )

    def test_of_variable_length_are_ragged_twice(self):
        _, found = parse_sequence_batch(self.RECORDS, {}, {"s": VariableLength(np.int64)})
        steps = found["s"]
        assert steps.row_splits.tolist() == [0, 2, 2, 3]
        assert steps.values.row_splits.tolist() == [0, 2, 3, 3]
        assert steps.values.values.tolist() == [1, 2, 3]
        rows = [[steps[row][step].tolist() for step in range(len(steps[row]))] for row in range(3)]
        assert rows == [[[1, 2], [3]], [], [[]]]

    def test_with_a_default_may_be_missing(self):
        _, found = parse_sequence_batch(self.RECORDS, {}, {"x": FixedLength((1,), bytes, b"")})
        assert found["x"].row_splits.tolist() == [0, 2, 2, 2]
        assert found["x"].values.tolist() == [[b"a"], [b"b"]]

    def test_of_no_records(self):
        _, found = parse_sequence_batch([], {}, {"s": VariableLength(np.int64)})
        assert len(found["s"]) == 0


class TestBuilding:
    @pytest.mark.parametrize(
        ("value", "dtype", "expected"),
        [
            (3, np.int64, [3]),
            (True, np.int64, [1]),
            (np.uint8(200), np.int64, [200]),
            ([-(1 << 63), (1 << 63) - 1], np.int64, [-(1 << 63), (1 << 63) - 1]),
            (np.arange(6, dtype=np.uint8).reshape(2, 3), np.int64, [0, 1, 2, 3, 4, 5]),
            (np.array([True, False]), np.int64, [1, 0]),
            (0.1, np.float32, [np.float32(0.1)]),
            ([1, 2.5], np.float32, [1, 2.5]),
            (np.array([1e-50, np.inf, -np.inf]), np.float32, [0, np.inf, -np.inf]),
            (np.array([0.5], np.float16), np.float32, [0.5]),
            (b"a\0", object, [b"a\0"]),
            ([b"", b"b\0"], object, [b"", b"b\0"]),
            (strings(b"a\0"), object, [b"a\0"]),
            (strings(), object, []),
            (np.empty(0, np.float32), np.float32, []),
            (np.empty((0, 3), np.int32), np.int64, []),
        ],
    )
    def test_takes_what_can_be_stored(self, value, dtype, expected):
        found = parse_example(build_example({"a": value}))["a"]
        same(found, np.array(expected, dtype))

    @pytest.mark.parametrize(
        ("value", "why"),
        [
            ("text", "not str"),
            ([b"a", 1], "all alike, not bytes, int"),
            ([], "an empty list has no type"),
            (None, "not NoneType"),
            (1 << 63, "out of the range of int64"),
            ([1 << 63, -1], "out of the range of int64"),
            (np.array([1 << 63], np.uint64), "out of the range of int64"),
            (1e39, "out of the range of float32"),
            ([[1, 2], [3]], "not list"),
            (np.array([b"a"]), "lose zeros at their end"),
            (np.array(["a"]), "not str"),
            (1j, "not complex"),
        ],
    )
    def test_refuses_the_rest_with_a_reason(self, value, why):
        with pytest.raises(UsageError, match=rf"^feature 'a' cannot be stored: .*{why}"):
            build_example({"a": value})

    def test_the_same_features_gives_the_same_bytes(self):
        features = {f"feature {each}": each for each in range(50)}
        assert build_example(features) == build_example(dict(reversed(features.items())))

    @given(
        st.dictionaries(
            st.text(max_size=9),
            st.lists(st.integers(-(1 << 63), (1 << 63) - 1), min_size=1)
            | st.lists(st.floats(width=32, allow_nan=False), min_size=1)
            | st.lists(st.binary(max_size=9), min_size=1),
        )
    )
    @settings(deadline=None)
    def test_and_parsing_give_back_the_same(self, features):
        record = build_example(features)
        found = parse_example(record)
        assert {name: values.tolist() for name, values in found.items()} == features
        dtypes = {name: bytes if found[name].dtype == object else found[name].dtype for name in features}
        batch = parse_batch([record, record], {name: VariableLength(dtypes[name]) for name in features})
        fixed = parse_batch(
            [record], {name: FixedLength((len(each),), dtypes[name]) for name, each in features.items()}
        )
        for name, values in features.items():
            assert batch[name].values.tolist() == values * 2
            assert fixed[name].tolist() == [values]

    def test_and_parsing_keeps_nan(self):
        assert np.isnan(parse_example(build_example({"a": float("nan")}))["a"]).all()


def test_the_messages_are_in_no_pool_that_others_use():
    assert Example.DESCRIPTOR.full_name == "foveal.tensorflow.Example"
    with pytest.raises(KeyError):
        descriptor_pool.Default().FindMessageTypeByName("foveal.tensorflow.Example")


class TestWhereTensorFlowIsInstalled:
    """This folder is called tensorflow: only the name of a module inside tells that the real one is there."""

    @pytest.mark.parametrize("compression", [None, "gzip", "zlib"])
    def test_it_reads_what_we_write(self, tmp_path, compression):
        pytest.importorskip("tensorflow.python")
        import tensorflow as tf

        with RecordWriter(tmp_path / "file", compression) as writer:
            for each in range(3):
                values = {"i": [each, -each], "f": each / 2, "b": bytes([each]), "v": np.arange(each)}
                writer.write(build_example(values))
        dataset = tf.data.TFRecordDataset(str(tmp_path / "file"), (compression or "").upper())
        parsed = [
            tf.io.parse_single_example(
                record,
                {
                    "i": tf.io.FixedLenFeature([2], tf.int64),
                    "f": tf.io.FixedLenFeature([], tf.float32),
                    "b": tf.io.FixedLenFeature([], tf.string),
                    "v": tf.io.VarLenFeature(tf.int64),
                },
            )
            for record in dataset
        ]
        assert [each["i"].numpy().tolist() for each in parsed] == [[0, 0], [1, -1], [2, -2]]
        assert [each["f"].numpy() for each in parsed] == [0, 0.5, 1]
        assert [each["b"].numpy() for each in parsed] == [b"\0", b"\1", b"\2"]
        assert [each["v"].values.numpy().tolist() for each in parsed] == [[], [0], [0, 1]]

    @pytest.mark.parametrize(
        "order", ["tensorflow, foveal.tensorflow.example", "foveal.tensorflow.example, tensorflow"]
    )
    def test_it_lives_in_the_same_process(self, order):
        pytest.importorskip("tensorflow.python")
        program = (
            f"import {order}\n"
            "record = foveal.tensorflow.example.build_example({'a': [1, 2]})\n"
            "theirs = tensorflow.train.Example.FromString(record)\n"
            "assert list(theirs.features.feature['a'].int64_list.value) == [1, 2]\n"
            "theirs = theirs.SerializeToString()\n"
            "print(foveal.tensorflow.example.parse_example(theirs)['a'].tolist())"
        )
        result = subprocess.run(
            [sys.executable, "-c", program], capture_output=True, text=True, timeout=200, check=False
        )
        assert result.stdout == "[1, 2]\n", result.stderr


def test_rows_of_rows_share_the_memory():
    outer = Ragged(Ragged(np.arange(4), np.array([0, 1, 4])), np.array([0, 1, 2]))
    assert np.shares_memory(outer[1].values, outer.values.values)
    assert outer[1].row_splits.tolist() == [0, 3]
    with pytest.raises(IndexError):
        _ = outer[-1]
