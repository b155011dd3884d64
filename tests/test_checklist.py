"""The checklist for tokens and keys: each of its lines, and each published weakness, with the tests that prove it.

A line is proved by tests that are named here as `file::function`; a name that no longer exists is a failure, and so is
a line without one. What a weakness was is said in a few words; the cases themselves stand with the tests.
"""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

import pytest

TESTS = Path(__file__).parent

TOKEN, KEYS, PROFILES = "core/test_token.py", "core/test_keys.py", "core/test_profiles.py"
ENGINE, WAYS, CLIENT = "edges/test_jwks.py", "edges/test_http_ways.py", "edges/test_http_client.py"
HOSTILE = "scenarios/test_hostile_credentials.py::test_hostile_credentials_are_denied_and_leave_nothing"
REFUSED = f"{TOKEN}::test_hostile_tokens_are_refused_for_their_fault"
ROTATION = "scenarios/test_key_rotation.py::test_rotation_and_outage"
UNUSABLE = f"{KEYS}::test_unusable_keys_are_left_out_for_their_fault"
PATHS = "core/test_paths.py::test_ambiguous_paths_are_refused"

LINES: dict[str, tuple[str, list[str]]] = {
    "1": (
        "the token and its header are bounded",
        [
            HOSTILE,
            f"{TOKEN}::test_what_the_standards_allow_is_accepted",
            f"{TOKEN}::test_what_the_issuers_policy_changes",
        ],
    ),
    "2": ("three segments, none empty", [REFUSED, HOSTILE]),
    "3": ("the alphabet of base64url alone", [REFUSED, "core/test_base64url.py::test_every_other_spelling_is_refused"]),
    "4": (
        "one spelling for each signature",
        [
            REFUSED,
            "core/test_base64url.py::test_forgiving_decoders_accept_these",
            f"{TOKEN}::test_a_changed_token_is_not_believed",
        ],
    ),
    "5": (
        "strict JSON in UTF-8",
        [
            REFUSED,
            "core/test_strict_json.py::test_depth_is_exact",
            "core/test_strict_json.py::test_values_and_digits_are_counted_exactly",
            "core/test_strict_json.py::test_any_bytes_are_an_object_or_refused",
        ],
    ),
    "6": (
        "alg from the issuer's list, never none, secrets only where declared",
        [
            f"{TOKEN}::test_an_algorithm_that_the_policy_does_not_list_is_refused",
            f"{PROFILES}::test_a_declared_secret_verifies_its_own_algorithm",
            f"{PROFILES}::test_public_keys_are_no_secrets_even_where_the_policy_lists_hs256",
            f"{ENGINE}::test_secrets_from_a_file_verify_and_those_from_a_server_never_do",
            "policy/test_policy_files.py::test_each_bad_file_has_the_one_fault_in_its_name",
        ],
    ),
    "7": (
        "one key, one algorithm",
        [
            f"{KEYS}::test_a_key_is_found_only_for_what_it_may_verify",
            f"{TOKEN}::test_good_tokens_of_every_algorithm",
            UNUSABLE,
        ],
    ),
    "8": (
        "kid is a name; without it exactly one key fits",
        [
            f"{TOKEN}::test_kid_is_a_name_and_nothing_else",
            f"{TOKEN}::test_the_longest_kid_is_a_kid",
            f"{TOKEN}::test_a_token_without_kid",
            f"{KEYS}::test_keys_without_kid_serve_tokens_without_kid",
        ],
    ),
    "9": (
        "jku, x5u, jwk and x5c are never followed",
        [f"{PROFILES}::test_profiles_rule_by_rule", f"{PROFILES}::test_a_pointed_to_key_is_never_used", REFUSED],
    ),
    "10": ("crit and b64", [REFUSED, f"{PROFILES}::test_profiles_rule_by_rule"]),
    "11": ("typ by profile; ID tokens, cty and zip", [f"{PROFILES}::test_profiles_rule_by_rule", REFUSED]),
    "12": ("enc", [REFUSED, f"{PROFILES}::test_profiles_rule_by_rule"]),
    "13": (
        "what a key must be, and what a set may hold",
        [
            UNUSABLE,
            f"{KEYS}::test_limits_are_inclusive",
            f"{KEYS}::test_kids_that_two_keys_share",
            f"{KEYS}::test_symmetric_keys_that_are_none",
            f"{KEYS}::test_exposed_keys_are_marked",
            f"{ENGINE}::test_bad_keys_are_reported_once_and_the_good_ones_used",
        ],
    ),
    "14": ("ECDSA: fixed length, r and s in range, no DER", [REFUSED, f"{KEYS}::test_verify_never_raises"]),
    "15": ("codes are compared in constant time", [f"{KEYS}::test_a_symmetric_key_serves_its_algorithm_alone"]),
    "16": ("iss exactly; keys by issuer", [REFUSED, f"{TOKEN}::test_keys_of_another_issuer_do_not_vouch"]),
    "17": (
        "aud, exactly unless loosened",
        [REFUSED, f"{PROFILES}::test_loose_audiences", f"{TOKEN}::test_what_the_issuers_policy_changes"],
    ),
    "18": ("exp", [REFUSED, f"{TOKEN}::test_time_is_checked_again_to_the_microsecond"]),
    "19": (
        "nbf, iat, lifetime, age, leeway",
        [
            REFUSED,
            f"{TOKEN}::test_what_the_issuers_policy_changes",
            f"{PROFILES}::test_the_maximum_age_counts_from_iat",
            f"{PROFILES}::test_a_cached_token_grows_old_too",
        ],
    ),
    "20": ("sub, and all of RFC 9068", [REFUSED, f"{PROFILES}::test_profiles_rule_by_rule"]),
    "21": (
        "lists of names",
        [
            f"{TOKEN}::test_scopes_are_split_on_single_spaces_alone",
            f"{PROFILES}::test_lists_of_names_have_their_types_checked",
        ],
    ),
    "22": (
        "cnf is enforced",
        [
            "core/test_confirmation.py::test_what_cannot_be_proved_is_refused",
            "core/test_confirmation.py::test_a_binding_is_never_cached",
        ],
    ),
    "23": (
        "revocation, and the length of jti",
        [
            "core/test_revocation.py::test_each_kind_is_refused_until_it_ends_or_is_removed",
            "core/test_revocation.py::test_a_subject_is_revoked_before_a_time",
            f"{PROFILES}::test_names_are_strings_of_bounded_length",
        ],
    ),
    "24": (
        "https, no redirects, timeouts, sizes, no private addresses",
        [
            f"{CLIENT}::test_urls_that_are_not_fetched",
            f"{CLIENT}::test_http_needs_permission",
            f"{CLIENT}::test_the_largest_body",
            f"{ENGINE}::test_an_outage_keeps_the_last_good_keys",
            f"{ENGINE}::test_an_issuers_own_limit_of_keys",
            f"{ENGINE}::test_a_discovered_url_elsewhere_must_be_public",
            f"{WAYS}::test_silence_within_an_answer_is_bounded",
            f"{WAYS}::test_an_issuers_own_limit_of_bytes",
            f"{WAYS}::test_which_addresses_are_public",
            f"{WAYS}::test_a_name_is_resolved_once",
        ],
    ),
    "25": (
        "discovery is about the issuer",
        [f"{ENGINE}::test_discovery", f"{ENGINE}::test_discovery_that_points_elsewhere_is_refused"],
    ),
    "26": (
        "background refresh by caching headers, within bounds",
        [
            f"{ENGINE}::test_pauses_between_fetches",
            f"{CLIENT}::test_max_age",
            f"{WAYS}::test_what_is_old_already_is_fresh_for_less_long",
            f"{ENGINE}::test_keys_that_did_not_change_are_not_sent_again",
        ],
    ),
    "27": (
        "the last good keys stay, to a stated age",
        [
            ROTATION,
            f"{ENGINE}::test_an_outage_keeps_the_last_good_keys",
            f"{ENGINE}::test_keys_that_became_too_old_are_not_used",
        ],
    ),
    "28": (
        "an unknown kid: one fetch, a ration, a bounded memory",
        [
            ROTATION,
            f"{ENGINE}::test_an_unknown_key_is_fetched_once_for_all_who_wait",
            f"{ENGINE}::test_a_flood_of_unknown_keys_makes_the_rationed_fetches_only",
            f"{ENGINE}::test_remembered_names_are_bounded",
            f"{ENGINE}::test_nobody_waits_past_the_deadline",
        ],
    ),
    "29": ("overlap, and what a removed key takes with it", [ROTATION, f"{ENGINE}::test_rotation_overlap_and_removal"]),
    "30": (
        "ready once each required issuer has keys, or had them kept",
        [
            f"{ENGINE}::test_keys_arrive_in_the_background_and_make_it_ready",
            f"{ENGINE}::test_optional_issuers_do_not_hold_readiness_back",
            f"{ENGINE}::test_a_restart_without_the_issuer_has_the_kept_keys",
            "edges/test_kept_keys.py::test_a_file_that_others_can_write_is_not_believed",
        ],
    ),
    "31": (
        "authorities, client certificates, headers, proxies",
        [
            f"{CLIENT}::test_https_with_a_pinned_authority",
            f"{WAYS}::test_a_client_certificate_is_shown_to_who_asks",
            f"{WAYS}::test_headers_come_from_files_at_each_fetch",
            f"{WAYS}::test_a_proxy_is_asked_to_connect",
            f"{WAYS}::test_proxies_of_the_environment_are_not_asked",
        ],
    ),
    "DPoP": (
        "RFC 9449 section 4.3",
        [
            "core/test_dpop.py::test_each_rule_is_held_to",
            "scenarios/test_proof_scenarios.py::test_a_proof_is_used_once",
        ],
    ),
    "mTLS": (
        "RFC 8705",
        [
            "core/test_confirmation.py::test_certificates_are_compared",
            "core/test_certificates.py::test_headers_are_believed_from_proxies_alone",
        ],
    ),
    "cache": (
        "verified tokens: by digest, bounded, checked on each hit",
        [
            "core/test_token_cache.py::test_bounds",
            "core/test_token_cache.py::test_an_entry_holds_while_policy_and_key_do",
            "scenarios/test_check_scenarios.py::test_a_proved_token_is_proved_once_and_checked_each_time",
            "scenarios/test_check_scenarios.py::test_a_withdrawn_key_vouches_for_nobody",
        ],
    ),
}

