"""send, ask, reply and messages, with a real worker."""

from __future__ import annotations

from datetime import datetime

from tests.cli.support import Project
from tests.waiting import eventually


def test_ask_prints_the_result(bank: Project, address: str) -> None:
    assert bank("ask", address, "deposit", "5").out == "5\n"
    assert bank("ask", address, "deposit", "amount=-2").out == "3\n"


def test_a_result_of_none_is_null(bank: Project, address: str) -> None:
    assert bank("ask", address, "forget").out == "null\n"


def test_a_word_that_is_no_json_is_a_string(bank: Project, address: str) -> None:
    assert bank("ask", address, "give-name", "Alice Smith").out == "Alice Smith\n"


def test_words_after_two_dashes_are_arguments(bank: Project, address: str) -> None:
    assert bank("ask", address, "give-name", "--", "--key").out == "--key\n"


def test_send_prints_the_id_and_reply_its_outcome(bank: Project, address: str) -> None:
    sent = bank("send", address, "deposit", "7")

    reply = bank("reply", sent.out.strip(), "--wait", "--output", "json")

    assert (sent.code, reply.code) == (0, 0)
    assert reply.json["id"] == sent.out.strip()
    assert (reply.json["status"], reply.json["result"], reply.json["address"]) == ("done", 7, address)


def test_send_wait_prints_the_result(bank: Project, address: str) -> None:
    assert bank("send", address, "deposit", "7", "--wait", "--timeout", "20s").out == "7\n"


def test_an_alias_reaches_the_same_entity(bank: Project, address: str) -> None:
    bank("ask", address, "deposit", "7")

    assert bank("ask", address.replace("Account", "Konto"), "deposit", "1").out == "8\n"


def test_the_same_key_is_the_same_message(bank: Project, address: str) -> None:
    first = bank("send", address, "deposit", "5", "--key", "order-17")
    second = bank("send", address, "deposit", "5", "--key", "order-17", "--wait")

    assert (second.code, second.out) == (0, "5\n")
    assert bank("send", address, "deposit", "5", "--key", "order-17").out == first.out
    assert bank("ask", address, "deposit", "0").out == "5\n"


def test_a_key_with_other_arguments_is_exit_code_5(bank: Project, address: str) -> None:
    bank("ask", address, "deposit", "5", "--key", "order-17")

    refused = bank("send", address, "deposit", "6", "--key", "order-17")

    assert refused.code == 5
    assert "the key was used before with other arguments" in refused.complaint


def test_a_failed_handler_is_exit_code_1_and_one_sentence(bank: Project, address: str) -> None:
    failed = bank("ask", address, "fail", "no\nmoney")

    assert (failed.code, failed.out) == (1, "")
    assert failed.complaint == f'{address} fail failed: ValueError: "no\\nmoney"'


def test_verbose_shows_the_traceback_of_the_handler(bank: Project, address: str) -> None:
    failed = bank("ask", address, "fail", "broke", "--verbose")

    assert "Traceback (most recent call last)" in failed.err
    assert "raise ValueError(why)" in failed.err


def test_a_failed_reply_is_printed_as_json_too(bank: Project, address: str) -> None:
    failed = bank("ask", address, "fail", "broke", "--output", "json")

    assert failed.code == 1
    assert failed.json["status"] == "failed"
    assert failed.json["failure"] == {"type": "ValueError", "message": "broke", "reason": "HandlerFailed"}


def test_the_reply_of_a_failed_message_is_exit_code_1(bank: Project, address: str) -> None:
    sent = bank("send", address, "fail", "broke").out.strip()
    bank("reply", sent, "--wait")

    later = bank("reply", sent)

    assert later.code == 1
    assert later.complaint == f"{address} fail failed: ValueError: broke"


def test_a_delayed_message_is_handled_when_it_is_due(bank: Project, address: str) -> None:
    sent = bank("send", address, "deposit", "5", "--delay", "0.3").out.strip()

    assert bank("reply", sent, "--wait", "--timeout", "20").code == 0
    assert bank("ask", address, "deposit", "0").out == "5\n"


def test_an_expired_message_is_exit_code_1_and_says_so(bank: Project, address: str) -> None:
    expired = bank("ask", address, "deposit", "5", "--delay", "0.2", "--expires", "0.1")

    assert expired.code == 1
    assert "expired" in expired.complaint


def test_ask_that_is_not_answered_in_time_is_exit_code_4_and_stays_stored(bank: Project, address: str) -> None:
    late = bank("ask", address, "deposit", "5", "--delay", "1h", "--timeout", "0.1")

    assert late.code == 4
    assert "is stored and not answered after 0.1 s" in late.complaint
    assert [message["operation"] for message in bank("messages", address, "--output", "json").json] == ["deposit"]


def test_a_pending_reply_is_exit_code_4(idle: Project, address: str) -> None:
    sent = idle("send", address, "deposit", "5").out.strip()

    pending = idle("reply", sent, "--output", "json")

    assert pending.code == 4
    assert pending.json == {"id": sent, "status": "pending"}
    assert idle("reply", sent, "--wait", "--timeout", "0.1").code == 4


def test_an_unknown_message_is_exit_code_3(idle: Project) -> None:
    unknown = idle("reply", "nosuch")

    assert unknown.code == 3
    assert "never stored" in unknown.complaint


def test_at_names_the_moment_of_delivery(idle: Project, address: str) -> None:
    idle("send", address, "deposit", "5", "--at", "2100-01-31T09:00:00+01:00")

    [message] = idle("messages", address, "--output", "json").json

    assert datetime.fromisoformat(message["due_at"]) == datetime.fromisoformat("2100-01-31T08:00:00+00:00")


def test_messages_lists_what_is_pending_in_order(idle: Project, address: str) -> None:
    for amount in ("1", "2"):
        idle("send", address, "deposit", amount)

    text = idle("messages", address).out.splitlines()
    lines = idle("messages", address, "--output", "jsonl").jsonl

    assert text[0].split()[:3] == ["ID", "ADDRESS", "OPERATION"]
    assert [line["args"] for line in lines] == [{"amount": 1}, {"amount": 2}]
    assert all(line["id"] in row for line, row in zip(lines, text[1:], strict=True))
    assert len(idle("messages", address, "--limit", "1", "--output", "json").json) == 1
    assert len(idle("messages", "--output", "json").json) >= 2


def test_nothing_pending_is_an_empty_list(idle: Project, address: str) -> None:
    assert idle("messages", address, "--output", "json").json == []
    assert idle("messages", address).out == ""


def test_a_mailbox_empties(bank: Project, address: str) -> None:
    bank("send", address, "deposit", "1")

    eventually(lambda: bank("messages", address, "--output", "json").json == [])
