"""What becomes of each key of a threestudio configuration.

Every key that is known is in one of four tables: ``SAME``, ``CONVERTED``, ``WITHOUT`` and ``QUIET``;
docs/coming-from-threestudio.md lists them, and a test holds the two together. A key of ``WITHOUT`` for which an option is added moves to
``SAME`` or ``CONVERTED``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

from distill.from_threestudio import scene as s
from distill.from_threestudio import values as v
from distill.from_threestudio.scene import OPT, B, M
from distill.from_threestudio.values import IN_PIXELS, LR, OWN, PENALTIES, Conversion, E, G, L, P

#: The same value under another name.
SAME = {
    "seed": "seed",
    "trainer.max_steps": "iterations",
    "trainer.val_check_interval": "log.preview_every",
    P + "negative_prompt": "negative_prompt",
    P + "prompt_front": "views.front",
    P + "prompt_side": "views.side",
    P + "prompt_back": "views.back",
    P + "prompt_overhead": "views.overhead",
    P + "overhead_threshold": "views.overhead_deg",
    P + "use_perp_neg": "perp_neg.enabled",
    P + "perp_neg_f_fs": "perp_neg.front_from_side",
    P + "perp_neg_f_sf": "perp_neg.side_from_front",
    P + "perp_neg_f_sb": "perp_neg.side_from_back",
    P + "perp_neg_f_fsb": "perp_neg.front_from_back",
    "data.fovy_range": "cameras.fov_y_deg",
    "data.camera_distance_range": "cameras.distance",
    "data.camera_perturb": "cameras.position_jitter",
    "data.center_perturb": "cameras.look_at_std",
    "data.up_perturb": "cameras.up_std",
    "data.default_elevation_deg": "reference.elevation_deg",
    "data.default_azimuth_deg": "reference.azimuth_deg",
    "data.default_fovy_deg": "reference.fov_y_deg",
    "data.default_camera_distance": "reference.distance",
    E + "radius": "scene.radius",
    E + "density_blob_std": "scene.blob_radius",
    E + "pos_encoding_config.n_levels": "scene.levels",
    E + "pos_encoding_config.n_features_per_level": "scene.features",
    E + "pos_encoding_config.log2_hashmap_size": "scene.log2_table_size",
    E + "pos_encoding_config.base_resolution": "scene.base_resolution",
    E + "mlp_network_config.n_neurons": "scene.hidden_width",
    E + "mlp_network_config.n_hidden_layers": "scene.hidden_layers",
    E + "density_blob_scale": "scene.blob_scale",
    "system.renderer.num_samples_per_ray": "scene.march_steps",
}

#: Kinds of system, and what each does that is not done here.
SYSTEMS = {
    "dreamfusion-system": "",
    "efficient-dreamfusion-system": "it renders some rays of a view only; render.patch is close to it",
    "magic3d-system": "",
    "prolificdreamer-system": "",
    "sdi-system": "",
    "hifa-system": "",
    "textmesh-system": "it optimises a signed distance; here it is a density",
    "fantasia3d-system": "it optimises a mesh; here it is a density",
    "latentnerf-system": "it renders latents; here colours are rendered and encoded",
    "sjc-system": "it renders latents; here colours are rendered and encoded",
    "image-condition-dreamfusion-system": "",
    "zero123-system": "",
    "zero123-simple-system": "",
    "magic123-system": "",
    "scaledreamer-system": "",
}  # fmt: skip
#: What threestudio takes where a file does not say.
DEFAULTS: Mapping[str, object] = {
    "data.batch_size": 1, "data.height": 64, "data.camera_distance_range": [1.0, 1.5], "data.fovy_range": [40, 70],
    "data.elevation_range": [-10, 90], E + "radius": 1.0, E + "density_activation": "softplus", E + "density_blob_scale": 10.0,
    E + "density_blob_std": 0.5, E + "pos_encoding_config.n_levels": 16, E + "pos_encoding_config.n_features_per_level": 2,
    E + "pos_encoding_config.log2_hashmap_size": 19, E + "pos_encoding_config.base_resolution": 16,
    E + "pos_encoding_config.per_level_scale": 1.447269237440378, E + "mlp_network_config.n_neurons": 64,
    E + "mlp_network_config.n_hidden_layers": 1, "system.renderer.num_samples_per_ray": 512, G + "min_step_percent": 0.02,
    G + "max_step_percent": 0.98, "data.camera_perturb": 0.1, "data.center_perturb": 0.2, "data.up_perturb": 0.02,
    OPT + "name": "Adam",
}  # fmt: skip
#: The same, of the material whose pictures are lit by turns.
LIT_DEFAULTS: Mapping[str, object] = {
    M + "ambient_only_steps": 1000,
    M + "diffuse_prob": 0.75,
    M + "textureless_prob": 0.5,
}


#: Keys whose values are not the same here, each with what reads it.
CONVERTED: Mapping[str, Callable[[Conversion], None]] = {
    key: convert
    for convert, keys in {
        v.words: (P + "prompt",),
        v.views: (P + "front_threshold", P + "back_threshold", G + "view_dependent_prompting"),
        v.prior: ("system.guidance_type", G + "pretrained_model_name_or_path", G + "half_precision_weights"),
        v.guidance: (
            G + "guidance_type", G + "guidance_scale", G + "weighting_strategy", G + "use_img_loss",
            G + "inversion_guidance_scale", G + "inversion_n_steps", G + "inversion_eta", LR + "guidance.lr",
            G + "pretrained_model_name_or_path_lora", G + "cond_scale", G + "uncond_scale", G + "null_scale", G + "noise_scale",
            G + "grad_normalize", G + "perpneg_scale", G + "plus_ratio", G + "plus_random", G + "guidance_perp_neg",
        ),
        v.timesteps: (
            G + "min_step_percent", G + "max_step_percent", G + "sqrt_anneal", G + "t_anneal", G + "trainer_max_steps",
        ),
        v.penalties: (*OWN, *IN_PIXELS, *PENALTIES),
        v.both: (L + "lambda_3d_sd", "system.guidance_3d.guidance_scale"),
        s.optimiser: (OPT + "name", OPT + "args.betas", OPT + "args.eps", OPT + "args.weight_decay"),
        s.rates: (
            OPT + "args.lr", LR + "geometry.lr", LR + "geometry.encoding.lr", LR + "geometry.density_network.lr",
            LR + "geometry.feature_network.lr", LR + "geometry.network.lr", LR + "geometry.sdf_network.lr", LR + "background.lr",
            LR + "background.network.lr",
        ),
        s.size: ("data.height", "data.width", "data.resolution_milestones"),
        s.batch: ("data.batch_size",),
        s.cameras: ("data.elevation_range", "data.azimuth_range", "data.progressive_until", "data.front_back_only_iters"),
        v.picture: ("data.image_path",),
        s.grid: (
            E + "pos_encoding_config.per_level_scale", E + "pos_encoding_config.start_level",
            E + "pos_encoding_config.start_step", E + "pos_encoding_config.update_steps",
        ),
        s.activation: (E + "density_activation",),
        s.geometry: ("system.geometry_type",),
        s.normals: ("system_type", "system.latent_steps", "system.texture", "system.stage"),
        s.shading: (
            "system.material_type", M + "ambient_only_steps", M + "diffuse_prob", M + "textureless_prob", M + "soft_shading",
            M + "textureless_normal",
        ),
        s.background: ("system.background_type", B + "color", B + "random_aug", B + "random_aug_prob"),
        s.checkpoints: ("checkpoint.every_n_train_steps",),
    }.items()
    for key in keys
}  # fmt: skip
#: What reads keys that a file may lack, and what it says all the same.
ALWAYS = (v.guidance, v.timesteps, v.penalties, s.rates)


class Without(NamedTuple):
    """A key without a counterpart.

    Attributes:
        why: or what is close to it.
        off: values at which it has no effect.
    """

    why: str = ""
    off: tuple[object, ...] = ()


ZERO, FALSE = (0,), (False,)
MESH = Without("it is of a mesh or a signed distance")
PROCEDURE = Without("it is of that system alone")
#: Keys without a counterpart, with their values that do nothing; a star stands for the rest of a key.
WITHOUT: dict[str, Without] = {
    "system.material.ambient_light_color": Without("a tenth of the light is ambient", ([0.1, 0.1, 0.1],)),
    "system.material.diffuse_light_color": Without(
        "nine tenths of the light are diffuse", ([0.9, 0.9, 0.9],)
    ),
    "data.light_sample_strategy": Without("lights are drawn as in DreamFusion", ("dreamfusion",)),
    "data.light_position_perturb": Without("it is 1", (1,)),
    "data.light_distance_range": Without("lights are far away"),
    "data.batch_uniform_azimuth": Without("azimuths are always spread evenly over the batch", (True,)),
    "system.optimizer.args.max_grad_norm": Without("optimiser.clip_norm is near to it"),
    "system.optimizer.args.foreach": Without("", (True, False)),
    # The loss.
    G + "token_merging": Without("", FALSE),
    G + "grad_clip": Without("optimiser.clip_norm bounds the scene's gradient"),
    G + "guidance_scale_lora": Without("it is 1", (1,)),
    G + "use_sjc": Without("", FALSE),
    G + "var_red": Without(),
    G + "enable_sdi": Without("", (True,)),
    G + "fixed_size": Without("prior_options.image_size is near to it"),
    G + "return_rgb_1step_orig": Without("", FALSE),
    G + "vsd_phi_model_name_or_path": Without("the LoRA is in the prior itself"),
    G + "vsd_use_camera_condition": Without("guidance.cameras of guidance=vsd", (True,)),
    G + "control_type": Without("prior_options.control and prior_options.controlnet are near to it"),
    G + "condition_scale": Without("prior_options.control_scale is near to it"),
    "system.guidance_3d.*": Without("of a picture's model, guidance.terms has a loss, a weight and a scale"),
    P + "view_dependent_prompt_front": Without("", FALSE),
    P + "use_view_dependent_negative_prompt": Without("", FALSE),
    L + "lambda_lora": Without("it is 1", (1,)),
    L + "lambda_train_phi": Without("it is 1", (1,)),
    L + "lambda_*_img": Without("guidance.image_weight of guidance=hifa is near to it", ZERO),
    L + "lambda_depth": Without("penalties.reference_depth needs a file, reference.depth=", ZERO),
    L + "lambda_depth_rel": Without("penalties.reference_depth needs a file, reference.depth=", ZERO),
    L + "lambda_normal": Without("penalties.reference_normal needs a file, reference.normal=", ZERO),
    L + "lambda_normal_smooth": Without("penalties.smoothness is near to it", ZERO),
    L + "lambda_normal_smoothness_2d": Without("penalties.smoothness is near to it", ZERO),
    L + "lambda_3d_normal_smooth": Without("penalties.smoothness is near to it", ZERO),
    L + "lambda_*": Without("", ZERO),
    L + "*": PROCEDURE,
    # The scene.
    "system.geometry_convert_from": Without("run the first stage here, and give its folder, init=RUN"),
    "system.geometry_convert_inherit_texture": Without("init=RUN takes the whole scene", (True,)),
    "system.weights": Without("run the first stage here, and give its folder, init=RUN"),
    "system.weights_ignore_modules": Without("init=RUN takes the whole scene"),
    "resume": Without("resume=true with the same output_dir="),
    E + "density_bias": Without("the blob is Magic3D's", ("blob_magic3d",)),
    E + "normal_type": Without("normals are analytic", ("analytic",)),
    E + "pos_encoding_config.otype": Without("", ("HashGrid", "ProgressiveBandHashGrid")),
    E + "*": MESH,
    "system.material.*_activation": Without("colours go through a sigmoid", ("sigmoid",)),
    "system.material.*": Without("a field has albedo alone; scene.material=pbr is for a mesh, with mesh="),
    "system.background.color_activation": Without("colours go through a sigmoid", ("sigmoid",)),
    "system.background.*": Without("the network of a learned background is fixed"),
    "system.renderer_type": Without("the scene is a volume", ("nerf-volume-renderer",)),
    "system.renderer.estimator": Without("empty space is skipped by an occupancy grid", ("occgrid",)),
    "system.renderer.grid_prune": Without("empty space is always skipped", (True,)),
    "system.renderer.*": Without("it is of a renderer that is not here"),
    LR + "*": Without("there is no such part"),
    "system.optimizer.optimizer_dis.*": PROCEDURE,
    "system.scheduler.*": Without("optimiser.final_lr is the factor at the end, along a cosine"),
    "system.freq.ref_only_steps": Without("penalties and the loss begin together", ZERO),
    "system.freq.n_ref": PROCEDURE,
    "system.refinement": Without("there is no mesh to refine", FALSE),
    "system.*": PROCEDURE,
    "data.*": Without("it is of a data set, or of another kind of camera"),
}

#: Keys that do not change what is optimised: names, logs, validation, memory.
QUIET = frozenset(
    {
        "name", "tag", "description", "exp_root_dir", "use_timestamp", "timestamp", "n_gpus", "data_type",
        "trainer.*", "checkpoint.*", "data.eval_*", "data.n_val_views", "data.n_test_views", "data.requires_*",
        "system.loggers.*", "system.exporter_type", "system.exporter.*", "system.prompt_processor_type",
        P + "pretrained_model_name_or_path", G + "cond_*", G + "vram_O", G + "pretrained_config", G + "enable_*_cpu_offload",
        G + "enable_attention_slicing", G + "enable_memory_efficient_attention", G + "enable_channels_last_format",
        "system.guidance_3d_type", "system.guidance_3d.cond_*", "system.guidance_3d.guidance_type", "system.renderer.radius",
        "system.renderer.return_*", "system.renderer.context_type", "system.renderer.eval_chunk_size", "system.freq.guidance_eval",
        "system.background.n_output_dims", "system.material.n_output_dims", E + "n_feature_dims", "system.material.requires_normal",
        "system.material.ambient_only_on_test", "system.material.eval_show_albedo", "system.visualize_samples",
        "system.validation_via_video",
        E + "mlp_network_config.otype", E + "mlp_network_config.activation", E + "mlp_network_config.output_activation",
    }
)  # fmt: skip
