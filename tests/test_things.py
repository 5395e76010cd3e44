"""Real objects: their catalogue, table, credits, captions, splits, renders and pack."""

from __future__ import annotations

import hashlib
import importlib
import io
import json
import math
import subprocess
import zipfile
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from distill.embedded import obj, things, world

FOLDER = Path(__file__).parents[1] / "examples" / "embedded"

#: A box of 2 x 4 x 6 in OBJ's axes (x, y up, z to the front), its front red, the rest grey; a hole has a material of its own.
BOX = """mtllib box.mtl
v -1 -2 -3
v 1 -2 -3
v 1 2 -3
v -1 2 -3
v -1 -2 3
v 1 -2 3
v 1 2 3
v -1 2 3
usemtl grey
f 4 3 2 1
f 1 2 6 5
f 3 4 8 7
f 2 3 7 6
f 4 1 5 8
usemtl front
f -4 -3 -2 -1
usemtl none
f 1 2 3
"""
BOX_MTL = "newmtl grey\nKd 0.5 0.5 0.5\nnewmtl front\nKd 0.8 0 0\nnewmtl none\nd 0\nKd 0 1 0\n"
#: A card that stands upright and faces +x in the file; its upper half is blue and its lower half cut out.
CARD = """mtllib card.mtl
v 0 0 1
v 0 0 -1
v 0 2 -1
v 0 2 1
vt 0 0
vt 1 0
vt 1 1
vt 0 1
usemtl picture
f 1/1 2/2 3/3 4/4
"""
CATALOGUE = """# made for a test
license={licence}
id#1=Test#box
name#1=Osaka chair
category#1=Living room
creator#1=Jos\\u00e9
model#1=/test/box/box.obj
width#1=20
height#1=40
depth#1=60
id#2=Test#card
name#2=Electric guitar
category#2=Living room
creator#2=Ann
model#2=/test/card/card.obj
width#2=20
height#2=20
depth#2=1
modelRotation#2=0 0 -1 0 1 0 1 0 0
id#3=Test#plug
name#3=Wall type A plug
category#3=Miscellaneous
creator#3=Ann
model#3=/test/none.obj
width#3=1
height#3=1
depth#3=1
"""


def png(rows: list[list[tuple[int, int, int, int]]]) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.array(rows, np.uint8)).save(file, "png")
    return file.getvalue()


def archive(
    path: Path, licence: str = "Creative Commons Attribution 3.0", **changed: str | bytes | None
) -> Path:
    """Write a catalogue of a plain box and a textured card; ``changed`` replaces files, or leaves them out."""
    blue, clear = (0, 0, 255, 255), (0, 0, 255, 0)
    files: dict[str, str | bytes | None] = {
        "PluginFurnitureCatalog.properties": CATALOGUE.format(licence=licence),
        "test/box/box.obj": BOX,
        "test/box/box.mtl": BOX_MTL,
        "test/card/card.obj": CARD,
        "test/card/card.mtl": "newmtl picture\nKd 0 0 0\nmap_Kd -s 1 1 1 a card.png\n",
        "test/card/a card.png": png([[blue] * 2, [clear] * 2]),
    }
    files.update(changed)
    path.parent.mkdir(exist_ok=True)
    with zipfile.ZipFile(path, "w") as file:
        for name, content in files.items():
            if content is not None:
                file.writestr(name, content.encode("latin-1") if isinstance(content, str) else content)
    return path


def from_files(**files: str) -> Any:
    return {name.replace("__", "."): text.encode() for name, text in files.items()}.__getitem__


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(FOLDER))
    return importlib.import_module


@pytest.fixture
def made(tmp_path: Path, example: Any) -> Any:
    """A folder with a small archive, the table of its things, and the modules."""
    archive(tmp_path / "archives" / "Test.sh3f")
    fetch = example("fetch_things")
    kept, out = fetch.select(tmp_path / "archives", fetch.read_folder(tmp_path / "archives"))
    fetch.write(tmp_path / "tables", kept, out)
    return tmp_path, things.table(tmp_path / "tables" / "table.csv"), fetch, example("render_things")


