"""The report page: self-contained, escaped, and its viewer reads what the exporter writes."""

from __future__ import annotations

import base64
import hashlib
import json
import math
import os
import shutil
import subprocess
from dataclasses import replace
from html.parser import HTMLParser
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trimesh
from browser import find_browser, open_tab
from PIL import Image
from trimesh.exchange.gltf import export_glb
from trimesh.visual import TextureVisuals
from trimesh.visual.material import PBRMaterial

from distill.export.files import COLOURS, complete, write_glb
from distill.export.mesh import Mesh, vertex_normals
from distill.export.report import curves, flatten, write_report
from distill.meshes.look import set_factor

PROMPT = 'a <script>alert("hi")</script> cat & <b>dog</b>'


class Page(HTMLParser):
    """The elements of a page: attributes by tag, and the text of scripts, title and headings."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[str, list[str]] = {}
        self._open = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self._open = tag
        self.texts.setdefault(tag, []).append("")

    def handle_endtag(self, tag: str) -> None:
        self._open = ""

    def handle_data(self, data: str) -> None:
        if self._open:
            self.texts[self._open][-1] += data

    def tags(self) -> set[str]:
        return {tag for tag, _ in self.elements}


def tetrahedron(colours: bool = True) -> Mesh:
    vertices = np.array([[1, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]], np.float32) * np.float32(0.5)
    faces = np.array([[0, 1, 2], [0, 3, 1], [0, 2, 3], [1, 3, 2]])
    tint = np.eye(4, 3, dtype=np.float32) if colours else None
    return Mesh(vertices, faces, vertex_normals(vertices, faces), colours=tint)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_glb(tetrahedron(), tmp_path / "mesh.glb")
    (tmp_path / "turntable.mp4").write_bytes(b"not really a video")
    (tmp_path / "contact.png").write_bytes(b"nor a picture")
    (tmp_path / "metrics.jsonl").write_text('{"step": 0, "sds": 2.0}\n{"step": 10, "sds": 1.0}\n')
    (tmp_path / "config.yaml").write_text("scale: 20 # <not a tag>\n")
    (tmp_path / "manifest.json").write_text(json.dumps({"prompt": PROMPT, "mesh": {"faces": 4}}))
    return tmp_path


def test_prompt_is_shown_as_text_and_never_as_markup(folder: Path) -> None:
    text = write_report(folder).read_text()
    page = Page(text)
    assert page.texts["h1"] == [PROMPT] and page.texts["title"] == [PROMPT]
    assert "<script>alert" not in text and "b" not in page.tags()
    assert page.texts["pre"] == ["scale: 20 # <not a tag>\n"]


def test_page_loads_nothing_from_elsewhere(folder: Path) -> None:
    text = write_report(folder).read_text()
    assert "http://" not in text and "https://" not in text and "@import" not in text
    links = [
        value
        for _, attributes in Page(text).elements
        for name, value in attributes.items()
        if name in ("src", "href", "data", "poster", "action")
    ]
    assert len(links) == 2 and all((link or "").startswith("data:") for link in links)


def test_policy_admits_the_viewer_by_the_hash_of_what_the_page_holds(folder: Path) -> None:
    page = Page(write_report(folder).read_text())
    glb, script = page.texts["script"]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = next(a["content"] for _, a in page.elements if a.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None and f"script-src 'sha256-{digest}'" in policy and "default-src 'none'" in policy
    assert base64.b64decode(glb) == (folder / "mesh.glb").read_bytes()


def test_the_viewer_shows_a_glb_that_was_exported_again_and_saves_it_under_its_name(folder: Path) -> None:
    (folder / "mesh.glb").unlink()
    again = [{"meshes": ["gone.glb"]}, {"meshes": ["mug.stl", "mug.glb", "mug_lod1.glb"]}, {"meshes": ["mug.usdz"]}, {"meshes": ["missing.glb"]}]  # fmt: skip
    for name, colours in (("gone.glb", True), ("mug.glb", False)):
        write_glb(tetrahedron(colours), folder / name)
    (folder / "manifest.json").write_text(json.dumps({"export": {"meshes": ["mesh.stl"]}, "exports": again}))
    page = Page(write_report(folder).read_text())
    assert base64.b64decode(page.texts["script"][0]) == (folder / "mug.glb").read_bytes()  # the last one
    (told,) = (attributes for tag, attributes in page.elements if attributes.get("id") == "glb")
    assert told["data-name"] == "mug.glb" and "canvas" in page.tags()
    # The run's own one comes first.
    (folder / "manifest.json").write_text(json.dumps({"export": {"meshes": ["gone.glb"]}, "exports": again}))
    page = Page(write_report(folder).read_text())
    assert base64.b64decode(page.texts["script"][0]) == (folder / "gone.glb").read_bytes()


def test_the_viewer_saves_the_glb_under_its_name() -> None:
    if shutil.which("node") is None:
        pytest.skip("node is not installed")
    # A document whose buttons keep what is done on a click, and whose links are kept.
    program = """
