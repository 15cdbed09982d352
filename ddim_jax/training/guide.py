"""The network that another one is led away from while sampling: autoguidance (``sample.guide_workdir``)."""

from ddim_jax import parallel
from ddim_jax.config import Config, flatten, with_sample
from ddim_jax.configured import Guide
from ddim_jax.errors import UserError
from ddim_jax.models import build_model
from ddim_jax.training.checkpoint import restore_trained, select_weights
from ddim_jax.training.checksums import digest_of_weights
from ddim_jax.weights.agreement import deciding_values, differences

# Of the network, these alone have to be the same; of data and diffusion, all that decides what its output means.
_SHARED_BY_NETWORKS = ("model.num_classes", "model.condition", "model.vector_size")
_FREE = ("data.pad",)


def load_guide(config: Config) -> Guide | None:
    """Reads the network of ``sample.guide_workdir``; None where there is none, or guidance does not ask it.

    Raises:
        UserError: there is no such checkpoint, or it is a network of other images, conditions or noise.
    """
    sample = config.sample
    if not sample.guide_workdir or sample.guidance_scale == 1:
        return None
    try:
        trained = restore_trained(sample.guide_workdir, sample.guide_checkpoint)
    except UserError as error:
        raise UserError(f"sample.guide_workdir={sample.guide_workdir}: {error}") from error
    check_guide(config, trained.config)
    variables = select_weights(trained.state, sample.ema)
    return Guide(build_model(trained.config), variables, trained.step, digest_of_weights(variables))


def with_guide(config: Config) -> tuple[Config, Guide | None]:
    """Reads the guide, and says in the config which checkpoint it is: results depend on it, and are named by it.

    All processes of a run call this, and get the same checkpoint.

    Raises:
        UserError: see :func:`load_guide`.
    """
    guide = load_guide(config)
    if guide is None or config.sample.guide_checkpoint is not None:
        return config, guide
    newest = parallel.value_of_main_process(guide.step)
    config = with_sample(config, guide_checkpoint=newest)
    return config, guide if guide.step == newest else load_guide(config)


def check_guide(config: Config, guide: Config) -> None:
    """Checks that a guide's prediction can be mixed with the network's.

    Raises:
        UserError: it is one of other images, conditions, schedule or objective.
    """
    decides = {
        key: value
        for key, value in deciding_values(guide).items()
        if key in _SHARED_BY_NETWORKS or (not key.startswith("model.") and key not in _FREE)
    }
    ours = flatten(config)
    for key, value in differences(config, decides).items():
        raise UserError(
            f"sample.guide_workdir={config.sample.guide_workdir}: {key}={value!r} there, {ours[key]!r} here; a guide "
            "differs in its width, depth and training alone"
        )
