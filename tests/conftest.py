"""Runs the tests on eight fake CPU devices, so that every test of sharding is a real one."""

import jax

jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 8)