def test_a_catalogue_becomes_a_table_of_things_and_of_what_is_left_out(made: Any) -> None:
    folder, (box, card), _, _ = made
    assert (box.name, box.article, box.creator, box.licence) == ("dining chair", "a", "José", "CC-BY 3.0")
    assert (card.name, card.also, card.article) == ("electric guitar", "guitar", "an")
    # Sides of 2 x 4 x 6: 88 in all, of which the front has 8; the invisible triangle counts for nothing.
    assert box.faces == 12 and not box.textured and box.share == pytest.approx(80 / 88, abs=0.005)
    assert box.paint == pytest.approx((128 / 255,) * 3)
    assert card.faces == 2 and card.textured and card.paint is None
    lines = (folder / "tables" / "left_out.csv").read_text("utf-8").splitlines()
    assert lines[1:] == ["Test#plug,Wall type A plug,Miscellaneous,Ann,CC-BY 3.0,plug or socket"]
    said = (folder / "tables" / "CREDITS.md").read_text("utf-8").splitlines()
    assert said[-2:] == ["- **Ann**, CC-BY 3.0: Electric guitar", "- **José**, CC-BY 3.0: Osaka chair"]


def test_what_is_wrong_with_a_package_is_said_in_one_line(
    tmp_path: Path, example: Any, monkeypatch: Any
) -> None:
    catalogue, fetch = example("things_catalogue"), example("fetch_things")
    text = CATALOGUE.format(licence="Public domain")

    def said(**changed: Any) -> str:
        with pytest.raises(ValueError) as caught:
            catalogue.read_catalogue(archive(tmp_path / "Bad.sh3f", **changed))
        return str(caught.value)

    key = "PluginFurnitureCatalog.properties"
    assert "object 2 has no creator" in said(**{key: text.replace("creator#2=Ann\n", "")})
    assert "nine numbers for modelRotation, got 2" in said(
        **{key: text.replace("=0 0 -1 0 1 0 1 0 0", "=0 0")}
    )
    assert "expected numbers" in said(**{key: text.replace("width#1=20", "width#1=wide")})
    for size in ("0", "-20", "nan", "inf"):
        assert "expected a size above 0" in said(**{key: text.replace("width#1=20", f"width#1={size}")})
    assert "lists no objects" in said(**{key: "license=Public domain\n"})
    assert "expected a licence CC0 or CC-BY" in said(licence="Attribution-ShareAlike 3.0")
    assert "no furniture catalogue" in said(**{key: None})
    (tmp_path / "Bad.sh3f").write_text("not a zip")
    with pytest.raises(ValueError, match="no furniture catalogue"):
        catalogue.read_catalogue(tmp_path / "Bad.sh3f")
    with pytest.raises(ValueError, match=r"no \.sh3f archive"):
        catalogue.read_folder(tmp_path / "nowhere")
    (tmp_path / "other.deb").write_bytes(b"other")
    with pytest.raises(ValueError, match=r"is not sweethome3d-furniture 1\.8-1: expected SHA-256 3ccb"):
        fetch.fetch(tmp_path / "things", tmp_path / "other.deb")
    with pytest.raises(ValueError, match=r"is not there; expected sweethome3d"):
        fetch.fetch(tmp_path / "things", tmp_path / "none.deb")
    refused = subprocess.CompletedProcess([], 100, "", "W: one\nE: Failed to fetch it\n")
    monkeypatch.setattr(fetch.subprocess, "run", lambda *a, **k: refused)
    with pytest.raises(
        ValueError, match=r"apt-get download failed \(E: Failed to fetch it\); get the package"
    ):
        fetch.fetch(tmp_path / "things", None)
    assert list((tmp_path / "things").iterdir()) == []
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="file is a file; give a folder for the archives"):
        fetch.fetch(tmp_path / "file", None)


def test_fewer_objects_do_not_replace_the_bundled_tables(tmp_path: Path, example: Any) -> None:
    fetch, shipped = example("fetch_things"), list(things.table())
    fetch.check_complete(things.FOLDER, shipped)
    fetch.check_complete(tmp_path, shipped[:2])
    with pytest.raises(
        ValueError, match=rf"1 of the {len(shipped)} objects of the bundled tables are not there"
    ):
        fetch.check_complete(things.FOLDER, shipped[1:])


