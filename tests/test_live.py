"""The page of a run in progress: what it shows, what it may ask for, who may ask, and that it changes no result."""

from __future__ import annotations

import http.client
import io
import json
import math
import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from email.message import Message
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import numpy as np
import pytest
import torch
from browser import find_browser, open_tab
from omegaconf import OmegaConf
from PIL import Image
from safetensors.torch import load_file

import distill
from distill.cameras import Cameras, turntable
from distill.contracts import Render
from distill.live.desk import EVERY, SHARE, WAITING, Desk, Look
from distill.live.server import Server, is_here, listen, refusal, take_leave, watched
from distill.run.journal import Interrupted
from distill.run.several.batch import run_prompts
from distill.run.several.queue import compose_queue

OPTIONS: dict[str, Any] = {
    "iterations": 8,
    "render.batch": 2,
    "render.size": 32,
    "log.preview_every": 2,
    "log.tensorboard": False,
    "export.enabled": False,
}
VIEW = {"view": True, "view_port": 0}


class Client:
    """Requests as the page sends them."""

    def __init__(self, address: str) -> None:
        self.address = address

    def request(
        self, method: str, path: str, headers: dict[str, str] | None = None
    ) -> tuple[int, bytes, Message]:
        connection = http.client.HTTPConnection(self.address, timeout=60)
        own = {"Origin": f"http://{self.address}"} if method == "POST" else {}
        connection.request(method, path, headers={**own, **(headers or {})})
        answer = connection.getresponse()
        found = answer.status, answer.read(), answer.headers
        connection.close()
        return found

    def state(self, run: int = 0, since: int = 0) -> dict[str, Any]:
        return json.loads(self.request("GET", f"/state?run={run}&since={since}")[1])

    def ask(self, what: str) -> None:
        """Ask until the run trains, and so grants it."""
        wait_for(lambda: self.request("POST", f"/{what}")[0] == 200)

    def frame(self, **query: float) -> np.ndarray:
        status, body, headers = self.request(
            "GET", "/frame?" + "&".join(f"{k}={v}" for k, v in query.items())
        )
        assert status == 200 and headers["Content-Type"] == "image/jpeg", body
        return np.asarray(Image.open(io.BytesIO(body)), np.float32)


def wait_for(there: Callable[[], Any], seconds: float = 60) -> Any:
    end = time.monotonic() + seconds
    while not (found := there()):
        assert time.monotonic() < end
        time.sleep(0.01)
    return found


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("distill.live.server.FAREWELL", 0.5)


@pytest.fixture
def start(capsys: pytest.CaptureFixture[str]) -> Any:
    """Start a run in a thread; gives its client and its future. What still runs at the end is stopped."""
    started: list[tuple[Client, Future[Any]]] = []
    with ThreadPoolExecutor() as pool:

        def begin(work: Callable[..., Any], *given: Any, **options: Any) -> tuple[Client, Future[Any]]:
            running = pool.submit(work, *given, **options)

            def url() -> str:
                assert not running.done() or running.result()
                lines = capsys.readouterr().err.splitlines()
                return next((line.split()[-1] for line in lines if line.startswith("distill: watch at")), "")

            started.append((Client(urlsplit(wait_for(url)).netloc), running))
            return started[-1]

        yield begin
        for client, running in started:
            if not running.done():
                client.ask("stop")


