"""The supervised worker: started once, restarted when it dies, never outliving us, its failures told."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from polyroute.errors import ConfigError, UpstreamError
from polyroute.gateway.backends.local import LocalBackend, LocalSettings
from polyroute.gateway.backends.supervise import Supervision, Supervisor
from polyroute.gateway.client import Client
from polyroute.gateway.transport import Timeouts

FAKE = Path(__file__).with_name("fake_worker.py")
FAST = Supervision(start_s=20, backoff_s=0.01, grace_s=5)


class Bench:
    """A backend over a fake worker, with a clock that can be put forward."""

    def __init__(self, folder: Path, mode: str, limits: Supervision, settings: LocalSettings, client: Client):
        self.starts_file, self.ahead_s = folder / "starts", 0.0
        model = folder / "model.gguf"
        model.touch()
        self.backend = LocalBackend(
            "toy/model", model, client, settings, limits,
            pull_name="toy", log_folder=folder / "logs",
            worker_command=[sys.executable, "-S", str(FAKE), mode, str(self.starts_file)],
            clock=lambda: time.monotonic() + self.ahead_s,
        )  # fmt: skip

    async def post(self, path: str = "/v1/chat/completions", **options) -> dict:
        headers = [(b"authorization", b"Bearer of the client"), (b"x-kept", b"yes")]
        reply = await self.backend.send(path, headers, b"question", Timeouts(**options))
        try:
            return json.loads(await reply.read())
        finally:
            await reply.close()

    async def fails(self, path: str = "/v1/chat/completions", **options) -> UpstreamError:
        with pytest.raises(UpstreamError) as caught:
            await self.post(path, **options)
        return caught.value

    async def state(self) -> str:
        return (await self.backend.status()).state

    async def until(self, state: str) -> None:
        while await self.state() != state:
            await asyncio.sleep(0.01)

    def pids(self) -> list[int]:
        return [int(line) for line in self.starts_file.read_text().split()] if self.starts_file.exists() else []


@pytest.fixture
def bench(tmp_path):
    """Run a coroutine over a bench: bench(test, mode=..., limits=..., settings=...)."""

    def run(test, mode="normal", limits=FAST, settings=LocalSettings()):
        async def whole() -> None:
            client = Client()
            it = Bench(tmp_path, mode, limits, settings, client)
            try:
                await asyncio.wait_for(test(it), 60)
            finally:
                await it.backend.close()
                await client.close()
            assert not any(alive(pid) for pid in it.pids())

        asyncio.run(whole())

    return run


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return "Z" not in Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]


def test_the_first_requests_start_one_worker_and_share_it(bench):
    async def test(it):
        assert await it.state() == "cold"
        assert it.pids() == []
        answers = await asyncio.gather(*(it.post() for _ in range(5)))
        assert len({answer["pid"] for answer in answers}) == 1
        assert len(it.pids()) == 1
        assert await it.state() == "ready"

    bench(test)


def test_the_request_arrives_as_sent_with_the_workers_key_only(bench):
    async def test(it):
        seen = await it.post("/v1/completions")
        assert (seen["path"], seen["body"], seen["headers"]["x-kept"]) == ("/v1/completions", "question", "yes")
        key = (await it.backend.worker.running()).api_key
        assert seen["headers"]["authorization"] == f"Bearer {key}"

    bench(test)


def test_a_death_in_flight_is_a_cut_and_another_worker_comes_unasked(bench):
    async def test(it):
        first = (await it.post())["pid"]
        error = await it.fails("/die")
        assert error.kind == "cut"
        assert "was killed by SIGKILL while it served this request" in str(error)
        await it.until("ready")
        assert (await it.post())["pid"] != first
        assert len(it.pids()) == 2

    bench(test)


def test_a_death_in_mid_stream_comes_after_what_was_sent(bench):
    async def test(it):
        reply = await it.backend.send("/half", [], b"", Timeouts())
        chunks = reply.chunks()
        assert await anext(chunks) == b"hello"
        with pytest.raises(UpstreamError, match="was killed by SIGKILL") as caught:
            await anext(chunks)
        await reply.close()
        assert caught.value.kind == "cut"

    bench(test)


def test_three_quick_crashes_make_it_down_until_the_retry(bench):
    async def test(it):
        for _ in range(3):
            await it.post()
            await it.fails("/die")
        await it.until("down")
        error = await it.fails()
        assert error.kind == "refused"
        assert "failed 3 times in a row: it was killed by SIGKILL" in str(error)
        assert "tried again in" in str(error)
        assert len(it.pids()) == 3
        it.ahead_s += 31
        assert (await it.post())["pid"] == it.pids()[3]

    bench(test)


def test_a_worker_that_lived_long_does_not_add_to_the_count(bench):
    async def test(it):
        for _ in range(5):
            await it.post()
            it.ahead_s += 31
            await it.fails("/die")
        assert (await it.post())["pid"] == it.pids()[5]

    bench(test)


@pytest.mark.parametrize(
    ("mode", "reason"),
    [
        ("exit", "it exited with code 3"),
        ("error", "no such model"),
        ("babble", "expected .*address.* as its first line, got b'hello"),
        ("silent", "it did not answer in time"),
    ],
)
def test_a_start_that_fails_says_why_and_is_tried_by_the_next_request(bench, mode, reason):
    async def test(it):
        for attempt in range(1, 4):
            error = await it.fails()
            assert error.kind == "refused"
            with pytest.raises(UpstreamError, match=reason):
                raise error
            assert len(it.pids()) == attempt or mode == "silent"  # that one may be stopped before it writes
        assert "tried again in" in str(await it.fails())
        assert len(it.pids()) <= 3
        status = await it.backend.status()
        assert status.state == "down"
        assert "logs/toy_model.log" in status.detail

    bench(test, mode, Supervision(start_s=0.5 if mode == "silent" else 20, backoff_s=0.01))


def test_a_command_that_is_not_there_is_a_failed_start(tmp_path):
    async def test():
        async def healthy(address: str) -> bool:
            return True

        worker = Supervisor("toy", [str(tmp_path / "nothing")], tmp_path / "log", healthy, FAST)
        with pytest.raises(UpstreamError, match="No such file"):
            await worker.running()
        await worker.close()

    asyncio.run(test())


def test_a_request_may_give_up_on_a_start_that_goes_on(bench):
    async def test(it):
        error = await it.fails(first_byte_s=0.05)
        assert error.kind == "timeout"
        assert await it.state() == "starting"
        await it.post()
        assert len(it.pids()) == 1

    bench(test, "late")


def test_a_cancelled_request_does_not_cancel_the_start_for_others(bench):
    async def test(it):
        first, second = asyncio.create_task(it.post()), asyncio.create_task(it.post())
        await asyncio.sleep(0.05)
        first.cancel()
        assert (await second)["pid"] == it.pids()[0]
        with contextlib.suppress(asyncio.CancelledError):
            await first

    bench(test, "late")


def test_more_requests_than_slots_and_waiting_room_are_busy(bench):
    async def test(it):
        await it.post()
        slow = [asyncio.create_task(it.post("/slow")) for _ in range(2)]
        await asyncio.sleep(0)  # both have begun
        assert (await it.fails()).kind == "busy"
        await asyncio.gather(*slow)
        await it.post()
        await it.fails("/die")  # failures leave the waiting room too
        await it.post()

    bench(test, settings=LocalSettings(slots=1, waiting=1))


def test_an_abandoned_reply_leaves_the_waiting_room(bench):
    async def test(it):
        for _ in range(3):
            reply = await it.backend.send("/v1/x", [], b"", Timeouts())
            assert not any(name.startswith(b"access-control") for name, _ in reply.headers)
            await reply.close()
            await reply.close()
        await it.post()

    bench(test, settings=LocalSettings(slots=1, waiting=0))


def test_close_ends_a_worker_that_ignores_sigterm(bench):
    async def test(it):
        pid = (await it.post())["pid"]
        await it.backend.close()
        assert not alive(pid)
        assert await it.state() == "down"
        assert (await it.fails()).kind == "refused"

    bench(test, "deaf", Supervision(grace_s=0.1))


def test_close_during_a_start_leaves_no_process(bench):
    async def test(it):
        waiting = asyncio.create_task(it.post())
        while not it.pids():
            await asyncio.sleep(0.01)
        await it.backend.close()
        with pytest.raises((asyncio.CancelledError, UpstreamError)):
            await waiting

    bench(test, "late")


def test_the_worker_dies_with_a_gateway_that_is_killed(tmp_path):
    program = f"""
