"""The command line as a user meets it: every command here is a process of its own."""

import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from ddim_jax import main
from ddim_jax.config import documentation, shipped_configs, with_sample, with_values
from ddim_jax.errors import UserError
from ddim_jax.images import load_png
from ddim_jax.names import Mode, choices
from ddim_jax.workdir import config_for_job, prepare_for_training

ROOT = pathlib.Path(__file__).parent.parent
DIGITS = str(ROOT / "configs" / "digits.py")


def command(cwd, *arguments, program=("-m", "ddim_jax.main")):
    """Runs ``python -m ddim_jax.main ...`` in ``cwd``."""
    return subprocess.run(
        [sys.executable, *program, *map(str, arguments)],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
    )


def one_line(result):
    """The one line of a user's mistake: nothing else is said, and the status is 2."""
    assert result.returncode == 2, result.stderr
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert line.startswith("ddim_jax: error: ")
    return line.removeprefix("ddim_jax: error: ")


# --- what is given ------------------------------------------------------------------------------


def test_the_home_folder_is_found_where_a_shell_does_not_look(monkeypatch, tmp_path):
    """A shell leaves ``~`` as it is after an equals sign."""
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "mine.py").write_text(pathlib.Path(DIGITS).read_text())
    config, flags = main.parse(["main", "--config=~/mine.py:tiny", "--workdir=~/run", "--config.edit.mask=~/mask.png"])
    assert flags.workdir == f"{tmp_path}/run"
    assert config.edit.mask == f"{tmp_path}/mask.png"


@pytest.mark.parametrize(("given", "meant"), [("600", ("600",)), ("(300,600)", ("300", "600")), ("best", ("best",))])
def test_checkpoints_by_step(given, meant):
    argv = ["main", f"--config={DIGITS}", "--workdir=run", f"--config.eval.checkpoints={given}"]
    assert main.parse(argv)[0].eval.checkpoints == meant


@pytest.mark.parametrize("flags", [["--help"], [f"--config={DIGITS}:tiny", "--mode=describe"]])
def test_output_that_nobody_reads_to_its_end(flags):
    """As with ``| head``."""
    argv = [sys.executable, "-m", "ddim_jax.main", *flags]
    with subprocess.Popen(argv, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == ""
        assert process.wait(100) == 141


# --- mistakes -----------------------------------------------------------------------------------

WORKDIR = "--workdir=run"


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ([f"--config={DIGITS}", WORKDIR, "--config.train.stepz=3"], "did you mean 'train.steps'?"),
        (
            [f"--config={DIGITS}", WORKDIR, "--noconfig.data.flop"],
            "'data.flop' does not exist; did you mean 'data.flip'?",
        ),
        ([f"--config={DIGITS}", WORKDIR, "--config.train.steps=abc"], "train.steps: expected int, got 'abc'"),
        ([f"--config={DIGITS}", WORKDIR, "--config.sample.label", "x"], "sample.label: expected int, got 'x'"),
        ([f"--config={DIGITS}", WORKDIR, "--config.data.flip=maybe"], "data.flip: expected bool, got 'maybe'"),
        ([f"--config={DIGITS}", WORKDIR, "--config.model.name=unit"], "model.name: 'unit' is not one of unet"),
        ([f"--config={DIGITS}", WORKDIR, "--config.data.image_size=10"], "data.image_size=10: must be divisible by 4"),
        ([f"--config={DIGITS}", WORKDIR, "--config.sample.steps=1001"], "sample.steps=1001: must lie in 1 ... 1000"),
        ([f"--config={DIGITS}:tinny", WORKDIR], "config variant 'tinny' does not exist; choose from: edm, flow, tiny"),
        (["--config=nowhere.py", WORKDIR], "--config=nowhere.py is not a file; name a config file"),
        ([f"--config={ROOT}/configs/digit.py", WORKDIR, "--config.seed=1"], f"did you mean {DIGITS}?"),
        (["--config=", WORKDIR], "--config= is not a file"),
        (["--config=configs/digits.py", WORKDIR], "--config=configs/digits.py is not a file; did you mean digits?"),
        (["--config=cifar:tiny", WORKDIR], "--config=cifar is not a file; did you mean cifar10?"),
        (["--config=x.json", WORKDIR], "--config=x.json is not a file; name the config.json of a run"),
        (["--config=x.json:tiny", WORKDIR], "--config=x.json:tiny: the config of a run has no variants"),
        (["--config=digits:tinny", WORKDIR], "config variant 'tinny' does not exist; choose from: edm, flow, tiny"),
        (
            [f"--config={DIGITS}", WORKDIR, "--mode=trian"],
            "--mode=trian: value should be one of <train|distill|sample|",
        ),
        ([f"--config={DIGITS}", WORKDIR, "--workdr=x"], "Unknown command line flag 'workdr'. Did you mean: workdir ?"),
        ([f"--config={DIGITS}", WORKDIR, "train"], "unexpected argument 'train': options look like --name=value"),
        ([f"--config={DIGITS}", WORKDIR, "--num_processes=two"], "--num_processes=two"),
        ([f"--config={DIGITS}"], "--workdir is missing"),
        ([f"--config={DIGITS}", "--workdir="], "--workdir is missing"),
        ([WORKDIR], "--config is missing: name a config, e.g. --config=digits, or a --workdir that holds"),
        ([WORKDIR, "--config.train.steps=3"], "--config is missing"),
        ([f"--config={DIGITS}", WORKDIR, "--config.train.steps"], "Missing value for flag --config.train.steps"),
    ],
)
def test_a_mistake_on_the_command_line_is_one_line_and_writes_nothing(tmp_path, arguments, line):
    assert line in one_line(command(tmp_path, *arguments))
    assert list(tmp_path.iterdir()) == []


