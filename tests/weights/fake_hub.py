"""A Hugging Face Hub of one process: the routes that huggingface_hub downloads from."""

import hashlib
import http.server
import threading


class FakeHub:
    """Repositories on http://127.0.0.1; counts requests and breaks transfers on request.

    Attributes:
      files: (repository, commit, file) -> content.
      branches: (repository, branch) -> commit.
      urls: path -> content, of plain URLs.
      requests: (method, path) of all requests.
      damage: function that changes the bytes of a large file on their way; None: none.
      endpoint: address of the server.
    """

    def __init__(self):
        self.files, self.branches, self.urls = {}, {}, {}
        self.requests, self.damage = [], None
        handler = type("Handler", (_Handler,), {"hub": self})
        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.endpoint = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(
            target=self._server.serve_forever, args=(0.01,), daemon=True
        ).start()

    def close(self):
        self._server.shutdown()
        self._server.server_close()

    def push(self, repository, branch="main", **files):
        """Makes a commit; `model_safetensors` stands for model.safetensors."""
        commit = hashlib.sha1(repr(sorted(files.items())).encode()).hexdigest()
        for name, content in files.items():
            self.files[repository, commit, name.replace("_", ".")] = content
        self.branches[repository, branch] = commit
        return commit


class _Handler(http.server.BaseHTTPRequestHandler):
    hub: FakeHub

    def log_message(self, *_):
        pass

    def do_HEAD(self):
        self._answer(send_body=False)

    def do_GET(self):
        self._answer(send_body=True)

    def _answer(self, send_body):
        hub = self.hub
        hub.requests.append((self.command, self.path))
        if self.path in hub.urls:
            return self._send(hub.urls[self.path], {}, send_body)
        owner, name, kind, revision, file = self.path.lstrip("/").split("/", 4)
        repository = f"{owner}/{name}"
        if kind != "resolve" or all(known != repository for known, _ in hub.branches):
            return self._refuse("RepoNotFound")
        commit = hub.branches.get((repository, revision), revision)
        if not any(key[:2] == (repository, commit) for key in hub.files):
            return self._refuse("RevisionNotFound")
        content = hub.files.get((repository, commit, file))
        headers = {"X-Repo-Commit": commit}
        if content is None:
            return self._refuse("EntryNotFound", headers)
        if file.endswith(".json"):
            headers["ETag"] = f'"{hashlib.sha1(content).hexdigest()}"'
            return self._send(content, headers, send_body)
        digest = hashlib.sha256(content).hexdigest()
        headers |= {"X-Linked-Etag": f'"{digest}"', "X-Linked-Size": str(len(content))}
        headers["ETag"] = headers["X-Linked-Etag"]
        return self._send(content, headers, send_body, hub.damage)

    def _refuse(self, code, headers=None):
        self.send_response(404)
        for key, value in {**(headers or {}), "X-Error-Code": code}.items():
            self.send_header(key, value)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _send(self, content, headers, send_body, damage=None):
        self.send_response(200)
        for key, value in headers.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("Accept-Ranges", "bytes")
        self.end_headers()
        if send_body:
            self.wfile.write(damage(content) if damage else content)
