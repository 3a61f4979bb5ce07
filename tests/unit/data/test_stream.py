from __future__ import annotations

import gc
import itertools
import os
import re
import threading
import tracemalloc
import weakref

import numpy as np
import pytest

from foveal.data.input import training_source
from foveal.data.loader import Loader
from foveal.data.sampler import Sampler
from foveal.data.source import Batch, DataSet, Encoded, Source
from foveal.data.stream import StreamSource
from foveal.errors import DataError, RecipeError
from foveal.recipe import Recipe

CLASSES = ("cat", "dog", "eel")
SHAPE = (2, 3, 1)


def image(value):
    return np.full(SHAPE, value, np.uint8)


def items(count):
    return [(image(number), number % 3) for number in range(count)]


def numbers(batches):
    """Which examples came, from their pixels; that each has its own label is checked."""
    found = [(batch.images[:, 0, 0, 0].tolist(), batch.targets.tolist()) for batch in batches]
    assert all([value % 3 for value in values] == targets for values, targets in found)
    return [values for values, _ in found]


def stream(examples, **options):
    return StreamSource(examples, CLASSES, SHAPE, **options)


def test_a_stream_is_a_source():
    source = stream(items(3))
    assert isinstance(source, Source)
    assert (source.classes, source.image_shape) == (CLASSES, SHAPE)
    assert source.key(7) == "stream example 7"
    assert stream(items(3), name="camera").key(0) == "camera example 0"
    assert source.fingerprint() == "stream"
    assert len(source) > 10**18


def test_batches_run_on_from_pass_to_pass_and_the_last_is_smaller():
    batches = list(stream(items(5)).batches(4, passes=2))
    assert numbers(batches) == [[0, 1, 2, 3], [4, 0, 1, 2], [3, 4]]
    assert (batches[0].images.dtype, batches[0].images.shape) == (np.uint8, (4, *SHAPE))
    assert batches[0].targets.dtype == np.int64


def test_without_a_limit_there_is_no_end():
    batches = itertools.islice(stream(items(2)).batches(3), 5)
    assert numbers(batches) == [[0, 1, 0], [1, 0, 1], [0, 1, 0], [1, 0, 1], [0, 1, 0]]


def test_a_function_makes_the_iterable_of_each_pass():
    calls = []

    def examples():
        calls.append(len(calls))
        yield from items(2)

    assert numbers(stream(examples).batches(2, passes=3)) == [[0, 1]] * 3
    assert calls == [0, 1, 2]


def test_an_iterator_ends_after_one_pass():
    assert numbers(stream(iter(items(3))).batches(2)) == [[0, 1], [2]]


@pytest.mark.parametrize(
    ("examples", "message"),
    [
        ([], "stream: the iterable gives no examples"),
        (iter([]), "stream: the iterable gives no examples"),
        (list, "stream: the iterable gives no examples"),
        (3, "stream: cannot be started: TypeError: 'int' object is not iterable"),
        (lambda: 1 / 0, "stream: cannot be started: ZeroDivisionError: division by zero"),
    ],
)
def test_an_iterable_that_gives_nothing_is_an_error(examples, message):
    with pytest.raises(DataError, match=rf"^{re.escape(message)}$"):
        next(stream(examples).batches(1))


def test_an_iterable_that_gives_nothing_when_it_is_started_again_is_an_error():
    once = iter(items(3))
    batches = stream(lambda: once).batches(3)
    assert numbers([next(batches)]) == [[0, 1, 2]]
    with pytest.raises(DataError, match=r"no examples when it is started again: give a function"):
        next(batches)


def test_an_array_that_is_yielded_again_and_again_is_copied():
    def examples():
        reused = image(0)
        for number in range(6):
            reused[:] = number
            yield reused, number % 3

    for held in (0, 2):
        found = list(itertools.chain(*numbers(stream(examples, shuffle_buffer=held).batches(4, passes=1))))
        assert sorted(found) == list(range(6))


def test_whole_batches_are_cut_anew():
    def examples():
        yield Batch(np.stack([image(number) for number in range(5)]), np.arange(5) % 3)
        yield image(5), 5 % 3

    assert numbers(stream(examples).batches(4, passes=1)) == [[0, 1, 2, 3], [4, 5]]


def test_without_a_shape_images_are_the_bytes_of_files():
    contents = [b"one", bytearray(b"two"), memoryview(b"three")]
    source = StreamSource([(each, 1) for each in contents], CLASSES, None)
    (batch,) = source.batches(8, passes=1)
    assert batch.images == Encoded((b"one", b"two", b"three"))
    joined = StreamSource([Batch(Encoded((b"a", b"b")), np.array([2, 0]))], CLASSES, None)
    assert [(b.images.contents, b.targets.tolist()) for b in joined.batches(1, passes=1)] == [
        ((b"a",), [2]),
        ((b"b",), [0]),
    ]