FORGED_HEADERS = "e2e/test_hostile_requests.py::test_forged_identity_never_reaches_the_upstream"
NOT_TEXT = "e2e/test_hostile_requests.py::test_bytes_that_are_not_text"
TWO = "e2e/test_hostile_requests.py::test_two_credentials_are_refused"
NUL = "core/test_certificates.py::test_what_is_no_certificate"
DEPTH = "core/test_strict_json.py::test_depth_is_exact"
OUTAGE = f"{ENGINE}::test_an_outage_keeps_the_last_good_keys"
CONFUSED = f"{PROFILES}::test_public_keys_are_no_secrets_even_where_the_policy_lists_hs256"

WEAKNESSES: dict[str, tuple[str, list[str]]] = {
    "CVE-2017-11424": ("a PEM public key as an HMAC secret", [HOSTILE, CONFUSED]),
    "CVE-2022-29217": ("an SSH public key as an HMAC secret", [HOSTILE, CONFUSED]),
    "CVE-2024-53861": ("iss as a part of a name", [HOSTILE]),
    "CVE-2025-45768": ("short keys", [UNUSABLE, f"{KEYS}::test_symmetric_keys_that_are_none"]),
    "CVE-2026-32597": ("crit overlooked", [HOSTILE]),
    "CVE-2026-48522": ("keys from file:, ftp: and data:", [f"{CLIENT}::test_urls_that_are_not_fetched"]),
    "CVE-2026-48523": (
        "the key's alg instead of the allowed ones",
        [f"{TOKEN}::test_an_algorithm_that_the_policy_does_not_list_is_refused", HOSTILE],
    ),
    "CVE-2026-48524": (
        "a fetch for every unknown kid, and a failed one that forgets all keys",
        [ROTATION, OUTAGE, f"{ENGINE}::test_a_flood_of_unknown_keys_makes_the_rationed_fetches_only"],
    ),
    "CVE-2026-48525": ("b64=false", [HOSTILE]),
    "CVE-2026-48526": (
        "a JWK's text as an HMAC secret; secrets in public sets",
        [HOSTILE, CONFUSED, f"{ENGINE}::test_secrets_from_a_file_verify_and_those_from_a_server_never_do"],
    ),
    "CVE-2025-59420": ("crit overlooked", [HOSTILE]),
    "CVE-2025-61920": ("segments without bound", [HOSTILE]),
    "CVE-2026-27962": ("the header's own jwk", [HOSTILE, f"{PROFILES}::test_a_pointed_to_key_is_never_used"]),
    "CVE-2024-37568": ("algorithm confusion", [HOSTILE, CONFUSED]),
    "CVE-2025-62706": ("compressed content", [HOSTILE]),
    "CVE-2026-28490": ("RSA1_5", [HOSTILE]),
    "CVE-2016-7036": (
        "codes compared byte by byte",
        [f"{KEYS}::test_a_symmetric_key_serves_its_algorithm_alone", HOSTILE],
    ),
    "CVE-2024-33663": ("an ECDSA key of SSH as an HMAC secret", [HOSTILE, CONFUSED]),
    "CVE-2024-33664": ("encrypted content that grows", [HOSTILE]),
    "CVE-2025-65015": ("exhaustion by one token", [HOSTILE]),
    "CVE-2026-27932": ("exhaustion by one token", [HOSTILE]),
    "CVE-2025-25207": (
        "many questions for one request",
        ["edges/test_introspection.py::test_a_flood_of_unknown_tokens_does_not_reach_the_endpoint"],
    ),
    "CVE-2025-25208": (
        "exhaustion by those who wait",
        ["edges/test_introspection.py::test_checks_that_wait_are_bounded", f"{ENGINE}::test_waiters_are_bounded"],
    ),
    "Authorino 649": (
        "allowed since time was over",
        [
            "e2e/test_failures.py::test_hanging_keys_are_denied_in_time",
            "scenarios/test_check_scenarios.py::test_a_refused_call_is_a_denial",
        ],
    ),
    "Authorino 651": (
        "an answer that ends the process",
        [
            "core/test_introspection.py::test_whatever_an_answer_is_it_is_one_of_three_things",
            "scenarios/test_check_scenarios.py::test_a_fault_of_ours_is_a_denial",
        ],
    ),
    "CVE-2023-27488": ("bytes that are not text open Envoy", [NOT_TEXT, HOSTILE]),
    "CVE-2021-32777": ("the last of repeated headers alone", [TWO, HOSTILE]),
    "CVE-2020-25017": ("the first of repeated headers replaced alone", [FORGED_HEADERS, HOSTILE]),
    "CVE-2021-21378": ("no token where one is required", [HOSTILE]),
    "CVE-2024-23324": ("bytes that are not text in metadata", [NOT_TEXT, HOSTILE]),
    "CVE-2024-45806": (
        "x-envoy-* believed",
        ["policy/test_policy_files.py::test_each_bad_file_has_the_one_fault_in_its_name", FORGED_HEADERS],
    ),
    "CVE-2024-45809": (
        "keys that change while a request waits",
        [f"{ENGINE}::test_reload_forgets_issuers_and_answers_who_waited"],
    ),
    "CVE-2025-64527": (
        "a fetch that fails while a request waits",
        [f"{ENGINE}::test_what_a_caller_raises_harms_nobody_else", ROTATION],
    ),
    "CVE-2025-66220": (
        "NUL in a certificate's name",
        [NUL, "core/test_certificates.py::test_spiffe_ids_and_dns_names"],
    ),
    "CVE-2026-47778": (
        "NUL in a certificate's name",
        [NUL, "core/test_certificates.py::test_spiffe_ids_and_dns_names"],
    ),
    "CVE-2026-26308": ("several values read as one", [TWO, HOSTILE]),
    "CVE-2026-48042": ("nested JSON", [DEPTH, HOSTILE]),
    "CVE-2021-29492": ("encoded slashes", [PATHS]),
    "CVE-2021-31920": ("two slashes", [PATHS]),
    "CVE-2026-26205": ("two slashes read as a host", [PATHS]),
    "CVE-2026-33494": ("dot segments", [PATHS]),
    "CVE-2026-33495": ("X-Forwarded-Proto believed", ["core/test_dpop.py::test_htu_is_the_public_url"]),
    "CVE-2026-33496": (
        "an answer for another endpoint",
        ["core/test_introspection.py::test_two_endpoints_never_share_an_answer"],
    ),
    "CVE-2021-32701": (
        "a cached answer for other scopes",
        [
            "core/test_introspection.py::test_another_policy_ends_an_answer",
            "scenarios/test_check_scenarios.py::test_a_stricter_policy_believes_no_cached_token",
        ],
    ),
    "GO-2026-4742": (
        "path and query confused",
        ["core/test_paths.py::test_accepted_paths_are_what_a_normaliser_gives", PATHS],
    ),
    "CVE-2026-33186": ("no leading slash", [PATHS]),
    "Tyk 2432": (
        "two keys with one hash",
        [
            "core/test_api_keys.py::test_unknown_and_wrong_cannot_be_told_apart",
            "core/test_api_keys.py::test_foreign_keys_are_found_by_their_digest",
        ],
    ),
}