def final_tensors(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(max(folder.glob("checkpoints/step-*/*.safetensors")))


@pytest.mark.slow
def test_a_watched_run_ends_at_the_same_bits_as_one_that_nobody_watches(start: Any, tmp_path: Path) -> None:
    with ThreadPoolExecutor() as pool:
        pool.submit(distill.generate, "a red mug", output_dir="alone", **OPTIONS).result()
    client, running = start(distill.generate, "a red mug", output_dir="watched", **OPTIONS, **VIEW)
    client.ask("pause")
    paused = wait_for(lambda: (found := client.state())["paused"] and found)
    here = wait_for(lambda: client.state()["step"])
    frames = [client.frame(azimuth=azimuth, size=48) for azimuth in (0, 0, 90)]
    client.ask("checkpoint")
    wait_for(lambda: "checkpoint saved" in client.state()["message"])
    assert (tmp_path / f"watched/checkpoints/step-{client.state()['step']:06d}").is_dir()
    assert client.state()["step"] <= here + 1 < paused["iterations"] == 8
    client.ask("resume")
    shown = 0
    while not running.done():  # a client that never rests
        status, _, headers = client.request("GET", "/frame?azimuth=30&size=32")
        if status != 200:
            break
        shown = int(headers["X-Step"])
    running.result()
    assert here <= shown <= 8
    assert frames[0].shape == (48, 48, 3) and np.array_equal(frames[0], frames[1])
    assert np.abs(frames[0] - frames[2]).mean() > 0.05
    alone, watched = final_tensors(tmp_path / "alone"), final_tensors(tmp_path / "watched")
    assert alone.keys() == watched.keys() and all(torch.equal(alone[name], watched[name]) for name in alone)
    lines = [json.loads(line) for line in (tmp_path / "watched/metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(8))


@pytest.mark.slow
def test_stop_leaves_a_checkpoint_and_says_how_to_go_on(start: Any, tmp_path: Path) -> None:
    client, running = start(distill.generate, "a red mug", output_dir="run", **OPTIONS, **VIEW)
    client.ask("pause")
    began = wait_for(lambda: client.state()["paused"] and client.state()["step"])
    client.ask("stop")
    ended = wait_for(lambda: (found := client.state(1, 0))["phase"] == "ended" and found)
    with pytest.raises(Interrupted, match="continue with resume=true"):
        running.result()
    assert "continue with resume=true" in ended["message"] and ended["step"] in (began, began + 1)
    assert (tmp_path / f"run/checkpoints/step-{ended['step']:06d}").is_dir()
    with pytest.raises(OSError):
        client.state()
    # Watched or not does not make it another run; and its curves begin where the first process began.
    client, running = start(distill.generate, "a red mug", output_dir="run", **OPTIONS, **VIEW, resume=True)
    client.ask("pause")
    records = wait_for(lambda: (found := client.state())["paused"] and found)["records"]
    assert [record["step"] for record in records][: ended["step"]] == list(range(ended["step"]))
    client.ask("resume")
    assert running.result().folder.name == "run"


@pytest.mark.slow
def test_a_queue_keeps_one_page_for_all_its_runs(
    start: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said, say = list[str](), Desk.say

    def noted(desk: Desk, phase: str, message: str = "") -> None:
        said.append(phase)
        say(desk, phase, message)

    monkeypatch.setattr(Desk, "say", noted)
    (tmp_path / "list.txt").write_text("a red mug\na blue cube\n")
    words = [f"{name}={value}" for name, value in {**OPTIONS, **VIEW, "iterations": 3}.items()]
    client, running = start(run_prompts, compose_queue([*words, "prompts=list.txt"]))
    client.ask("pause")
    first = wait_for(lambda: (found := client.state())["paused"] and found)
    client.ask("resume")
    second = wait_for(lambda: (found := client.state(1, 10**6))["run"] == 2 and found)
    assert (first["prompt"], second["prompt"]) == ("a red mug", "a blue cube")
    assert first["folder"] != second["folder"]
    assert running.result() == {"a red mug": "finished", "a blue cube": "finished"}
    assert said == [*["loading", "exporting", "finished"] * 2, "finished"]


def test_a_page_that_an_export_kept_waiting_still_hears_the_last_words(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    desk = Desk()
    desk.asked_at = time.monotonic() - 10
    began = time.monotonic()
    asking = threading.Timer(0.2, desk.state, (0, 0))
    asking.start()
    take_leave(desk)
    assert desk.asked_at >= began + 0.2
    monkeypatch.setattr(desk, "asked_at", time.monotonic() - 60)  # a page that was closed
    began = time.monotonic()
    take_leave(desk)
    assert time.monotonic() - began < 0.1


def flat(cameras: Cameras, height: int, width: int) -> Render:
    """A grey picture, as bright as the camera is high."""
    rgb = torch.full((1, height, width, 3), float(cameras.elevation_deg[0]) / 100)
    return Render(rgb, rgb[..., :1], rgb[..., :1])


@pytest.fixture
def served(tmp_path: Path) -> Any:
    """A desk with a run that does not advance, and its server."""
    desk = Desk()
    server = listen("127.0.0.1", 0, desk)
    threading.Thread(target=server.serve_forever, args=[0.05], daemon=True).start()
    yield desk, Client(f"127.0.0.1:{server.server_address[1]}")
    server.shutdown()
    server.server_close()


def begin(desk: Desk, folder: Path, view: Any = flat) -> None:
    (folder / "metrics.jsonl").write_text("")
    desk.begin("a red mug", folder, 10, 0, [view], threading.Event())


def attend_once(desk: Desk) -> threading.Thread:
    """A training thread that ends a step when a picture is asked for."""

    def attend() -> None:
        wait_for(lambda: desk.looks)
        desk.attend(1, {"step": 0}, lambda: None)

    thread = threading.Thread(target=attend)
    thread.start()
    return thread


def test_a_frame_is_the_view_of_the_camera_that_was_asked_for(served: Any, tmp_path: Path) -> None:
    desk, client = served
    begin(desk, tmp_path)
    thread = attend_once(desk)
    picture = client.frame(elevation=40, size=32)
    thread.join()
    assert picture.shape == (32, 32, 3) and np.abs(picture - 0.4 * 255).max() <= 1


def test_what_is_no_request_of_the_page_gets_one_line(served: Any, tmp_path: Path) -> None:
    desk, client = served
    (tmp_path / "secret.png").write_bytes(b"secret")
    assert client.request("POST", "/stop")[:2] == (409, b"the run is loading, so there is nothing to stop")
    assert client.request("GET", "/frame")[:2] == (503, b"there is no such scene to look at now")
    begin(desk, tmp_path)
    wrong = {
        "/../secret.png": 404,
        "/%2e%2e/secret.png": 404,
        "/preview?step=../secret": 400,
        "/preview?step=7": 404,
        "/frame?elevation=91": 400,
        "/frame?azimuth=nan": 400,
        "/frame?size=100000": 400,
        "/state?since=-1": 400,
        "/stop": 404,
    }
    for path, status in wrong.items():
        found, body, _ = client.request("GET", path)
        assert (found, body.count(b"\n")) == (status, 0) and b"secret" not in body.replace(b"../secret", b"")
    assert not desk.stop.is_set()


def test_the_page_loads_nothing_from_elsewhere(served: Any) -> None:
    _, client = served
    for path in ("/", "/page.js"):
        status, body, headers = client.request("GET", path)
        assert status == 200 and b"http:" not in body and b"https:" not in body and b"@import" not in body
        policy = headers["Content-Security-Policy"]
        assert "default-src 'none'" in policy and "frame-ancestors 'none'" in policy


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_a_request_under_another_name_is_refused(served: Any, tmp_path: Path, method: str) -> None:
    desk, client = served
    begin(desk, tmp_path)
    path = "/stop" if method == "POST" else "/state"
    headers = {"Host": "evil.example", "Origin": "http://evil.example"}
    assert client.request(method, path, headers)[0] == 403
    assert not desk.stop.is_set()
    assert client.request(method, path, {"Host": "localhost:1", "Origin": "http://localhost:1"})[0] == 200


REQUESTS = [
    ("POST", {"Host": "127.0.0.1:8765", "Origin": "http://127.0.0.1:8765"}, True),
    ("POST", {"Host": "localhost:9000", "Origin": "http://localhost:9000"}, True),  # a tunnel's other end
    ("POST", {"Host": "[::1]:8765", "Origin": "http://[::1]:8765"}, True),
    ("POST", {"Host": "127.0.0.1:8765"}, False),
    ("POST", {"Host": "127.0.0.1:8765", "Origin": "null"}, False),
    ("POST", {"Host": "127.0.0.1:8765", "Origin": "http://evil.example"}, False),
    ("POST", {"Host": "127.0.0.1:8765", "Origin": "http://127.0.0.1:3000"}, False),  # another server here
    ("POST", {"Host": "127.0.0.1.evil.example", "Origin": "http://127.0.0.1.evil.example"}, False),
    ("POST", {"Host": "[", "Origin": "http://["}, False),
    ("GET", {"Host": "127.0.0.1:8765"}, True),
    ("GET", {"Host": "127.0.0.1:8765", "Sec-Fetch-Site": "same-origin"}, True),
    ("GET", {"Host": "127.0.0.1:8765", "Sec-Fetch-Site": "cross-site"}, False),  # an <img> on another page
    ("GET", {"Host": "", "Sec-Fetch-Site": "none"}, False),
]


@pytest.mark.parametrize(("method", "headers", "fine"), REQUESTS)
def test_only_the_run_s_own_page_is_answered(method: str, headers: dict[str, str], fine: bool) -> None:
    message = Message()
    for name, value in headers.items():
        message[name] = value
    why = refusal(method, "/frame", message, "127.0.0.1")
    assert (why is None) == fine and "\n" not in (why or "")


def test_a_server_on_every_address_goes_by_the_machine_s_name_as_well() -> None:
    import socket

    assert is_here(f"{socket.gethostname()}:8765", "0.0.0.0") and is_here("192.0.2.7:8765", "0.0.0.0")
    assert not is_here("evil.example", "0.0.0.0")
    assert not is_here("machine.example", "127.0.0.1") and is_here("machine.example", "machine.example")


@pytest.mark.parametrize("address", ["0.0.0.0", "127.0.0.1"])
def test_a_page_on_the_network_answers_only_under_its_token_and_one_line_says_who_may_stop_the_run(
    tmp_path: Path, address: str, capsys: pytest.CaptureFixture[str]
) -> None:
    options = OmegaConf.create({"view": True, "view_address": address, "view_port": 0})
    with watched(options) as desk:
        assert desk is not None
        begin(desk, tmp_path)
        printed, *warned = capsys.readouterr().err.splitlines()
        url = urlsplit(printed.split()[-1])
        client = Client(f"127.0.0.1:{url.port}")
        asked = [
            ("GET", "page.js"),
            ("GET", "state"),
            ("GET", "preview?step=7"),
            ("POST", "pause"),
            ("POST", "stop"),
        ]
        if address == "127.0.0.1":
            assert url.path == "/" and not warned
        else:
            assert len(url.path) >= 22 and len(warned) == 1
            assert f"view_address={address}" in warned[0] and "token" in warned[0] and "stop it" in warned[0]
            for root in ("/", f"/{'x' * (len(url.path) - 2)}/", f"{url.path[:-2]}/", "/\u00e9/"):
                for method, path in [("GET", ""), *asked]:
                    status, body, _ = client.request(method, quote(root) + path)
                    assert status == 403 and b"token" in body and b"red mug" not in body
            assert not (desk.paused or desk.stop.is_set())
        answers = [client.request(method, url.path + path)[0] for method, path in [("GET", ""), *asked]]
        assert answers == [200, 200, 200, 404, 200, 200] and desk.stop.is_set()
    first, second = (Server("0.0.0.0", 0, Desk()) for _ in range(2))
    with first, second:
        assert first.root != second.root


def test_a_taken_port_is_replaced_and_said_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with Server("127.0.0.1", 0, Desk()) as first:
        taken = first.server_address[1]
        with listen("127.0.0.1", int(taken), Desk()) as second:
            assert second.server_address[1] not in (0, taken)
            assert second.server_address[0] == "127.0.0.1"
    assert capsys.readouterr().err == f"distill: view_port={taken} is taken; another one is used\n"


@pytest.mark.parametrize("address", ["192.0.2.1", "no.such.machine.invalid"])
def test_an_address_of_another_machine_is_one_line_before_anything_is_made(
    tmp_path: Path, address: str
) -> None:
    with pytest.raises(ValueError, match=f"view_address={address}.* must be an address of this") as caught:
        distill.generate("a red mug", **OPTIONS, **VIEW, view_address=address, output_dir="run")
    assert "\n" not in str(caught.value) and not (tmp_path / "run").exists()


def test_pictures_take_at_most_their_share_of_the_time(tmp_path: Path) -> None:
    def slow(cameras: Cameras, height: int, width: int) -> Render:
        time.sleep(0.1)
        return flat(cameras, height, width)

    desk = Desk()
    begin(desk, tmp_path, slow)
    looks = [Look(turntable(1), 0, 8) for _ in range(2)]
    desk.looks.extend(looks)
    spent = desk.attend(1, {"step": 0}, lambda: None)
    assert [look.answered.is_set() for look in looks] == [True, False]
    assert desk.attend(2, {"step": 1}, lambda: None) < EVERY
    assert not looks[1].answered.is_set()
    # Of each period, a fifth is spent on a picture.
    rest = desk.rest_until - time.perf_counter()
    assert spent >= 0.1 and rest == pytest.approx(0.1 * (1 / SHARE - 1), abs=0.15)


def test_a_picture_that_does_not_fit_the_memory_costs_the_run_nothing(tmp_path: Path) -> None:
    def full(cameras: Cameras, height: int, width: int) -> Render:
        raise torch.OutOfMemoryError("out of memory\nat such a size")

    desk = Desk()
    begin(desk, tmp_path, full)
    desk.looks.append(look := Look(turntable(1), 0, 256))
    desk.attend(1, {"step": 0}, lambda: None)
    assert look.answered.is_set() and look.why == "out of memory" and desk.largest == 128


def test_who_waits_is_told_when_training_ends_or_the_queue_is_full(tmp_path: Path) -> None:
    desk = Desk()
    begin(desk, tmp_path)
    desk.looks.extend(Look(turntable(1), 0, 8) for _ in range(WAITING))
    waiting = list(desk.looks)
    assert desk.look(Look(turntable(1), 0, 8)).why == "too many viewers wait for a picture"
    desk.say("exporting")
    assert [look.why for look in waiting] == ["the run is exporting"] * WAITING
    with pytest.raises(ValueError, match="exporting, so there is nothing to pause"):
        desk.ask("pause")


def test_state_is_json_whatever_the_metrics_are_and_long_runs_are_thinned(tmp_path: Path) -> None:
    desk = Desk()
    begin(desk, tmp_path)
    for step in range(2001):
        desk.attend(step + 1, {"step": step, "loss": math.nan if step == 2000 else 1.0}, lambda: None)
    told = json.loads(json.dumps(desk.state(1, 0), allow_nan=False))
    assert len(told["records"]) <= 600 and told["records"][-1] == {"step": 2000, "loss": None}
    assert told["since"] == 2001 and desk.state(1, 2001)["records"] == []
    assert desk.state(0, 2001)["records"] == told["records"]  # of another run: all of them


@pytest.mark.slow
def test_a_browser_shows_the_scene_and_curves_and_can_pause(start: Any, tmp_path: Path) -> None:
    program = find_browser()
    if program is None:
        pytest.skip("no Chromium on this machine")
    options = {**OPTIONS, "iterations": 100_000}
    client, running = start(distill.generate, "a red mug", output_dir="run", **options, **VIEW)
    with open_tab(program, tmp_path / "profile") as tab:
        tab.call("Page.navigate", url=f"http://{client.address}/")
        seen = "document.getElementById('look')?.naturalWidth"
        assert tab.until(f"[96, 256].includes({seen})")
        points = "document.querySelector('#curve-opacity .mean')?.getAttribute('points')?.split(' ').length"
        assert tab.until(f"{points} > 3 && {points}") > 3
        assert tab.until("document.getElementById('preview').naturalWidth") == 4 * 64
        tab.value("document.getElementById('pause').click()")
        tab.until("document.getElementById('status').textContent.startsWith('paused')")
        assert client.state()["paused"]
        assert tab.until(f"{seen} === 256")
        before = tab.value("document.getElementById('look').src")
        press = "new KeyboardEvent('keydown', { key: 'ArrowRight' })"
        tab.value(f"document.getElementById('look').dispatchEvent({press})")
        assert tab.until(f"document.getElementById('look').src !== '{before}'")
        assert "azimuth 20" in tab.value("document.getElementById('pose').textContent")
        tab.value("window.confirm = () => true; document.getElementById('stop').click()")
        tab.until("document.getElementById('message').textContent.includes('resume=true')")
    with pytest.raises(Interrupted):
        running.result()


@pytest.mark.slow
def test_a_page_whose_run_does_not_answer_says_so_and_finds_the_next_one(tmp_path: Path) -> None:
    program = find_browser()
    if program is None:
        pytest.skip("no Chromium on this machine")
    (tmp_path / "previews").mkdir()
    Image.new("RGB", (8, 4)).save(tmp_path / "previews/step-000000.png")
    port, line, root = 0, "document.getElementById('status').textContent", ""
    with open_tab(program, tmp_path / "profile") as tab:
        for prompt in ("a red mug", "a blue cube"):
            with listen("0.0.0.0", port, desk := Desk()) as server:
                server.root = root = root or server.root  # the second is found at the first one's address
                (tmp_path / "metrics.jsonl").write_text('{"step": 0, "loss": 1}\n{"step": 1, "loss": 2}\n')
                desk.begin(prompt, tmp_path, 10, 2, [], threading.Event())
                threading.Thread(target=server.serve_forever, args=[0.05], daemon=True).start()
                if not port:
                    port = int(server.server_address[1])
                    tab.call("Page.navigate", url=f"http://127.0.0.1:{port}{root}")
                tab.until(f"document.getElementById('prompt')?.textContent === '{prompt}'")
                assert tab.until(f"{line}.startsWith('training') && {line}").endswith("step 2 of 10")
                count = "document.querySelector('#curve-loss .mean').getAttribute('points').split(' ').length"
                assert tab.value(count) == 2  # those of the run before are gone
                assert tab.until("document.getElementById('preview').naturalWidth") == 8
                assert not tab.value("document.getElementById('stop').disabled")
                assert tab.value("fetch('pause', { method: 'POST' }).then((reply) => reply.status)") == 200
                server.shutdown()
            assert tab.until(f"{line}.includes('does not answer') && {line}", 20)
            assert tab.value("document.getElementById('stop').disabled")


@pytest.mark.parametrize("address", ["", " ", "\u00fc..x"])
def test_an_address_that_is_none_does_not_open_the_page_to_all_networks(address: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"view_address.* must be an address of this") as caught:
        distill.generate("a red mug", **OPTIONS, **VIEW, view_address=address, output_dir="run")
    assert "\n" not in str(caught.value) and not (tmp_path / "run").exists()


def test_a_file_of_the_user_among_the_previews_is_passed_over(tmp_path: Path) -> None:
    desk = Desk()
    begin(desk, tmp_path)
    (tmp_path / "previews").mkdir()
    for name in ("step-000100.png", "step-000020.png", "step-000100 (copy).png", "step-.png"):
        (tmp_path / "previews" / name).write_bytes(b"")
    assert desk.state(1, 0)["previews"] == [20, 100]


def test_pictures_in_the_folder_where_a_run_is_started_are_not_its_own(served: Any, tmp_path: Path) -> None:
    """The working folder here is ``tmp_path``; a run's folder is known when it begins."""
    desk, client = served
    (tmp_path / "previews").mkdir()
    (tmp_path / "previews" / "step-000020.png").write_bytes(b"picture")
    assert client.state()["previews"] == [] and client.request("GET", "/preview?step=20")[0] == 404
    begin(desk, tmp_path)
    assert client.state()["previews"] == [20] and client.request("GET", "/preview?step=20")[1] == b"picture"


def test_clients_that_say_nothing_or_read_nothing_keep_no_other_waiting(served: Any, tmp_path: Path) -> None:
    desk, client = served
    begin(desk, tmp_path)
    host, port = client.address.split(":")
    silent = [socket.create_connection((host, int(port))) for _ in range(20)]
    for each in silent[10:]:
        each.sendall(b"GET /page.js HTTP/1.0\r\nHost: localhost\r\n\r\n")
    began = time.monotonic()
    assert client.state()["phase"] == "training" and time.monotonic() - began < 5
    for each in silent:
        each.close()
    assert client.state()["phase"] == "training"