def test_plain_numbers_are_images_of_one_pixel():
    row = np.array([[[0.5, -1.5]]], np.float32)
    (batch,) = StreamSource([(row, 2)], CLASSES, (1, 1, 2), dtype="float32").batches(1, passes=1)
    assert batch.images.dtype == np.float32
    assert batch.images.tolist() == [row.tolist()]


WRONG = {
    "no pair": (image(0), r"uint8 \[2, 3, 1\], not a pair \(image, label\) or a Batch"),
    "a triple": ((image(0), 1, 2), r"tuple, not a pair"),
    "a list for an image": (([[0]], 1), r"list, not uint8 \[2, 3, 1\]"),
    "another shape": ((np.zeros((2, 3), np.uint8), 1), r"uint8 \[2, 3\], not uint8 \[2, 3, 1\]"),
    "another type": ((np.zeros(SHAPE), 1), r"float64 \[2, 3, 1\], not uint8 \[2, 3, 1\]"),
    "bytes for an array": ((b"png", 1), r"bytes, not uint8 \[2, 3, 1\]"),
    "a name for a label": ((image(0), "dog"), "the label is str, not a whole number"),
    "a fraction for a label": ((image(0), 1.0), "the label is float, not a whole number"),
    "no label": ((image(0), None), "the label is NoneType, not a whole number"),
    "a label that is too large": ((image(0), 3), "label 3 is out of range: there are 3 classes, 0 to 2"),
    "a label below 0": ((image(0), np.int64(-1)), "label -1 is out of range"),
    "a batch of two lengths": (
        Batch(np.zeros((2, *SHAPE), np.uint8), np.zeros(3, np.int64)),
        "2 images but 3 labels",
    ),
}


@pytest.mark.parametrize("item", WRONG)
def test_a_wrong_item_is_named_by_its_number(item):
    value, message = WRONG[item]
    with pytest.raises(DataError, match=rf"^stream item 2: {message}"):
        list(stream([*items(2), value]).batches(2))


def test_a_wrong_row_of_a_batch_is_named_by_its_number():
    batch = Batch(np.zeros((4, *SHAPE), np.uint8), np.array([0, 1, 9, 0]))
    with pytest.raises(DataError, match=r"^stream item 1 row 2: label 9 is out of range"):
        list(stream([*items(1), batch]).batches(2))


def test_an_array_where_a_file_is_expected_is_named_by_its_number():
    source = StreamSource([(b"png", 0), (image(0), 0)], CLASSES, None)
    with pytest.raises(DataError, match=r"^stream item 1: uint8 \[2, 3, 1\], not an image file's bytes"):
        next(source.batches(2))


def test_an_error_of_the_iterable_comes_out_with_the_number_of_the_item():
    def examples():
        yield from items(3)
        raise OSError("the camera\nis gone")

    with pytest.raises(DataError, match=r"^stream item 3: OSError: the camera is gone$") as caught:
        list(stream(examples).batches(2))
    assert isinstance(caught.value.__cause__, OSError)


@pytest.mark.parametrize("held", [1, 4, 20, 100])
def test_the_shuffle_buffer_gives_every_example_once_a_pass(held):
    source = stream(items(20), shuffle_buffer=held, seed=1)
    found = list(itertools.chain(*numbers(source.batches(7, passes=3))))
    passes = [found[first : first + 20] for first in (0, 20, 40)]
    assert all(sorted(each) == list(range(20)) for each in passes)
    if held > 1:
        assert len({tuple(each) for each in [*passes, range(20)]}) == 4


def test_the_order_of_the_shuffle_buffer_depends_on_the_seed_alone():
    first, again, other = (
        numbers(stream(items(20), shuffle_buffer=8, seed=seed).batches(6, passes=2)) for seed in (3, 3, 4)
    )
    assert first == again != other


def test_the_shuffle_buffer_holds_no_more_than_it_may():
    taken = []

    def examples():
        for number, item in enumerate(items(100)):
            taken.append(number)
            yield item

    next(stream(examples, shuffle_buffer=10).batches(4))
    assert len(taken) == 10 + 4


def test_a_buffer_of_everything_shuffles_uniformly():
    source = stream(items(3), shuffle_buffer=3)
    orders = [tuple(order) for order in numbers(itertools.islice(source.batches(3), 1200))]
    assert len(set(orders)) == 6
    assert min(orders.count(order) for order in set(orders)) > 140


def test_memory_does_not_grow_with_the_length_of_the_stream():
    def examples():
        for _ in itertools.repeat(None):
            yield np.zeros((100, 100, 3), np.uint8), 0

    batches = StreamSource(examples, CLASSES, (100, 100, 3), shuffle_buffer=5).batches(4)
    next(batches)
    tracemalloc.start()
    try:
        for _ in itertools.islice(batches, 100):
            pass
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 10 * 2 * 30_000


def test_a_stream_that_is_left_closes_its_generator():
    gc.collect()
    closed = []

    def examples():
        try:
            yield from itertools.cycle(items(3))
        finally:
            closed.append(True)

    batches = stream(examples).batches(2)
    next(batches)
    batches.close()
    assert closed == [True]