NOT_OURS = {
    "CVE-2026-26330": "Envoy's rate limit filter crashes in the response phase: no answer of ours decides it",
    "CVE-2026-47205": "Envoy's own ext_authz filter uses freed memory with per-route overrides, whatever is answered",
}
"""Weaknesses of the gateway's own memory, for its operator to update."""

ALL_WEAKNESSES_COUNT = 49


@cache
def functions(file: str) -> frozenset[str]:
    tree = ast.parse((TESTS / file).read_text())
    return frozenset(node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))


PROOFS = [
    pytest.param(proof, id=f"{name} {proof}")
    for name, (_, proofs) in {**LINES, **WEAKNESSES}.items()
    for proof in proofs
]


@pytest.mark.parametrize("proof", PROOFS)
def test_each_proof_is_there(proof: str) -> None:
    """The test that is named exists."""
    file, _, function = proof.partition("::")
    assert function in functions(file)


def test_every_line_has_its_proof() -> None:
    """Lines 1 to 31, what they say of DPoP, certificates and the cache, and every weakness of the table."""
    assert list(LINES) == [*map(str, range(1, 32)), "DPoP", "mTLS", "cache"]
    assert len(WEAKNESSES) + len(NOT_OURS) == ALL_WEAKNESSES_COUNT
    assert all(proofs and what for what, proofs in {**LINES, **WEAKNESSES}.values())
