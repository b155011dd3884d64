"""`POST /revocations` on the admin listener: revokes, undoes and lists, for whoever shows the secret."""

from __future__ import annotations

import hmac
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Final

import msgspec

from sidecar.core.revocation import Kind, Revocation
from sidecar.edges.admin import Answer, PostRoute, json_answer
from sidecar.edges.limit_changes import ChangesError
from sidecar.edges.revocation_paths import BODY_BYTES_MAX
from sidecar.policy.revocation_terms import TermError, Terms

if TYPE_CHECKING:
    from sidecar.core.secret import Secret
    from sidecar.edges.revocation_store import RevocationStore

LISTED_MAX: Final = 10_000
"""Entries in one answer; the command lists all of them."""


class Order(msgspec.Struct, forbid_unknown_fields=True):
    """What is to be done: `revoke`, `undo` or `list`; see `Terms` for the rest."""

    action: str
    kind: str = ""
    issuer: str = ""
    name: str = ""
    before: str | None = None
    lasting: str | None = msgspec.field(default=None, name="for")
    note: str = ""


def revocation_route(secret: Secret, store: RevocationStore, terms: Callable[[], Terms]) -> PostRoute:
    """The route.

    Args:
        secret: What `Authorization: Bearer` must show.
        store: Where it is done.
        terms: What may be named, by the policy of now.
    """
    wanted = f"Bearer {secret.reveal()}".encode()

    async def act(body: bytes, headers: Mapping[str, str]) -> Answer:
        if not hmac.compare_digest(headers.get("authorization", "").encode("utf-8", "replace"), wanted):
            return json_answer({"error": "Authorization: Bearer with the policy's revocation.admin_secret_file"}, 401)
        try:
            return json_answer(await _done(msgspec.json.decode(body, type=Order), store, terms()))
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            return json_answer({"error": f"the body is not an order: {error}"}, 400)
        except TermError as error:
            return json_answer({"error": str(error)}, 400)
        except ChangesError as error:
            return json_answer({"error": str(error)}, 503)

    return PostRoute(act, BODY_BYTES_MAX)


async def _done(order: Order, store: RevocationStore, terms: Terms) -> dict[str, Any]:
    if order.action == "list":
        found: list[Any] = []
        async for stored in store.entries():
            if len(found) == LISTED_MAX:
                return {"revocations": found, "more": True}
            found.append(shown(stored.revocation, stored.note))
        return {"revocations": found, "more": False}
    if order.action == "revoke":
        revocation = terms.revocation(order.kind, order.issuer, order.name, order.before, order.lasting)
        return {"revoked": shown(revocation, order.note), "new": await store.revoke(revocation, order.note)}
    if order.action == "undo":
        kind, issuer, name = terms.named(order.kind, order.issuer, order.name)
        return {"undone": await store.undo(kind, issuer, name)}
    raise TermError(f"the action {order.action[:32]!r} is none; revoke, undo and list are")


def shown(revocation: Revocation, note: str) -> dict[str, Any]:
    """An entry for programs; times in microseconds since the epoch."""
    listed = {
        "kind": revocation.kind.value,
        "issuer": revocation.issuer,
        "name": revocation.name,
        "until_us": revocation.until_us,
        "note": note,
    }
    return {**listed, "before_us": revocation.before_us} if revocation.kind is Kind.SUBJECT else listed
