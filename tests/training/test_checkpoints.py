"""Checkpoints that are damaged, of another network, or of a version that wrote no checksums."""

import pathlib
import re
import shutil
import zlib

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from runs import checkpoint_steps, digest, final_state, losses
from small import changed, plain_digits

from ddim_jax import main
from ddim_jax.config import to_json
from ddim_jax.errors import UserError
from ddim_jax.jobs.train import train
from ddim_jax.training import checksums
from ddim_jax.training.checkpoint import Checkpoints, DamagedCheckpointError, restore_trained
from ddim_jax.training.state import TrainState
from ddim_jax.workdir import checkpoint_dir, read_config


def state(seed: int) -> TrainState:
    rng = np.random.default_rng(seed)

    def tree():
        return {"conv": {"kernel": rng.standard_normal((3, 5, 64), np.float32), "bias": np.zeros(64, np.float32)}}

    return TrainState(np.array(seed, np.int32), tree(), (tree(), {}), tree(), {}, {})


def saved(folder, *steps, **options):
    with Checkpoints(folder, **options) as checkpoints:
        for step in steps:
            checkpoints.save(step, state(step))
    return folder


def manifest(folder, step) -> pathlib.Path:
    return folder / str(step) / "default" / "checksums.json"


def flip(path: pathlib.Path, where: float, bit: int = 3) -> None:
    """Flips one bit at a fraction of a file."""
    content = bytearray(path.read_bytes())
    content[int(where * len(content))] ^= 1 << bit
    path.write_bytes(content)


