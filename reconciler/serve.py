"""Serves what the loop published: HTTP for reading, a socket for commands. A thread of its own.

It sees immutable facts and a queue, and never a map: whatever becomes of it, the
loop goes on. An address that is taken is tried again; forwarding does not wait for it.
"""

import asyncio
import contextlib
import grp
import logging
import os
import pwd
import socket
import struct
import threading
from collections.abc import Awaitable, Callable
from importlib import resources
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from aiohttp import web

from bpf.abi import Verdict
from reconciler import control, digests, metrics
from reconciler.board import SILENCE, Board
from reconciler.control import Refused, Request, Requests
from reconciler.status import Status

RETRY = 10.0  # seconds
UNHEARD = "no status page: %s: %s. Trying again; another address: listen: in node.yaml"
JOIN = 5.0  # nobody waits longer for the last answers
LINE = 10.0  # a client may take to say what it wants
PEER = struct.Struct("iII")  # pid, uid, gid
HEADERS = {
    "Cache-Control": "no-store",
    "X-Content-Type-Options": "nosniff",
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline';"
    " script-src 'unsafe-inline'; connect-src 'self'; frame-ancestors 'none'",
}
Page = Callable[[web.Request], Awaitable[web.Response]]
log = logging.getLogger("reconciler")


class Server:
    """Entered, it serves; left, it does not."""

    def __init__(
        self, board: Board, requests: Requests, listen: str, path: Path, group: str = ""
    ) -> None:
        self._board, self._requests = board, requests
        self._listen, self._path, self._group = listen, path, group
        self._loop: asyncio.AbstractEventLoop | None = None
        self._started = threading.Event()
        self._stop = asyncio.Event()
        self._thread = threading.Thread(target=self._run, name="serve", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        self._started.wait()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with contextlib.suppress(RuntimeError):  # it ended before
            if self._loop is not None:
                self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(JOIN)

    def _run(self) -> None:
        try:
            with asyncio.Runner() as runner:
                self._loop = runner.get_loop()
                self._started.set()
                runner.run(self._serve())
        except Exception:
            log.exception("status and commands are not served any more")
        finally:
            self._started.set()

    async def _serve(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            serving = [tasks.create_task(self._serve_socket())]
            if self._listen != "off":
                serving.append(tasks.create_task(self._serve_http()))
            await self._stop.wait()
            for task in serving:
                task.cancel()

    # ---- HTTP

    async def _serve_http(self) -> None:
        runner = web.AppRunner(application(self._board), access_log=None)
        await runner.setup()
        host, _, port = self._listen.rpartition(":")
        said = ""
        try:
            while True:
                try:
                    await web.TCPSite(runner, host.strip("[]"), int(port)).start()
                    log.info("status on http://%s/", self._listen)
                    await self._stop.wait()
                except OSError as error:
                    if said != str(error):
                        log.error(UNHEARD, self._listen, error.strerror)  # noqa: TRY400
                    said = str(error)
                    await asyncio.sleep(RETRY)
        finally:
            await runner.cleanup()

    # ---- the socket

    async def _serve_socket(self) -> None:
        try:
            listening = bound(self._path, self._group)
        except OSError as error:
            log.error("%s: no commands: %s", self._path, error)  # noqa: TRY400
            return
        server = await asyncio.start_unix_server(
            self._client, sock=listening, limit=control.LONGEST_LINE
        )
        try:
            async with server:
                await self._stop.wait()
        finally:
            self._path.unlink(missing_ok=True)

    async def _client(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One request, one answer."""
        try:
            line = await asyncio.wait_for(reader.readline(), LINE)
            writer.write(await self._answer(control.parse(line, peer(writer))))
            await writer.drain()
        except Refused as error:
            writer.write(control.refused(str(error)))
        except (ValueError, TimeoutError):  # a line without an end
            writer.write(control.refused("one line of at most 64 KiB is wanted, within 10 s"))
        except ConnectionError:
            pass  # nobody waits for the answer any more
        finally:
            writer.close()

    async def _answer(self, request: Request) -> bytes:
        if request.command == "status":
            status = self._board.status()
            if status is None:
                raise Refused("nothing was read yet: ask again in a moment")
            return control.answered(status.document())
        self._requests.put(request)
        try:
            result = await asyncio.wait_for(asyncio.wrap_future(request.answer), control.PATIENCE)
        except TimeoutError:
            raise Refused(f"{request.command}: no answer from the loop yet") from None
        return control.answered(result)


def bound(path: Path, group: str) -> socket.socket:
    """A socket that its owner and group may connect to, and never anybody else, not for a moment."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)  # of one who was killed: the lock says that there is no other
    made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    os.fchmod(made.fileno(), 0o600)  # what bind gives the file
    made.bind(str(path))
    if group:
        try:
            os.chown(path, -1, grp.getgrnam(group).gr_gid)
        except KeyError:
            log.error("control-group: %s is no group here: the socket is root's", group)  # noqa: TRY400
        except PermissionError:
            remedy = f"add SupplementaryGroups={group} to our unit"
            log.error("control-group: %s is no group of ours: %s", group, remedy)  # noqa: TRY400
    path.chmod(0o660)
    made.listen()
    return made


def peer(writer: asyncio.StreamWriter) -> str:
    """Who is at the other end, as the kernel says."""
    connection = writer.get_extra_info("socket")
    _, uid, _ = PEER.unpack(
        connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, PEER.size)
    )  # fmt: skip
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"uid {uid}"


# ---- pages


def application(board: Board) -> web.Application:
    page = (resources.files("reconciler") / "page.html").read_text()

    async def root(_: web.Request) -> web.Response:
        return web.Response(text=page, content_type="text/html", headers=HEADERS)

    async def measured(_: web.Request) -> web.Response:
        facts, now = board.facts, known(board)
        cpus = facts.reading.cpus if facts else ()
        text = metrics.render(now, cpus, [verdict.name.lower() for verdict in Verdict])
        return web.Response(body=text.encode(), headers={"Content-Type": metrics.CONTENT_TYPE})

    async def healthz(_: web.Request) -> web.Response:
        if board.alive:
            return web.Response(text="ok\n")
        raise web.HTTPServiceUnavailable(text=f"the loop was not seen for {SILENCE:g} s\n")

    async def readyz(_: web.Request) -> web.Response:
        now = known(board)
        if now.ready:
            return web.Response(text="ok\n")
        raise web.HTTPServiceUnavailable(text=troubles(now))

    made = web.Application()
    made.add_routes([
        web.get("/", root),
        web.get("/status", telling(board, Status.document)),
        web.get("/digests", telling(board, digests.document)),
        web.get("/metrics", measured),
        web.get("/healthz", healthz),
        web.get("/readyz", readyz),
    ])  # fmt: skip
    return made


def known(board: Board) -> Status:
    status = board.status()
    if status is None:
        raise web.HTTPServiceUnavailable(text="nothing was read yet\n")
    return status


def telling(board: Board, content: Callable[[Status], dict[str, Any]]) -> Page:
    """A page that is a document made of the status."""

    async def answer(_: web.Request) -> web.Response:
        return web.json_response(content(known(board)), headers=HEADERS)

    return answer


def troubles(status: Status) -> str:
    """Each condition that is not as it should be, a line each."""
    found = (c for c in status.conditions if not c.well)
    return "".join(f"{c.type}: {c.reason} {c.message}".rstrip() + "\n" for c in found)