START = "from ddim_jax.config import default_config\ndef get_config():\n    config = default_config()\n"


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("def get_config(:\n", "line 1: SyntaxError: invalid syntax"),
        ("import no_such_module\n", "line 1: ModuleNotFoundError: No module named 'no_such_module'"),
        ("x = 1\n", "AttributeError: module 'config_config' has no attribute 'get_config'"),
        ("def get_config():\n    return 1\n", "TypeError: get_config() must return a ConfigDict, not int"),
        ("def get_config():\n    open('nowhere')\n", "line 2: FileNotFoundError: [Errno 2] No such file"),
        (START + "    config.train.stepz = 3\n", 'line 4: AttributeError: Key "stepz" does not exist'),
        (START + "    config.train.steps = 'abc'\n", "line 4: TypeError: Could not override field 'steps'"),
        (START + "    config.train.steps = 0\n    return config\n", "train.steps=0: must lie in 1 ... 2^31 - 1"),
        (START + "    return 1 / 0\n", "line 4: ZeroDivisionError: division by zero"),
    ],
)
@pytest.mark.parametrize("override", [[], ["--config.seed=1"]], ids=["plain", "override"])
def test_a_mistake_in_the_config_file_names_its_line(tmp_path, capsys, monkeypatch, text, line, override):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "config_config", raising=False)  # the file read by the test before
    (tmp_path / "mine.py").write_text(text)
    assert main.run(["main", "--config=mine.py", WORKDIR, *override]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("ddim_jax: error: ")
    assert err.count("\n") == 1
    if "return 1\n" not in text or not override:  # ml_collections words that one itself, when there are overrides
        assert line in err
    assert len(err) < 400
    assert not (tmp_path / "run").exists()


def test_mistakes_in_flags_are_found_before_jax_is_imported(tmp_path):
    program = (
        "-c",
        "import sys; from ddim_jax import main; status = main.run(); "
        "print(status, sorted({'jax', 'flax', 'tensorflow', 'torch'} & set(sys.modules)))",
    )
    result = command(tmp_path, f"--config={DIGITS}", WORKDIR, "--config.train.stepz=3", program=program)
    assert result.stdout == "2 []\n"


def test_training_does_not_import_what_few_runs_need(tmp_path):
    """The one takes as long to import as JAX, the other a tenth of a second."""
    program = ("-c", "import sys, ddim_jax.jobs.train; print({'scipy.stats', 'grain'} & set(sys.modules))")
    assert command(tmp_path, program=program).stdout == "set()\n"


def test_flags_beside_a_preset_are_known_as_given():
    flags = ("--config.sample.eta=0.5", "--config.sample.clip=none", "--config.sample.steps=5")
    config, own = main.parse(["main", f"--config={ROOT}/configs/celeba.py", "--workdir=w", *flags])
    assert (config.sample.eta, config.sample.spacing) == (0.5, "uniform_published")
    assert main._given_keys(own) == {"sample.eta", "sample.clip", "sample.steps"}


@pytest.mark.parametrize("module", ["ddim_jax", "ddim_jax.main"])
def test_help(tmp_path, module):
    result = command(tmp_path, "--help", program=("-m", module))
    assert result.returncode == 0
    for name in ("--config", "--workdir", "--mode", "train|distill|sample|", "--coordinator"):
        assert name in result.stdout


@pytest.mark.parametrize("flags", ["'--help'", "'--mode=sample', '--help'"])
def test_help_does_not_import_jax(tmp_path, flags):
    program = ("-c", f"import sys; from ddim_jax import main; main.run(['', {flags}]); print('jax' in sys.modules)")
    assert command(tmp_path, program=program).stdout.splitlines()[-1] == "False"


@pytest.mark.parametrize("mode", choices(Mode))
def test_help_of_a_mode_lists_its_keys_with_defaults(mode, capsys):
    assert main.run(["ddim_jax", f"--mode={mode}", "--help"]) == 0
    assert set(documentation.GROUPS_OF_MODES) == set(choices(Mode))
    said = capsys.readouterr().out
    assert said.startswith(f"--mode={mode}: ")
    assert max(map(len, said.splitlines())) <= 120
    known = [key for group in documentation.GROUPS_OF_MODES[mode] for key in documentation.documented_keys(group)]
    words = " ".join(said.split())
    for key in known:
        assert f"{key.name} ({key.kind}" in words
        assert key.text and " ".join(key.text.split()) in words, key.name


def test_help_of_a_mode_that_does_not_exist_is_refused(capsys):
    assert main.run(["ddim_jax", "--mode=smaple", "--help"]) == 2
    assert "--mode=smaple: no such mode; choose from: train, distill, sample" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flag", "stopped_at", "status"), [([], 3, 0), (["--stopped_status=75"], 3, 75), (["--stopped_status=75"], None, 0)]
)
def test_only_who_asks_is_told_that_training_was_stopped(tmp_path, monkeypatch, flag, stopped_at, status):
    monkeypatch.setattr("ddim_jax.jobs.train.train", lambda config, workdir: stopped_at)
    assert main.run(["ddim_jax", f"--config={DIGITS}:tiny", f"--workdir={tmp_path}", *flag]) == status