def test_a_damaged_archive_is_one_line(tmp_path: Path, example: Any) -> None:
    fetch = example("fetch_things")
    path = archive(tmp_path / "Osaka.sh3f", licence="Public domain")
    entries = fetch.read_folder(tmp_path)
    with zipfile.ZipFile(path) as whole:
        at = whole.getinfo(entries[0].model).header_offset
    data = bytearray(path.read_bytes())
    begin = at + 30 + len(entries[0].model)
    data[begin : begin + 20] = bytes(20)
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"Osaka\.sh3f is damaged \(.*\); get it again"):
        fetch.select(tmp_path, entries)


@pytest.mark.parametrize(
    ("line", "colour", "opacity"),
    [
        ("Kd\t1 0 0.5", (1.0, 0.0, 0.5), 1.0),
        ("\tKd  1\t0   0.5  ", (1.0, 0.0, 0.5), 1.0),
        ("Kd 0.25", (0.25, 0.25, 0.25), 1.0),
        ("Kd 2 -1 0", (1.0, 0.0, 0.0), 1.0),
        ("d\t0.5", (0.8, 0.8, 0.8), 0.5),
        ("d -halo 0.5", (0.8, 0.8, 0.8), 0.5),
        ("Tr 0.75", (0.8, 0.8, 0.8), 0.25),
        ("Tr 0.75\nd 0.5", (0.8, 0.8, 0.8), 0.5),
        ("d 0.5\nTr 0.75", (0.8, 0.8, 0.8), 0.5),
        ("d 1\nTr 1", (0.8, 0.8, 0.8), 1.0),
        ("Tr 0", (0.8, 0.8, 0.8), 1.0),
    ],
)
def test_a_materials_lines_are_read_however_they_are_spaced(
    line: str, colour: tuple[float, float, float], opacity: float
) -> None:
    files = {"a.mtl": f"newmtl\ta\n{line}\n".encode()}
    assert obj._materials(files.__getitem__, "a.mtl") == {"a": obj.Material(colour, opacity)}


@pytest.mark.parametrize(
    "line", ["Kd spectral x.rfl", "Kd 1 0", "Kd 1 nan 0", "d glass", "d inf", "Tr nan", "Tr no"]
)
def test_a_materials_line_that_cannot_be_read_is_named(line: str) -> None:
    files = {"b/a.mtl": f"newmtl a\n{line}\n".encode()}
    with pytest.raises(ValueError, match=rf"^line 2 of a\.mtl, {line}: expected one finite number") as caught:
        obj._materials(files.__getitem__, "b/a.mtl")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("encoding", ["utf-8", "latin-1"])
@pytest.mark.parametrize("options", ["", "-imfchan l ", "-s 1 1 1 -o 0.5 0 ", "-clamp on -type sphere "])
def test_a_textures_name_is_read_in_either_encoding_behind_its_options(encoding: str, options: str) -> None:
    picture = io.BytesIO()
    Image.new("RGB", (2, 2), (9, 8, 7)).save(picture, "png")
    text = f"newmtl gr\u00fcn\nmap_Kd {options}bild gr\u00fcn.png\n"
    files = {"m/a.mtl": text.encode(encoding), "m/bild gr\u00fcn.png": picture.getvalue()}
    (material,) = obj._materials(files.__getitem__, "m/a.mtl").values()
    assert material.texture is not None and material.texture[0, 0].tolist() == [9, 8, 7, 255]


@pytest.mark.parametrize("line", ["d", "d ", "newmtl x"])
def test_a_material_line_without_a_value_changes_nothing(line: str) -> None:
    files = {"a.mtl": f"newmtl a\nKd 1 0 0\n{line}\n".encode()}
    assert obj._materials(files.__getitem__, "a.mtl")["a"] == obj.Material(colour=(1.0, 0.0, 0.0))


