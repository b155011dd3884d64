"""Runs a supervisor in a process of its own: addresses, behaviour (see worker.py), count, grace time, admin path."""

import asyncio
import json
import os
import sys
from pathlib import Path

from sidecar.edges.log import configure_log
from sidecar.transport.service import TcpAddress, UnixAddress
from sidecar.workers import Supervisor

places, behaviour, count, grace_s, admin = sys.argv[1:]
listen = [TcpAddress(*place) if isinstance(place, list) else UnixAddress(place) for place in json.loads(places)]
configure_log("info")
command = [sys.executable, str(Path(__file__).with_name("worker.py")), places, behaviour]
os.environ["PYTHONPATH"] = str(Path(__file__).parents[2])
supervisor = Supervisor(command, int(count), listen=listen, admin=UnixAddress(admin), grace_s=float(grace_s))
sys.exit(asyncio.run(supervisor.run()))
