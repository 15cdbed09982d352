"""What is free, what fits, and what happens when it does not."""

import dataclasses
import doctest
import re

import jax
import numpy as np
import pytest
from jax.errors import JaxRuntimeError
from small import small_digits

from ddim_jax import memory, parallel
from ddim_jax.errors import UserError
from ddim_jax.jobs.describe import _training_memory, describe
from ddim_jax.jobs.sample import sample
from ddim_jax.jobs.train import train
from ddim_jax.memory import largest_fitting_batch
from ddim_jax.pipeline import load
from ddim_jax.sampling.image_sampler import ImageSampler, batch_size_for
from ddim_jax.sharded_map import BatchSize, ShardedMap

# --- what is free -------------------------------------------------------------------------------


class Device:
    def __init__(self, platform, stats):
        self.platform = platform
        self.memory_stats = lambda: stats


def test_free_is_what_the_fullest_device_has_left():
    devices = [Device("gpu", {"bytes_limit": 100, "bytes_in_use": used}) for used in (10, 60, 30)]
    assert memory.free_bytes(devices) == 40
    assert memory.free_bytes([*devices, Device("gpu", None)]) is None
    assert memory.free_bytes([Device("tpu", {"bytes_in_use": 3})]) is None


def machine(tmp_path, monkeypatch, **files):
    """A machine with 100 MiB available and these files of its control group."""
    for name, text in {"meminfo": f"MemFree: 1 kB\nMemAvailable:  {100 * 1024} kB\n", **files}.items():
        path = tmp_path / name.replace("__", "/")
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    monkeypatch.setattr(memory, "_MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(memory, "_CGROUP", tmp_path)


@pytest.mark.parametrize(
    ("files", "mib"),
    [
        ({}, 100),
        ({"memory.max": "max\n"}, 100),
        ({"memory.max": f"{90 << 20}", "memory.current": f"{50 << 20}", "memory.stat": "inactive_file 1048576\n"}, 41),
        ({"memory.max": f"{990 << 20}", "memory.current": "0", "memory.stat": "anon 1\n"}, 100),
        (
            {
                "memory__memory.limit_in_bytes": f"{9 << 20}",
                "memory__memory.usage_in_bytes": f"{5 << 20}",
                "memory__memory.stat": f"inactive_file 7\ntotal_inactive_file {2 << 20}\n",
            },
            6,
        ),
    ],
)
def test_a_control_group_limits_main_memory(tmp_path, monkeypatch, files, mib):
    machine(tmp_path, monkeypatch, **files)
    assert memory.available_host_bytes() == mib << 20
    # Eight devices of one CPU share it.
    assert memory.free_bytes(jax.local_devices()) == (mib << 20) // 8


def test_where_the_system_does_not_tell_nothing_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "_MEMINFO", tmp_path / "nothing")
    assert memory.free_bytes(jax.local_devices()) is None
    np.testing.assert_array_equal(
        ShardedMap(lambda _, x: x, BatchSize(64, may_shrink=True))((), np.arange(3)), [0, 1, 2]
    )


def test_memory_that_is_returned_is_no_longer_resident():
    if memory.resident_memory() is None:
        pytest.skip("the system does not tell")
    memory.return_unused_memory()
    before = memory.resident_memory().now
    # Small pieces, which the C library keeps when they are freed; the last one holds the heap's end.
    pieces = [np.ones(2000) for _ in range(10_000)]
    assert memory.resident_memory().now - before > 100 << 20
    last = pieces[-1]
    del pieces
    memory.return_unused_memory()
    assert memory.resident_memory().now - before < 50 << 20
    assert last[0] == 1


# --- what fits ----------------------------------------------------------------------------------


@pytest.mark.parametrize("multiple_of", [1, 8, 24])
@pytest.mark.parametrize("free", [0, 99, 100, 1000, 12_345])
def test_the_largest_batch_fits_and_the_next_does_not(free, multiple_of):
    def needed(batch):
        return 100 + 640 * batch / 128

    batch = largest_fitting_batch(128, 100, 640, free, multiple_of)
    assert batch % multiple_of == 0
    assert batch == 0 or needed(batch) <= free
    assert needed(batch + multiple_of) > free