def test_the_sampler_in_order_and_one_thread_read_a_stream_to_its_end():
    source = stream(items(5))
    sampler = Sampler(len(source), 4, 0, shuffle="none")
    with Loader(lambda step: source.read(sampler.sample(step).indices), range(4)) as loader:
        assert numbers(loader) == [[0, 1, 2, 3], [4, 0, 1, 2], [3, 4, 0, 1], [2, 3, 4, 0]]


def test_what_was_read_last_may_be_read_again_in_whole_or_in_part():
    source = stream(items(9))
    source.read(np.arange(3))
    last = source.read(np.arange(3, 6))
    assert numbers([source.read(np.arange(3, 6)), source.read(np.array([5, 3]))]) == [[3, 4, 5], [5, 3]]
    assert numbers([last, source.read(np.arange(6, 9))]) == [[3, 4, 5], [6, 7, 8]]


@pytest.mark.parametrize("wanted", [[0, 1], [1, 2], [3, 4], [5], [4, 6], [5, 4]])
def test_reading_out_of_order_is_an_error(wanted):
    source = stream(items(9))
    source.read(np.arange(2))
    source.read(np.arange(2, 4))
    message = rf"^stream example {wanted[0]} was asked for where 4 comes next: .*loader_threads = 1"
    with pytest.raises(DataError, match=message):
        source.read(np.array(wanted))


def test_a_stream_that_ends_too_early_says_so():
    source = stream(iter(items(5)))
    source.read(np.arange(4))
    with pytest.raises(DataError, match=r"^stream: ended before example 7: train for fewer steps, or give"):
        source.read(np.arange(4, 8))


@pytest.mark.parametrize(
    "kind", [lambda made: lambda: made, list, iter], ids=["function", "list", "iterator"]
)
@pytest.mark.parametrize("number", [0, 100])
def test_a_run_begins_at_its_step_with_the_first_examples_though_it_has_looked_at_them(kind, number):
    source = stream(kind(items(4) * 2))
    source.read(np.arange(3))
    source.restart(number)
    wanted = [np.arange(number + first, number + first + 3) for first in (0, 3)]
    assert numbers(source.read(indices) for indices in wanted) == [[0, 1, 2], [3, 0, 1]]


def test_a_resumed_run_that_has_read_nothing_begins_at_its_step_with_the_first_examples():
    source = stream(items(4))
    source.restart(100)
    assert numbers([source.read(np.arange(100, 103))]) == [[0, 1, 2]]
    with pytest.raises(DataError, match="example 3 was asked for where 103 comes next"):
        source.read(np.arange(3, 6))


def test_an_error_of_the_iterable_is_not_tried_again_by_the_loader():
    asked, messages = [], []

    def examples():
        asked.append(True)
        yield from items(2)
        raise TimeoutError("no answer")

    source = stream(examples)
    loader = Loader(
        lambda step: source.read(np.arange(2 * step, 2 * step + 2)), range(9), report=messages.append
    )
    with pytest.raises(DataError, match=r"^stream item 2: TimeoutError: no answer$"):
        list(loader)
    assert (len(asked), messages) == (1, [])


def test_a_pipe_that_is_still_empty_is_waited_for_without_holding_up_the_end_of_its_reader():
    read, write = os.pipe()

    def examples():
        with open(read, "rb", buffering=0) as pipe:  # noqa: PTH123 - a descriptor
            while record := pipe.read(7):
                yield np.frombuffer(record[1:], np.uint8).reshape(SHAPE), record[0]

    source = stream(examples)
    loader = Loader(lambda step: source.read(np.array([step])), itertools.count())
    os.write(write, bytes([2, *range(6)]))
    first = next(loader)
    assert (first.images.ravel().tolist(), first.targets.tolist()) == ([0, 1, 2, 3, 4, 5], [2])
    thread, alive = loader._crew.threads[0], weakref.ref(loader)
    del loader
    assert alive() is None
    os.close(write)
    thread.join(20)
    assert thread not in threading.enumerate()


@pytest.mark.parametrize(
    ("tables", "fields"),
    [
        ({"checkpoint": {"every": "1 epoch"}}, "checkpoint.every"),
        (
            {"logging": {"every": "1 epoch", "images_every": "2 epochs"}},
            "logging.every and logging.images_every",
        ),
    ],
    ids=["saving", "logging"],
)
def test_nothing_is_due_by_the_epochs_of_a_stream(tables, fields):
    optimizer = {"name": "sgd", "learning_rate": 0.1}
    basis = {
        "name": "x",
        "batch_size": 1,
        "steps": 9,
        "optimizer": optimizer,
        "checkpoint": {"every": "1 step"},
    }
    with pytest.raises(RecipeError, match=rf"give steps, and {re.escape(fields)} in steps$"):
        training_source(Recipe.model_validate(basis | tables), DataSet(train=stream(items(3))))
