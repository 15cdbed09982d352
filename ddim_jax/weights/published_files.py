"""Files of weights that others published, by name: ``weights.path=published:NAME``.

An address, a size or a hash stands here only if its publisher gives it, or if several projects agree on it, as on the
SHA-256 of OpenAI's unconditional ImageNet 256x256. Where only an MD5 is published, that is checked, and the SHA-256 is
kept at the first download, see :mod:`~ddim_jax.weights.download`. What lies where no program can fetch it by itself
has a page instead of an address.
"""

from typing import NamedTuple

from ddim_jax.errors import UserError
from ddim_jax.names import lookup
from ddim_jax.weights.download import Address


class PublishedWeights(NamedTuple):
    """Published file of weights.

    Attributes:
        network: what it is.
        config: config file of that network here; empty where there is none.
        figure: what was measured with it, and who says so; empty where its publisher says nothing of it alone.
        source: page on which its publisher names it.
        url: address of the file; empty where ``source`` has to be visited.
        md5: hash that its publisher gives, in hexadecimal; empty where there is none.
        sha256: likewise.
        size: number of its bytes; 0 where nobody says.
        file: name of it, where the address has none.
    """

    network: str
    config: str
    figure: str
    source: str
    url: str = ""
    md5: str = ""
    sha256: str = ""
    size: int = 0
    file: str = ""

    @property
    def address(self) -> Address:
        """What is downloaded."""
        return Address(self.url, self.sha256, self.md5, self.size, self.file)


_DDPM = "Ho, Jain, Abbeel, Denoising Diffusion Probabilistic Models, NeurIPS 2020"
_DDIM = "Song, Meng, Ermon, Denoising Diffusion Implicit Models, ICLR 2021"
_EDM = "Karras, Aittala, Aila, Laine, Elucidating the Design Space of Diffusion-Based Generative Models, NeurIPS 2022"
_ADM = "Dhariwal, Nichol, Diffusion Models Beat GANs on Image Synthesis, NeurIPS 2021"
_SDE = "Song et al., Score-Based Generative Modeling through Stochastic Differential Equations, ICLR 2021"
_PESSER = "https://github.com/pesser/pytorch_diffusion"
_HEIBOX = "https://heibox.uni-heidelberg.de/f"
_EDM_PAGE = "https://github.com/NVlabs/edm"
_EDM_FILES = "https://nvlabs-fi-cdn.nvidia.com/edm/pretrained"
_GUIDED_PAGE = "https://github.com/openai/guided-diffusion"
_GUIDED_FILES = "https://openaipublic.blob.core.windows.net/diffusion/jul-2021"
_IMPROVED_PAGE = "https://github.com/openai/improved-diffusion"
_IMPROVED_FILES = "https://openaipublic.blob.core.windows.net/diffusion/march-2021"
_SDE_PAGE = "https://github.com/yang-song/score_sde_pytorch"


def _ddpm(network: str, config: str, figure: str, link: str, md5: str, file: str) -> PublishedWeights:
    """Makes a row of DDPM's checkpoints, as pesser converted them to PyTorch."""
    return PublishedWeights(network, config, figure, _PESSER, f"{_HEIBOX}/{link}/?dl=1", md5=md5, file=file)


def _edm(name: str, network: str, figure: str = "") -> PublishedWeights:
    return PublishedWeights(f"EDM, {network}", "", figure, _EDM_PAGE, f"{_EDM_FILES}/{name}.pkl")


def _guided(name: str, network: str, figure: str = "", sha256: str = "", size: int = 0) -> PublishedWeights:
    network = f"guided-diffusion, {network}"
    return PublishedWeights(network, "", figure, _GUIDED_PAGE, f"{_GUIDED_FILES}/{name}.pt", sha256=sha256, size=size)


def _improved(name: str, network: str, figure: str = "") -> PublishedWeights:
    network = f"improved-diffusion, {network}"
    return PublishedWeights(network, "", figure, _IMPROVED_PAGE, f"{_IMPROVED_FILES}/{name}.pt")


def _score_sde(network: str, fid: str) -> PublishedWeights:
    return PublishedWeights(f"score_sde, {network}", "", f"FID {fid} ({_SDE}; table in its README)", _SDE_PAGE)