const clicks = {}, links = [], glb = { textContent: "QUJD", dataset: { name: "mug.glb" } };
const element = (id) => ({ addEventListener: (kind, done) => { clicks[id] = done; }, setAttribute() {} });
const document = { getElementById: (id) => id === "glb" ? glb : element(id),
  createElement: () => (links.push({ click() {} }), links.at(-1)) };
const window = { matchMedia: () => ({ matches: true }) };
URL.createObjectURL = () => "blob:here"; URL.revokeObjectURL = () => {};
"""
    source = files("distill.export").joinpath("viewer.js").read_text()
    command = ["node", "-e", f"{program}\n{source}\nclicks.save(); console.log(links[0].download);"]
    assert subprocess.run(command, check=True, capture_output=True, text=True).stdout == "mug.glb\n"


def test_video_is_embedded_byte_for_byte(folder: Path) -> None:
    page = Page(write_report(folder).read_text())
    source = next(attributes["src"] for tag, attributes in page.elements if tag == "video")
    assert base64.b64decode((source or "").split(",")[1]) == b"not really a video"


def test_what_is_missing_is_left_out(tmp_path: Path) -> None:
    run = tmp_path / "a-red-cat"
    run.mkdir()
    page = Page(write_report(run).read_text())
    assert not page.tags() & {"canvas", "video", "img", "svg", "table", "pre", "script"}
    assert page.texts["h1"] == ["a-red-cat"]


def test_title_can_be_given_and_rewriting_gives_the_same_page(folder: Path) -> None:
    first = write_report(folder, title="mine").read_bytes()
    assert write_report(folder, title="mine").read_bytes() == first
    assert b"<h1>mine</h1>" in first
    assert not list(folder.glob(".*"))


def test_curve_maps_steps_to_the_width_and_values_to_the_height() -> None:
    (curve,) = curves([{"step": 10, "a": 3.0}, {"step": 20, "a": 2.0}, {"step": 30, "a": 1.0}])
    assert curve["raw"] == "0.0,0.0 150.0,50.0 300.0,100.0 300.0,100.0"
    assert (curve["low"], curve["high"], curve["last"]) == ("1", "3", "1")


def test_curve_skips_what_is_not_a_finite_number() -> None:
    records: list[dict[str, Any]] = [
        {"step": 0, "a": 1.0, "note": "x", "flag": True},
        {"step": 1, "a": math.nan, "note": "y", "flag": False},
        {"step": 2, "a": math.inf},
        {"step": 3, "a": 3.0, "once": 1.0},
    ]
    (curve,) = curves(records)
    assert curve["name"] == "a" and (curve["low"], curve["high"]) == ("1", "3")


def test_long_curve_is_thinned_but_keeps_its_last_point() -> None:
    (curve,) = curves([{"step": step, "a": float(step)} for step in range(5001)])
    points = curve["raw"].split()
    assert len(points) <= 302 and points[-1] == "300.0,0.0"


def test_running_mean_of_a_line_is_the_line_and_of_noise_is_calmer() -> None:
    (line,) = curves([{"step": step, "a": 2.0 * step} for step in range(101)])
    assert line["mean"].split()[5:96] == line["raw"].split()[5:96]
    (noise,) = curves([{"step": step, "a": float((-1) ** step)} for step in range(200)])
    heights = [float(point.split(",")[1]) for point in noise["mean"].split()[10:-11]]
    assert max(abs(height - 50) for height in heights) < 50 / 21 + 0.1


def test_constant_curve_is_a_level_line() -> None:
    (curve,) = curves([{"step": step, "a": 0.01} for step in range(3)])
    assert curve["raw"] == "0,50 300,50"


def test_summary_names_what_made_the_asset(folder: Path) -> None:
    manifest = {"prompt": "a cat", "seed": 3, "prior": {"name": "embedded", "sha256": {}}, "iterations": 9}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    page = Page(write_report(folder).read_text())
    assert page.texts["p"][0] == "prior embedded \N{MIDDLE DOT} iterations 9 \N{MIDDLE DOT} seed 3"


def test_links_lead_to_folders_of_any_name(folder: Path) -> None:
    row = {"folder": "seed 1%", "seed": 1, "state": "finished", "score": None, "seconds": 1.0}
    stages = [{"stage": "a", "folder": "stages/1-a#b", "iterations": 1}]
    manifest = {"seeds": [row], "particles": ["particle:0"], "stages": stages}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    page = Page(write_report(folder).read_text())
    assert [attrs["href"] for tag, attrs in page.elements if tag == "a"] == [
        f"{name}/report.html" for name in ("seed%201%25", "particle%3A0", "stages/1-a%23b")
    ]


def test_flatten_joins_names_with_dots() -> None:
    tree = {"a": {"b": 1, "c": {"d": "x"}}, "e": [1, 2], "f": None}
    assert flatten(tree) == [("a.b", "1"), ("a.c.d", "x"), ("e", "[1, 2]"), ("f", "null")]


def test_a_cut_last_line_of_metrics_is_left_out_but_one_in_the_middle_is_an_error(folder: Path) -> None:
    good = '{"step": 0, "a": 1}\n{"step": 1, "a": 2}\n'
    (folder / "metrics.jsonl").write_text(good + '{"step": 2, "a"')
    assert "svg" in Page(write_report(folder).read_text()).tags()
    (folder / "metrics.jsonl").write_text('{"step"\n' + good)
    with pytest.raises(ValueError, match=r"line 1 of .*remove the line") as caught:
        write_report(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", ["{", "[1]"])
def test_bad_manifest_is_named(folder: Path, content: str) -> None:
    (folder / "manifest.json").write_text(content)
    with pytest.raises(ValueError, match=r"manifest\.json.*remove it"):
        write_report(folder)


def test_the_home_folder_is_known(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(folder.parent))
    assert write_report(f"~/{folder.name}") == folder / "report.html"


def test_a_name_that_is_no_text_is_shown_with_question_marks(folder: Path) -> None:
    """Of a path in an encoding of one byte, Python makes characters that UTF-8 does not have."""
    name = os.fsdecode(b"caf\xe9.png")
    (folder / "manifest.json").write_text(json.dumps({"picture": {"file": name}}))
    assert "<h1>caf?.png</h1>" in write_report(folder).read_text("utf-8")


def test_a_folder_that_is_none_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not a folder"):
        write_report(tmp_path / "nowhere")


def in_viewer(expression: str, *arguments: str) -> Any:
    """Evaluate an expression where the viewer's functions are defined; ``args`` are the arguments."""
    if shutil.which("node") is None:
        pytest.skip("node is not installed")
    source = files("distill.export").joinpath("viewer.js").read_text()
    program = (
        "const document = { getElementById: () => null }, args = process.argv.slice(1);\n"
        f"{source}\nconsole.log(JSON.stringify({expression}));"
    )
    command = ["node", "-e", program, "--", *arguments]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def test_viewer_reads_what_the_exporter_writes(folder: Path) -> None:
    model = in_viewer(
        "(({ position, normal, colour, indices }) => ({ position: [...position.data], "
        "normal: [...normal.data], colour: [...colour.data], indices: [...indices.data] }))"
        "(parseGlb(new Uint8Array(require('fs').readFileSync(args[0])).buffer)[0])",
        str(folder / "mesh.glb"),
    )
    mesh = tetrahedron()
    np.testing.assert_allclose(model["position"], mesh.vertices[:, [1, 2, 0]].ravel())
    np.testing.assert_allclose(model["normal"], mesh.normals[:, [1, 2, 0]].ravel(), atol=1e-6)
    assert model["indices"] == mesh.faces.ravel().tolist()
    assert mesh.colours is not None
    np.testing.assert_allclose(
        np.reshape(model["colour"], (4, 3)), mesh.colours
    )  # 0 and 1 are linear as well


