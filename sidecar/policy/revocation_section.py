"""The sections `revocation` and `abuse`, and what they mean. Changes need a restart."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from sidecar.core.limits import Limit
from sidecar.policy import durations
from sidecar.policy.durations import seconds
from sidecar.policy.fields import Between, Duration, RateText, Text, parse_rate
from sidecar.policy.model import Model
from sidecar.policy.settings import RevocationSettings

if TYPE_CHECKING:
    from sidecar.policy.files import Files
    from sidecar.policy.validate import Validated

FAILED_AUTHENTICATIONS = "failed-authentications"
"""Names the limit in the store's keys."""


class RevocationSection(Model):
    """Tokens, subjects, sessions, keys and credentials that are not believed any more. Changes need a restart."""

    lifetime: Annotated[Duration, Between("1m", "366d", "1s")] = Field(
        "30d",
        description="How long a revoked token, subject or session stays revoked, unless the revocation says otherwise: "
        "as long as the longest-lived token. Revoked keys and credentials stay so until it is undone.",
        examples=["1d"],
    )
    when_unknown: Literal["accept", "deny"] = Field(
        "accept",
        description="What happens to credentials while Redis has not confirmed for `stale_after` what is revoked, or "
        "was never read: they are accepted as far as is known, or all denied (503). What is known stays revoked.",
        examples=["accept"],
    )
    stale_after: Annotated[Duration, Between("2s", "1d", "1s")] = Field(
        "30s",
        description="With `when_unknown: deny`: how long what is known counts as known without news of Redis.",
        examples=["30s"],
    )
    admin_secret_file: Text | None = Field(
        None,
        description="A file with the bearer secret (16 characters or more) for `POST /revocations` on the admin "
        "listener, which does not exist without it.",
        examples=["secrets/revocation-admin"],
    )


class FailedAuthenticationsSection(Model):
    """A budget of refused credentials."""

    rate: RateText = Field(
        description="Refused credentials of one source: an IPv4 address, or an IPv6 /64. Over it, credentials from "
        "there that are not known yet are answered 429 before they are looked at.",
        examples=["20/minute"],
    )


class AbuseSection(Model):
    """What keeps guessing slow. Changes need a restart."""

    failed_authentications: FailedAuthenticationsSection = Field(
        description="A budget of refused credentials for each source.", examples=[{"rate": "20/minute"}]
    )


SECRET_CHARS_MIN = 16


def compile_revocation(validated: Validated, files: Files) -> RevocationSettings | None:
    """The section `revocation`; what is wrong is added to the faults."""
    section = validated.document.revocation
    if section is None:
        return None
    if not validated.has("redis"):
        validated.fault(("redis",), "the section is missing: revocations are kept in Redis", "redis: {url: embedded}")
    for name, issuer in validated.document.issuers.items():
        if issuer.max_lifetime and durations.parse(issuer.max_lifetime) > durations.parse(section.lifetime):
            message = f"a revoked token would come back to life: issuers.{name}.max_lifetime is {issuer.max_lifetime}"
            validated.fault(("revocation", "lifetime"), message, f"{issuer.max_lifetime} or more")
    secret = None
    if section.admin_secret_file is not None:
        where = ("revocation", "admin_secret_file")
        secret = files.secret(where, section.admin_secret_file)
        if secret is not None and len(secret.reveal()) < SECRET_CHARS_MIN:
            message = f"the file {files.path(section.admin_secret_file)} holds a secret that can be guessed"
            validated.fault(where, message, f"{SECRET_CHARS_MIN} characters or more")
    return RevocationSettings(
        lifetime_us=durations.parse(section.lifetime),
        deny_unknown=section.when_unknown == "deny",
        stale_after_s=seconds(section.stale_after),
        admin_secret=secret,
    )


def compile_abuse(validated: Validated) -> Limit | None:
    """The budget of failed authentications; what is wrong is added to the faults."""
    section = validated.document.abuse
    if section is None:
        return None
    requests, window_us = parse_rate(section.failed_authentications.rate)
    requests = max(requests, 1)  # with none at all, whoever errs once is out for good
    try:
        return Limit(name=FAILED_AUTHENTICATIONS, requests=requests, window_us=window_us)
    except ValueError as error:
        validated.fault(("abuse", "failed_authentications", "rate"), str(error), "a rate such as 20/minute")
        return None