def test_a_package_is_unpacked_once(tmp_path: Path, example: Any, monkeypatch: Any) -> None:
    fetch, called = example("fetch_things"), []

    def pretend(command: list[str], cwd: Path, **rest: Any) -> Any:
        called.append(command[0])
        if command[0] == "apt-get":
            (cwd / "package.deb").write_bytes(b"the package")
        else:
            archive(cwd / "unpacked" / "Test.sh3f")
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(fetch.subprocess, "run", pretend)
    monkeypatch.setattr(fetch, "SHA256", hashlib.sha256(b"the package").hexdigest())
    for _ in range(2):
        fetch.fetch(tmp_path / "things", None)
    assert called == ["apt-get", "dpkg-deb"]
    assert sorted(path.name for path in (tmp_path / "things").iterdir()) == ["Test.sh3f", "package.txt"]


def test_models_that_cannot_be_used_are_left_out_with_the_reason(tmp_path: Path, example: Any) -> None:
    fetch = example("fetch_things")
    changed: dict[str, Any] = {"test/card/a card.png": None, "test/box/box.obj": "v 0 0 0\nf 1 2 3\n"}
    archive(tmp_path / "a" / "Test.sh3f", **changed)
    kept, out = fetch.select(tmp_path / "a", fetch.read_folder(tmp_path / "a"))
    assert kept == []
    reasons = [reason for _, reason in out]
    assert reasons[1:] == ["the map a card.png is missing", "plug or socket"]
    assert (
        reasons[0]
        == "the model test/box/box.obj is broken: no faces, or faces of vertices that are not there"
    )


def test_a_licence_beside_a_model_counts_where_it_asks_for_more(tmp_path: Path, example: Any) -> None:
    catalogue = example("things_catalogue")
    said: dict[str, Any] = {
        "test/box/LICENSE.txt": "see https://creativecommons.org/licenses/by/3.0/",
        "test/card/1 - License.html": '<a href="http://creativecommons.org/licenses/by-sa/3.0/">',
    }
    path = archive(tmp_path / "Test.sh3f", licence="Public domain", **said)
    entries = catalogue.read_catalogue(path)
    assert [entry.licence for entry in entries] == ["CC-BY 3.0", "CC-BY-SA", "CC0"]
    assert [catalogue.why_left_out(entry) for entry in entries] == [
        None,
        "licence CC-BY-SA",
        "plug or socket",
    ]


def test_a_model_is_placed_with_its_front_to_x_and_its_farthest_point_at_the_worlds_radius() -> None:
    box = obj.read(from_files(box__obj=BOX, box__mtl=BOX_MTL), "box.obj")
    placed = obj.placed(box, np.eye(3), (20, 40, 60))
    low, high = placed.vertices.min(0), placed.vertices.max(0)
    # Depth, width and height become x, y and z; the diagonal of 2, 4 and 6 is sqrt 56.
    assert high == pytest.approx(0.95 * np.array([6, 2, 4]) / math.sqrt(56)) and low == pytest.approx(-high)
    front = placed.faces[placed.material == 2]
    assert placed.vertices[front][..., 0] == pytest.approx(high[0])
    assert placed.areas().sum() == pytest.approx(88 * (0.95 / math.sqrt(14)) ** 2)
    # Another size stretches it.
    wide = obj.placed(box, np.eye(3), (40, 40, 60)).vertices.max(0)
    assert wide == pytest.approx(0.95 * np.array([3, 2, 2]) / math.sqrt(17))


def test_our_quarter_turns_come_after_the_catalogues_and_swap_width_and_depth(
    made: Any, monkeypatch: Any
) -> None:
    folder, _, fetch, _ = made
    box, card, _ = fetch.read_folder(folder / "archives")
    catalogue = importlib.import_module("things_catalogue")
    # The card's face points to the file's +x; the catalogue's rotation brings that to +z.
    assert fetch.turned(card)[0] @ [1, 0, 0] == pytest.approx([0, 0, 1])
    monkeypatch.setattr(catalogue, "_rows", lambda name: [["Test#box", "1", ""], ["Test#card", "2", ""]])
    turn, size = fetch.turned(box)
    # Counter-clockwise from above: +z, the front, goes to +x.
    assert turn @ [0, 0, 1] == pytest.approx([1, 0, 0]) and size == (60, 40, 20)
    assert fetch.turned(card)[0] @ [1, 0, 0] == pytest.approx([0, 0, -1])


