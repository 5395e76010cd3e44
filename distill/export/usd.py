"""USDZ: the package that phones and headsets show in place, and that USD programs read."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from distill.export.choices import check_formats
from distill.export.frame import Up, srgb_to_linear, turned
from distill.export.mesh import Mesh
from distill.files.atomic import replacing

#: The time of what is in a package, which its bytes hold: 1 January 1980, the first that a ZIP archive knows.
_EPOCH = 315_532_800


def write_usdz(mesh: Mesh, path: Path, *, up: Up = "y", of: str | None = None) -> None:
    """Write a USDZ package: normals, texture or else vertex colours, and a rough, non-metallic UsdPreviewSurface.

    Metres, with the upward axis of ``up``. The prims, their material and the texture are named as the file, with _ for what a
    prim's name may not have.

    Args:
        mesh: in the internal frame.
        path: the file.
        up: as in ``distill.export.files.save_mesh``.
        of: name of the full mesh, where this is a level of one and has its material.

    Raises:
        ValueError: the package usd-core is missing.
    """
    check_formats(["usdz"])
    from pxr import Sdf, Tf, UsdUtils

    name = Tf.MakeValidIdentifier(path.stem)
    with tempfile.TemporaryDirectory() as folder:
        layer = Path(folder) / f"{name}.usdc"
        if mesh.texture is not None:
            Image.fromarray(mesh.texture).save(layer.with_suffix(".png"))
        _write_stage(mesh, layer, name, Tf.MakeValidIdentifier(of or path.stem), up)
        for file in Path(folder).iterdir():
            os.utime(file, (_EPOCH, _EPOCH))
        with replacing(path) as part:
            if not UsdUtils.CreateNewUsdzPackage(Sdf.AssetPath(str(layer)), str(part)):
                raise OSError(f"{path} could not be packed as USDZ")


def _write_stage(mesh: Mesh, file: Path, name: str, surface: str, up: Up) -> None:
    """Write the layer of a package, whose texture lies beside it."""
    from pxr import Kind, Sdf, Usd, UsdGeom, UsdShade, Vt

    stage = Usd.Stage.CreateNew(str(file))
    UsdGeom.SetStageUpAxis(stage, UsdGeom.Tokens.y if up == "y" else UsdGeom.Tokens.z)
    UsdGeom.SetStageMetersPerUnit(stage, 1.0)
    root = UsdGeom.Xform.Define(stage, f"/{name}").GetPrim()
    stage.SetDefaultPrim(root)
    Usd.ModelAPI(root).SetKind(Kind.Tokens.component)
    shape = UsdGeom.Mesh.Define(stage, f"/{name}/{name}")
    vertices = turned(mesh.vertices, up).astype(np.float32)
    shape.CreatePointsAttr(Vt.Vec3fArray.FromNumpy(vertices))
    shape.CreateExtentAttr(Vt.Vec3fArray.FromNumpy(np.stack([vertices.min(0), vertices.max(0)])))
    shape.CreateFaceVertexCountsAttr(Vt.IntArray.FromNumpy(np.full(len(mesh.faces), 3, np.int32)))
    shape.CreateFaceVertexIndicesAttr(Vt.IntArray.FromNumpy(mesh.faces.astype(np.int32).ravel()))
    shape.CreateSubdivisionSchemeAttr(UsdGeom.Tokens.none)
    shape.CreateNormalsAttr(Vt.Vec3fArray.FromNumpy(turned(mesh.normals, up).astype(np.float32)))
    shape.SetNormalsInterpolation(UsdGeom.Tokens.vertex)
    kinds, primvars = Sdf.ValueTypeNames, UsdGeom.PrimvarsAPI(shape)
    if mesh.texture is not None and mesh.uv is not None:
        at = primvars.CreatePrimvar("st", kinds.TexCoord2fArray, UsdGeom.Tokens.vertex)
        at.Set(Vt.Vec2fArray.FromNumpy(mesh.uv.astype(np.float32)))
    elif mesh.colours is not None:
        colours = primvars.CreatePrimvar("displayColor", kinds.Color3fArray, UsdGeom.Tokens.vertex)
        colours.Set(Vt.Vec3fArray.FromNumpy(srgb_to_linear(mesh.colours).astype(np.float32)))
    # A prim beside the shape has to have another name, whatever the shape's is.
    scope = "Materials" if name != "Materials" else "Looks"
    material = _material(stage, mesh, f"/{name}/{scope}", surface, f"./{name}.png")
    UsdShade.MaterialBindingAPI.Apply(shape.GetPrim()).Bind(material)
    stage.GetRootLayer().Save()


def _material(stage: Any, mesh: Mesh, scope: str, name: str, picture: str) -> Any:
    """Define a UsdPreviewSurface whose colour is the texture, or the vertices' colours."""
    from pxr import Gf, Sdf, UsdShade

    kinds = Sdf.ValueTypeNames
    # Without a type: Blender makes an object of a Scope, and then another one of the root, which has two children.
    stage.DefinePrim(scope)
    material = UsdShade.Material.Define(stage, f"{scope}/{name}")

    def shader(kind: str, part: str) -> Any:
        made = UsdShade.Shader.Define(stage, material.GetPath().AppendChild(part))
        made.CreateIdAttr(kind)
        return made

    surface = shader("UsdPreviewSurface", "surface")
    surface.CreateInput("roughness", kinds.Float).Set(0.9)
    surface.CreateInput("metallic", kinds.Float).Set(0.0)
    material.CreateSurfaceOutput().ConnectToSource(surface.CreateOutput("surface", kinds.Token))
    colour = surface.CreateInput("diffuseColor", kinds.Color3f)
    if mesh.texture is not None:
        reader, texture = shader("UsdPrimvarReader_float2", "uv"), shader("UsdUVTexture", "colour")
        reader.CreateInput("varname", kinds.String).Set("st")
        texture.CreateInput("file", kinds.Asset).Set(Sdf.AssetPath(picture))
        texture.CreateInput("sourceColorSpace", kinds.Token).Set("sRGB")
        texture.CreateInput("wrapS", kinds.Token).Set("clamp")
        texture.CreateInput("wrapT", kinds.Token).Set("clamp")
        texture.CreateInput("st", kinds.Float2).ConnectToSource(reader.CreateOutput("result", kinds.Float2))
        colour.ConnectToSource(texture.CreateOutput("rgb", kinds.Float3))
    elif mesh.colours is not None:
        reader = shader("UsdPrimvarReader_float3", "colour")
        reader.CreateInput("varname", kinds.String).Set("displayColor")
        colour.ConnectToSource(reader.CreateOutput("result", kinds.Float3))
    else:
        colour.Set(Gf.Vec3f(0.8))
    return material
