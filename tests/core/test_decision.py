"""The table of deny reasons."""

from __future__ import annotations

import pytest

from sidecar.core.decision import REASONS, Challenge, Decision, DenyReason


def test_every_reason_has_a_row() -> None:
    """The table is complete, and nothing in it can be read as success."""
    assert set(REASONS) == set(DenyReason)
    for row in REASONS.values():
        assert 400 <= row.http_status <= 599
        assert row.grpc_status != 0
        assert row.title
        assert row.detail.endswith(".")


@pytest.mark.parametrize("reason", DenyReason)
def test_challenge_fits_the_status(reason: DenyReason) -> None:
    """401 always carries a challenge (RFC 9110 section 15.5.2); 5xx and 429 never do."""
    row = REASONS[reason]
    if row.http_status == 401:
        assert row.challenge not in {Challenge.NONE, Challenge.INVALID_REQUEST, Challenge.INSUFFICIENT_SCOPE}
    if row.http_status >= 429:
        assert row.challenge is Challenge.NONE


def test_labels_are_distinct() -> None:
    """Metrics and problem types tell reasons apart."""
    assert len({reason.value for reason in DenyReason}) == len(DenyReason)


def test_reason_means_denied() -> None:
    """Only a decision without a reason is allowed."""
    assert Decision(None, None, None, (), 1).allowed
    assert not any(Decision(reason, None, None, (), 1).allowed for reason in DenyReason)