def test_pictures_show_the_right_side_the_cut_out_and_both_sides(made: Any) -> None:
    folder, (box, card), _, render = made
    cameras = render.cameras_of(np.array([(0, 0, 3.2), (180, 0, 3.2)], np.float32))
    shown = render.shoot(things.model(box, folder / "archives"), box.paint, cameras, 32, 2)
    front, back = shown[:, 16, 16]
    # The front is red by its own paint, the back takes the chosen colour.
    assert front[0] > 0.3 and front[1] == front[2] == front[3] == 0 and front[4] == 1
    assert back[:3] == pytest.approx(0) and back[3] > 0.4 and back[4] == 1
    cut = render.shoot(things.model(card, folder / "archives"), card.paint, cameras, 32, 2)
    for view in cut:
        assert view[10, 16, 4] == 1 and view[10, 16, 2] > 0.4 and view[22, 16, 4] == 0


def test_glass_lets_what_is_behind_through() -> None:
    # Two panes that face +z: green glass of a half before a red wall.
    text = "mtllib m.mtl\nusemtl wall\nv -1 -1 0\nv 1 -1 0\nv 1 1 0\nv -1 1 0\nf 1 2 3 4\n"
    text += "usemtl glass\nv -1 -1 1\nv 1 -1 1\nv 1 1 1\nv -1 1 1\nf 5 6 7 8\n"
    model = obj.read(
        from_files(m__obj=text, m__mtl="newmtl wall\nKd 1 0 0\nnewmtl glass\nKd 0 1 0\nd 0.5"), "m.obj"
    )
    placed = obj.placed(model, np.eye(3), (2, 2, 1))
    render = importlib.import_module("render_things")
    cameras = render.cameras_of(np.array([(0, 0, 3.2), (180, 0, 3.2)], np.float32))
    front, back = render.shoot(placed, None, cameras, 16, 1)[:, 8, 8]
    assert front[0] == pytest.approx(front[1]) and front[4] == 1 and front[0] > 0.2
    assert back[1] == 0 and back[0] > 0.4 and back[4] == 1


def test_every_direction_of_the_world_is_seen_as_the_world_sees_it(made: Any) -> None:
    _, (box, card), _, render = made
    angles = render.draw_angles(box)
    views = [world.view_of(float(a), float(e)) for a, e, _ in angles]
    assert Counter(views) == dict.fromkeys(world.VIEWS, render.EACH)
    assert np.array_equal(angles, render.draw_angles(box)) and not np.array_equal(
        angles, render.draw_angles(card)
    )
    side = angles[:-2]
    assert side[:, 1].min() >= -5 and side[:, 1].max() <= 50 and angles[-2:, 1].min() >= 62
    assert angles[:, 2].min() >= 3.0 and angles[:, 2].max() <= 3.4 and np.abs(angles[:, 0]).max() <= 180


@pytest.mark.slow
def test_more_pictures_of_a_view_are_further_ones_of_all_views(made: Any) -> None:
    folder, listed, _, render = made
    angles = render.draw_angles(listed[0], each=3)
    views = [world.view_of(float(a), float(e)) for a, e, _ in angles]
    assert Counter(views) == dict.fromkeys(world.VIEWS, 3)
    # In one folder, renders of one number are not read as those of another.
    for each in (1, 2):
        render.pack(listed, folder / "archives", folder / "each", each)
        pack = things.read_pack(folder / "each")
        assert pack.angles.shape == (2, 17 * each, 3) and len(pack.layers(1)) == 17 * each
        assert np.array_equal(pack.angles[0], render.draw_angles(listed[0], each=each))


