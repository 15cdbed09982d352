"""LPIPS's weights as files have them, and the distance that they make."""

import jax
import numpy as np
import pytest

from ddim_jax.errors import UserError
from ddim_jax.models.lpips import Lpips
from ddim_jax.weights.lpips import convert_state, lpips_state_shapes


@pytest.fixture(scope="module")
def state():
    rng = np.random.default_rng(0)
    weights = {
        name: rng.random(shape, np.float32) if name.startswith("lin") else 0.05 * rng.standard_normal(shape, np.float32)
        for name, shape in lpips_state_shapes().items()
    }
    # The other package says some of it twice.
    return {**weights, "lins.0.model.1.weight": weights["lin0.model.1.weight"], "scaling_layer.shift": np.zeros(3)}


def test_names_are_those_of_the_published_networks():
    shapes = lpips_state_shapes()
    assert shapes["net.slice1.0.weight"] == (64, 3, 3, 3) and shapes["net.slice2.5.bias"] == (128,)
    assert shapes["net.slice3.14.weight"] == (256, 256, 3, 3) and shapes["net.slice4.17.weight"] == (512, 256, 3, 3)
    assert shapes["net.slice5.28.weight"] == (512, 512, 3, 3) and shapes["lin4.model.1.weight"] == (1, 512, 1, 1)
    assert len(shapes) == 2 * 13 + 5


def test_parameters_are_those_of_the_network(state):
    params = convert_state(state, "a.pth")
    images = jax.ShapeDtypeStruct((1, 16, 16, 3), np.float32)
    expected = jax.eval_shape(Lpips().init, jax.random.key(0), images, images)["params"]
    assert jax.tree.map(np.shape, params) == jax.tree.map(lambda leaf: leaf.shape, expected)
    kernel = params["conv_1_0"]["kernel"]
    np.testing.assert_array_equal(kernel[2, 1, 7, 5], state["net.slice2.5.weight"][5, 7, 2, 1])


def test_a_distance_is_symmetric_and_grows(state):
    params = convert_state(state, "a.pth")
    rng = np.random.default_rng(1)
    image = rng.uniform(-1, 1, (1, 16, 16, 3)).astype(np.float32)
    noise = rng.normal(size=image.shape).astype(np.float32)

    def distance(one, other):
        return float(Lpips().apply({"params": params}, one, other)[0])

    found = [distance(image, image + scale * noise) for scale in (0, 0.05, 0.5)]
    assert found[0] == 0 < found[1] < found[2]
    assert distance(image + 0.5 * noise, image) == pytest.approx(found[2], rel=1e-4)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"net.slice1.2.bias": None}, "net.slice1.2.bias"),
        ({"other": np.zeros(1)}, "other"),
        ({"lin0.model.1.weight": np.zeros((1, 3, 1, 1))}, "lin0.model.1.weight"),
        ({"net.slice1.0.bias": np.full(64, np.nan)}, "net.slice1.0.bias"),
    ],
)
def test_other_arrays_are_refused(state, change, named):
    changed = {name: value for name, value in {**state, **change}.items() if value is not None}
    with pytest.raises(UserError, match=r"^eval\.lpips_path: a\.pth does not hold LPIPS with VGG16: .*" + named):
        convert_state(changed, "a.pth")


def test_what_is_no_state_dict_is_refused():
    with pytest.raises(UserError, match=r"a\.pth does not hold arrays by name"):
        convert_state([1], "a.pth")
