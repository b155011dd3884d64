"""`make run` and `make demo`: the whole system on this machine, real requests through a real Envoy, their answers."""

from __future__ import annotations

import argparse
import shutil
import signal
import sys
import tempfile
import textwrap
import threading
import time
from contextlib import ExitStack
from pathlib import Path
from types import FrameType

from sidecar.demo.client import Client, Reply
from sidecar.demo.envoy import Envoy, Listener, bootstrap
from sidecar.demo.issuer import TOKEN_SECONDS, DemoIssuer
from sidecar.demo.processes import Child, StartFailedError
from sidecar.demo.scenarios import Scenario, scenarios, why
from sidecar.demo.stack import Sidecar
from sidecar.demo.upstream import echo_server

ENVOY_PORT = 10000
WATCH_S = 0.5
TITLE_COLUMNS = 38
WHY_COLUMN = TITLE_COLUMNS + 12
WIDTH_COLUMNS = 140
"""How wide a table is made where there is no window to ask."""

COLOURS = {"bold": "1", "green": "32", "red": "31", "grey": "90"}


class Demo:
    """Everything that runs: started in `__init__`, stopped when the exit stack closes."""

    def __init__(self, stack: ExitStack) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="sidecar-demo-"))
        stack.callback(shutil.rmtree, self.directory, ignore_errors=True)
        say(paint("bold", "Starting"))
        self.issuer = DemoIssuer().start()
        stack.callback(self.issuer.stop)
        started("issuer", f"{self.issuer.url}  OIDC discovery, keys made just now")
        upstream = echo_server().start()
        stack.callback(upstream.stop)
        started("upstream", f"http://127.0.0.1:{upstream.port}  answers with what it sees")
        self.sidecar = Sidecar(self.directory / "sidecar", self.issuer.url)
        self.sidecar.start()
        stack.callback(self.sidecar.stop)
        started("sidecar", f"http://127.0.0.1:{self.sidecar.admin_port}  admin; its Valkey is embedded")
        self.envoy = self._start_envoy(upstream.port)
        stack.callback(self.envoy.stop)
        started("envoy", f"http://127.0.0.1:{self.port}  send requests here")
        self._token_file = self.directory / "token"
        self._write_token()

    def _start_envoy(self, upstream_port: int) -> Envoy:
        """On the usual port if it can be had, else on any."""
        directory = self.directory / "envoy"

        def start(port: int) -> Envoy:
            listener = Listener(name="demo", port=port, access_log=directory / "access.log")
            return Envoy(bootstrap([listener], self.sidecar.socket, upstream_port), directory)

        try:
            return start(ENVOY_PORT)
        except StartFailedError:
            return start(0)

    @property
    def port(self) -> int:
        """Where Envoy listens."""
        return self.envoy.ports["demo"]

    def children(self) -> tuple[Child, ...]:
        """What must keep running."""
        return self.sidecar.child, self.envoy.child

    def show_table(self) -> bool:
        """Send every scenario and print what came; whether all of it is as it must be."""
        say("\n" + paint("bold", f"  {'request':<{TITLE_COLUMNS}}  status  why"))
        failures: list[str] = []
        rows = scenarios(self.issuer)
        with Client(self.port) as client:
            for scenario in rows:
                reply = scenario.send(client)
                differences = scenario.differences(reply)
                failures += [f"{scenario.title}: {difference}" for difference in differences]
                say(row(scenario, reply, ok=not differences))
        if failures:
            say("\n" + paint("red", f"{len(failures)} differences:") + "".join(f"\n  {line}" for line in failures))
            say(f"\nThe end of sidecar's log:\n{self.sidecar.child.tail()}")
        else:
            say("\n" + paint("green", f"All {len(rows)} answers are as they must be."))
        return not failures

    def show_commands(self) -> None:
        """Print what to try in another terminal."""
        envoy = f"http://127.0.0.1:{self.port}"
        bearer = f'-H "authorization: Bearer $(cat {self._token_file})"'
        say("\n" + paint("bold", "In another terminal (the token is bob's, and kept fresh):"))
        say(f"  curl -i {envoy}/orders/7")
        say(f"  curl -i {envoy}/orders/7 {bearer}")
        say(f"  curl -i -X PUT {envoy}/orders/7 {bearer}")
        say(f"  for i in 1 2 3 4; do curl -s -o /dev/null -w '%{{http_code}}\\n' {envoy}/search {bearer}; done")
        say(f"  curl http://127.0.0.1:{self.sidecar.admin_port}/policy    # also /metrics /readyz")
        say(f"  $EDITOR {self.sidecar.policy_file}    # a change is taken over when the file is saved")
        say("\nCtrl-C stops everything.")

    def _write_token(self) -> None:
        self._token_file.write_text(self.issuer.token({"sub": "bob"}))
        self._fresh_until = time.monotonic() + TOKEN_SECONDS / 2

    def stay(self) -> int:
        """Keep the token fresh until a signal; 1 when one of the processes ends by itself."""
        never = threading.Event()
        while True:
            if time.monotonic() > self._fresh_until:
                self._write_token()
            for child in self.children():
                if not child.running:
                    say(paint("red", f"{child.name} ended with status {child.wait()}; its log ends:\n{child.tail()}"))
                    return 1
            never.wait(WATCH_S)


def row(scenario: Scenario, reply: Reply, *, ok: bool) -> str:
    """One row of the table, on as many lines as the window's width asks for."""
    mark = paint("green", "✓") if ok else paint("red", "✗")
    width = max(shutil.get_terminal_size(fallback=(WIDTH_COLUMNS, 0)).columns - WHY_COLUMN, TITLE_COLUMNS)
    reasons = [part for line in why(reply) for part in textwrap.wrap(line, width, subsequent_indent="  ")]
    first, second, *more = [*reasons, "", ""]
    request = paint("grey", f"{scenario.method} {scenario.target}".ljust(TITLE_COLUMNS))
    lines = [f"{mark} {scenario.title:<{TITLE_COLUMNS}}  {reply.status:>6}  {first}"]
    lines.append(f"  {request}          {second}")
    lines += [" " * WHY_COLUMN + line for line in more if line]
    return "\n".join(line.rstrip() for line in lines)


def paint(colour: str, text: str) -> str:
    """The text in a colour, where the output is a terminal."""
    return f"\033[{COLOURS[colour]}m{text}\033[0m" if sys.stdout.isatty() else text


def say(text: str) -> None:
    """Print at once, also into a pipe."""
    print(text, flush=True)


def started(name: str, where: str) -> None:
    """Print one line of progress."""
    say(f"  {paint('green', '✓')} {name:<9} {where}")


def _stop(number: int, _frame: FrameType | None) -> None:
    """End the program through its clean-up, once: a second Ctrl-C must not interrupt it."""
    for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(each, signal.SIG_IGN)
    say("\nStopping")
    sys.exit(0 if number == signal.SIGINT else 128 + number)


def main() -> int:
    """Run the demo; the exit status."""
    parser = argparse.ArgumentParser(prog="python -m sidecar.demo", description=__doc__)
    parser.add_argument("--once", action="store_true", help="end after the table; 1 if an answer is not as it must be")
    once = parser.parse_args().once
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _stop)
    with ExitStack() as stack:
        try:
            demo = Demo(stack)
        except (StartFailedError, OSError) as error:
            say(paint("red", f"The demo could not start: {error}"))
            return 1
        ok = demo.show_table()
        if once:
            return 0 if ok else 1
        demo.show_commands()
        return demo.stay()


if __name__ == "__main__":
    sys.exit(main())