# --- which config -------------------------------------------------------------------------------


def test_configs_of_the_package_are_found_by_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    flags = [WORKDIR, "--config.train.steps", "3"]
    by_name, _ = main.parse(["ddim_jax", *flags, "--config", "digits:tiny"])
    by_path, _ = main.parse(["ddim_jax", f"--config={DIGITS}:tiny", *flags])
    assert by_name == by_path
    assert by_name.train.steps == 3
    assert set(shipped_configs()) == {path.stem for path in (ROOT / "configs").glob("*.py")}
    (tmp_path / "digits").write_text("def get_config():\n    return 1 / 0\n")  # a file goes before a name
    with pytest.raises(UserError, match=r"config file digits.* division by zero"):
        main.parse(["ddim_jax", "--config=digits", WORKDIR])


def parsed(*flags):
    return main.parse(["ddim_jax", *flags])[0]


@pytest.fixture
def run_of_digits(tmp_path):
    """A workdir that was trained otherwise than its config file says; its config."""
    changed = [
        "--config.model.channels=64",
        "--config.data.name=celeb_a",
        "--config.sample.steps=7",
        "--config.train.cpu_devices=1",
    ]
    config = parsed(f"--config={DIGITS}:tiny", WORKDIR, *changed)
    config = with_values(config, {"data.mean": [0.3], "data.std": [0.4]})
    prepare_for_training(tmp_path / "run", config)
    return f"--workdir={tmp_path}/run", config


@pytest.mark.parametrize("mode", ["train", "sample", "stats", "describe"])
def test_without_a_config_a_job_takes_the_runs_own(run_of_digits, mode):
    workdir, config = run_of_digits
    assert parsed(workdir, f"--mode={mode}") == config
    changed = parsed("--config.sample.steps", "5", workdir, "--config.sample.levels=(9, 5, 3, 2, 1)", f"--mode={mode}")
    assert changed == with_sample(config, steps=5, levels=(9, 5, 3, 2, 1))