@pytest.mark.parametrize("each", ["0", "91"])
def test_a_number_of_pictures_without_room_is_refused(
    made: Any, each: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    render = made[3]
    monkeypatch.setattr("sys.argv", ["render_things.py", "pack", "archives", "pack", "--each", each])
    with pytest.raises(SystemExit):
        render.main()
    assert f"--each must be from 1 to 90, got {each}" in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.slow
def test_a_pack_is_read_back_as_it_was_rendered(made: Any, monkeypatch: Any) -> None:
    folder, listed, _, render = made
    render.pack(listed, folder / "archives", folder / "pack")
    pack = things.read_pack(folder / "pack")
    assert pack.things == listed and pack.angles.shape == (2, 34, 3)
    for index, thing in enumerate(listed):
        true = render.shoot(
            things.model(thing, folder / "archives"),
            thing.paint,
            render.cameras_of(pack.angles[index].numpy()),
            64,
            3,
        )
        layers = pack.layers(index)
        assert layers.shape == (34, 64, 64, 5) and layers.dtype == torch.uint8
        error = (layers.numpy() / 255 - true) ** 2
        assert (layers[..., :4] <= layers[..., 4:]).all()
        # Alpha is kept without loss, colours to better than 30 dB.
        assert error[..., 4].max() < 1e-5 and error.mean() < 1e-3
    red = pack.rgba(0, world.COLOURS["red"])
    tint = pack.layers(0)[..., 3].float() / 255
    inside = tint > 0.5
    assert (red[..., 0] / tint)[inside].mean().item() == pytest.approx(0.86, abs=0.02)
    assert (red[..., 1] / tint)[inside].mean().item() == pytest.approx(0.10, abs=0.02)
    # What is rendered is not rendered again, and gives the same bytes.
    before = (folder / "pack" / things.PICTURES).read_bytes()
    monkeypatch.setattr(render, "render_thing", None)
    render.pack(listed, folder / "archives", folder / "pack")
    assert (folder / "pack" / things.PICTURES).read_bytes() == before
    index = json.loads((folder / "pack" / things.INDEX).read_text("utf-8"))
    assert index["sha256"] == hashlib.sha256(before).hexdigest()
    assert index["things"][1]["caption"] == "an electric guitar" and len(index["things"][1]["views"]) == 34
    assert len(index["things"][0]["held_out_colours"]) == 1 and index["things"][1]["held_out_colours"] == []
    for spoil, said in (
        (lambda: (folder / "pack" / things.PICTURES).write_bytes(before[:-1]), "cut short"),
        (
            lambda: (folder / "pack" / things.INDEX).write_text(json.dumps(index | {"version": 9})),
            "version 9",
        ),
        (lambda: (folder / "pack" / things.INDEX).write_text('{"version": 1, "th'), "cut short or no JSON"),
        (lambda: (folder / "pack" / things.INDEX).unlink(), "things.json is missing"),
    ):
        spoil()
        with pytest.raises(ValueError, match=said) as caught:
            things.read_pack(folder / "pack")
        assert "\n" not in str(caught.value)


def test_a_pack_can_be_of_some_names_and_so_many_variants(tmp_path: Path, example: Any) -> None:
    chosen, listed = example("render_things").chosen, things.table()
    names = tmp_path / "names.txt"
    names.write_text("hamburger\n\nsofa\n")

    kept = chosen(listed, names, 2)

    assert [(one.name, one.variant) for one in kept if one.name == "hamburger"] == [("hamburger", 1)]
    assert sum(one.name == "sofa" for one in kept) == 2 < sum(one.name == "sofa" for one in listed)
    assert len(kept) == 3
    assert chosen(listed) == listed


@pytest.mark.parametrize(
    ("text", "said"),
    [("hamburger\nunicorn\n", "got 'unicorn'"), (" \n", "is empty"), (None, "cannot read")],
)
def test_names_to_pack_that_are_not_the_tables_are_one_line(
    tmp_path: Path, example: Any, text: str | None, said: str
) -> None:
    names = tmp_path / "names.txt"
    if text is not None:
        names.write_text(text)

    with pytest.raises(ValueError, match=said):
        example("render_things").chosen(things.table(), names)


def test_a_true_mesh_takes_a_colour_of_the_world(made: Any) -> None:
    folder, (box, card), _, _ = made
    red: Any = things.mesh(box, folder / "archives", "red").visual
    own: Any = things.mesh(box, folder / "archives").visual
    assert Counter(map(tuple, red.face_colors[:, :3].tolist())) == {(219, 26, 26): 10, (204, 0, 0): 2}
    assert Counter(map(tuple, own.face_colors[:, :3].tolist())) == {(128, 128, 128): 10, (204, 0, 0): 2}
    with pytest.raises(ValueError, match="the colour of electric guitar"):
        things.mesh(card, folder / "archives", "red")
    with pytest.raises(ValueError, match=r"no archive of things; fetch it"):
        things.mesh(box, folder)


@pytest.mark.parametrize(
    ("name", "colour", "view", "template", "said"),
    [
        ("electric guitar", "red", None, 0, "a red electric guitar"),
        ("electric guitar", None, "left view", 0, "an electric guitar, left view"),
        ("electric guitar", None, None, 1, "electric guitar"),
        ("electric guitar", "orange", None, 2, "a photo of an orange electric guitar"),
        ("electric guitar", "red", None, 3, "an electric guitar that is red"),
        ("electric guitar", None, None, 3, "an electric guitar"),
        ("scissors", "red", None, 0, "red scissors"),
        ("scissors", "red", None, 3, "scissors that are red"),
        ("scissors", None, None, 2, "a photo of scissors"),
        ("bread", "red", None, 3, "bread that is red"),
        ("urinal", None, None, 0, "a urinal"),
        ("umbrella", None, None, 0, "an umbrella"),
    ],
)
def test_captions(name: str, colour: str | None, view: str | None, template: int, said: str) -> None:
    article = things.article_of(name, frozenset(("scissors", "bread")))
    assert things.caption(name, article, colour, view, template) == said


def test_splits_do_not_change() -> None:
    names = things.names()
    assert all(sum(things.held_out(colour, name) for colour in world.COLOURS) == 1 for name in names)
    held = [name for name in names if things.held_out_name(name)]
    assert 0.06 < len(held) / len(names) < 0.14
    # By hand: sha256 of the text, its first eight bytes as a number, modulo 8 and 10.
    number = int(hashlib.sha256(b"colour of sofa").hexdigest()[:16], 16) % 8
    assert things.held_out(list(world.COLOURS)[number], "sofa")
    assert things.held_out_name("sofa") == (int(hashlib.sha256(b"name sofa").hexdigest()[:16], 16) % 10 == 0)


def test_the_table_that_ships_and_its_credits_agree(example: Any) -> None:
    shipped = things.table()
    assert len({thing.id for thing in shipped}) == len(shipped) > 600 and len(things.names()) > 400
    assert {thing.licence for thing in shipped} <= set(things.LICENCES)
    variants = Counter(thing.name for thing in shipped)
    assert {(thing.name, thing.variant) for thing in shipped} == {
        (name, number) for name, count in variants.items() for number in range(1, count + 1)
    }
    text = (things.FOLDER / "CREDITS.md").read_text("utf-8")
    assert text == example("fetch_things").credits_of(shipped)
    names = example("fetch_things").names_table(shipped)
    assert (things.FOLDER / "names.csv").read_text("utf-8") == names
    assert "electric guitar,an electric guitar,guitar,1,1," in names
    assert all(f"**{thing.creator}**, {thing.licence}:" in text for thing in shipped)
    assert all(thing.name == thing.name.lower() and thing.name.strip() == thing.name for thing in shipped)
    assert all(abs(np.linalg.det(np.reshape(thing.turn, (3, 3))) - 1) < 1e-3 for thing in shipped)


def test_a_table_that_is_not_ours_is_refused_in_one_line(tmp_path: Path) -> None:
    text = things.TABLE.read_text("utf-8").splitlines()
    for lines, said in (
        (["a,b", "1,2"], "its columns are others"),
        ([text[0], text[1].replace("CC0", "GPL")], "row 2: a rotation of nine numbers, a licence"),
        ([text[0], text[1][:40]], "row 2: expected 17 fields"),
        ([text[0], f"{text[1]},more"], "row 2: expected 17 fields"),
        ([text[0], text[1], text[1]], f"has {text[1].partition(',')[0]} twice"),
    ):
        path = tmp_path / f"{len(said)}.csv"
        path.write_text("\n".join(lines) + "\n", "utf-8")
        with pytest.raises(ValueError, match=said) as caught:
            things.table(path)
        assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="is not there; write it with"):
        things.table(tmp_path / "none.csv")


def test_a_row_is_read_as_it_was_written(made: Any) -> None:
    _, (box, _), _, _ = made
    again = things._thing(dict(zip(things.COLUMNS, replace(box, share=0.25).row(), strict=True)))
    assert again == replace(box, share=0.25)
