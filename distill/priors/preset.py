"""What is known of a prior by its name alone, before it is found or loaded: its pipeline, and the preset of its family."""

from __future__ import annotations

import json

from distill.files.paths import user_path


def preset_of(prior: str, *, single: bool = False) -> str:
    """The preset of a prior's family, ``none`` where the family is not known; ``embedded`` for a prior of the embedded world.

    One whose network is given cameras has ``multi_view``, unless it is to take a ``single`` picture at a time.
    """
    from distill.embedded.vocabulary import of_prior
    from distill.priors.families import FAMILIES

    if of_prior(prior):
        return "embedded"
    if not single and told_cameras(prior):
        return "multi_view"
    family = FAMILIES.get(pipeline_of(prior))
    return family.preset if family else "none"


def told_cameras(prior: str) -> bool:
    """Tell whether a prior's network is given cameras, from the table, a folder's settings or a file's head."""
    from distill.embedded.vocabulary import SHIPPED
    from distill.priors.multi_view.attention import takes_cameras
    from distill.priors.multi_view.published import has_cameras_beside

    if pipeline_of(prior) == "MVDreamPipeline":
        return True
    folder = SHIPPED.get(prior) or user_path(prior)
    try:
        said = json.loads((folder / "unet" / "config.json").read_text())
        return takes_cameras(said) or has_cameras_beside(folder)
    except (OSError, ValueError, AttributeError):
        return False


def shown_picture(prior: str) -> bool:
    """Tell whether a prior is ImageDream, which is shown the picture itself: from the table, its settings or its file's head."""
    from distill.priors.header import shapes_of
    from distill.priors.multi_view.published import PROMPTED, marked
    from distill.priors.source import is_single
    from distill.priors.table import MODELS

    if prior in MODELS:
        return MODELS[prior].pictured
    try:
        if is_single(prior):
            return PROMPTED in marked(shapes_of(user_path(prior)))
        return bool(json.loads((user_path(prior) / "unet" / "config.json").read_text()).get("ip_dim"))
    except (OSError, ValueError, AttributeError):
        return False


def pipeline_of(prior: str) -> str:
    """The pipeline's class of a prior in the table, in a local folder or in a file, empty where none says it."""
    from distill.priors.header import kind_of, shapes_of
    from distill.priors.source import is_single
    from distill.priors.table import MODELS

    if prior in MODELS:
        return MODELS[prior].pipeline
    try:
        if is_single(prior):
            file = user_path(prior)
            return kind_of(file, shapes_of(file)).pipeline
        index = json.loads((user_path(prior) / "model_index.json").read_text())
        return str(index.get("_class_name", ""))
    except (OSError, ValueError, AttributeError):
        return ""
