"""A stand-in for the Kubernetes API: real HTTPS, real lists and watches, over objects a test puts in.

It speaks what the API's clients rely on: pages with `continue`, a revision for everything, watches that begin at one and
go on in chunks, bookmarks, 410 for revisions it has forgotten, 401 without the token, a node's Pods by a field selector.
"""

from __future__ import annotations

import asyncio
import json
import ssl
import subprocess
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

TOKEN = "a-token-that-must-not-be-logged"


def make_certificates(folder: Path) -> None:
    """`ca.pem`, and `server.pem` with `server.key` for localhost, and `client.pem` with `client.key`."""

    def openssl(*argv: str) -> None:
        subprocess.run(["openssl", *argv], cwd=folder, check=True, capture_output=True)

    new = ("req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
    openssl(*new, "-x509", "-keyout", "ca.key", "-out", "ca.pem", "-subj", "/CN=test-ca", "-days", "2")
    for name, subject in (("server", "/CN=localhost"), ("client", "/O=routed/CN=node-1")):
        openssl(*new, "-keyout", f"{name}.key", "-out", f"{name}.csr", "-subj", subject)
        (folder / "ext").write_text("subjectAltName=DNS:localhost,IP:127.0.0.1\n")
        openssl(
            "x509", "-req", "-in", f"{name}.csr", "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial",
            "-out", f"{name}.pem", "-days", "2", "-extfile", "ext",
        )  # fmt: skip


class KubernetesApi:
    """Start it with `async with`; objects are by path of their kind, then by namespace/name."""

    def __init__(self, folder: Path, *, page: int = 3, client_certificates: bool = False, port: int = 0) -> None:
        """`port` 0 is any that is free."""
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(folder / "server.pem", folder / "server.key")
        if client_certificates:
            self._context.load_verify_locations(folder / "ca.pem")
            self._context.verify_mode = ssl.CERT_REQUIRED
        self._page = page
        self.port = port
        self._client_certificates = client_certificates
        self.revision = 100
        self.oldest = 0
        """Watches from before this revision are gone."""
        self.objects: dict[str, dict[str, dict[str, Any]]] = {}
        self.events: list[tuple[int, str, dict[str, Any]]] = []
        self.lists = 0
        self.refuse = 0
        """A status every request gets, where it is not 0."""
        self.denied: set[str] = set()
        """Paths that nobody may list and watch."""
        self.asked: list[str] = []
        """What was, with its parameters."""
        self.answers = asyncio.Event()
        """Where it is not set, requests are taken and wait."""
        self.answers.set()
        self._changed = asyncio.Condition()
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> KubernetesApi:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port, ssl=self._context)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        self.hang_up()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def hang_up(self) -> None:
        """Break all connections."""
        for writer in list(self._writers):
            writer.transport.abort()

    async def put(
        self, path: str, namespace: str, name: str, labels: dict[str, str] | None = None, **body: Any
    ) -> None:
        """Without a namespace it is an object of the cluster."""
        kind = self.objects.setdefault(path, {})
        key = f"{namespace}/{name}" if namespace else name
        what = "MODIFIED" if key in kind else "ADDED"
        self.revision += 1
        metadata = {"name": name, "resourceVersion": str(self.revision), "labels": labels or {}}
        if namespace:
            metadata["namespace"] = namespace
        kind[key] = made = {"metadata": metadata, **body}
        await self._tell(path, what, made)

    async def delete(self, path: str, namespace: str, name: str) -> None:
        gone = self.objects[path].pop(f"{namespace}/{name}" if namespace else name)
        self.revision += 1
        gone["metadata"]["resourceVersion"] = str(self.revision)
        await self._tell(path, "DELETED", gone)

    async def say(self, path: str, what: str, found: object) -> None:
        """An event as it is."""
        self.revision += 1
        await self._tell(path, what, found)

    def forget(self) -> None:
        """Compact: nobody can go on from a revision of before."""
        self.oldest = self.revision + 1
        self.revision += 2
        self.events.clear()

    async def _tell(self, path: str, what: str, found: Any) -> None:
        self.events.append((self.revision, path, {"type": what, "object": found}))
        async with self._changed:
            self._changed.notify_all()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        try:
            while (request := await reader.readline()).strip():
                headers = {}
                while line := (await reader.readline()).decode().strip():
                    name, _, value = line.partition(":")
                    headers[name.lower()] = value.strip()
                await self._answer(request.decode().split()[1], headers, writer)
        except (ConnectionError, asyncio.IncompleteReadError, ssl.SSLError):
            pass
        finally:
            self._writers.discard(writer)
            writer.close()

    async def _answer(self, target: str, headers: dict[str, str], writer: asyncio.StreamWriter) -> None:
        await self.answers.wait()
        self.asked.append(target)
        parts = urlsplit(target)
        query = {name: values[0] for name, values in parse_qs(parts.query).items()}
        authorized = self._client_certificates or headers.get("authorization") == f"Bearer {TOKEN}"
        if self.refuse or not authorized:
            self._reply(writer, self.refuse or 401, {"kind": "Status", "message": "no"})
        elif parts.path in self.denied:
            self._reply(writer, 403, {"kind": "Status", "code": 403})
        elif "watch" in query:
            await self._watch(parts.path, int(query["resourceVersion"]), _node_of(query), writer)
        elif parts.path in self.objects:
            self.lists += 1
            items = [each for each in self.objects[parts.path].values() if _is_of(each, _node_of(query))]
            start = int(query.get("continue") or 0)
            more = str(start + self._page) if start + self._page < len(items) else ""
            self._reply(
                writer,
                200,
                {
                    "metadata": {"resourceVersion": str(self.revision), "continue": more},
                    "items": items[start : start + self._page],
                },
            )
        else:
            above, _, name = parts.path.rpartition("/")
            before, namespaced, rest = above.partition("/namespaces/")
            if namespaced:  # /api/v1/namespaces/NAMESPACE/pods/NAME
                namespace, _, kind = rest.partition("/")
                above, name = f"{before}/{kind}", f"{namespace}/{name}"
            found = self.objects.get(above, {}).get(name)
            self._reply(writer, 200 if found else 404, found or {"kind": "Status"})
        await writer.drain()

    def _reply(self, writer: asyncio.StreamWriter, status: int, body: object) -> None:
        data = json.dumps(body).encode()
        writer.write(f"HTTP/1.1 {status} X\r\nContent-Length: {len(data)}\r\n\r\n".encode() + data)

    async def _watch(self, path: str, revision: int, node: str, writer: asyncio.StreamWriter) -> None:
        if revision < self.oldest:
            self._reply(writer, 410, {"kind": "Status", "code": 410})
            return
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        told = 0
        while not writer.is_closing():
            for at, where, event in self.events[told:]:
                if where == path and at > revision and _is_of(event["object"], node):
                    line = json.dumps(event).encode() + b"\n"
                    for part in (line[:7], line[7:]):  # an event may come in any pieces
                        writer.write(f"{len(part):x}\r\n".encode() + part + b"\r\n")
            told = len(self.events)
            await writer.drain()
            async with self._changed:
                await self._changed.wait_for(lambda told=told: len(self.events) != told)  # type: ignore[misc]
            if told > len(self.events):
                told = 0


def _node_of(query: dict[str, str]) -> str:
    """The node whose objects alone are wanted, or empty."""
    field, _, node = query.get("fieldSelector", "").partition("=")
    assert field in ("", "spec.nodeName"), field
    return node


def _is_of(found: Any, node: str) -> bool:
    return not node or found.get("spec", {}).get("nodeName") == node
