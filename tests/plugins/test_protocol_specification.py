"""Each MUST of docs/plugin-protocol.md has a test: a case of the conformance test for plugins, a test for hosts."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from octavo.plugins.conformance import CASES

HERE = Path(__file__).parent
TEXT = (HERE.parents[1] / "docs" / "plugin-protocol.md").read_text(encoding="utf-8")
RULES = re.findall(r"^- `([PH]-[A-Z]+-\d+)`: (.*)", TEXT, flags=re.MULTILINE)

# Rules that no case of the conformance test can see from outside, and rules of hosts -> file and test.
TESTS = {
    "P-MAJOR-2": "drift/test_plugin_drift.py::test_units_that_change_behind_a_schema_are_counted_apart",
    "P-INVOKE-7": "test_plugin_servers.py::test_real_servers_answer_alike",
    "P-INVOKE-8": "test_plugin_servers.py::test_real_servers_answer_alike",
    "P-IDEMPOTENCY-3": "test_plugin_running.py::test_a_large_answer_frees_no_key",
    "P-SAFETY-1": "test_plugin_commands.py::test_check_fails_for_a_fault",
    "H-MANIFEST-1": "host/test_host_versions.py::test_a_higher_minor_and_unknown_members_are_no_reason",
    "H-MANIFEST-2": "host/test_host_egress.py::test_a_manifest_may_not_widen_its_origin",
    "H-MANIFEST-3": "host/test_host_versions.py::test_a_manifest_that_is_no_manifest_is_level_0",
    "H-VERSION-1": "host/test_host_versions.py::test_a_higher_minor_and_unknown_members_are_no_reason",
    "H-VERSION-2": "host/test_host_versions.py::test_one_downgrade",
    "H-VERSION-3": "host/test_host_versions.py::test_an_untyped_400_is_no_problem_of_versions",
    "H-VERSION-4": "host/test_host_versions.py::test_an_answer_without_the_plugins_own_version_is_of_level_0",
    "H-MAJOR-1": "host/test_host_versions.py::test_a_major_that_is_gone_gives_the_new_schema",
    "H-INVOKE-1": "host/test_host_faults.py::test_an_answer_that_is_no_result",
    "H-INVOKE-2": "host/test_host_faults.py::test_a_slow_plugin_ends_at_the_deadline",
    "H-PROBLEM-1": "test_protocol_rules.py::test_a_newer_problem_is_read",
    "H-PROBLEM-2": "host/test_host_faults.py::test_retry_after_is_waited_for",
    "H-DIGEST-1": "host/test_host_versions.py::test_a_renamed_argument_is_repaired_with_one_more_request",
    "H-DIGEST-2": "host/test_host_versions.py::test_a_success_under_another_digest_does_not_count",
    "H-DIGEST-3": "drift/test_plugin_drift.py::test_a_planted_fault_is_caught",
    "H-REPAIR-1": "host/test_host_repair.py::test_rename_by_alias",
    "H-REPAIR-2": "host/test_host_repair.py::test_what_has_consequences_is_never_repaired",
    "H-REPAIR-3": "host/test_host_repair.py::test_rename_without_an_alias_needs_the_same_words",
    "H-REPAIR-4": "host/test_host_repair.py::test_only_a_default_may_be_dropped",
    "H-REPAIR-5": "host/test_host_repair.py::test_the_default_that_was_shown_is_kept",
    "H-REPAIR-6": "host/test_host_repair.py::test_a_name_with_other_words_is_another_argument",
    "H-REPAIR-7": "drift/test_plugin_drift.py::test_nothing_is_coerced_at_level_0",
    "H-IDEMPOTENCY-1": "host/test_host_faults.py::test_a_call_without_a_key_is_not_sent_twice",
    "H-IDEMPOTENCY-2": "host/test_host_faults.py::test_two_calls_have_two_idempotency_keys",
    "H-DEPRECATION-1": "host/test_host_faults.py::test_deprecation_is_reported_and_no_failure",
    "H-SAFETY-1": "host/test_host_egress.py::test_a_redirect_within_the_origin_is_followed",
    "H-SAFETY-2": "host/test_host_egress.py::test_a_rebinding_name_is_refused_before_any_connection",
    "H-SAFETY-3": "host/test_host_secrets.py::test_an_echo_is_cleaned",
    "H-SAFETY-4": "host/test_host_openapi_service.py::test_effects_wait_for_an_approval",
    "H-SAFETY-5": "../server/test_plugins_chat.py::test_an_approval_is_for_the_arguments_that_were_shown",
    "H-SAFETY-6": "host/test_host_hostile.py::test_the_check_of_a_result_ends_at_the_deadline",
    "H-PLAIN-1": "drift/test_argument_places.py::test_no_argument_is_lost_or_changed",
    "H-PLAIN-2": "host/test_host_hostile.py::test_a_document_may_not_name_these_headers",
}


def test_the_rules_are_found() -> None:
    assert len(RULES) > 55
    assert len({name for name, _ in RULES}) == len(RULES)


def test_every_must_has_an_id() -> None:
    """Outside of the rules the word is not used, but where it is defined."""
    lines = [line for line in TEXT.splitlines() if "MUST" in line and not re.match(r"- `[PH]-", line)]
    assert len(lines) == 1, lines
    assert "RFC 2119" in lines[0]


@pytest.mark.parametrize("rule", [name for name, _ in RULES])
def test_every_rule_has_a_test(rule: str) -> None:
    """`test_plugin_conformance.py` sees each case fail for a plugin that breaks its rule."""
    if rule in {name for case in CASES for name in case.ids}:
        return
    file, name = TESTS[rule].split("::")
    assert f"\ndef {name}(" in (HERE / file).read_text(encoding="utf-8"), f"{rule} has lost {TESTS[rule]}"


def test_no_case_names_a_rule_that_is_gone() -> None:
    known = {name for name, _ in RULES}
    assert {name for case in CASES for name in case.ids} | set(TESTS) <= known