def test_viewer_places_every_node_of_a_file(tmp_path: Path) -> None:
    scene, turn = trimesh.Scene(), trimesh.transformations.rotation_matrix(0.8, (1, 2, 3), (1, 0, 2))
    scene.graph.update("group", "world", matrix=turn @ np.diag([2, 3, 1, 1]))
    box = trimesh.creation.box()
    scene.add_geometry(box, geom_name="box", node_name="first", parent_node_name="group", transform=turn)
    scene.graph.update("second", "group", matrix=np.diag([1, 1, -1, 1]), geometry="box")
    (tmp_path / "m.glb").write_bytes(scene.export(file_type="glb", include_normals=True))
    found = in_viewer(
        "parseGlb(new Uint8Array(require('fs').readFileSync(args[0])).buffer).map(({ position, normal }) =>"
        "[[...position.data], [...normal.data]])",
        str(tmp_path / "m.glb"),
    )
    read = trimesh.load_scene(tmp_path / "m.glb", process=False)
    places = [read.graph[name][0] for name in read.graph.nodes_geometry]
    expected = sorted(trimesh.transform_points(box.vertices, place).round(4).tolist() for place in places)
    assert sorted(np.reshape(position, (-1, 3)).round(4).tolist() for position, _ in found) == expected
    for position, normal in found:
        # A box's vertex normals point away from its middle, whatever shears it: n is A^-T times the direction before.
        away, normals = np.reshape(position, (-1, 3)), np.reshape(normal, (-1, 3))
        assert (((away - away.mean(0)) * normals).sum(1) > 0).all()


