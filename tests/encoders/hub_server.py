"""A hub that answers as huggingface.co does, on this machine: what is read of it, and what is written to it."""

import base64
import hashlib
import http.server
import json
import re
import threading
from contextlib import contextmanager
from pathlib import Path

import pytest

huggingface_hub = pytest.importorskip("huggingface_hub")

COMMIT = "0123456789abcdef0123456789abcdef01234567"


CARD = {"library_name": str, "license": str, "pipeline_tag": str, "base_model": str, "tags": list, "datasets": list}
LICENSES = ("apache-2.0", "mit", "cc-by-4.0", "other")


class Hub(http.server.BaseHTTPRequestHandler):
    """Serves ``repositories`` ("owner/name" -> folder); ``gated`` may be listed, but not read."""

    repositories: dict[str, Path] = {}  # noqa: RUF012
    gated: set[str] = set()  # noqa: RUF012
    asked: list[str] = []  # noqa: RUF012
    new: Path

    def log_message(self, *arguments):
        pass

    def do_HEAD(self):
        self.do_GET(body=False)

    def do_POST(self):
        sent = self.rfile.read(int(self.headers["Content-Length"]))
        path, here = self.path.split("?")[0], f"http://{self.headers['Host']}"
        self.asked.append(path)
        if path == "/api/validate-yaml":
            return self.validate(json.loads(sent)["content"])
        if self.headers.get("Authorization") != "Bearer hf_of_tests":
            return self.answer(401, b'{"error": "Invalid username or password."}')
        if path == "/api/repos/create":
            about = json.loads(sent)
            name = f"{about['organization']}/{about['name']}"
            folder = self.repositories.setdefault(name, self.new / about["name"])
            folder.mkdir(parents=True, exist_ok=True)
            return self.answer(200, json.dumps({"name": name, "url": f"{here}/{name}"}).encode())
        name, what = re.fullmatch(r"/api/models/([^/]+/[^/]+)/(branch|preupload|commit)/.+", path).groups()
        if what == "preupload":
            files = [{**file, "uploadMode": "regular", "shouldIgnore": False} for file in json.loads(sent)["files"]]
            return self.answer(200, json.dumps({"files": files}).encode())
        for line in map(json.loads, sent.splitlines()) if what == "commit" else ():
            if line["key"] == "file":
                file = self.repositories[name] / line["value"]["path"]
                file.write_bytes(base64.b64decode(line["value"]["content"]))
        url = f"{here}/{name}/commit/{COMMIT}"
        return self.answer(200, json.dumps({"success": True, "commitOid": COMMIT, "commitUrl": url}).encode())

    def validate(self, content):
        """Of the rules of https://huggingface.co/docs/hub/model-cards those that a card of ours could break."""
        head = huggingface_hub.ModelCard(content).data.to_dict()
        wrong = [
            f"{name} must be {kind.__name__}"
            for name, kind in CARD.items()
            if name in head and not isinstance(head[name], kind)
        ]
        if head.get("license", "mit") not in LICENSES:
            wrong.append('"license" must be one of those that the hub lists')
        answer = {"errors": [{"message": message} for message in wrong], "warnings": []}
        return self.answer(400 if wrong else 200, json.dumps(answer).encode())

    def do_GET(self, *, body=True):
        path = self.path.split("?")[0]
        self.asked.append(path)
        listed = re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/(revision|tree)/([^/]+))?", path)
        resolved = re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path)
        name, revision = (listed[1], listed[3]) if listed else resolved.group(1, 2) if resolved else ("", "")
        if name not in self.repositories:
            return self.answer(404, error="RepoNotFound", body=body)
        if revision not in (None, "main", COMMIT):
            return self.answer(404, error="RevisionNotFound", body=body)
        folder = self.repositories[name]
        if resolved:
            if name in self.gated:
                return self.answer(403, error="GatedRepo", body=body)
            file = folder / resolved[3]
            if not file.is_file():
                return self.answer(404, error="EntryNotFound", body=body)
            return self.answer(200, file.read_bytes(), body=body)
        files = [
            {"type": "file", "path": file.name, "size": file.stat().st_size, "oid": oid(file)}
            for file in sorted(folder.iterdir())
        ]
        if listed[2] == "tree":
            return self.answer(200, json.dumps(files).encode(), body=body)
        about = {"id": name, "sha": COMMIT, "siblings": [{"rfilename": file["path"]} for file in files]}
        return self.answer(200, json.dumps(about).encode(), body=body)

    def answer(self, status, content=b"{}", *, error=None, body=True):
        self.send_response(status)
        if error:
            self.send_header("X-Error-Code", error)
            self.send_header("X-Error-Message", error)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("ETag", f'"{hashlib.sha1(content).hexdigest()}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.end_headers()
        if body:
            self.wfile.write(content)


def oid(file):
    return hashlib.sha1(file.read_bytes()).hexdigest()


@contextmanager
def serving(monkeypatch, folder):
    """A hub of our own with nothing in it, and an empty cache, both in ``folder``."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    Hub.repositories, Hub.gated, Hub.asked, Hub.new = {}, set(), [], folder / "hub"
    point_to(monkeypatch, f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(folder / "cache"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setenv("HF_HUB_DISABLE_TELEMETRY", "1")
    huggingface_hub.utils.disable_progress_bars()
    yield Hub
    huggingface_hub.utils.enable_progress_bars()
    server.shutdown()
    server.server_close()


def point_to(monkeypatch, url):
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", url)
    monkeypatch.setattr(huggingface_hub.hf_api.constants, "ENDPOINT", url)
    monkeypatch.setattr(
        huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + "/{repo_id}/resolve/{revision}/{filename}"
    )


def go_offline(monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
