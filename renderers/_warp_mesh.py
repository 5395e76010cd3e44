# mypy: ignore-errors
# Kernels are typed by Warp, whose types Python checkers do not follow.
"""Rays against triangles, through Warp's bounding volume hierarchy on CPU and CUDA."""

from typing import Any, Self

import torch
import warp as wp
from torch import Tensor

from distill.renderers import _warp

wp.set_module_options({"enable_backward": False})


@wp.kernel
def cast(
    first: int,
    mesh: wp.uint64,
    origins: wp.array(dtype=wp.vec3),
    directions: wp.array(dtype=wp.vec3),
    face: wp.array(dtype=wp.int32),
    distance: wp.array(dtype=wp.float32),
    weight: wp.array(dtype=wp.vec3),
):
    r = first + wp.tid()
    hit = wp.mesh_query_ray(mesh, origins[r], directions[r], 1.0e10)
    face[r] = -1
    if hit.result:
        face[r] = hit.face
        distance[r] = hit.t
        weight[r] = wp.vec3(hit.u, hit.v, 1.0 - hit.u - hit.v)


@wp.kernel
def nearest(
    first: int, mesh: wp.uint64, points: wp.array(dtype=wp.vec3), distance: wp.array(dtype=wp.float32)
):
    i = first + wp.tid()
    found = wp.mesh_query_point_no_sign(mesh, points[i], 1.0e10)
    distance[i] = wp.length(points[i] - wp.mesh_eval_position(mesh, found.face, found.u, found.v))


class Caster:
    """Casts rays at a mesh on one device, and finds what is nearest.

    Args:
        vertices: shape ``[v, 3]``, on the CPU or on CUDA.
        faces: shape ``[f, 3]``, there too.
    """

    def __init__(self, vertices: Tensor, faces: Tensor) -> None:
        # Warp reads their memory, which must live as long as the hierarchy.
        self._kept = vertices.float().contiguous(), faces.int().contiguous()
        points = _warp.view(self._kept[0], wp.vec3)
        self._mesh = wp.Mesh(points, _warp.view(self._kept[1].view(-1), wp.int32))
        wp.synchronize_device(
            str(vertices.device)
        )  # built once, on Warp's own stream, and used on any of torch's

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self

    def __call__(self, origins: Tensor, directions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Find where rays first meet the mesh, from either side.

        Args:
            origins: shape ``[n, 3]``.
            directions: unit, shape ``[n, 3]``.

        Returns:
            The faces, -1 where there is none, ``[n]``; the distances, ``[n]``; and the barycentric weights of the faces'
            corners, ``[n, 3]``.
        """
        n, device = len(origins), origins.device
        face = torch.empty(n, dtype=torch.int32, device=device)
        distance, weight = torch.zeros(n, device=device), torch.zeros(n, 3, device=device)
        rays = [_warp.view(rays.float().contiguous(), wp.vec3) for rays in (origins, directions)]
        found = [_warp.view(face, wp.int32), _warp.view(distance, wp.float32), _warp.view(weight, wp.vec3)]
        _warp.launch(cast, n, [wp.uint64(self._mesh.id), *rays, *found], device)
        return face.long(), distance, weight

    def distance(self, points: Tensor) -> Tensor:
        """Distance from points to the nearest place of the mesh; shapes ``[n, 3]`` to ``[n]``."""
        found = torch.empty(len(points), device=points.device)
        arrays = _warp.view(points.float().contiguous(), wp.vec3), _warp.view(found, wp.float32)
        _warp.launch(nearest, len(points), [wp.uint64(self._mesh.id), *arrays], points.device)
        return found