def test_viewer_camera_is_a_look_at_projection() -> None:
    yaw, pitch, aspect, centre = 0.7, 0.3, 1.5, np.array([0.1, -0.2, 0.3])
    state = json.dumps({"yaw": yaw, "pitch": pitch, "zoom": 1})
    box = json.dumps({"centre": centre.tolist(), "radius": 0.8})
    found = in_viewer(f"camera({state}, {box}, {aspect})")
    matrix = np.reshape(found["matrix"], (4, 4)).T
    back = np.array([np.sin(yaw) * np.cos(pitch), np.sin(pitch), np.cos(yaw) * np.cos(pitch)])
    eye = centre + 1.02 * 0.8 / np.sin(np.pi / 9) * back
    right = np.cross([0, 1, 0], back) / np.linalg.norm(np.cross([0, 1, 0], back))
    up = np.cross(back, right)
    for point in np.random.default_rng(0).uniform(-0.5, 0.5, (20, 3)):
        clip = matrix @ np.append(point, 1)
        ahead = (eye - point) @ back
        expected = np.array([(point - eye) @ right / aspect, (point - eye) @ up]) / ahead / np.tan(np.pi / 9)
        np.testing.assert_allclose(clip[:2] / clip[3], expected, rtol=1e-9, atol=1e-12)
        assert clip[3] == pytest.approx(ahead) and abs(clip[2] / clip[3]) < 1


@pytest.mark.parametrize("aspect", [0.4, 1.0, 1.3, 2.5])
@pytest.mark.parametrize("pitch", [-1.5, 0.25, 0.9])
def test_the_whole_mesh_is_in_the_picture_whichever_way_it_is_turned(aspect: float, pitch: float) -> None:
    found = in_viewer(
        f"camera({{ yaw: 0.5, pitch: {pitch}, zoom: 1 }}, {{ centre: [1, 2, 3], radius: 0.5 }}, {aspect})"
    )
    matrix = np.reshape(found["matrix"], (4, 4)).T
    ball = np.random.default_rng(0).normal(size=(20_000, 3))
    ball = np.array([1, 2, 3]) + 0.5 * ball / np.linalg.norm(ball, axis=1, keepdims=True)
    clip = np.c_[ball, np.ones(len(ball))] @ matrix.T
    reach = np.abs(clip[:, :3] / clip[:, 3:]).max(0)
    assert (reach < 1).all() and reach[:2].max() > 0.95


