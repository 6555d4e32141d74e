"""What runs in a backend: HTTP and UDP echo in one small process. Asks nothing of anybody else.

    server.py NAME PORT,PORT ADDRESS...

HTTP listens on every address of the namespace, the UDP echo on those named.

`GET /bytes/N` answers N bytes that the client can check, `POST` answers the digest of what came, any other
`GET` answers the name. Every answer says who gave it in `X-Backend`. UDP datagrams come back behind the name.
Prints `ready` when it listens; ends when its standard input does.
"""

import asyncio
import hashlib
import socket
import sys
from typing import cast

PIECE = hashlib.sha512(b"evenkeel").digest() * 1024


def body(size: int) -> bytes:
    """`size` bytes in which a lost, doubled or swapped piece shows."""
    counted = (PIECE[:-8] + number.to_bytes(8, "big") for number in range(size // len(PIECE) + 1))
    return b"".join(counted)[:size]


class Http(asyncio.Protocol):
    """As much of HTTP/1.1 as curl needs, connections kept alive."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.data = bytearray()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        self.data += data
        while (end := self.data.find(b"\r\n\r\n")) >= 0:
            lines = self.data[:end].decode("latin-1").split("\r\n")
            headers = dict(line.lower().split(": ", 1) for line in lines[1:] if ": " in line)
            length = int(headers.get("content-length", "0"))
            if headers.get("expect") == "100-continue" and len(self.data) == end + 4:
                self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            if len(self.data) < end + 4 + length:
                return
            request = bytes(self.data[end + 4 : end + 4 + length])
            del self.data[: end + 4 + length]
            method, path, _ = lines[0].split(" ", 2)
            self.answer(self.content(method, path, request), headers)

    def content(self, method: str, path: str, request: bytes) -> bytes:
        if method == "POST":
            return hashlib.sha256(request).hexdigest().encode()
        if path.startswith("/bytes/"):
            return body(int(path.removeprefix("/bytes/")))
        return f"{self.name}\n".encode()

    def answer(self, content: bytes, headers: dict[str, str]) -> None:
        close = headers.get("connection") == "close"
        self.transport.write(
            f"HTTP/1.1 200 OK\r\nContent-Length: {len(content)}\r\nX-Backend: {self.name}\r\n"
            f"Connection: {'close' if close else 'keep-alive'}\r\n\r\n".encode()
            + content
        )
        if close:
            self.transport.close()


class Echo(asyncio.DatagramProtocol):
    def __init__(self, name: str) -> None:
        self.prefix = f"{name} ".encode()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.DatagramTransport", transport)

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        self.transport.sendto(self.prefix + data, addr)


def udp_socket(address: str, port: int) -> socket.socket:
    """One per address: an answer from a wildcard socket could leave by another address than was asked."""
    udp = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM)
    udp.setblocking(False)
    udp.bind((address, port))
    return udp


async def serve(name: str, ports: list[int], addresses: list[str]) -> None:
    loop = asyncio.get_running_loop()
    for port in ports:
        await loop.create_server(lambda: Http(name), None, port, backlog=1024)
        for address in addresses:
            await loop.create_datagram_endpoint(lambda: Echo(name), sock=udp_socket(address, port))
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    await loop.run_in_executor(None, sys.stdin.read)


if __name__ == "__main__":
    asyncio.run(serve(sys.argv[1], [int(port) for port in sys.argv[2].split(",")], sys.argv[3:]))
