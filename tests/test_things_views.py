"""Real objects as a novel-view training in memory takes them: which, in what colours, over white, and from where."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image
from things_store import from_pack

from distill.embedded import things, world

ANGLES = torch.tensor([[0.0, 0.0, 3.0], [90.0, 0.0, 3.2], [180.0, 30.0, 3.4], [-90.0, 90.0, 3.1]])


def thing(name: str, paint: tuple[float, float, float] | None) -> things.Thing:
    return things.Thing(
        f"Test#{name}", name, "", "a", 1, "Test", "Ann", "CC0", "Test.sh3f", "/test.obj", tuple(np.eye(3).flatten()),
        (1.0, 1.0, 1.0), 12, False, paint, 0.5 if paint else 0.0, name,
    )  # fmt: skip


def pack_of(*listed: things.Thing) -> things.Pack:
    """Four pictures of each: one pixel of its own, half covered, and one that takes a colour, half lit; the rest is empty."""
    parts: list[bytes] = []
    for one in listed:
        own, tint = np.zeros((2, 128, 128, 4), np.uint8)
        for row in (0, 64):
            for column in (0, 64):
                own[row, column] = (100, 0, 0, 128)
                own[row, column + 1, 3] = 255
                tint[row, column + 1] = (127, 127, 127, 255)
        for sheet in (own, tint) if one.paint else (own, None):
            file = io.BytesIO()
            if sheet is not None:
                Image.fromarray(sheet).save(file, "WEBP", lossless=True, exact=True)
            parts.append(file.getvalue())
    offsets = torch.tensor([0, *np.cumsum([len(part) for part in parts])])
    data = torch.frombuffer(bytearray(b"".join(parts)), dtype=torch.uint8)
    return things.Pack(listed, ANGLES.expand(len(listed), -1, -1), data, offsets)


def names(held_out: bool) -> list[str]:
    words = (f"thing {number}" for number in range(100))
    return [word for word in words if things.held_out_name(word) == held_out]


def test_names_that_are_held_out_are_never_among_those_that_are_trained_on() -> None:
    trained, kept = names(False)[:2], names(True)[0]
    pack = pack_of(thing(trained[0], None), thing(kept, None), thing(trained[1], (0.5, 0.5, 0.5)))
    assert from_pack(pack, colours=0).uids == tuple(f"own:Test#{name}" for name in trained)
    assert from_pack(pack, held_out=True).uids == (f"own:Test#{kept}",)
    # What takes a colour is there in its own and in as many others of the world's, each once, the same at every call.
    uids = from_pack(pack, colours=3, seed=5).uids
    assert uids[:2] == tuple(f"own:Test#{name}" for name in trained) and len(set(uids)) == 5
    assert {uid.split(":")[0] for uid in uids[2:]} <= set(world.COLOURS)
    assert uids == from_pack(pack, colours=3, seed=5).uids != from_pack(pack, colours=3, seed=6).uids


def test_pictures_are_over_white_in_the_chosen_colour() -> None:
    store = from_pack(pack_of(thing(names(False)[0], (1.0, 0.0, 0.5))), colours=1)
    assert store.pictures.shape == (8, 3, 64, 64) and store.first.tolist() == [0, 4, 8]
    colour = world.COLOURS[store.uids[1].split(":")[0]]
    for row, paint in ((0, (1.0, 0.0, 0.5)), (4, colour)):
        picture = store.pictures[row].float()
        # A pixel of (100, 0, 0) at a coverage of 128 of 255 lets 127 of white through.
        assert picture[:, 0, 0].tolist() == [227, 127, 127]
        assert picture[:, 0, 1] == pytest.approx(127 * np.array(paint), abs=0.51)
        assert (picture[:, 1:] == 255).all()


def test_cameras_are_where_the_pack_says() -> None:
    store = from_pack(pack_of(thing(names(False)[0], None)))
    # By hand: x is the front, y to its left, z up.
    expected = [[3, 0, 0], [0, 3.2, 0], [-3.4 * 0.8660254, 0, 1.7], [0, 0, 3.1]]
    torch.testing.assert_close(store.positions, torch.tensor(expected), atol=1e-5, rtol=0)


def test_a_pack_without_such_things_is_refused() -> None:
    pack = pack_of(thing(names(False)[0], None))
    with pytest.raises(ValueError, match="the pack has no things whose names are held out"):
        from_pack(pack, held_out=True)
    with pytest.raises(ValueError, match="colours must be from 0 to the world's 8, got 9"):
        from_pack(pack, colours=9)


def test_some_level_pictures_of_each_are_drawn_with_their_cameras() -> None:
    listed = [thing(name, None) for name in names(False)[:12]]
    pack = pack_of(*listed)
    every, some = from_pack(pack, colours=0), from_pack(pack, colours=0, views=2, seed=1)
    assert some.first.tolist() == list(range(0, 26, 2)) and len(some.pictures) == 24
    drawn = set()
    for number in range(len(listed)):
        own = every.positions[4 * number : 4 * number + 4]
        # The fourth is from overhead: never drawn. Both have their own picture and camera.
        found = [
            (own - eye).norm(dim=1).argmin().item() for eye in some.positions[2 * number : 2 * number + 2]
        ]
        assert len(set(found)) == 2 and 3 not in found
        drawn.add(tuple(found))
    assert len(drawn) > 2
    again = from_pack(pack, colours=0, views=2, seed=1)
    assert torch.equal(again.positions, some.positions) and torch.equal(again.pictures, some.pictures)
    for wrong in (1, 4):
        with pytest.raises(ValueError, match=f"views must be from 2 to the 3 level ones .*, got {wrong}"):
            from_pack(pack, views=wrong)