@pytest.mark.slow
def test_a_colour_is_shown_alike_as_texture_factor_and_colours_of_vertices(tmp_path: Path) -> None:
    """Of a dark colour, too, where a power of 2.2 is far from sRGB."""
    program = find_browser()
    if program is None:
        pytest.skip("no Chromium on this machine")
    shade = np.array([5, 40, 130], np.uint8)
    linear = np.where(shade / 255 <= 0.04045, shade / 255 / 12.92, ((shade / 255 + 0.055) / 1.055) ** 2.4)
    ball = trimesh.creation.icosphere(subdivisions=3)
    uv, pixels = np.full((len(ball.vertices), 2), 0.5), np.tile(shade, (2, 2, 1))
    mesh = Mesh(
        np.asarray(ball.vertices, np.float32), ball.faces, np.asarray(ball.vertex_normals, np.float32)
    )
    coloured = replace(mesh, colours=np.tile(np.float32(shade / 255), (len(uv), 1)))
    seen = []
    for name in ("texture", "vertices", "factor"):
        folder = tmp_path / name
        folder.mkdir()
        if name == "vertices":
            write_glb(coloured, folder / "mesh.glb")
        else:
            own = {"baseColorTexture": Image.fromarray(pixels)} if name == "texture" else {}
            material = PBRMaterial(**own)
            if name == "factor":
                set_factor(material, [*linear.tolist(), 1.0])
            shape = trimesh.Trimesh(ball.vertices, ball.faces, process=False)
            shape.visual = TextureVisuals(uv=uv, material=material)
            shape.export(folder / "mesh.glb", include_normals=True)
        page = write_report(folder)
        flags = ["--headless", "--no-sandbox", "--enable-unsafe-swiftshader", "--use-gl=angle", "--use-angle=swiftshader",
                 "--disable-dev-shm-usage", "--force-prefers-reduced-motion", "--virtual-time-budget=4000",
                 "--window-size=800,700", f"--user-data-dir={tmp_path / 'profile'}", f"--screenshot={folder / 'x.png'}"]  # fmt: skip
        subprocess.run([program, *flags, page.as_uri()], check=True, capture_output=True, timeout=120)
        # The ball alone is bluer than it is red by far; its inner part is free of the edge's smooth steps.
        shown = np.asarray(Image.open(folder / "x.png").convert("RGB"), np.float64)
        rows, columns = np.nonzero(shown[..., 2] - shown[..., 0] > 60)
        y, x = round(rows.mean()), round(columns.mean())
        seen.append(shown[y - 40 : y + 40, x - 40 : x + 40].mean((0, 1)))
    np.testing.assert_allclose(seen[1], seen[0], atol=1)
    np.testing.assert_allclose(seen[2], seen[0], atol=1)
    # The light is between 0.7 and 1.02.
    assert (seen[0] > 0.65 * shade).all() and (seen[0] < 1.05 * shade + 1).all()


#: Alpha mode, cutoff, alpha of the texture, of the factor and of the vertices, and what glTF 2.0 (3.9.4) makes of it.
ALPHAS: list[tuple[Any, ...]] = [
    ("OPAQUE", None, None, 1.0, None, 1.0),
    ("OPAQUE", None, 0.2, 0.5, None, 1.0),
    ("MASK", None, None, 0.4, None, 0.0),
    ("MASK", None, 0.8, 0.8, None, 1.0),
    ("MASK", 0.7, 0.8, 0.8, None, 0.0),
    ("MASK", None, 0.8, 1.0, 0.5, 0.0),
    ("MASK", 0.3, None, 1.0, 0.4, 1.0),
    ("BLEND", None, 0.4, 1.0, None, 0.4),
    ("BLEND", None, None, 1.0, 0.4, 0.4),
    ("BLEND", None, 0.8, 0.5, 0.5, 0.2),
    ("BLEND", None, None, 0.0, None, 0.0),
]
#: Premultiplied RGBA at points of the file, right after the page has drawn it.
PIXELS = """(async (points) => {
  const canvas = document.getElementById("viewer"), gl = canvas.getContext("webgl2");
  const bytes = Uint8Array.from(atob(document.getElementById("glb").textContent.trim()), (c) => c.charCodeAt(0));
  await new Promise(requestAnimationFrame);
  await new Promise(requestAnimationFrame);
  const m = camera({ yaw: 0.5, pitch: 0.25, zoom: 1 }, bounds(parseGlb(bytes.buffer)), canvas.width / canvas.height).matrix;
  return points.map((p) => {
    const [x, y, , w] = [0, 1, 2, 3].map((k) => m[k] * p[0] + m[4 + k] * p[1] + m[8 + k] * p[2] + m[12 + k]);
    const found = new Uint8Array(4);
    gl.readPixels(canvas.width * (1 + x / w) / 2, canvas.height * (1 + y / w) / 2, 1, 1, gl.RGBA, gl.UNSIGNED_BYTE, found);
    return [...found];
  });
})"""


