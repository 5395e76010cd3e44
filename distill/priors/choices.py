"""What options of a prior may be, without loading one."""

from __future__ import annotations

#: How ImageDream's picture enters, see ``distill.priors.multi_view.image_prompt``.
IP_MODES = ("auto", "pixel", "local")
#: A novel-view model's fourth number: the difference of distances, or as Stable-Zero123 has it the condition's polar angle.
FOURTH = ("distance", "polar")