import asyncio, sys
from pathlib import Path
sys.path.insert(0, {str(FAKE.parent)!r})
from test_local import *
async def main():
    it = Bench(Path({str(tmp_path)!r}), "normal", FAST, LocalSettings(), Client())
    print((await it.post())["pid"], flush=True)
    await asyncio.sleep(600)
asyncio.run(main())
"""
    gateway = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE)
    assert gateway.stdout is not None
    pid = int(gateway.stdout.readline())
    assert alive(pid)
    gateway.send_signal(signal.SIGKILL)
    gateway.communicate()
    deadline = time.monotonic() + 20
    while alive(pid) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not alive(pid)


def test_a_missing_file_is_down_and_names_the_command(bench):
    async def test(it):
        it.backend.file.unlink()
        status = await it.backend.status()
        assert status.state == "down"
        assert status.detail.endswith("is not there; run: polyroute models pull toy")
        error = await it.fails()
        assert error.kind == "missing"
        assert it.pids() == []
        it.backend.file.touch()  # pulled while the gateway runs
        await it.post()

    bench(test)


def test_the_workers_words_go_to_a_log_and_a_long_log_is_set_aside(bench):
    async def test(it):
        log = it.backend.worker.log
        log.parent.mkdir()
        log.write_bytes(b"x" * 6_000_000)
        await it.post()
        assert "a line for the log" in log.read_text()
        assert log.stat().st_size < 1000
        assert log.with_suffix(".old.log").stat().st_size == 6_000_000

    bench(test)


@pytest.mark.parametrize("wrong", [{"threads": 0}, {"context": 0}, {"slots": 0}, {"waiting": -1}])
def test_settings_are_checked(wrong):
    with pytest.raises(ConfigError, match=f"local.{next(iter(wrong))}"):
        LocalSettings(**wrong)
