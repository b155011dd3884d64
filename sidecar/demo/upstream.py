"""The service behind Envoy: it answers every request with what it saw of it, as JSON."""

from __future__ import annotations

import json

from sidecar.demo.httpd import HttpServer, Request, Response


def view(request: Request) -> dict[str, object]:
    """The request as the upstream sees it; a repeated header's values in a list, bytes as latin-1 text."""
    headers: dict[str, list[str]] = {}
    for name, value in request.headers:
        headers.setdefault(name.decode(), []).append(value.decode("latin-1"))
    return {
        "method": request.method,
        "path": request.target,
        "headers": {name: values[0] if len(values) == 1 else values for name, values in headers.items()},
        "body_bytes": len(request.body),
    }


async def _echo(request: Request) -> Response:
    return Response(200, json.dumps(view(request), indent=2).encode() + b"\n")


def echo_server(port: int = 0) -> HttpServer:
    """The upstream, not yet started."""
    return HttpServer(_echo, port)