def test_a_config_json_is_a_config(run_of_digits):
    workdir, config = run_of_digits
    path = workdir.removeprefix("--workdir=") + "/config.json"
    assert parsed(f"--config={path}", "--workdir=other") == config
    longer = parsed(f"--config={path}", "--workdir=other", "--config.train.steps=9", "--config.model.channels=32")
    assert longer == with_values(config, {"train.steps": 9, "model.channels": 32})
    with pytest.raises(UserError, match=r"train.steps: expected int, got 'x'"):
        parsed(f"--config={path}", "--workdir=other", "--config.train.steps=x")
    with pytest.raises(UserError, match=r"'train.stepz' does not exist; did you mean 'train.steps'"):
        parsed(f"--config={path}", "--workdir=other", "--config.train.stepz=3")
    pathlib.Path(path).write_text("{")
    with pytest.raises(UserError, match=r"config.json cannot be used: no JSON"):
        parsed(f"--config={path}", "--workdir=other")


def test_the_config_file_of_a_job_says_what_is_to_be_done_and_need_not_repeat_the_run(run_of_digits):
    workdir, config = run_of_digits
    job = parsed("--config=cifar10", workdir, "--mode=sample", "--config.train.cpu_devices=2")
    assert (job.data.image_size, job.data.mean, job.model) == (8, (0.3,), config.model)
    assert (job.sample.steps, job.sample.spacing, job.train.cpu_devices) == (50, "quad", 2)
    trained_with = config_for_job(workdir.removeprefix("--workdir="), job)
    assert (trained_with.data, trained_with.train, trained_with.sample) == (config.data, config.train, job.sample)
    # A published table is that of the run's data.
    table = [workdir, "--mode=evaluate", "--config.eval.preset=ddim-table1"]
    assert parsed("--config=cifar10", *table).eval.preset == parsed(*table).eval.preset != "ddim-table1-cifar10"


def test_what_the_command_line_says_of_the_model_must_be_true(run_of_digits):
    workdir, config = run_of_digits
    same = [workdir, "--mode=sample", "--config.model.channels=64", "--config.data.mean=()", "--config.data.std=()"]
    assert parsed(*same, "--config.data.path=there").sample == config.sample
    given = ["--config.model.channels=32", "--config.diffusion.objective=eps", "--config.data.split=train[:5]"]
    for base in ([], [f"--config={DIGITS}"]):
        with pytest.raises(UserError) as refused:
            parsed(*base, workdir, "--mode=evaluate", *given)
        for difference in (
            "model.channels (trained 64, command line 32)",
            "diffusion.objective (trained 'v', command line 'eps')",
            "data.split (trained 'train', command line 'train[:5]')",
        ):
            assert difference in str(refused.value)
    # Nothing of the run is used to measure images of others, or to make statistics of another split.
    assert parsed(workdir, "--mode=stats", *given).data.split == "train[:5]"
    assert parsed(workdir, "--mode=evaluate", "--config.eval.images=there", *given).model.channels == 32


# --- every mode ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Where ``--workdir=runs/digits`` was trained: relative, as people type it."""
    home = tmp_path_factory.mktemp("home")
    result = command(home, f"--config={DIGITS}:tiny", "--workdir=runs/digits", "--mode=train")
    assert result.returncode == 0, result.stderr
    assert result.stdout == ""
    assert "done: 4 steps" in result.stderr
    return home


def test_train_writes_the_workdir(trained):
    workdir = trained / "runs" / "digits"
    assert json.loads((workdir / "config.json").read_text())["train"]["steps"] == 4
    assert {path.name for path in (workdir / "checkpoints").iterdir()} == {"2", "4"}
    records = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    lines = [record for record in records if "loss" in record]
    assert [record["step"] for record in lines] == [1, 2, 3, 4]
    assert all(0 < record["loss"] < 10 for record in lines)
    assert [record["step"] for record in records if "sample_mean" in record] == [2, 4]
    assert len(list((workdir / "tensorboard").iterdir())) == 1
    for name in ("step_00000002.png", "step_00000004.png", "step_00000004_ddim_2.png"):
        assert load_png(workdir / "samples" / name).shape[1] > 64
    assert not list(trained.rglob("*.partial"))


def test_sample_writes_pngs_and_the_same_images_as_npz(trained):
    arguments = [f"--config={DIGITS}:tiny", "--workdir=runs/digits", "--mode=sample", "--config.sample.num=5"]
    for image_format in ("png", "npz"):
        result = command(trained, *arguments, f"--config.sample.format={image_format}")
        assert result.returncode == 0, result.stderr
    (folder,) = (trained / "runs" / "digits" / "sample").glob("*-n5-*")
    assert {path.name for path in folder.glob("0*.png")} == {f"{index:06d}.png" for index in range(5)}
    images = np.stack([load_png(folder / f"{index:06d}.png") for index in range(5)])
    with np.load(folder / "samples.npz") as stored:
        np.testing.assert_array_equal(stored["arr_0"], images)
        np.testing.assert_array_equal(stored["index"], range(5))
    assert len({image.tobytes() for image in images}) == 5
    record = json.loads((folder / "run.json").read_text())
    assert record["mode"] == "sample"
    assert (record["checkpoint_step"], record["images"], record["network_evaluations_per_image"]) == (4, 5, 4)
    assert (folder / "grid.png").exists()
    assert not list(folder.rglob("*.partial"))