def largest_file(folder: pathlib.Path) -> pathlib.Path:
    return max((path for path in folder.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)


# --- checksums ----------------------------------------------------------------------------------


def test_checksums_name_shape_dtype_size_and_values():
    written = checksums.checksums_of({"a": {"b": np.arange(6, dtype=np.float32).reshape(2, 3)}, "c": np.int32(7)})
    assert written == {
        "a/b": checksums.Checksum((2, 3), "float32", f"{zlib.crc32(np.arange(6, dtype=np.float32).tobytes()):08x}", 24),
        "c": checksums.Checksum((), "int32", f"{zlib.crc32(np.int32(7).tobytes()):08x}", 4),
    }
    assert checksums.from_json(checksums.to_json(written)) == written


def test_every_bit_of_written_checksums_counts_or_does_nothing():
    written = checksums.checksums_of({"a": np.arange(3), "b": np.float32(1)})
    text = checksums.to_json(written).encode()
    noticed = 0
    for place in range(len(text) * 8):
        damaged = bytearray(text)
        damaged[place // 8] ^= 1 << place % 8
        try:
            assert checksums.from_json(bytes(damaged)) == written
        except ValueError:
            noticed += 1
    assert noticed > 0.8 * len(text) * 8


def test_changed_arrays_are_named():
    one = checksums.checksums_of({"a": np.zeros(3), "b": np.zeros(3), "c": np.zeros(3)})
    other = checksums.checksums_of({"a": np.zeros(3), "b": np.array([0, -0.0, 0]), "d": np.zeros(3)})
    assert checksums.changed_arrays(one, other) == ["b", "c", "d"]


# --- a folder of checkpoints --------------------------------------------------------------------


def test_checksums_come_and_go_with_their_checkpoint(tmp_path):
    folder = saved(tmp_path / "checkpoints", 1, 2, 3, keep_last=2)
    assert sorted(path.name for path in folder.iterdir()) == ["2", "3"]
    for step in (2, 3):
        assert checksums.from_json(manifest(folder, step).read_bytes()) == checksums.checksums_of(state(step))
        with Checkpoints(folder, read_only=True) as checkpoints:
            assert digest(checkpoints.restore(step, state(0))) == digest(state(step))


def test_what_was_saved_without_checksums_is_read(tmp_path):
    """As the version before did; and that one reads what is saved now."""
    folder = tmp_path / "checkpoints"
    with ocp.CheckpointManager(folder) as manager:
        manager.save(5, args=ocp.args.StandardSave(state(5)))
    assert not manifest(folder, 5).exists()
    with Checkpoints(folder) as checkpoints:
        assert digest(checkpoints.restore(5, state(0))) == digest(state(5))
        checkpoints.save(6, state(6))
    with ocp.CheckpointManager(folder) as manager:
        assert digest(manager.restore(6, args=ocp.args.StandardRestore(state(0)))) == digest(state(6))


def test_a_changed_value_is_noticed_and_named(tmp_path):
    """The files are whole; one value in them is not that of the checksums."""
    folder = saved(tmp_path / "checkpoints", 1, 2)
    other = state(2)
    other.params["conv"]["kernel"][1, 2, 3] += 1e-7
    manifest(folder, 2).write_text(checksums.to_json(checksums.checksums_of(other)))
    with Checkpoints(folder, read_only=True) as checkpoints:
        with pytest.raises(DamagedCheckpointError, match=r"2 is damaged: not what was saved are params/conv/kernel$"):
            checkpoints.restore(2, state(0))
        assert digest(checkpoints.restore(1, state(0))) == digest(state(1))


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_the_newest_whole_checkpoint_is_found_and_the_damaged_are_set_aside(tmp_path, capsys):
    folder = saved(tmp_path / "checkpoints", 1, 2, 3)
    flip(manifest(folder, 3), 0.5)
    largest_file(folder / "2").write_bytes(b"\0" * 100)
    with Checkpoints(folder, read_only=True) as checkpoints:
        step, found = checkpoints.restore_newest(state(0))
    assert (step, digest(found)) == (1, digest(state(1)))
    told = capsys.readouterr().err.splitlines()
    assert len(told) == 2
    assert f"{folder / '3'} is damaged: checksums.json is not what was saved; step 1 is taken instead" in told[0]
    assert f"{folder / '2'} cannot be restored" in told[1]
    assert sorted(path.name for path in folder.iterdir()) == ["1", "2", "3"]

    with Checkpoints(folder) as checkpoints:
        assert checkpoints.restore_newest(state(0))[0] == 1
        assert checkpoints.steps() == [1]
        checkpoints.save(3, state(3))
    assert "it is set aside as 3.damaged" in capsys.readouterr().err
    assert sorted(path.name for path in folder.iterdir()) == ["1", "2.damaged", "3", "3.damaged"]
    flip(manifest(folder, 3), 0.5)
    with Checkpoints(folder) as checkpoints:
        assert checkpoints.restore_newest(state(0))[0] == 1
    assert (folder / "3.damaged-2").exists()


def test_where_none_is_whole_nothing_is_set_aside(tmp_path):
    """Else the next start would begin anew without a word."""
    folder = saved(tmp_path / "checkpoints", 1, 2)
    for step in (1, 2):
        flip(manifest(folder, step), 0.5)
    with (
        Checkpoints(folder) as checkpoints,
        pytest.raises(UserError, match=r"2 is damaged: .* \(nor can those of the steps 1\); put a copy of .*2 back"),
    ):
        checkpoints.restore_newest(state(0))
    assert sorted(path.name for path in folder.iterdir()) == ["1", "2"]


@pytest.mark.parametrize("checked", [True, False])
def test_another_network_is_refused_and_no_damage(tmp_path, checked):
    folder = saved(tmp_path / "checkpoints", 1, 2)
    if not checked:
        for step in (1, 2):
            manifest(folder, step).unlink()
    like = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((*leaf.shape[:-1], 32), leaf.dtype), state(0))
    with Checkpoints(folder) as checkpoints, pytest.raises(UserError) as refused:
        checkpoints.restore_newest(like)
    assert not isinstance(refused.value, DamagedCheckpointError)
    expected = r"2 is of another network .*params/conv/kernel \(there \(3, 5, 64\), here \(3, 5, 32\)\)"
    assert re.search(expected, str(refused.value))
    assert sorted(path.name for path in folder.iterdir()) == ["1", "2"]


# --- runs ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("trained") / "run"
    train(short_run(), workdir)
    return workdir


def short_run():
    changes = {"train__steps": 3, "train__checkpoint_every": 1, "train__keep_last": 3, "train__final_sample_steps": ()}
    return changed(plain_digits(), **changes, train__sample_every=0, train__tensorboard=False)


def test_training_goes_on_from_the_checkpoint_before_a_damaged_one(trained, tmp_path, capsys):
    workdir = shutil.copytree(trained, tmp_path / "run")
    damaged = [largest_file(workdir / "checkpoints" / "3"), manifest(checkpoint_dir(workdir), 3)]
    flip(damaged[0], 0.9)
    flip(damaged[1], 0.5)
    train(short_run(), workdir)
    told = capsys.readouterr().err
    assert "step 2 is taken instead; it is set aside as 3.damaged" in told
    assert "resuming at step 2 of 3" in told
    assert checkpoint_steps(workdir) == [1, 2, 3]
    assert digest(final_state(workdir)) == digest(final_state(trained))
    assert losses(workdir) == losses(trained)


def test_jobs_take_the_one_before_or_refuse_the_one_asked_for(trained, tmp_path, capsys):
    workdir = shutil.copytree(trained, tmp_path / "run")
    flip(manifest(checkpoint_dir(workdir), 3), 0.5)
    before = sorted(path.name for path in (workdir / "checkpoints").iterdir())
    assert restore_trained(workdir).step == 2
    assert "step 2 is taken instead" in capsys.readouterr().err
    command = ["ddim_jax", f"--workdir={workdir}", "--mode=sample", "--config.sample.steps=1", "--config.sample.num=1"]
    assert main.run([*command, "--config.sample.checkpoint=3"]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("ddim_jax: error:")]
    assert f"{workdir / 'checkpoints' / '3'} is damaged" in line
    assert main.run(command) == 0
    assert [path.name.split("-")[0] for path in (workdir / "sample").iterdir()] == ["step2"]
    assert sorted(path.name for path in (workdir / "checkpoints").iterdir()) == before


@pytest.mark.parametrize("mode", ["train", "sample"])
def test_a_config_of_another_network_is_one_line(trained, tmp_path, capsys, mode):
    workdir = shutil.copytree(trained, tmp_path / "run")
    config = read_config(workdir)
    wider = changed(config, model__channels=2 * config.model.channels)
    (workdir / "config.json").write_text(to_json(wider))
    if mode == "train":
        with pytest.raises(UserError, match=r"another network .*params/.*\(there .*, here .*\)"):
            train(changed(wider, train__steps=4), workdir)
    else:
        assert main.run(["ddim_jax", f"--workdir={workdir}", "--mode=sample"]) == 2
        (line,) = [line for line in capsys.readouterr().err.splitlines() if "error" in line]
        assert "another network or optimizer than config.json describes: params/" in line