def test_the_plan_of_a_program_counts_donated_memory_once():
    def step(x, y):
        return x + 1, (y * 2).sum()

    x, y = np.zeros(1000, np.float32), np.zeros(500, np.float32)
    plans = [
        memory.program_memory(jax.jit(step, donate_argnums=donated).lower(x, y).compile()) for donated in ((), (0,))
    ]
    assert [plan.arguments for plan in plans] == [6000, 6000]
    assert plans[0].results - plans[1].results == 4000
    assert plans[1].total == 6000 + plans[1].beside_arguments


def test_errors_for_lack_of_memory():
    assert memory.is_out_of_memory(MemoryError())
    assert memory.is_out_of_memory(JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 8 bytes."))
    assert not memory.is_out_of_memory(JaxRuntimeError("INTERNAL: Gloo all-reduce failed"))
    assert not memory.is_out_of_memory(ValueError("out of memory"))


def test_an_allocation_that_fails_is_recognised():
    with pytest.raises(Exception) as caught:
        jax.block_until_ready(jax.jit(lambda: jax.numpy.ones((1 << 20, 1 << 20, 1 << 5)))())
    assert memory.is_out_of_memory(caught.value)


def test_examples():
    results = doctest.testmod(memory)
    assert results.attempted and not results.failed


# --- batches that do not fit --------------------------------------------------------------------


def heavy(_, x):
    """Some KiB of temporary memory for each item."""
    rows = jax.numpy.sin(x[:, None] + np.arange(1000, dtype=np.float32))
    return jax.numpy.sort(rows, axis=1)[:, -1]


def beside_arguments(size):
    items = parallel.split_batch(np.zeros(8 * size, np.float32), 8)
    compiled = parallel.map_over_batch(heavy, parallel.local_devices()).lower((), items).compile()
    return memory.program_memory(compiled).beside_arguments


@pytest.fixture
def allow(monkeypatch):
    """Sets the free memory of a device."""
    return lambda size: monkeypatch.setattr(memory, "free_bytes", lambda devices: size)


def test_the_batch_shrinks_to_what_fits(allow):
    x = np.linspace(0, 9, 100, dtype=np.float32)
    allow(None)
    roomy = ShardedMap(heavy, BatchSize(16, may_shrink=True))
    expected = roomy((), x)
    assert roomy.batch_size == 16
    sizes = []
    for size in (16, 11, 5, 1, 0.1):
        allow(int(beside_arguments(16) * size / 16 / memory.USABLE) + 1)
        scarce = ShardedMap(heavy, BatchSize(16, may_shrink=True))
        np.testing.assert_array_equal(scarce((), x), expected)
        sizes.append(scarce.batch_size)
        assert scarce.batch_size == 1 or beside_arguments(scarce.batch_size) <= memory.free_bytes([]) * memory.USABLE
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] == 16 and sizes[-1] == 1 and len(set(sizes)) >= 4


def test_a_batch_that_was_asked_for_is_refused(allow):
    free = int(beside_arguments(16) / 2)
    allow(free)
    seen = []
    items = ShardedMap(lambda v, x: seen.append(1) or heavy(v, x), BatchSize(16, what="rows", key="sample.batch_size"))
    with pytest.raises(
        UserError, match=r"^16 rows per device at a time need .* beside the weights, .* are free; sample"
    ):
        items((), np.zeros(100, np.float32))
    assert seen == [1]
    allow(beside_arguments(16))
    assert len(items((), np.zeros(100, np.float32))) == 100


def failing(monkeypatch, too_many, when="run"):
    """Devices without memory for this many items, as a GPU tells it."""
    error = JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 99 bytes.")
    real = parallel.map_over_batch

    class Failing:
        def __init__(self, function, devices):
            self._real = real(function, devices)

        def lower(self, variables, items):
            self._size = jax.tree.leaves(items)[0].size // 8
            if when == "compile" and self._size >= too_many:
                raise error
            self._lowered = self._real.lower(variables, items)
            return self

        def compile(self):
            return self

        def memory_analysis(self):
            return None

        def __call__(self, variables, items):
            if self._size >= too_many:
                raise error
            return self._lowered.compile()(variables, items)

    monkeypatch.setattr(parallel, "map_over_batch", Failing)