def test_describe_needs_no_workdir_and_writes_nothing(tmp_path):
    flags = ("--mode=describe", "--config.sample.steps=3", "--config.describe.tables=true")
    result = command(tmp_path, f"--config={DIGITS}:tiny", *flags)
    assert result.returncode == 0, result.stderr
    assert list(tmp_path.iterdir()) == []
    text = result.stdout
    assert "sample.steps = 3\n" in text
    assert "Total: 280,177 " in text
    assert "\nddim, 3 steps, " in text
    names, *rows = [line.split() for line in text.split("c z\n")[1].splitlines()[:4]]
    assert names == ["row", "time", "alpha_bar", "alpha_bar_next", "a", "b", "c"]
    assert [row[0] for row in rows] == ["1", "2", "3"]
    assert float(rows[-1][3]) == 1.0
    assert [row[3] for row in rows[:-1]] == [row[2] for row in rows[1:]]
    assert "total " in text.split("Memory for training")[1]


@pytest.mark.slow
def test_describe_counts_the_published_cifar10_network(tmp_path):
    flags = ("--mode=describe", "--config.train.cpu_devices=1", "--config.describe.tables=true")
    result = command(tmp_path, f"--config={ROOT}/configs/cifar10.py", *flags)
    assert result.returncode == 0, result.stderr
    text = result.stdout
    assert "Total: 35,746,307 " in text
    assert "forward pass:        12.444 GFLOP\n" in text
    assert "training:            37.331 GFLOP" in text
    assert "sampling:           622.186 GFLOP, 50 forward passes\n" in text
    assert "batch 128 on 1 x cpu, 128 images each" in text


# --- flags and paths ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (
            ["--workdir=~nosuchuser/run"],
            "--workdir='~nosuchuser/run': there is no user 'nosuchuser' with a home folder",
        ),
        (["--config=~nosuchuser/x.py", WORKDIR], "--config='~nosuchuser/x.py': there is no user 'nosuchuser'"),
        ([WORKDIR, "--flagfile=/nonexist"], "--flagfile cannot be used: Unable to open flagfile: [Errno 2]"),
        ([WORKDIR, "--flagfile=/"], "--flagfile cannot be used: Unable to open flagfile: [Errno 21]"),
        ([WORKDIR, "--flagfile=a\0b"], "--flagfile cannot be used: embedded null byte"),
        (["--workdir=foo://bucket/run"], "--workdir=foo://bucket/run: there is no file system for foo://"),
        (["--workdir=http://host/run"], "--workdir=http://host/run: there is no file system for http://"),
        (
            ["--config=http://host/config.json", WORKDIR],
            "--config=http://host/config.json: there is no file system for",
        ),
        ([WORKDIR, "--config.data.path=http://host/images"], "data.path=http://host/images: there is no file system"),
        (["--workdir=a\0b"], r"--workdir='a\x00b': holds a NUL character"),
        ([f"--workdir={'x' * 300}"], "a part of it has 300 characters; 255 are the most"),
        ([f"--config={'x' * 5000}", WORKDIR], "5,000 characters; 4,096 are the most"),
        (["--config=/", WORKDIR], "--config=/ is not a file"),
        ([WORKDIR, "--stopped_status=300"], "300 is not an integer in the range [0, 255]"),
        ([WORKDIR, "--num_processes=-1"], "--num_processes=-1: -1 is not an integer in the range [1, "),
        ([WORKDIR, "--process_id=1000000000"], "--process_id=1000000000: 1000000000 is not an integer in the range"),
        ([WORKDIR, f"--config.train.steps={'9' * 5000}"], "train.steps: expected int, got '9999"),
        ([WORKDIR, f"--config.train.steps={'9' * 4000}"], "must lie in 1 ... 2^31 - 1"),
    ],
)
def test_flags_and_paths_that_nothing_can_be_are_one_line(tmp_path, monkeypatch, capsys, arguments, line):
    monkeypatch.chdir(tmp_path)
    config = [] if any(argument.startswith("--config=") for argument in arguments) else [f"--config={DIGITS}"]
    assert main.run(["main", *config, *arguments]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert line in err
    assert len(err) < 1000
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("scheme", "package"), [("gs", "gcsfs"), ("s3", "s3fs"), ("az", "adlfs")])
@pytest.mark.parametrize("place", ["--workdir={}/run", "--config={}/config.json"])
def test_an_object_store_without_its_package_is_one_line(monkeypatch, capsys, tmp_path, scheme, package, place):
    from etils import epath

    def missing(path):
        raise ImportError(f"Please install {package}")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(type(epath.Path(f"{scheme}://b")), "exists", missing)
    given = place.format(f"{scheme}://bucket")
    other = WORKDIR if "config" in given else f"--config={DIGITS}"
    assert main.run(["main", given, other]) == 2
    err = capsys.readouterr().err
    assert f"Please install {package}; or name a folder of this machine" in err
    assert err.count("\n") == 1