PUBLISHED_WEIGHTS: dict[str, PublishedWeights] = {
    # Those that the DDIM paper draws from. "ema-" are the moving averages, with which all its figures were made.
    "ema-cifar10": _ddpm(
        "DDPM, CIFAR-10, averaged", "configs/cifar10.py",
        f"FID 3.21 with 1,000 steps ({_PESSER}); 4.16 by DDIM with 100 ({_DDIM}, table 1)",
        "2e4f01e2d9ee49bab1d5", "1fa350b952534ae442b1d5235cce5cd3", "ema_diffusion_cifar10_model-790000.ckpt",
    ),
    "cifar10": _ddpm(
        "DDPM, CIFAR-10, not averaged", "configs/cifar10.py", f"FID 12.14 with 1,000 steps ({_PESSER})",
        "869980b53bf5416c8a28", "82ed3067fd1002f5cf4c339fb80c4669", "diffusion_cifar10_model-790000.ckpt",
    ),
    "ema-lsun-bedroom": _ddpm(
        "DDPM, LSUN bedroom 256x256, averaged", "configs/lsun.py:bedroom",
        f"FID 6.36 with 1,000 steps ({_DDPM}); 6.62 by DDIM with 100 ({_DDIM}, table 3)",
        "b95206528f384185889b", "1921fa46b66a3665e450e42f36c2720f", "ema_diffusion_lsun_bedroom_model-2388000.ckpt",
    ),
    "lsun-bedroom": _ddpm(
        "DDPM, LSUN bedroom 256x256, not averaged", "configs/lsun.py:bedroom", "",
        "f179d4f21ebc4d43bbfe", "f70280ac0e08b8e696f42cb8e948ff1c", "diffusion_lsun_bedroom_model-2388000.ckpt",
    ),
    "ema-lsun-cat": _ddpm(
        "DDPM, LSUN cat 256x256, averaged", "configs/lsun.py:cat", "",
        "0701aac3aa69457bbe34", "646f23f4821f2459b8bafc57fd824558", "ema_diffusion_lsun_cat_model-1761000.ckpt",
    ),
    "lsun-cat": _ddpm(
        "DDPM, LSUN cat 256x256, not averaged", "configs/lsun.py:cat", "",
        "fac870bd988348eab88e", "bbee0e7c3d7abfb6e2539eaf2fb9987b", "diffusion_lsun_cat_model-1761000.ckpt",
    ),
    "ema-lsun-church": _ddpm(
        "DDPM, LSUN church 256x256, averaged", "configs/lsun.py:church",
        f"FID 7.89 with 1,000 steps ({_DDPM}); 10.58 by DDIM with 100 ({_DDIM}, table 3)",
        "44ccb50ef3c6436db52e", "fdc68a23938c2397caba4a260bc2445f", "ema_diffusion_lsun_church_model-4432000.ckpt",
    ),
    "lsun-church": _ddpm(
        "DDPM, LSUN church 256x256, not averaged", "configs/lsun.py:church", "",
        "2711a6f712e34b06b9d8", "eb619b8a5ab95ef80f94ce8a5488dae3", "diffusion_lsun_church_model-4432000.ckpt",
    ),
    "ddim-celeba": PublishedWeights(
        "DDIM, CelebA 64x64", "configs/celeba.py", f"FID 6.53 by DDIM with 100 steps ({_DDIM}, table 1)",
        "https://drive.google.com/file/d/1R_H-fJYXSH79wfSKs9D-fuKQVan5L-GR/view",
    ),
    "edm-cifar10-32x32-cond-vp": _edm(
        "edm-cifar10-32x32-cond-vp", "CIFAR-10, by class, VP", f"FID 1.79 with 18 Heun steps ({_EDM})"
    ),
    "edm-cifar10-32x32-uncond-vp": _edm(
        "edm-cifar10-32x32-uncond-vp", "CIFAR-10, VP", f"FID 1.97 with 18 Heun steps ({_EDM})"
    ),
    "edm-ffhq-64x64-uncond-vp": _edm(
        "edm-ffhq-64x64-uncond-vp", "FFHQ 64x64, VP", f"FID 2.39 with 40 Heun steps ({_EDM})"
    ),
    "edm-afhqv2-64x64-uncond-vp": _edm(
        "edm-afhqv2-64x64-uncond-vp", "AFHQv2 64x64, VP", f"FID 1.96 with 40 Heun steps ({_EDM})"
    ),
    "edm-baseline-cifar10-32x32-uncond-vp": _edm(
        "baseline/baseline-cifar10-32x32-uncond-vp", "baseline: CIFAR-10 of score_sde, VP"
    ),
    "openai-imagenet-64": _guided("64x64_diffusion", "ImageNet 64x64, by class", f"FID 2.07 ({_ADM})"),
    "openai-imagenet-128": _guided("128x128_diffusion", "ImageNet 128x128, by class"),
    "openai-imagenet-256": _guided("256x256_diffusion", "ImageNet 256x256, by class"),
    "openai-imagenet-256-uncond": _guided(
        "256x256_diffusion_uncond", "ImageNet 256x256", "",
        "a37c32fffd316cd494cf3f35b339936debdc1576dad13fe57c42399a5dbc78b1", 2_211_383_297,
    ),
    "openai-imagenet-512": _guided("512x512_diffusion", "ImageNet 512x512, by class"),
    "openai-lsun-bedroom": _guided("lsun_bedroom", "LSUN bedroom 256x256", f"FID 1.90 with 1,000 steps ({_ADM})"),
    "openai-lsun-cat": _guided("lsun_cat", "LSUN cat 256x256", f"FID 5.57 with 1,000 steps ({_ADM})"),
    "openai-lsun-horse": _guided("lsun_horse", "LSUN horse 256x256", f"FID 2.57 with 1,000 steps ({_ADM})"),
    "openai-lsun-horse-nodropout": _guided("lsun_horse_nodropout", "LSUN horse 256x256, without dropout"),
    "openai-cifar10": _improved("cifar10_uncond_50M_500K", "CIFAR-10, L_hybrid, cosine schedule"),
    "openai-cifar10-vlb": _improved("cifar10_uncond_vlb_50M_500K", "CIFAR-10, L_vlb, cosine schedule"),
    "openai-imagenet-64-uncond": _improved("imagenet64_uncond_100M_1500K", "ImageNet 64x64, L_hybrid, cosine schedule"),
    "openai-imagenet-64-uncond-vlb": _improved(
        "imagenet64_uncond_vlb_100M_1500K", "ImageNet 64x64, L_vlb, cosine schedule"
    ),
    "openai-imagenet-64-cond": _improved("imagenet64_cond_270M_250K", "ImageNet 64x64, by class, cosine schedule"),
    "openai-lsun-bedroom-bs128": _improved("lsun_uncond_100M_1200K_bs128", "LSUN bedroom 256x256, learning rate 1e-4"),
    "openai-lsun-bedroom-bs64": _improved("lsun_uncond_100M_2400K_bs64", "LSUN bedroom 256x256, learning rate 2e-5"),
    "score-sde-vp-cifar10-ddpmpp-continuous": _score_sde(
        "CIFAR-10, VP, DDPM++ continuous", "2.55"
    ),
    "score-sde-vp-cifar10-ddpmpp-deep-continuous": _score_sde(
        "CIFAR-10, VP, DDPM++ deep, continuous", "2.41"
    ),
    "score-sde-ve-cifar10-ncsnpp-continuous": _score_sde(
        "CIFAR-10, VE, NCSN++ continuous", "2.38"
    ),
    "score-sde-ve-cifar10-ncsnpp-deep-continuous": _score_sde(
        "CIFAR-10, VE, NCSN++ deep, continuous", "2.20"
    ),
}  # fmt: skip


def published_address(name: str) -> Address:
    """Finds the address of published weights.

    Raises:
        UserError: there are none of that name, or they have to be downloaded by hand.
    """
    published = lookup(PUBLISHED_WEIGHTS, name, "published file")
    if not published.url:
        raise UserError(
            f"published:{name} ({published.network}) lies on Google Drive, which wants a person to ask: download it "
            f"from {published.source}, and give the path of the file"
        )
    return published.address