@pytest.mark.parametrize("when", ["run", "compile"])
def test_out_of_memory_halves_the_batch_and_goes_on(monkeypatch, capsys, when):
    x = np.arange(50, dtype=np.float32)
    failing(monkeypatch, 5, when)
    items = ShardedMap(lambda _, x: 2 * x, BatchSize(20, may_shrink=True, what="rows"))
    np.testing.assert_array_equal(items((), x), 2 * x)
    assert items.batch_size == 4
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "out of memory with 20 rows per device at a time; going on with 16",
        "out of memory with 16 rows per device at a time; going on with 8",
        "out of memory with 8 rows per device at a time; going on with 4",
    ]


def test_out_of_memory_says_what_may_fit(monkeypatch):
    failing(monkeypatch, 1)
    with pytest.raises(UserError, match=r"^8 rows per device at a time are too many .*; sample.batch_size=4 may fit$"):
        ShardedMap(heavy, BatchSize(8, what="rows", key="sample.batch_size"))((), np.zeros(100, np.float32))
    with pytest.raises(UserError, match=r"^1 rows per device at a time are too many .*; not even one fits$"):
        ShardedMap(heavy, BatchSize(8, may_shrink=True, what="rows"))((), np.zeros(100, np.float32))


def test_other_errors_are_not_taken_for_it():
    def broken(_, x):
        raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        ShardedMap(broken, BatchSize(8, may_shrink=True))((), np.zeros(3))


