"""What a decision costs as things become many: rules, counters, tokens. It should not grow.

    rules     1, 100, 10,000 rules with a path template each; calls spread over up to 100 of them
    counters  1, 1,000, 1,000,000 distinct keys of limits that count by a request header. Before the measured rounds
              every key is charged once through the sidecar, until Valkey holds as many; the rounds then go on visiting
              different keys until all were visited
    limits    1, 100, 10,000 limits in a domain of the rate limit service, half of them patterns (`/service-7/*`), a
              level below which each user has a counter; calls spread over up to 100 of them
    tokens    1, 1,000 and 5,000 distinct tokens of one subject, all verified before the measured rounds

Budget of each table: the last row at most 1.3 times the first, where 1.3 stands for noise and for processor caches.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from typing import overload

from bench.decision import allowed
from bench.load import process_cpu_s
from bench.measure import Budget, Scale, Subject, alone, head, in_turn, line
from bench.ratelimit import limited
from bench.setting import CHECK, HEADERS, SHOULD_RATE_LIMIT, Policy, Setting
from sidecar.envoy.pb.ratelimit_pb2 import RateLimitRequest

FLAT = 1.3

RULES_ASKED_MAX = 100

LIMITS = 10
"""Limits of the counters' policy; the rule that fills charges all of them in one call, which saves time."""

SPARE = 1.2
"""Filling asks for more keys than are needed: calls in flight are lost whenever the load generator stops."""

STRIDE = 7_368_787
"""A prime: steps of it visit all of any smaller number of keys, in an order without neighbours."""

PLACE = "#" * 12
"""Where a numbered message's number goes."""

TOUCH_S = 1.0


class Numbered(Sequence[bytes]):
    """Messages that differ in a number, made when they are asked for: a million whole ones would fill the memory.

    Reading goes on where it stopped before.
    """

    def __init__(self, templates: Sequence[bytes], count: int) -> None:
        self._parts = [template.split(PLACE.encode()) for template in templates]
        self._count = count
        self._next = 0

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, index: int) -> bytes: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[bytes]: ...
    def __getitem__(self, index: int | slice) -> bytes | Sequence[bytes]:
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(self._count))]
        if not 0 <= index < self._count:
            raise IndexError(index)
        number, part = divmod(index * STRIDE % self._count, len(self._parts))
        before, after = self._parts[part]
        return b"%b%0*d%b" % (before, len(PLACE), number, after)

    def __iter__(self) -> Iterator[bytes]:
        while True:
            self._next = (self._next + 1) % self._count
            yield self[self._next]


def touch(subject: Subject, done: Callable[[int], bool]) -> None:
    """Call until `done`, which is asked with the number of calls so far."""
    calls = 0
    while not done(calls):
        calls += subject.measured(TOUCH_S, warm_up_s=0).calls


def touch_each(subject: Subject) -> None:
    """Call with every message. Each second begins with the first again; what is cached by then goes by quickly."""
    touch(subject, lambda calls: calls > 2 * len(subject.messages))


def table(
    title: str, subjects: Mapping[str, Subject], scale: Scale, note: Callable[[str], str] = lambda _name: ""
) -> Budget:
    """Measure in turn, print, and hold the last against the first."""
    rows = in_turn(subjects, scale)
    print(head(title))
    names = list(rows)
    first, last = rows[names[0]], rows[names[-1]]
    for name, row in rows.items():
        print(line(name, row, first, note(name)))
    return Budget(what=f"CPU, {title}, {names[-1]} / {names[0]}", figure=last.ratio(first), unit="x", at_most=FLAT)


