"""The commands. Each imports what it needs when it runs, so that `sidecar check` does not pay for a server.

Exit status: 0 done; 1 the policy was refused (every fault is on standard error) or something failed; 2 the command
line, or the request to explain, is wrong; 130 interrupted.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final, TypeAlias

import sidecar
from sidecar.policy.faults import PolicyError

Command: TypeAlias = Callable[[argparse.Namespace], int]
_Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"  # noqa: SLF001 - it has no public name


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns its exit status."""
    parsed = _parser().parse_args(arguments)
    command: Command = parsed.command
    try:
        status = command(parsed)
        sys.stdout.flush()
    except PolicyError as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else Python complains when it flushes at exit
        return 1
    except OSError as error:
        print(f"sidecar: {error}", file=sys.stderr)
        return 1
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="sidecar", description="Authentication, authorization and rate limits for Envoy in one round trip."
    )
    parser.add_argument("--version", action="version", version=f"sidecar {sidecar.__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    _add_serve(commands)
    _add_ratelimit(commands)
    _add_check(commands)
    _add_schema(commands)
    _add_explain(commands)
    _add_limits(commands)
    _add_keys(commands)
    _add_revoke(commands)
    _add_conformance(commands)
    return parser


def _add_serve(commands: _Commands) -> None:
    serve = commands.add_parser(
        "serve",
        help="answer Envoy's checks and rate limit calls",
        description="Answers Envoy over gRPC as the policy says, and probes and scrapes on the admin address.",
        epilog="SIGHUP reloads the policy and opens the audit file anew; so does a change of the file. SIGTERM and "
        "SIGINT drain: calls in flight finish within server.drain_grace. Exit status: 0 drained; 1 the policy was "
        "refused, or serving failed.",
    )
    serve.add_argument("--config", type=Path, required=True, metavar="FILE", help="the policy file")
    serve.set_defaults(command=_serve)


def _add_ratelimit(commands: _Commands) -> None:
    ratelimit = commands.add_parser(
        "ratelimit",
        help="serve rate limits as envoyproxy/ratelimit does, from its environment variables",
        description="Answers Envoy's rate limit calls on the ports of envoyproxy/ratelimit (gRPC 8081, HTTP 8080, "
        "debug 6070), started from its environment variables and files. docs/drop-in.md has the differences.",
        epilog="SIGHUP reloads, and so does a change of a file. SIGTERM and SIGINT drain. Exit status: 0 drained; 1 a "
        "variable or a file was refused, or serving failed.",
    )
    ratelimit.add_argument(
        "--config",
        type=Path,
        default=os.environ.get("SIDECAR_CONFIG") or None,
        metavar="FILE",
        help="settings that have no variable, in the policy's format; SIDECAR_CONFIG without it",
    )
    ratelimit.set_defaults(command=_ratelimit)


def _add_check(commands: _Commands) -> None:
    check = commands.add_parser(
        "check",
        help="validate a policy file; every fault is printed",
        description="Validates a policy and the files that it names. Each fault is a "
        "line on standard error: file:line: path: what is wrong; what is accepted.",
        epilog="Exit status: 0 the policy would be served; 1 it was refused.",
    )
    what = check.add_mutually_exclusive_group(required=True)
    what.add_argument("file", type=Path, nargs="?", metavar="FILE", help="the policy file")
    what.add_argument(
        "--ratelimit", type=Path, metavar="DIR", help="a directory of envoyproxy/ratelimit's files, without a policy"
    )
    check.add_argument(
        "--merge-domains", action="store_true", help="with --ratelimit: several files may have the same domain"
    )
    check.set_defaults(command=_check)


def _add_schema(commands: _Commands) -> None:
    schema = commands.add_parser(
        "schema",
        help="print the policy file's JSON Schema",
        description="Prints the JSON Schema (draft 2020-12) of the policy file, with which editors complete and check "
        "it. What a schema cannot know, `sidecar check` does.",
    )
    schema.set_defaults(command=_schema)


def _add_explain(commands: _Commands) -> None:
    explain = commands.add_parser(
        "explain",
        help="say what would be decided about a request, and why",
        description="Decides one request by the code that serves, and says what each step found and what Envoy would "
        "be told. Keys are fetched; limits are counted from zero, so nothing is taken from anybody; revocations and "
        "budgets of failed authentications are not looked at.",
        epilog="Exit status: 0 it was decided, however; 1 the policy was refused; 2 the request cannot be read.",
    )
    explain.add_argument("file", type=Path, metavar="FILE", help="the policy file")
    explain.add_argument(
        "--json",
        action="store_true",
        help="read the request from standard input, a JSON object of method, host, path, headers (an object, or a "
        "list of [name, value]) and source, instead of from these options",
    )
    explain.add_argument("--method", default="GET", help="%(default)s without it")
    explain.add_argument("--host", default="localhost", help="the authority; %(default)s without it")
    explain.add_argument("--path", default="/", help="with the query, as on the wire; %(default)s without it")
    explain.add_argument("--header", action="append", default=[], metavar="NAME:VALUE", help="may be repeated")
    explain.add_argument(
        "--source", default="127.0.0.1", metavar="ADDRESS", help="the client's IP address; %(default)s without it"
    )
    explain.add_argument(
        "--output", choices=("text", "json"), default="text", help="for people or for programs; text without it"
    )
    explain.set_defaults(command=_explain)


def _add_action(actions: _Commands, name: str, text: str, epilog: str, command: Command) -> argparse.ArgumentParser:
    """One of several things that a command does, by a policy."""
    action = actions.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.", epilog=epilog)
    action.add_argument("--config", type=Path, required=True, metavar="FILE", help="the policy file")
    action.add_argument("--output", choices=("text", "json"), default="text", help="for people or for programs")
    action.set_defaults(command=command, action=name)
    return action


def _add_limits(commands: _Commands) -> None:
    epilog = (
        "A counter is named by its limit and the values of the limit's key, in the policy's order, without constants; "
        "@absent stands for a value that requests do not have. A counter of the rate limit service is named by "
        "ratelimit:DOMAIN and the descriptor's entries, each KEY=VALUE. Exit status: 0 done; 1 the policy was refused, "
        "or Redis or the sidecar did not answer; 2 the command line is wrong."
    )
    limits = commands.add_parser(
        "limits",
        help="look at counters, reset them, override the limit of a single key",
        description="Looks at and changes what running sidecars count, in the policy's Redis.",
        epilog=epilog,
    )
    actions = limits.add_subparsers(metavar="ACTION", required=True)
    for name, text in (
        ("show", "what is counted for a key, and what it may still take"),
        ("reset", "empty a key's counter, on all sidecars"),
        ("override", "grant a key another figure, on all sidecars within a second"),
        ("clear", "end a key's override"),
        ("overrides", "list the overrides"),
        ("top", "the keys that are charged most, as the running sidecar estimates"),
    ):
        action = _add_action(actions, name, text, epilog, _limits)
        if name not in {"overrides", "top"}:
            action.add_argument("limit", metavar="LIMIT", help="the limit's name in the policy, or ratelimit:DOMAIN")
            action.add_argument("values", nargs="*", metavar="VALUE", help="the values of the limit's key, in order")
        if name == "override":
            action.add_argument("--requests", type=int, required=True, metavar="N", help="granted in a window")
            action.add_argument("--burst", type=int, default=0, metavar="N", help="of a gcra limit; as the requests")
            action.add_argument("--for", dest="lasting", metavar="DURATION", help="ends by itself; it stays without")
        if name == "top":
            action.add_argument("--count", type=int, default=20, metavar="N", help="how many; %(default)s without it")


def _add_keys(commands: _Commands) -> None:
    epilog = (
        "A key is named by its id, the part after its prefix. Durations are such as 90d or 12h; dates are such as "
        "2030-01-31 or 2030-01-31T12:00:00Z. Exit status: 0 done; 1 the policy was refused, or the keys could not be "
        "had; 2 the command line is wrong."
    )
    keys = commands.add_parser(
        "keys",
        help="make API keys, list, rotate, revoke, import and prune them",
        description="Makes and changes the API keys of a keyring, in the policy's Redis or in the keyring's file.",
        epilog=epilog,
    )
    actions = keys.add_subparsers(metavar="ACTION", required=True)
    for name, text in (
        ("create", "make a key, and print it on standard output, once"),
        ("list", "the keys of a keyring, and when they were used last"),
        ("show", "what is kept of a key"),
        ("rotate", "give a key another secret, and accept the one before for a while"),
        ("revoke", "refuse a key from now on, on all sidecars within a second"),
        ("import", "take keys over that were made elsewhere"),
        ("prune", "forget keys that have long expired or been revoked"),
    ):
        action = _add_action(actions, name, text, epilog, _keys)
        action.add_argument("--keyring", required=True, metavar="NAME", help="the keyring's name in the policy")
        if name in {"show", "rotate", "revoke"}:
            action.add_argument("key_id", metavar="KEY_ID", help="the key's id")
        if name in {"create", "import"}:
            action.add_argument("--created-by", metavar="WHO", help="who makes it; the user's name without it")
        if name in _KEY_OPTIONS:
            _KEY_OPTIONS[name](action)


def _add_create_options(action: argparse.ArgumentParser) -> None:
    action.add_argument("--owner", required=True, metavar="WHO", help="who the key is: the principal's subject")
    for option, text in (
        ("--scopes", "what it may"),
        ("--roles", "what its owner is"),
        ("--networks", "networks such as 192.0.2.0/24 that may use it; any without"),
        ("--hosts", "hosts such as api.example.com or *.example.com that it may be used at; any without"),
        ("--methods", "methods that it may be used with; any without"),
    ):
        action.add_argument(option, action="append", default=[], metavar="A,B", help=f"{text}; may be repeated")
    action.add_argument("--tenant", default="", metavar="NAME", help="on whose behalf it acts")
    action.add_argument("--tier", default="", metavar="NAME", help="its plan")
    expires = "a duration, a date, or never; the keyring's lifetime without it"
    action.add_argument("--expires", metavar="WHEN", help=expires)
    action.add_argument("--not-before", metavar="WHEN", help="a duration or a date; at once without it")
    metadata = "for your own use; a claim of the principal; may be repeated"
    action.add_argument("--metadata", action="append", default=[], metavar="NAME=VALUE", help=metadata)


def _add_list_options(action: argparse.ArgumentParser) -> None:
    action.add_argument("--owner", default="", metavar="WHO", help="only this owner's")
    action.add_argument("--count", type=int, default=1000, metavar="N", help="how many; %(default)s without it")


def _add_rotate_options(action: argparse.ArgumentParser) -> None:
    overlap = "how long the secret before is accepted too; 0s: not at all; %(default)s without it"
    action.add_argument("--overlap", default="1d", metavar="DURATION", help=overlap)
    action.add_argument("--expires", metavar="WHEN", help="a duration, a date, or never; as before without it")


def _add_import_options(action: argparse.ArgumentParser) -> None:
    described = "one JSON object a line: key, sha256 or hash, owner, and any field of a record; - for standard input"
    action.add_argument("file", metavar="FILE", help=described)


def _add_prune_options(action: argparse.ArgumentParser) -> None:
    action.add_argument("--older-than", required=True, metavar="DURATION", help="for how long they have been refused")


_KEY_OPTIONS: Mapping[str, Callable[[argparse.ArgumentParser], None]] = {
    "create": _add_create_options,
    "list": _add_list_options,
    "rotate": _add_rotate_options,
    "import": _add_import_options,
    "prune": _add_prune_options,
}


_REVOKED: Final = (
    ("token", "--jti", "a token, by its jti"),
    ("subject", "--sub", "a subject's tokens that were issued before now, or another time"),
    ("session", "--sid", "a session's tokens, by their sid"),
    ("key", "--kid", "all tokens that a key signed"),
    ("credential", "--key-id", "an API key, by its id, or a certificate, by its digest"),
)


def _add_revoke(commands: _Commands) -> None:
    epilog = (
        "In force on all sidecars within a second; the policy needs a section revocation. Exit status: 0 done; 1 the "
        "policy was refused, Redis did not answer, or there are too many revocations; 2 the command line is wrong."
    )
    revoke = commands.add_parser(
        "revoke",
        help="stop believing tokens, subjects, sessions, keys and other credentials",
        description="Revokes what is not to be believed any more although it can be proved, in the policy's Redis.",
        epilog=epilog,
    )
    actions = revoke.add_subparsers(metavar="ACTION", required=True)

    issuer = "the policy's name of the issuer, introspection, keyring or trust"
    for name, option, text in _REVOKED:
        action = _add_action(actions, name, f"revoke {text}", epilog, _revoke)
        action.add_argument("--issuer", required=True, metavar="NAME", help=issuer)
        action.add_argument(option, required=True, dest="name", metavar="TEXT", help="what is revoked")
        action.add_argument("--for", dest="lasting", metavar="DURATION", help="ends by itself after so long")
        action.add_argument("--note", default="", metavar="TEXT", help="why; shown by list")
        if name == "subject":
            action.add_argument("--before", metavar="TIME", help="2026-12-01T06:00:00Z, or seconds since the epoch")
    undo = _add_action(actions, "undo", "believe again what was revoked", epilog, _revoke)
    undo.add_argument("kind", choices=[name for name, _, _ in _REVOKED], help="what it is")
    undo.add_argument("name", metavar="TEXT", help="its jti, sub, sid, kid or key id")
    undo.add_argument("--issuer", required=True, metavar="NAME", help=issuer)
    _add_action(actions, "list", "list what is revoked", epilog, _revoke)


def _revoke(arguments: argparse.Namespace) -> int:
    from sidecar.revoke_command import run  # noqa: PLC0415 - see the module's head

    return run(arguments)


def _add_conformance(commands: _Commands) -> None:
    conformance = commands.add_parser(
        "conformance",
        help="ask any rate limit service a kit of questions, and judge its answers",
        description="Asks a service over gRPC what a kit of cases says, and compares its answers with those of "
        "envoyproxy/ratelimit. The target must have loaded what --write-config writes.",
        epilog="Exit status: 0 every case that was asked passed; 1 one failed; 2 the command line is wrong, or nobody "
        "answers at the target.",
    )
    conformance.add_argument("kit", choices=("ratelimit",), help="which kit")
    conformance.add_argument("--target", metavar="HOST:PORT", help="the service, without TLS; also unix:PATH")
    conformance.add_argument(
        "--features",
        default="",
        metavar="A,B",
        help="what the target has besides what every service must: cases that need more are skipped. `all`: whatever "
        "changes no other answer. --list shows in brackets what a case needs",
    )
    conformance.add_argument("--list", action="store_true", help="print the cases")
    conformance.add_argument(
        "--write-config", type=Path, metavar="DIR", help="write the configurations of the cases that would be asked"
    )
    conformance.add_argument("--output", choices=("text", "json", "junit"), default="text", help="text without it")
    conformance.set_defaults(command=_conformance)


def _limits(arguments: argparse.Namespace) -> int:
    from sidecar.limits_command import run  # noqa: PLC0415 - see the module's head

    return run(arguments)


def _keys(arguments: argparse.Namespace) -> int:
    from sidecar.keys_command import run  # noqa: PLC0415 - see the module's head

    return run(arguments)


def _serve(arguments: argparse.Namespace) -> int:
    from sidecar.hang_up import remembered  # noqa: PLC0415 - see the module's head

    with remembered() as hang_ups:  # before the imports: they take a while
        from sidecar.app import run  # noqa: PLC0415

        return run(arguments.config, hang_ups)


def _ratelimit(arguments: argparse.Namespace) -> int:
    from sidecar.hang_up import remembered  # noqa: PLC0415 - see the module's head

    with remembered() as hang_ups:
        from sidecar.ratelimit.app import run  # noqa: PLC0415

        return run(arguments.config, hang_ups)


def _check(arguments: argparse.Namespace) -> int:
    if arguments.ratelimit is not None:
        return _check_directory(arguments.ratelimit, merge_domains=arguments.merge_domains)
    from sidecar.policy.compile import load  # noqa: PLC0415

    policy = load(arguments.file, 1).policy
    counts = f"{len(policy.rules.rules)} rules, {len(policy.issuers)} issuers, {len(policy.ratelimit.domains)} domains"
    _print_warnings(policy.ratelimit.warnings)
    print(f"{arguments.file}: good ({counts})")
    return 0


def _check_directory(directory: Path, *, merge_domains: bool) -> int:
    from sidecar.core.descriptors import RateLimitOptions  # noqa: PLC0415
    from sidecar.policy.ratelimit_files import load_directory  # noqa: PLC0415

    config = load_directory(directory, RateLimitOptions(merge_domains=merge_domains), files="visible")
    _print_warnings(config.warnings)
    limits = sum(len(domain.limits) for domain in config.domains.values())
    print(f"{directory}: good ({len(config.domains)} domains, {limits} limits)")
    return 0


def _print_warnings(warnings: Sequence[str]) -> None:
    for warning in warnings:
        print(f"warning: {warning}", file=sys.stderr)


def _schema(_arguments: argparse.Namespace) -> int:
    from sidecar.policy.schema import json_schema  # noqa: PLC0415

    print(json.dumps(json_schema(), indent=2))
    return 0


def _explain(arguments: argparse.Namespace) -> int:
    from sidecar.edges.log import configure_log  # noqa: PLC0415
    from sidecar.explain import RequestError, described_request, explain  # noqa: PLC0415

    configure_log("error")

    try:
        if arguments.json:
            request = described_request(sys.stdin.buffer.read().decode("utf-8", "surrogateescape"))
        else:
            request = described_request(
                {
                    "method": arguments.method,
                    "host": arguments.host,
                    "path": arguments.path,
                    "headers": [header.partition(":")[::2] for header in arguments.header],
                    "source": arguments.source,
                }
            )
    except RequestError as error:
        print(f"sidecar explain: {error}", file=sys.stderr)
        return 2
    explanation = explain(arguments.file, request)
    print(json.dumps(explanation.as_json(), indent=2) if arguments.output == "json" else explanation.as_text())
    return 0


def _conformance(arguments: argparse.Namespace) -> int:
    from sidecar.conformance.command import run  # noqa: PLC0415

    return run(
        arguments.target,
        arguments.features,
        arguments.output,
        list_only=arguments.list,
        write_config=arguments.write_config,
    )