def test_what_is_done_is_not_done_again(monkeypatch):
    """Memory runs out in the third batch: the two before it are handed over once."""
    calls = []
    items = ShardedMap(lambda _, x: x + 1, BatchSize(4, may_shrink=True))
    items.compile((), np.zeros(1, np.float32))
    program = items._program

    def scarce(variables, rows):
        run = program(variables, rows)

        def count(variables, batch):
            calls.append(batch.size // 8)
            if calls[-1] == 4 and len(calls) == 3:
                raise JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory")
            return run(variables, batch)

        return count

    monkeypatch.setattr(items, "_program", scarce)
    x = np.arange(100, dtype=np.float32)
    done = list(items.chunks((), x))
    np.testing.assert_array_equal(np.concatenate([result for _, result in done]), x + 1)
    assert [where.start for where, _ in done] == [0, 32, 48, 64, 80, 96]
    assert items.batch_size == 2


# --- jobs ---------------------------------------------------------------------------------------


def with_sample(config, **settings):
    return dataclasses.replace(config, sample=dataclasses.replace(config.sample, **settings))


def test_how_many_images_are_drawn_at_a_time(monkeypatch):
    config = with_sample(small_digits(), batch_size=0)
    size = batch_size_for(config, 10**6)
    assert size.may_shrink and size.size & (size.size - 1) == 0
    assert batch_size_for(config, 20).size == 3
    large = dataclasses.replace(config, data=dataclasses.replace(config.data, image_size=256))
    assert 1 <= batch_size_for(large, 10**6).size < size.size
    assert batch_size_for(with_sample(config, batch_size=7), 10**6) == dataclasses.replace(
        size, size=7, may_shrink=False
    )
    # As many pixels keep a GPU busy whatever the size of the images; never more than 1,024 images.
    monkeypatch.setattr(parallel, "local_devices", lambda: [Device("gpu", None)])
    assert batch_size_for(large, 10**6).size == 64
    assert batch_size_for(config, 10**6).size == 1024


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("memory") / "run"
    train(small_digits(), folder)
    return folder


def images_of(folder):
    with np.load(folder / "samples.npz") as stored:
        return stored["arr_0"]


def test_a_job_with_little_memory_draws_the_same_images(workdir, allow, capsys):
    config = with_sample(small_digits(), num=60, batch_size=0, format="npz", seed=1)
    pipe = load(workdir)
    allow(None)
    plain = ImageSampler(config, pipe.model, batch_size_for(config, 60))
    expected = plain.draw(pipe.variables, range(60))
    assert plain.batch_size == 8
    allow(1)
    folder = sample(config, workdir)
    recorded = (folder / "run.json").read_text()
    assert '"images_per_device": 1,' in recorded
    assert np.mean(images_of(folder) != expected) < 1e-3
    # The job is resumed as it began, though there is more memory now.
    (folder / "samples.npz").unlink()
    allow(None)
    sample(config, workdir)
    assert '"images_per_device": 1,' in (folder / "run.json").read_text()


def test_a_job_whose_batch_is_too_large_is_one_line(workdir, allow):
    allow(1000)
    before = sorted(workdir.rglob("*"))
    config = with_sample(small_digits(), num=60, batch_size=8, seed=2)
    with pytest.raises(
        UserError, match=r"^8 images of 8x8x1 per device at a time need .*, 0 MiB are free; not even one"
    ):
        sample(config, workdir)
    assert sorted(workdir.rglob("*")) == before


def with_batch(config, size):
    return dataclasses.replace(config, train=dataclasses.replace(config.train, batch_size=size))


def sizes(text):
    """MiB by what they are of."""
    found = re.findall(r"^(\S.{43}\S?) +([\d,]+\.\d) MiB", text, re.MULTILINE)
    return {name.strip(): float(size.replace(",", "")) for name, size in found}


@pytest.mark.slow
def test_describe_tells_what_is_needed_and_what_fits(allow, capsys):
    config = with_batch(small_digits(), 64)
    free = 100 << 20
    allow(free)
    describe(config)
    text = capsys.readouterr().out
    training, sampling = text.split("Memory for training\n")[1].split("Memory for sampling\n")
    for part in (training, sampling):
        given, temporary, results, total, there = list(sizes(part).values())[:5]
        assert abs(given + temporary + results - total) <= 0.2
        assert there == 100
    # A batch as large as that, compiled, indeed fills the memory.
    largest = int(
        re.search(r"largest train.batch_size that fits in what is free: ([\d,]+)", training)[1].replace(",", "")
    )
    assert largest > 4 * config.train.batch_size
    filled = _training_memory(with_batch(config, largest), parallel.training_devices(largest))
    assert 0.9 * free <= filled.total <= 1.1 * free


@pytest.mark.slow
def test_describe_begins_with_a_short_summary(monkeypatch, capsys):
    """What somebody wants to know first comes first; the slower variant is compiled where the run does not fit."""
    config = with_sample(with_batch(small_digits(), 64), steps=60, spacing="uniform")
    compiled = []
    needed = memory.ProgramMemory(arguments=30 << 20, temporary=70 << 20, results=0)

    def training_memory(config, devices):
        compiled.append(config.model.remat)
        return needed._replace(temporary=10 << 20) if config.model.remat else needed

    monkeypatch.setattr("ddim_jax.jobs.describe._training_memory", training_memory)
    for free, variants in ((200 << 20, [False]), (60 << 20, [False, True])):
        monkeypatch.setattr(memory, "free_bytes", lambda devices, free=free: free)
        compiled.clear()
        describe(config)
        shown = capsys.readouterr()
        assert compiled == variants
        assert "compiling the training step ...\n" in shown.err and "compiling the sampler ...\n" in shown.err
        summary = shown.out.split("\n\n")[0]
        assert len(summary.splitlines()) == 8
        for said in (" parameters\n", "GFLOP per image: ", "\nddim, 60 steps, 60 network", "\nsampling: "):
            assert said in summary
        assert f"batch 64 on 8 x cpu: 100 MiB of {free >> 20} MiB free per device; largest batch " in summary
        assert ("with model.remat=true" in summary) == (free < 100 << 20)
        # Each key once: what is set on a line of its own, the rest packed together.
        settings = shown.out.split("Config, where it is not the default\n")[1]
        assert "\nsample.steps = 60\n" in settings and "sample.seed" not in settings and " seed=0," in settings
        assert shown.out.endswith("\n--config.describe.tables=true: the parameters by block, and all sampling steps\n")
        assert "c z\n" not in shown.out