def test_a_config_that_cannot_be_opened_is_one_line(tmp_path, monkeypatch, capsys):
    os.mkfifo(tmp_path / "pipe.py")
    os.mkfifo(tmp_path / "pipe.json")
    (tmp_path / "folder.json").mkdir()
    (tmp_path / "bytes.json").write_bytes(b"\xff\x00")
    (tmp_path / "bytes.flags").write_bytes(b"\xff\x00")
    for name, reason in (
        *(("pipe.py", "is not a file"), ("pipe.json", "is not a file"), ("folder.json", "is not a file")),
        ("bytes.json", "cannot be"),
    ):
        assert main.run(["main", f"--config={tmp_path / name}", WORKDIR]) == 2
        assert f"--config={tmp_path / name} {reason}" in capsys.readouterr().err
    assert main.run(["main", f"--config={DIGITS}", WORKDIR, f"--flagfile={tmp_path / 'bytes.flags'}"]) == 2
    assert "--flagfile cannot be used" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("import sys\nsys.exit(0)\n", "line 2: SystemExit: it ends the program (status 0) instead of returning"),
        ("def get_config():\n    raise SystemExit(3)\n", "line 2: SystemExit: it ends the program (status 3)"),
        ("raise KeyboardInterrupt\n", "line 1: KeyboardInterrupt"),
        ("raise BaseException('x')\n", "line 1: BaseException: x"),
        ("def get_config():\n    return get_config()\n", "line 2: RecursionError"),
        ("import mine\nimport no_such_module\n", "ModuleNotFoundError: No module named 'no_such_module'"),
        ("", "AttributeError: module 'config_config' has no attribute 'get_config'"),
        ("\0", "Error: source code string cannot contain null bytes"),  # a SyntaxError since Python 3.11.4
    ],
)
def test_a_config_file_that_ends_the_program_does_not(tmp_path, text, line):
    (tmp_path / "mine.py").write_text(text)
    assert line in one_line(command(tmp_path, "--config=mine.py", WORKDIR))
    assert [path.name for path in tmp_path.iterdir() if path.name != "__pycache__"] == ["mine.py"]


def test_an_interrupt_of_whoever_calls_is_not_the_config_files(tmp_path):
    (tmp_path / "mine.py").write_text("raise KeyboardInterrupt\n")
    assert main.run(["main", f"--config={tmp_path / 'mine.py'}", WORKDIR]) == 130


def test_memory_that_is_not_there_is_one_line(monkeypatch, capsys):
    def parse(argv):
        raise MemoryError("Unable to allocate 8.00 TiB for an array")

    monkeypatch.setattr(main, "parse", parse)
    assert main.run(["main"]) == 1
    assert capsys.readouterr().err == (
        "ddim_jax: error: out of memory: Unable to allocate 8.00 TiB for an array; ask for less at a time, or end "
        "other programs\n"
    )


@pytest.mark.parametrize("given", ["x", "100000", "-2", ""])
def test_a_number_of_devices_that_jax_cannot_make_is_one_line(monkeypatch, capsys, tmp_path, given):
    monkeypatch.setenv("JAX_NUM_CPU_DEVICES", given)
    assert main.run(["main", f"--config={DIGITS}", f"--workdir={tmp_path / 'run'}"]) == 2
    err = capsys.readouterr().err
    assert f"JAX_NUM_CPU_DEVICES={given!r}: must lie in 0 ... 256" in err
    assert err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []
