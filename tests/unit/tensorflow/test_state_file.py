from __future__ import annotations

import contextlib
import os
from pathlib import Path

import pytest
from google.protobuf import descriptor_pool

from foveal.errors import CheckpointError, DamagedCheckpointError, UsageError
from foveal.tensorflow.state_file import CheckpointState, read_state, write_state


def state_of(folder, *lines):
    """What is read from a state file of these lines."""
    (folder / "checkpoint").write_text("".join(f"{line}\n" for line in lines))
    return read_state(folder)


class TestWhatTensorFlowWrote:
    @pytest.mark.parametrize(
        ("folder", "names"),
        [
            ("cifar10_train", ["model.ckpt-60000"]),  # absolute, of a machine that is gone
            ("dtypes_v1", ["model.ckpt-20", "model.ckpt-300"]),
            ("dtypes_v2", ["model.ckpt-20", "model.ckpt-300"]),
            ("mnist_convnet_model", ["model.ckpt-20000"]),
            ("partitioned", ["model.ckpt-7"]),
            ("sharded", ["model.ckpt-5"]),
            ("slots_adam", ["model.ckpt-3"]),
            ("slots_momentum", ["model.ckpt-3"]),
            ("slots_rmsprop", ["model.ckpt-3"]),
        ],
    )
    def test_names_the_checkpoints_beside_it(self, fixtures, folder, names):
        paths = tuple(fixtures / folder / name for name in names)
        assert read_state(fixtures / folder) == CheckpointState(paths[-1], paths)

    def test_has_times_where_it_is_of_an_object_based_checkpoint(self, fixtures):
        path = fixtures / "object_graph" / "ckpt-1"
        expected = CheckpointState(path, (path,), (1795339025.7722385,), 1795339024.7329032)
        assert read_state(path.parent) == expected

    @pytest.mark.parametrize("folder", ["dtypes_v1", "object_graph"])
    def test_is_what_we_write(self, fixtures, folder, tmp_path):
        read = read_state(fixtures / folder)
        paths = [tmp_path / path.name for path in read.paths]
        write_state(tmp_path, CheckpointState(paths[-1], tuple(paths), read.timestamps, read.last_preserved))
        written = (tmp_path / "checkpoint").read_bytes()
        assert written == (fixtures / folder / "checkpoint").read_bytes()


class TestAPath:
    def test_that_is_relative_begins_at_the_folder(self, tmp_path):
        state = state_of(tmp_path, 'model_checkpoint_path: "deeper/model-1"')
        assert state.latest == tmp_path / "deeper" / "model-1"

    @pytest.mark.parametrize(
        ("file", "stored"),
        [
            ("model-1.index", "model-1"),
            ("model-1", "model-1"),
            ("model-1-00000-of-00003", "model-1-?????-of-00003"),
        ],
    )
    def test_that_is_absolute_is_kept_where_there_is_a_checkpoint(self, tmp_path, file, stored):
        elsewhere = tmp_path / "elsewhere"
        elsewhere.mkdir()
        (elsewhere / file).touch()
        assert (
            state_of(tmp_path, f'model_checkpoint_path: "{elsewhere}/{stored}"').latest == elsewhere / stored
        )

    @pytest.mark.parametrize(
        "stored", ["/gone/model-1", r"C:\\gone\\model-1", r"\\\\host\\gone\\model-1", f"/{'x' * 300}/model-1"]
    )
    def test_of_a_machine_that_is_gone_is_taken_to_lie_beside_the_file(self, tmp_path, stored):
        assert state_of(tmp_path, f'model_checkpoint_path: "{stored}"').latest == tmp_path / "model-1"

    def test_that_is_a_pattern_of_shards_is_taken_as_it_is(self, tmp_path):
        state = state_of(tmp_path, 'model_checkpoint_path: "/gone/model-1-?????-of-00003"')
        assert state.latest == tmp_path / "model-1-?????-of-00003"

    @pytest.mark.parametrize("stored", [r"\303\244-1", "ä-1"])
    def test_may_have_any_letters(self, tmp_path, stored):
        assert state_of(tmp_path, f'model_checkpoint_path: "{stored}"').latest == tmp_path / "ä-1"

    def test_of_the_latest_is_always_one_of_all(self, tmp_path):
        state = state_of(tmp_path, 'all_model_checkpoint_paths: "a"', 'model_checkpoint_path: "b"')
        assert state.paths == (tmp_path / "a", tmp_path / "b")

    @pytest.mark.parametrize("stored", ["/", ".", "..", "a/..", r"a\000b"])
    def test_that_can_be_no_file_is_refused(self, tmp_path, stored):
        with pytest.raises(DamagedCheckpointError, match="no file can be called so"):
            state_of(tmp_path, f'model_checkpoint_path: "{stored}"')


