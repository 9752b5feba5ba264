"""An S3 server of this process, and a wire to it that can break in the middle of an object.

Both listen on 127.0.0.1 alone, on free ports, and end with the process, however that ends.
"""

import hashlib
import logging
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any


class Wire:
    """Passes connections on to a port. `break_after` makes it stop inside what it carries, until `mend`."""

    def __init__(self, to: int):
        self._to = to
        self._limit: int | None = None
        self._hang_up = False
        self._mended = threading.Event()
        self.broken = threading.Event()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def break_after(self, n_bytes: int, *, hang_up: bool) -> None:
        """Once a connection has carried so many bytes in one direction, close it, or hold it still; every one."""
        self._limit, self._hang_up = n_bytes, hang_up
        self.broken.clear()
        self._mended.clear()

    def mend(self) -> None:
        """Carry everything again; what was held still is closed."""
        self._limit = None
        self._mended.set()

    def close(self) -> None:
        self.mend()
        self._listener.close()

    def _accept(self) -> None:
        with suppress(OSError):  # closed
            while True:
                client, _ = self._listener.accept()
                server = socket.create_connection(("127.0.0.1", self._to))
                for pair in ((client, server), (server, client)):
                    threading.Thread(target=self._carry, args=pair, daemon=True).start()

    def _carry(self, source: socket.socket, sink: socket.socket) -> None:
        carried = 0
        with suppress(OSError):
            while data := source.recv(1 << 16):
                carried += len(data)
                if self._limit is not None and carried > self._limit:
                    self.broken.set()
                    if not self._hang_up:
                        self._mended.wait()
                    break
                sink.sendall(data)
        for end in (source, sink):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()


class S3Server:
    """moto's server, and a client to look at what it holds."""

    def __init__(self, port: int):
        import boto3

        self.port = port
        self._client: Any = boto3.client(
            "s3",
            endpoint_url=f"http://127.0.0.1:{port}",
            region_name="us-east-1",
            aws_access_key_id="test",
            aws_secret_access_key="test",
        )

    def create_bucket(self, name: str) -> None:
        self._client.create_bucket(Bucket=name)

    def objects(self, bucket: str) -> dict[str, bytes]:
        """All objects, by their key's last two parts: of DVC's, the MD5 that they should have."""
        pages = self._client.get_paginator("list_objects_v2").paginate(Bucket=bucket)
        keys = [entry["Key"] for page in pages for entry in page.get("Contents", ())]
        return {
            "".join(key.split("/")[-2:]): self._client.get_object(Bucket=bucket, Key=key)["Body"].read() for key in keys
        }

    def damaged(self, bucket: str) -> list[str]:
        """DVC's objects whose content is not what their name says."""
        return [
            name
            for name, content in self.objects(bucket).items()
            if hashlib.md5(content).hexdigest() != name.removesuffix(".dir")
        ]


@contextmanager
def s3_server() -> Iterator[S3Server]:
    """A running server, empty."""
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # a line for each request
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    try:
        yield S3Server(server.get_host_and_port()[1])
    finally:
        server.stop()
