"""Replicated and sharded values, and the bound on steps in flight, on eight fake devices."""

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


def test_a_step_sees_its_share_of_each_batch_of_a_group():
    devices = parallel.training_devices(16)
    step = parallel.step_over_batch(
        lambda total, batches: (total, parallel.mean_over_devices(jnp.mean(batches, axis=1))), devices
    )
    group = [np.arange(16.0), 100 + np.arange(16.0), 200 + np.arange(16.0)]
    batches = parallel.split_batches(group, 8)
    _, means = step(parallel.replicate(np.float32(0), devices), batches)
    np.testing.assert_array_equal(means, [7.5, 107.5, 207.5])