def rules(scale: Scale) -> Budget:
    """One limit and one scope each, so that the rule is all that differs."""
    with Setting() as setting, ExitStack() as servers:
        token, subjects, ready = setting.token(), {}, {}
        for count in (1, 100, scale.rules):
            policy = setting.policy(rules=[setting.rule(f"r{n}", f"/service-{n}/orders/{{id}}") for n in range(count)])
            server = servers.enter_context(setting.sidecar(policy))
            asked = range(0, count, max(1, count // RULES_ASKED_MAX))
            messages = [setting.check(f"/service-{n}/orders/42", token) for n in asked]
            name = f"{count:,} rules"
            subjects[name] = Subject(server=server, path=CHECK, messages=messages, accept=allowed)
            ready[name] = f"ready after {server.ready_after_s:.1f} s, {server.resident_mib():.0f} MiB"
        return table("by rules", subjects, scale, ready.__getitem__)


def _counting_policy(setting: Setting) -> Policy:
    """Limit n has a rule of its own, and they all have one together, to fill."""
    limits = {f"l{n}": {"rate": "4000000000/hour", "key": {"header": "x-client"}} for n in range(LIMITS)}
    alone_ = [setting.rule(f"r{n}", f"/l{n}/{{id}}") | {"limits": [f"l{n}"]} for n in range(LIMITS)]
    return setting.policy(limits=limits, rules=[*alone_, setting.rule("fill", "/fill/{id}") | {"limits": list(limits)}])


def _fill(setting: Setting, subject: Subject, count: int) -> None:
    """Charge the counters until there are `count`."""
    touch(subject, lambda _calls: setting.counters() >= count)


def counters(scale: Scale) -> Budget:
    """Each number of counters in a Valkey of its own."""
    with ExitStack() as stack:
        subjects, settings = {}, {}
        for count in (1, 1_000, scale.counters):
            setting = stack.enter_context(Setting())
            server = stack.enter_context(setting.sidecar(_counting_policy(setting)))
            token, headers = setting.token(), HEADERS | {"x-client": PLACE}
            used = min(LIMITS, count)
            messages = Numbered([setting.check(f"/l{n}/42", token, headers) for n in range(used)], count)
            subject = Subject(server=server, path=CHECK, messages=messages, accept=allowed)
            if count == 1:
                touch(subject, lambda calls: calls > 0)
            else:
                filling = Numbered([setting.check("/fill/42", token, headers)], int(count / LIMITS * SPARE))
                filler = Subject(server=server, path=CHECK, messages=filling, accept=allowed)
                _fill(setting, filler, count)
            name = f"{count:,} keys"
            subjects[name], settings[name] = subject, setting
        before = {name: _valkey(setting) for name, setting in settings.items()}

        def note(name: str) -> str:
            setting, (cpu_s, calls) = settings[name], before[name]
            now_cpu_s, now_calls = _valkey(setting)
            each_us = (now_cpu_s - cpu_s) / max(1, now_calls - calls) * 1e6
            return f"Valkey: {each_us:.1f} CPU us, {setting.counters():,} keys"

        return table("by counters", subjects, scale, note)


def _valkey(setting: Setting) -> tuple[float, int]:
    """CPU time of its Valkey so far, and scripts run."""
    return process_cpu_s(setting.valkey.pid), setting.scripts_run()


def tokens(scale: Scale) -> Budget:
    """Signed with ES256, which is quick; a warm token's algorithm does not matter."""
    with Setting() as setting, ExitStack() as servers:
        subjects, running = {}, {}
        for count in (1, scale.tokens // 5, scale.tokens):
            server = servers.enter_context(setting.sidecar(setting.policy()))
            messages = [setting.check(token=setting.token("ES256", jti=f"{n:08}")) for n in range(count)]
            subject = Subject(server=server, path=CHECK, messages=messages, accept=allowed)
            touch_each(subject)
            name = f"{count:,} warm tokens"
            subjects[name], running[name] = subject, server
        return table("by tokens", subjects, scale, lambda name: f"{running[name].resident_mib():.0f} MiB resident")


def _many_limits(count: int) -> Policy:
    """Half of them patterns, in turn, so that both forms are among those that are asked."""
    per_user = [{"key": "user", "rate_limit": {"unit": "hour", "requests_per_unit": 4_000_000_000}}]
    return {
        "domain": "many",
        "descriptors": [
            {"key": "path", "value": f"/service-{n}/{'*' if n % 2 else 'orders'}", "descriptors": per_user}
            for n in range(count)
        ],
    }


def _of_many(number: int) -> bytes:
    asked = RateLimitRequest(domain="many")
    descriptor = asked.descriptors.add()
    descriptor.entries.add(key="path", value=f"/service-{number}/orders")
    descriptor.entries.add(key="user", value="ann")
    return asked.SerializeToString()


def limits(scale: Scale) -> Budget:
    """Each number of limits in a domain and a sidecar of its own."""
    with Setting() as setting, ExitStack() as servers:
        subjects, ready = {}, {}
        for count in (1, 100, scale.limits):
            server = servers.enter_context(setting.sidecar(setting.ratelimit_policy(_many_limits(count))))
            asked = range(0, count, max(1, count // RULES_ASKED_MAX - 1))  # odd and even ones
            messages = [_of_many(number) for number in asked]
            name = f"{count:,} limits"
            subjects[name] = Subject(server=server, path=SHOULD_RATE_LIMIT, messages=messages, accept=limited)
            ready[name] = f"ready after {server.ready_after_s:.1f} s, {server.resident_mib():.0f} MiB"
        return table("by limits in a domain", subjects, scale, ready.__getitem__)


def main(scale: Scale) -> list[Budget]:
    """Print the tables."""
    return [rules(scale), limits(scale), counters(scale), tokens(scale)]


if __name__ == "__main__":
    alone(main)
