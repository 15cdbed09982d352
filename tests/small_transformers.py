"""Small Vision Transformers with random weights, as their authors' files have them."""

import numpy as np

from ddim_jax.models.vision_transformer import VisionTransformer, quick_gelu
from ddim_jax.weights.vision_transformers import our_shapes

SMALL_DINOV2 = VisionTransformer(28, 7, 16, 2, 2, has_layer_scale=True)
SMALL_CLIP = VisionTransformer(28, 7, 16, 2, 2, quick_gelu, 1e-5, has_norm_before=True, projection=6)


def random_parameters(network, seed=0):
    """Parameters by our names, under which every part matters."""
    rng = np.random.default_rng(seed)
    spread = {"kernel": 0.2, "scale": 0.2}
    return {
        name: (
            (name.endswith("/scale") or "/scale_" in name)
            + spread.get(name.rpartition("/")[2], 0.5) * rng.standard_normal(shape)
        ).astype(np.float32)
        for name, shape in our_shapes(network).items()
    }


def dinov2_state(network, parameters, positions=None):
    """A state dict as DINOv2's code saves it, written out name by name."""
    ours = parameters
    state = {
        "cls_token": ours["first_token"][None, None],
        "mask_token": np.zeros((1, network.width), np.float32),
        "pos_embed": (ours["positions"] if positions is None else positions)[None],
        "patch_embed.proj.weight": ours["patches/kernel"].transpose(3, 2, 0, 1),
        "patch_embed.proj.bias": ours["patches/bias"],
        "norm.weight": ours["norm_after/scale"],
        "norm.bias": ours["norm_after/bias"],
    }
    names = {
        "attn.qkv": "query_key_value", "attn.proj": "attended", "mlp.fc1": "wide", "mlp.fc2": "narrow",
    }  # fmt: skip
    for i in range(network.depth):
        for theirs, name in names.items():
            state[f"blocks.{i}.{theirs}.weight"] = ours[f"block_{i}/{name}/kernel"].T
            state[f"blocks.{i}.{theirs}.bias"] = ours[f"block_{i}/{name}/bias"]
        for place, name in ((1, "attention"), (2, "dense")):
            state[f"blocks.{i}.norm{place}.weight"] = ours[f"block_{i}/norm_{name}/scale"]
            state[f"blocks.{i}.norm{place}.bias"] = ours[f"block_{i}/norm_{name}/bias"]
            state[f"blocks.{i}.ls{place}.gamma"] = ours[f"block_{i}/scale_{name}"]
    return state


def clip_state(network, parameters):
    """A state dict as transformers saves CLIP's, with a part of the half that reads texts."""
    ours = parameters
    state = {
        "logit_scale": np.zeros((), np.float32),
        "text_model.final_layer_norm.weight": np.zeros(4, np.float32),
        "text_projection.weight": np.zeros((6, 4), np.float32),
        "vision_model.embeddings.position_ids": np.arange(17)[None],
        "vision_model.embeddings.class_embedding": ours["first_token"],
        "vision_model.embeddings.position_embedding.weight": ours["positions"],
        "vision_model.embeddings.patch_embedding.weight": ours["patches/kernel"].transpose(3, 2, 0, 1),
        "visual_projection.weight": ours["projection/kernel"].T,
    }
    for theirs, name in (("pre_layrnorm", "norm_before"), ("post_layernorm", "norm_after")):
        state[f"vision_model.{theirs}.weight"] = ours[f"{name}/scale"]
        state[f"vision_model.{theirs}.bias"] = ours[f"{name}/bias"]
    for i in range(network.depth):
        start = f"vision_model.encoder.layers.{i}."
        kernels = np.split(ours[f"block_{i}/query_key_value/kernel"].T, 3)
        biases = np.split(ours[f"block_{i}/query_key_value/bias"], 3)
        for theirs, kernel, bias in zip("qkv", kernels, biases, strict=True):
            state[f"{start}self_attn.{theirs}_proj.weight"] = kernel
            state[f"{start}self_attn.{theirs}_proj.bias"] = bias
        for theirs, name in (("self_attn.out_proj", "attended"), ("mlp.fc1", "wide"), ("mlp.fc2", "narrow")):
            state[f"{start}{theirs}.weight"] = ours[f"block_{i}/{name}/kernel"].T
            state[f"{start}{theirs}.bias"] = ours[f"block_{i}/{name}/bias"]
        for place, name in ((1, "attention"), (2, "dense")):
            state[f"{start}layer_norm{place}.weight"] = ours[f"block_{i}/norm_{name}/scale"]
            state[f"{start}layer_norm{place}.bias"] = ours[f"block_{i}/norm_{name}/bias"]
    return state
