"""Stands in for the app as a worker of the supervisor: answers `<index> <pid>` on every address of its role.

Arguments: a JSON list of addresses, then a behaviour: `good`, `fails` (ends at once), `stubborn` (ignores SIGTERM),
`lasting` (answers SIGTERM after 0.3 s).
"""

import asyncio
import json
import os
import signal
import socket
import sys
import time

from sidecar.core.audit import DecisionEvent
from sidecar.core.decision import Decision
from sidecar.edges.admin import AdminServer, Component, json_route, live_route, ready_route
from sidecar.edges.metrics import Metrics, Sample
from sidecar.edges.worker_scrape import SAMPLES_PATH, samples_route
from sidecar.transport.service import TcpAddress, UnixAddress
from sidecar.workers import end_with_parent, role_from_environment


def _addresses(text):
    return [TcpAddress(*place) if isinstance(place, list) else UnixAddress(place) for place in json.loads(text)]


async def main():
    role = role_from_environment()
    end_with_parent(role)
    behaviour = sys.argv[2]
    if behaviour == "fails":
        sys.exit(3)
    stopping = asyncio.Event()
    metrics = Metrics("http2")
    hangups = 0

    def hung_up():
        nonlocal hangups
        hangups += 1

    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, (lambda: None) if behaviour == "stubborn" else stopping.set)
    loop.add_signal_handler(signal.SIGHUP, hung_up)
    metrics.add(lambda: [Sample("sidecar_policy_reloads_total", ("accepted",), hangups)])
    is_ready = True

    async def answer(reader, writer):
        nonlocal is_ready
        asked = await reader.readline()
        if asked == b"unready\n":
            is_ready = False
        if asked == b"freeze\n":
            time.sleep(3)  # noqa: ASYNC251 - a loop that hangs is what is wanted
        if asked == b"crash\n":
            os._exit(7)
        metrics.decisions.observe(DecisionEvent(0, 100, None, Decision(None, None, None, (), 1)))
        writer.write(f"{role.index} {os.getpid()}\n".encode())
        writer.close()

    for address in role.listen(_addresses(sys.argv[1])):
        if isinstance(address, UnixAddress):
            await asyncio.start_unix_server(answer, sock=socket.socket(fileno=role.unix_fds[address.path]))
        else:
            await asyncio.start_server(answer, address.host, address.port, reuse_port=True)
    routes = {
        "/livez": live_route(),
        "/readyz": ready_route(lambda: {"stand-in": Component(is_ready, {"pid": os.getpid()})}),
        "/policy": json_route(lambda: {"generation": 1}),
        "/issuers": json_route(lambda: {"issuers": {}}),
        SAMPLES_PATH: samples_route(metrics),
    }
    admin = AdminServer(routes)
    await admin.start(role.admin_address)
    await stopping.wait()
    if behaviour == "lasting":
        await asyncio.sleep(0.3)
    await admin.close()


asyncio.run(main())
