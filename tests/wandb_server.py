"""The least of a W&B server, on loopback: it takes what `wandb sync` and `vaelab dashboard upload=true` send."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Server(ThreadingHTTPServer):
    """What was sent, and what is to be refused.

    runs: id: {file: {line number: text}}. projects: names. views: the variables of each, in order.
    refused: (status, message) of operations, by their names.
    """

    daemon_threads = True

    def __init__(self, refused: dict[str, tuple[int, str]], entity: str | None):
        super().__init__(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.server_address[1]}"
        self.refused, self.entity = refused, entity
        self.runs: dict[str, dict[str, dict[int, str]]] = {}
        self.projects: list[str] = []
        self.views: list[dict[str, Any]] = []


@contextmanager
def wandb_server(refused: dict[str, tuple[int, str]] | None = None, entity: str | None = "someone") -> Iterator[Server]:
    """A server while the block lasts. entity: the account's own."""
    server = Server(refused or {}, entity)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


class Handler(BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"

    def log_message(self, *unused):
        pass

    def do_PUT(self):
        self.read()
        self.answer({})

    def do_POST(self):
        sent = self.read()
        if "otel" in self.path:  # what the client measures of itself: no JSON
            return self.answer({})
        sent = json.loads(sent or b"{}")
        if "file_stream" in self.path:
            files = self.server.runs[self.path.split("/")[-2]]
            for name, chunk in sent.get("files", {}).items():
                lines = files.setdefault(name, {})
                lines |= {chunk["offset"] + i: line for i, line in enumerate(chunk["content"])}
            return self.answer({})
        # `mutation UpsertView2($id: ID, …) {…}`, where the name is not sent by itself
        words = sent.get("query", "").replace("(", " ").replace("{", " ").split()
        operation = sent.get("operationName") or words[1]
        if operation in self.server.refused:
            status, message = self.server.refused[operation]
            return self.answer({"errors": [{"message": message}], "data": None}, status)
        return self.answer({"data": self.graphql(operation, sent.get("variables") or {})})

    def read(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def answer(self, body, status=200):
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def graphql(self, operation, given):
        project = {"id": "p", "name": "lab", "entity": {"id": "e", "name": "someone"}}
        if operation == "UpsertBucket":
            self.server.runs.setdefault(given["name"], {})
            bucket = {"id": "b", "name": given["name"], "displayName": "a run", "config": "{}", "project": project}
            return {"upsertBucket": {"bucket": bucket, "inserted": True}}
        if operation == "RunResumeStatus":
            files = self.server.runs.get(given["name"])
            history = (files or {}).get("wandb-history.jsonl", {})
            bucket = {
                **{"id": "b", "name": given["name"], "config": "{}", "summaryMetrics": "{}", "wandbConfig": '{"t": 1}'},
                **{"historyLineCount": len(history), "eventsLineCount": 0, "logLineCount": 0, "eventsTail": "[]"},
                "historyTail": json.dumps([history[line] for line in sorted(history)][-1:]),
            }
            return {"model": project | {"bucket": bucket if files else None}}
        if operation == "CreateRunFiles":
            return {"createRunFiles": {"files": [{"name": n, "uploadUrl": self.file()} for n in given["files"]]}}
        if operation in ("Viewer", "GetDefaultEntity"):
            return {"viewer": {"id": "u", "username": "someone", "entity": self.server.entity}}
        if operation == "GetProjects":
            common = {"id": "p", "entityName": given["entity"], "createdAt": "", "isBenchmark": False, "user": None}
            edges = [{"cursor": "c", "node": common | {"name": name}} for name in self.server.projects]
            return {"models": {"edges": edges, "pageInfo": {"endCursor": None, "hasNextPage": False}}}
        if operation == "CreateProject":
            self.server.projects.append(given["input"]["name"])
            return {"upsertModel": {"model": project, "project": project, "inserted": True}}
        if operation in ("UpsertView2", "upsertView"):
            return {"upsertView": {"view": self.view(given), "inserted": True}}
        return {}

    def file(self) -> str:
        return f"http://{self.headers['Host']}/file"

    def view(self, given):
        """As a server does, it has no views of projects that are not there."""
        assert given["projectName"] in self.server.projects
        self.server.views.append(given)
        user = {"name": "someone", "username": "someone", "userInfo": {}}
        times = {"createdAt": "2026-01-01T00:00:00Z", "updatedAt": "2026-01-01T00:00:00Z"}
        kept = {key: given[key] for key in ("name", "type", "description", "displayName", "spec")}
        project = {"name": given["projectName"], "entityName": given["entityName"]}
        return kept | times | {"id": f"v{len(self.server.views)}", "project": project, "user": user}
