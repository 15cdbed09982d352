"""Replicated and sharded values, and the bound on steps in flight, on eight fake devices."""

import inspect
import os
import socket

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddim_jax import parallel
from ddim_jax.errors import UserError


def test_eight_fake_devices():
    assert jax.local_device_count() == 8


def test_a_step_sees_its_share_and_returns_one_result():
    devices = parallel.training_devices(16)
    step = parallel.step_over_batch(
        lambda total, batch: (
            total + parallel.mean_over_devices(jnp.mean(batch)),
            parallel.mean_over_devices(batch.size),
        ),
        devices,
    )
    total, size = step(parallel.replicate(np.float32(1), devices), parallel.split_batch(np.arange(16.0), 8))
    assert float(total) == 1 + 7.5
    assert int(size) == 2


def test_donated_memory_is_reused():
    devices = parallel.training_devices(8)
    step = parallel.step_over_batch(lambda state, batch: (state + 1, batch.sum()), devices, donate=True)
    before = parallel.replicate(np.zeros(4, np.float32), devices)
    after, _ = step(before, parallel.split_batch(np.zeros(8), 8))
    assert before.is_deleted()
    np.testing.assert_array_equal(parallel.host_copy(after), np.ones(4))


def test_a_host_copy_outlives_donation():
    devices = parallel.training_devices(8)
    step = parallel.step_over_batch(lambda state, batch: (state + 1, batch.sum()), devices, donate=True)
    state = parallel.replicate(np.zeros(1000, np.float32), devices)
    copy = parallel.host_copy(state)
    for _ in range(3):
        state, _ = step(state, parallel.split_batch(np.zeros(8), 8))
    np.testing.assert_array_equal(copy, np.zeros(1000))


def test_map_keeps_the_order():
    double = parallel.map_over_batch(lambda factor, x: factor * x, parallel.local_devices())
    result = parallel.join_batch(double(np.float32(2), parallel.split_batch(np.arange(24.0).reshape(24, 1), 8)))
    np.testing.assert_array_equal(result, 2 * np.arange(24.0).reshape(24, 1))


@pytest.mark.parametrize(("batch_size", "parts", "count"), [(16, 1, 8), (12, 1, 6), (7, 1, 7), (11, 1, 1), (16, 4, 4)])
def test_as_many_devices_as_divide_the_batch(batch_size, parts, count):
    assert len(parallel.training_devices(batch_size, parts)) == count


def test_a_batch_that_does_not_divide_into_parts():
    with pytest.raises(UserError, match=r"train.batch_size=10 must be divisible by 1 processes x 4 parts"):
        parallel.training_devices(10, 4)


def test_results_come_back_in_order_and_no_more_than_eight_wait():
    window = parallel.StepsInFlight()
    returned = [result for i in range(20) for result in window.add(i)]
    assert returned == list(range(12))
    assert window.drain() == list(range(12, 20))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"coordinator": "localhost:1"}, r"belong together"),
        ({"automatic": True, "process_id": 1}, r"leave out --coordinator"),
    ],
)
def test_an_incomplete_start_of_several_processes(arguments, message):
    with pytest.raises(UserError, match=message):
        parallel.initialize(**arguments)


@pytest.mark.parametrize(
    "address",
    ["::::", "localhost", "localhost:", ":1", "localhost:0", "localhost:70000", "localhost:-1", "::1:12355", "[::1]",
     "[::1]:x", "http://localhost:1", "local host:1", "localhost:1 ", "localhost:\u0661", ""],
)  # fmt: skip
def test_what_is_no_address_is_refused_before_jax_starts(address):
    with pytest.raises(UserError, match=r"^--coordinator=.* is no address: give HOST:PORT"):
        parallel.initialize(address, 2, 0)


@pytest.mark.parametrize(("processes", "process"), [(2, 2), (2, -1), (0, 0), (-1, 0)])
def test_an_index_that_no_process_has(processes, process):
    with pytest.raises(UserError, match=rf"--process_id={process} with --num_processes={processes}"):
        parallel.initialize("localhost:1", processes, process)


def test_a_host_that_nobody_knows(monkeypatch):
    monkeypatch.setattr(parallel, "_NAME_SECONDS", 0)
    with pytest.raises(UserError, match=r"--coordinator=no.such.invalid:123: the host 'no.such.invalid' is not known"):
        parallel.initialize("no.such.invalid:123", 2, 1)


def test_a_port_in_use_is_refused_by_the_process_that_would_listen():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"localhost:{taken.getsockname()[1]}"
        with pytest.raises(
            UserError, match=rf"--coordinator={address}: process 0 cannot listen there: .* another port"
        ):
            parallel._checked_address(address, listens=True)
        assert parallel._checked_address(address, listens=False) is None


