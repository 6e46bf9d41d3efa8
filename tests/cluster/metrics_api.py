"""The resource metrics API (metrics.k8s.io), served by the test: each pod uses its share of a load that is set here.

The API server forwards the API to a Service; one of type ExternalName may name this machine.
"""

from __future__ import annotations

import json
import ssl
import threading
from datetime import datetime, timezone
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Final
from urllib.parse import parse_qs, urlsplit

from tests.cluster.bed import certificates
from tests.cluster.bed.control_plane import ControlPlane

__all__ = ["MetricsApi"]

VERSION: Final = "metrics.k8s.io/v1beta1"
NAMESPACE: Final = "kube-system"
NAME: Final = "metrics"
API_SERVICE: Final = "v1beta1.metrics.k8s.io"
WINDOW: Final = "1s"
"""An autoscaler takes a new pod's first sample once this has passed since the pod was Ready."""


class MetricsApi:
    """A context manager; it asks the API server which pods there are."""

    def __init__(self, plane: ControlPlane) -> None:
        self.load_millicores = 0
        """Of all pods that a request selects together."""
        self._access = plane.access
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = False  # they are joined when it is closed
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(
            plane.keys / certificates.SERVER_CERTIFICATE, plane.keys / certificates.SERVER_KEY
        )
        self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        self._thread = threading.Thread(target=self._server.serve_forever, name="metrics-api")

    def __enter__(self) -> MetricsApi:
        self._thread.start()
        manifest = json.dumps({"apiVersion": "v1", "kind": "List", "items": self._registration()})
        self._access.kubectl("apply", "--filename=-", input=manifest)
        self._access.kubectl(
            "wait", "--for=condition=Available", "--timeout=30s", f"apiservice/{API_SERVICE}"
        )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        # First: while a registered API does not answer, no namespace can be deleted.
        self._access.kubectl("delete", f"apiservice/{API_SERVICE}")
        self._access.kubectl("delete", f"service/{NAME}", f"--namespace={NAMESPACE}")
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def _registration(self) -> list[dict[str, Any]]:
        port = self._server.server_address[1]
        service = {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": NAME, "namespace": NAMESPACE},
            "spec": {"type": "ExternalName", "externalName": "localhost", "ports": [{"port": port}]},
        }
        group, version = VERSION.split("/")
        api_service = {
            "apiVersion": "apiregistration.k8s.io/v1",
            "kind": "APIService",
            "metadata": {"name": API_SERVICE},
            "spec": {
                "group": group,
                "version": version,
                "service": {"name": NAME, "namespace": NAMESPACE, "port": port},
                "insecureSkipTLSVerify": True,  # the certificate does not have the Service's name
                "groupPriorityMinimum": 100,
                "versionPriority": 100,
            },
        }
        return [service, api_service]

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        api = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                url = urlsplit(self.path)
                body = json.dumps(api._answer(url.path, parse_qs(url.query))).encode()
                self.send_response(200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None:
                pass

        return Handler

    def _answer(self, path: str, query: dict[str, list[str]]) -> dict[str, Any]:
        """`/apis/metrics.k8s.io/v1beta1[/namespaces/NAMESPACE/pods?labelSelector=SELECTOR]`."""
        _, _, rest = path.partition("/namespaces/")
        if not rest:
            resource = {"name": "pods", "namespaced": True, "kind": "PodMetrics", "verbs": ["get", "list"]}
            described = {"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": VERSION}
            return {**described, "resources": [{"singularName": "", **resource}]}
        namespace = rest.split("/")[0]
        selector = query.get("labelSelector", [""])[0]
        pods = self._access.get("pods", f"--namespace={namespace}", f"--selector={selector}")["items"]
        running = [pod["metadata"]["name"] for pod in pods if pod["status"]["phase"] == "Running"]
        each = f"{self.load_millicores // max(1, len(running))}m"
        items = [sample(namespace, name, each) for name in running]
        return {"kind": "PodMetricsList", "apiVersion": VERSION, "metadata": {}, "items": items}


def sample(namespace: str, pod: str, cpu: str) -> dict[str, Any]:
    return {
        "metadata": {"name": pod, "namespace": namespace},
        "timestamp": datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "window": WINDOW,
        "containers": [{"name": "main", "usage": {"cpu": cpu, "memory": "1Mi"}}],
    }