class TestAStateFile:
    def test_may_have_another_name(self, tmp_path):
        write_state(tmp_path, CheckpointState(tmp_path / "a", ()), "best")
        assert read_state(tmp_path, "best").latest == tmp_path / "a"

    def test_that_is_missing_is_an_error(self, tmp_path):
        with pytest.raises(CheckpointError, match=r"^cannot read .*checkpoint: No such file"):
            read_state(tmp_path)

    def test_that_is_too_large_is_refused_unread(self, tmp_path):
        with (tmp_path / "checkpoint").open("wb") as file:
            file.truncate(1 << 40)
        with pytest.raises(CheckpointError, match="1099511627776 bytes are too many for a state file"):
            read_state(tmp_path)

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            (b"", r"at byte 0: it ends without naming the latest"),
            (b'model_checkpoint_path: ""\n', r"at byte 26: it ends without naming the latest"),
            (b'model_checkpoint_path: "\xff"', r"at byte 24: it is not UTF-8$"),
            (b'# \xc3\xa4\nmodel_checkpoint_path: "a', r"at byte 28: it is no CheckpointState.*ending quote"),
            (b'model_checkpoint_path: "\\377"', r"at byte \d+: it is no CheckpointState"),
            (b'model_checkpoint_path: "\\ud800"', r"at byte \d+: it is no CheckpointState"),
            (b'model_checkpoint_path: "a"\n' * 2, r"at byte 50: .* should not have multiple"),
            (b"model_checkpoint_path: 1\n", r"at byte 23: it is no CheckpointState"),
            (b"other: 1\n", r"at byte 0: .* no field named"),
            (b"other {" * 10000, r"at byte 0: .* no field named"),
            (b"model_checkpoint_path: \x1b[2J\n", r"at byte 23: .*\\x1b"),
            (b"\x00\x01\x02", r"at byte 0: it is no CheckpointState"),
        ],
    )
    def test_that_is_damaged_is_an_error_of_one_line_with_the_place(self, tmp_path, content, message):
        (tmp_path / "checkpoint").write_bytes(content)
        with pytest.raises(DamagedCheckpointError, match=message) as caught:
            read_state(tmp_path)
        assert str(caught.value).startswith(f"{tmp_path / 'checkpoint'}, at byte ")
        assert str(caught.value).isprintable()

    @pytest.mark.parametrize("folder", ["dtypes_v1", "object_graph"])
    def test_cut_off_anywhere_names_fewer_checkpoints_or_is_an_error(self, fixtures, folder, tmp_path):
        content = (fixtures / folder / "checkpoint").read_bytes()
        names = [path.name for path in read_state(fixtures / folder).paths]
        for size in range(len(content)):
            (tmp_path / "checkpoint").write_bytes(content[:size])
            with contextlib.suppress(DamagedCheckpointError):
                state = read_state(tmp_path)
                assert {path.name for path in state.paths} <= set(names)
                assert state.latest.name == names[-1]

    def test_changed_anywhere_gives_a_state_or_an_error(self, fixtures, tmp_path):
        content = (fixtures / "object_graph" / "checkpoint").read_bytes()
        for bit in range(8 * len(content)):
            flipped = bytearray(content)
            flipped[bit // 8] ^= 1 << bit % 8
            (tmp_path / "checkpoint").write_bytes(flipped)
            with contextlib.suppress(DamagedCheckpointError):
                state = read_state(tmp_path)
                assert state.latest in state.paths

    def test_with_another_number_of_times_than_paths_has_none(self, tmp_path):
        lines = 'model_checkpoint_path: "a"', "all_model_checkpoint_timestamps: [1, 2]"
        assert state_of(tmp_path, *lines).timestamps == ()


class TestWriting:
    def test_gives_back_what_was_written(self, tmp_path):
        inside, outside = tmp_path / "run" / "ä 1", tmp_path / "other" / 'a"b\\c'
        outside.parent.mkdir()
        outside.touch()
        state = CheckpointState(inside, (outside, inside), (1.5, 1e300), 0.1)
        write_state(tmp_path / "run", state)
        assert read_state(tmp_path / "run") == state

    def test_stores_paths_within_the_folder_as_relative_ones_so_that_it_can_be_moved(self, tmp_path):
        folder = tmp_path / "run"
        write_state(folder, CheckpointState(folder / "model-2", (folder / "model-1", folder / "model-2")))
        folder.rename(tmp_path / "moved")
        moved = tmp_path / "moved"
        assert read_state(moved) == CheckpointState(moved / "model-2", (moved / "model-1", moved / "model-2"))

    def test_takes_relative_folders(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        write_state(Path("run"), CheckpointState(Path("run/model-1"), ()))
        assert (tmp_path / "run" / "checkpoint").read_text().startswith('model_checkpoint_path: "model-1"\n')

    def test_refuses_times_that_do_not_fit_the_paths(self, tmp_path):
        with pytest.raises(UsageError, match="2 timestamps for 1 checkpoints"):
            write_state(tmp_path, CheckpointState(tmp_path / "a", (), (1.0, 2.0)))

    def test_refuses_a_path_that_is_no_text(self, tmp_path):
        with pytest.raises(UsageError, match="not UTF-8"):
            write_state(tmp_path, CheckpointState(tmp_path / os.fsdecode(b"\xff"), ()))

    def test_leaves_the_old_file_where_it_fails(self, tmp_path):
        folder = tmp_path / "checkpoint"
        folder.mkdir()
        with pytest.raises(CheckpointError, match=r"^cannot write .*checkpoint: "):
            write_state(tmp_path, CheckpointState(tmp_path / "a", ()))
        assert list(tmp_path.iterdir()) == [folder]


def test_the_message_is_registered_nowhere_that_others_look():
    with pytest.raises(KeyError):
        descriptor_pool.Default().FindMessageTypeByName("foveal.tensorflow.CheckpointState")


def test_tensorflow_reads_what_we_write(tmp_path):
    pytest.importorskip("tensorflow.python")
    import tensorflow as tf

    paths = (tmp_path / "model-1", tmp_path / "ä-2")
    write_state(tmp_path, CheckpointState(paths[1], paths, (1.5, 2.5), 1.5))
    state = tf.train.get_checkpoint_state(str(tmp_path))
    assert state.model_checkpoint_path == str(paths[1])
    assert list(state.all_model_checkpoint_paths) == [str(path) for path in paths]
    assert list(state.all_model_checkpoint_timestamps) == [1.5, 2.5]