@pytest.mark.parametrize(
    ("host", "here", "bound"),
    [
        ("localhost", ["::1", "127.0.0.1"], "localhost:4000"),
        ("localhost", ["127.0.0.1"], "127.0.0.1:4000"),
        ("localhost", ["::1"], "[::1]:4000"),
        ("127.0.0.1", ["127.0.0.1"], "127.0.0.1:4000"),
        ("[::1]", ["::1"], "[::1]:4000"),
        ("node0", ["10.0.0.1"], "node0:4000"),
        # The machine's own name for loopback, and an address of the gateway before it: others could not come.
        ("node0", ["127.0.1.1"], None),
        ("node0", [], None),
        ("203.0.113.7", [], None),
    ],
)
def test_process_0_listens_where_it_was_told_to(monkeypatch, capsys, host, here, bound):
    known = {"localhost": ["::1", "127.0.0.1"], "node0": here or ["192.0.2.1"]}.get(host, [host.strip("[]")])
    monkeypatch.setattr(parallel, "_addresses", lambda *_: [(socket.AF_INET, (address, 4000)) for address in known])
    monkeypatch.setattr(parallel, "_can_listen", lambda _, address, __: address[0] in here)
    monkeypatch.delenv("JAX_COORDINATOR_BIND_ADDRESS", raising=False)
    assert parallel._checked_address(f"{host}:4000", listens=True) == bound
    assert ("listens on all of its addresses, port 4000" in capsys.readouterr().err) == (bound is None)


SLURM = {"SLURM_LOCALID": "0", "SLURM_NODEID": "1", "SLURM_STEP_TASKS_PER_NODE": "1(x4)", "SLURM_GPUS_ON_NODE": "8"}
EIGHT = "0,1,2,3,4,5,6,7"


@pytest.mark.parametrize(
    ("variables", "devices"),
    [
        ({}, None),  # nobody runs several processes, or TPUs, for which JAX decides
        (SLURM, []),  # one process a node: all GPUs
        (SLURM | {"CUDA_VISIBLE_DEVICES": EIGHT}, []),
        (SLURM | {"JAX_LOCAL_DEVICE_IDS": "3"}, None),  # the user has decided
        # A process a GPU, all of which each sees; two processes of four each; no word about GPUs.
        (SLURM | {"SLURM_STEP_TASKS_PER_NODE": "4,8(x3)", "SLURM_LOCALID": "5", "CUDA_VISIBLE_DEVICES": EIGHT}, [5]),
        (SLURM | {"SLURM_STEP_TASKS_PER_NODE": "2(x4)", "SLURM_LOCALID": "1"}, [4, 5, 6, 7]),
        ({"SLURM_LOCALID": "1", "SLURM_NODEID": "0", "SLURM_STEP_TASKS_PER_NODE": "2"}, None),
        # Slurm shows each process its own GPUs: one, or two.
        (SLURM | {"SLURM_STEP_TASKS_PER_NODE": "8(x4)", "SLURM_LOCALID": "5", "CUDA_VISIBLE_DEVICES": "5"}, []),
        (SLURM | {"SLURM_STEP_TASKS_PER_NODE": "2(x4)", "SLURM_LOCALID": "1", "CUDA_VISIBLE_DEVICES": "2,3"}, []),
        # A batch script, which is no step.
        ({"SLURM_LOCALID": "0", "SLURM_NODEID": "0", "SLURM_GPUS_ON_NODE": "8"}, None),
        ({"OMPI_COMM_WORLD_LOCAL_RANK": "0", "OMPI_COMM_WORLD_LOCAL_SIZE": "1"}, []),
        (
            {
                **SLURM,
                "OMPI_COMM_WORLD_LOCAL_RANK": "1",
                "OMPI_COMM_WORLD_LOCAL_SIZE": "4",
                "CUDA_VISIBLE_DEVICES": EIGHT,
            },
            [2, 3],
        ),
    ],
)
@pytest.mark.parametrize("explicit", [False, True], ids=["auto", "explicit"])
def test_a_process_uses_its_share_of_the_gpus_of_its_machine(monkeypatch, variables, devices, explicit):
    started = []
    signature = inspect.signature(jax.distributed.initialize)
    monkeypatch.setattr(
        jax.distributed,
        "initialize",
        lambda *args, **kwargs: started.append(signature.bind(*args, **kwargs).arguments),
    )
    monkeypatch.setattr(jax.config, "update", lambda *args: None)
    monkeypatch.setattr(os, "environ", variables)
    if explicit:
        parallel.initialize("127.0.0.1:1", 4, 1)
    else:
        parallel.initialize(automatic=True)
    (arguments,) = started
    assert arguments["local_device_ids"] == devices
    assert (arguments["coordinator_address"] is not None) == explicit


def test_an_empty_list_means_all_gpus_to_jax_and_none_means_one(monkeypatch):
    from jax._src.clusters import ClusterEnv

    known = {"SLURM_JOB_ID": "7", "SLURM_STEP_NODELIST": "node1", "SLURM_NTASKS": "4", "SLURM_PROCID": "1"}
    for name, value in (SLURM | known).items():
        monkeypatch.setenv(name, value)
    found = [ClusterEnv.auto_detect_unset_distributed_params(None, None, None, ids, None, 300) for ids in (None, [])]
    assert [(host.split(":")[0], count, index, ids) for host, count, index, ids in found] == [
        ("node1", 4, 1, [0]),
        ("node1", 4, 1, []),
    ]


def test_a_step_sees_its_share_of_each_batch_of_a_group():
    devices = parallel.training_devices(16)
    step = parallel.step_over_batch(
        lambda total, batches: (total, parallel.mean_over_devices(jnp.mean(batches, axis=1))), devices
    )
    group = [np.arange(16.0), 100 + np.arange(16.0), 200 + np.arange(16.0)]
    batches = parallel.split_batches(group, 8)
    _, means = step(parallel.replicate(np.float32(0), devices), batches)
    np.testing.assert_array_equal(means, [7.5, 107.5, 207.5])
