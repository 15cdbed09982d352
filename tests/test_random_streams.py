"""Random numbers depend on what they are for, not on how the work is split."""

import jax
import numpy as np

from ddim_jax.random_streams import Stream, example_keys, host_generator, image_keys, normal_each, root_key


def test_an_images_noise_does_not_depend_on_its_batch():
    together = normal_each(image_keys(7, np.arange(6)), 0, (4, 4, 1), np.float32)
    for i in range(6):
        alone = normal_each(image_keys(7, np.array([i])), 0, (4, 4, 1), np.float32)[0]
        np.testing.assert_array_equal(alone, together[i])


def test_an_examples_key_is_that_of_its_place_in_the_global_batch():
    whole = example_keys(0, Stream.NOISE, 5, np.arange(8))
    half = example_keys(0, Stream.NOISE, 5, np.arange(4, 8))
    np.testing.assert_array_equal(jax.random.key_data(half), jax.random.key_data(whole)[4:])


def test_an_images_key_is_what_the_documentation_says():
    keys = image_keys(7, np.array([3, 5]))
    expected = jax.random.fold_in(root_key(7, Stream.IMAGE), 5)
    np.testing.assert_array_equal(jax.random.key_data(keys)[1], jax.random.key_data(expected))
    several = image_keys(np.array([7, 2**31 - 1]), np.array([5, 5]))
    np.testing.assert_array_equal(jax.random.key_data(several)[0], jax.random.key_data(expected))
    last = jax.random.fold_in(root_key(2**31 - 1, Stream.IMAGE), 5)
    np.testing.assert_array_equal(jax.random.key_data(several)[1], jax.random.key_data(last))


def test_streams_seeds_steps_examples_and_draws_all_matter():
    def draw(seed, stream, step, index, number):
        keys = example_keys(seed, stream, step, np.array([index]))
        return float(normal_each(keys, number, (), np.float32)[0])

    draws = {
        draw(*arguments)
        for arguments in [
            (0, Stream.NOISE, 0, 0, 0),
            (1, Stream.NOISE, 0, 0, 0),
            (0, Stream.DROPOUT, 0, 0, 0),
            (0, Stream.NOISE, 1, 0, 0),
            (0, Stream.NOISE, 0, 1, 0),
            (0, Stream.NOISE, 0, 0, 1),
        ]
    }
    assert len(draws) == 6


def test_the_generator_is_pinned():
    # Changing JAX's default generator, or a stream's number, would change every image of every seed.
    data = jax.random.key_data(root_key(0, Stream.IMAGE))
    assert jax.random.key_impl(root_key(0, Stream.IMAGE)) == "threefry2x32"
    expected = jax.random.key_data(jax.random.fold_in(jax.random.key(0, impl="threefry2x32"), 7))
    np.testing.assert_array_equal(data, expected)


def test_host_streams_are_reproducible_and_distinct():
    first, again, other = (host_generator(0, Stream.ORDER, epoch).permutation(100) for epoch in (3, 3, 4))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)