@pytest.mark.slow
def test_the_viewer_shows_alpha_as_the_material_s_mode_says(tmp_path: Path) -> None:
    """Squares in a row: by itself each is premultiplied with its alpha, and one that is blended lets one behind it through."""
    program = find_browser()
    if program is None:
        pytest.skip("no Chromium on this machine")
    corners = np.array([[-1.0, -1, 0], [1, -1, 0], [1, 1, 0], [-1, 1, 0]])
    scene = trimesh.Scene()

    def add(
        place: tuple[float, float, float], mode: str, cutoff: Any, *alphas: Any, blue: bool = False
    ) -> None:
        texture, factor, vertices = alphas
        pixels = np.full((2, 2, 4), 255, np.uint8)
        if texture is not None:
            pixels[..., 3] = round(255 * texture)
        material = PBRMaterial(alphaMode=mode, alphaCutoff=cutoff)
        if texture is not None:
            material.baseColorTexture = Image.fromarray(pixels)
        set_factor(material, [0.2, 0.1, 0.8 if blue else 0.1, factor])
        shape = trimesh.Trimesh(
            corners + place, [[0, 1, 2], [0, 2, 3]], vertex_normals=[[0, 0, 1]] * 4, process=False
        )
        shape.visual = TextureVisuals(uv=np.full((4, 2), 0.5), material=material)
        if vertices is not None:
            shape.vertex_attributes[COLOURS] = np.array([[1, 1, 1, vertices]] * 4, np.float32)
        scene.add_geometry(shape)

    places = [(3.0 * number, 0.0, 0.0) for number in range(len(ALPHAS))]
    for place, (*case, _) in zip(places, ALPHAS, strict=True):
        add(place, *case)
    front, behind, bare = (0.0, 4.0, 0.0), (0.0, 4.0, -0.1), (6.0, 4.0, 0.0)
    add(front, "BLEND", None, None, 0.5, None)  # before the other in the file
    add(behind, "OPAQUE", None, None, 1.0, None, blue=True)
    add(bare, "OPAQUE", None, None, 1.0, None, blue=True)
    (tmp_path / "mesh.glb").write_bytes(export_glb(scene, include_normals=True, tree_postprocessor=complete))
    flags = [
        "--enable-unsafe-swiftshader",
        "--use-gl=angle",
        "--use-angle=swiftshader",
        "--force-prefers-reduced-motion",
    ]
    with open_tab(program, tmp_path / "profile", *flags) as tab:
        tab.call("Page.navigate", url=write_report(tmp_path).as_uri())
        tab.until("document.readyState === 'complete' && document.getElementById('viewer').width > 300")
        row, pair, alone = (
            np.array(tab.value(f"{PIXELS}({json.dumps(points)})"), float)
            for points in (places, [front], [bare])
        )
    whole = row[0]
    assert whole[3] == 255 and (whole[:3] > 30).all() and alone[0, 2] > whole[2] + 50
    np.testing.assert_allclose(row, np.array([alpha for *_, alpha in ALPHAS])[:, None] * whole, atol=1.5)
    np.testing.assert_allclose(pair[0], 0.5 * whole + 0.5 * alone[0], atol=1.5)
