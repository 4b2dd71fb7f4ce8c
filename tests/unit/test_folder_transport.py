"""The folder transport: whole messages, each to one consumer, and nothing left lying about."""

from __future__ import annotations

import json
import multiprocessing
import os
import statistics
import time
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from queue import Empty
from typing import Any

import pytest
from kombu import Connection, Exchange, Queue

from entitycelery.exceptions import ConfigurationError
from entitycelery.transports.folder import configure
from tests.waiting import eventually

PUBLISHERS = 4
MESSAGES_EACH = 1000
QUEUES = 64
SPAWN = multiprocessing.get_context("spawn")


def open_connection(folder: Path) -> Connection:
    conf: dict[str, Any] = configure({}, folder)
    return Connection(
        conf["broker_url"],
        transport=conf["broker_transport"],
        transport_options=conf["broker_transport_options"],
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "broker with space;and%"


@pytest.fixture
def connection(folder: Path) -> Iterator[Connection]:
    with open_connection(folder) as opened:
        yield opened


def publish(connection: Connection, body: object, queue: str = "orders", **options: Any) -> None:
    connection.Producer().publish(body, exchange="", routing_key=queue, **options)


def take(connection: Connection, queue: str = "orders") -> Any:
    """The next body, acknowledged; None if the queue is empty."""
    message = connection.default_channel.basic_get(queue)
    if message is None:
        return None
    message.ack()
    return message.decode()


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def drain_once(connection: Connection, timeout_s: float = 0.05) -> bool:
    try:
        connection.drain_events(timeout=timeout_s)
    except TimeoutError:
        return False
    return True


# --- configuration


def test_url_names_the_folder_even_with_awkward_characters(connection: Connection, folder: Path) -> None:
    publish(connection, 1)

    assert (folder / "queues" / "orders").is_dir()
    assert connection.as_uri().startswith("folder:///")
    assert connection.clone().as_uri() == connection.as_uri()


def test_options_already_set_win_over_ours() -> None:
    conf = {"broker_transport_options": {"polling_interval": 0.5, "other": 1}}

    assert configure(conf, Path("/x"))["broker_transport_options"] == {"polling_interval": 0.5, "other": 1}


@pytest.mark.parametrize("url", ["redis://localhost", "folder://relative/path", "folder://", "folder:///"])
def test_url_that_is_no_absolute_folder_is_refused(url: str) -> None:
    with pytest.raises(ConfigurationError, match="broker_url"):
        Connection(url, transport="entitycelery.transports.folder:Transport").connect()


# --- one queue


def test_messages_come_in_the_order_of_publishing(connection: Connection) -> None:
    for number in range(50):
        publish(connection, number)

    assert [take(connection) for _ in range(51)] == [*range(50), None]


@pytest.mark.parametrize("name", ["a/b", "..", ".", "x" * 300, "über alles", "celery@host.pidbox", ""])
def test_any_queue_name_stays_inside_its_own_folder(connection: Connection, folder: Path, name: str) -> None:
    channel = connection.default_channel
    channel.queue_declare(name or "%")
    publish(connection, "hello", name or "%")

    assert [len(Path(file).parts) for file in files(folder)] == [3]
    assert take(connection, name or "%") == "hello"


def test_size_purge_and_delete(connection: Connection, folder: Path) -> None:
    channel = connection.default_channel
    for number in range(3):
        publish(connection, number)

    assert channel.queue_declare("orders").message_count == 3
    assert channel.queue_purge("orders") == 3
    assert channel.queue_declare("orders").message_count == 0
    publish(connection, 4)
    channel.queue_delete("orders")
    assert files(folder) == []
    assert not (folder / "queues" / "orders").exists()


def test_unacknowledged_messages_are_back_in_order_after_close(folder: Path) -> None:
    with open_connection(folder) as first:
        for number in range(3):
            publish(first, number)
        assert [first.default_channel.basic_get("orders").decode() for _ in range(2)] == [0, 1]
        assert len(files(folder)) == 1

    with open_connection(folder) as second:
        message = second.default_channel.basic_get("orders")
        assert message.decode() == 0
        message.ack()
        assert [take(second), take(second), take(second)] == [1, 2, None]


def test_rejected_message_is_delivered_again(connection: Connection) -> None:
    publish(connection, "again")

    connection.default_channel.basic_get("orders").requeue()

    assert take(connection) == "again"


def test_expired_message_is_dropped_at_the_read(connection: Connection, folder: Path) -> None:
    publish(connection, "late", expiration=0.05)
    publish(connection, "in time", expiration=60)
    sent_s = time.time()
    eventually(lambda: time.time() > sent_s + 0.06)

    assert [take(connection), take(connection)] == ["in time", None]
    assert files(folder) == []


def test_restored_message_expires_by_its_first_publishing(folder: Path) -> None:
    with open_connection(folder) as first:
        publish(first, "late", expiration=0.2)
        sent_s = time.time()
        assert first.default_channel.basic_get("orders").decode() == "late"
        eventually(lambda: time.time() > sent_s + 0.21)

    with open_connection(folder) as second:
        assert len(files(folder)) == 1
        assert take(second) is None


VALID = {
    "body": "MQ==",
    "headers": {},
    "content-type": "application/json",
    "content-encoding": "utf-8",
    "properties": {"delivery_tag": "t", "delivery_info": {"exchange": ""}, "body_encoding": "base64"},
}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b'{"body": ',
        b"\xff\xfe",
        b"[]",
        b"null",
        b'{"body": "x", "properties": {}}',
        json.dumps({**VALID, "body": "MQ"}).encode(),
        json.dumps({**VALID, "properties": {**VALID["properties"], "expiration": "soon"}}).encode(),
    ],
)
def test_file_that_cannot_be_parsed_is_set_aside(
    connection: Connection, folder: Path, content: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    publish(connection, "good")
    (folder / "queues" / "orders" / "0.json").write_bytes(content)
    got: list[object] = []

    with connection.Consumer(Queue("orders"), callbacks=[lambda body, message: got.append(body)], no_ack=True):
        eventually(lambda: drain_once(connection) and got)

    assert got == ["good"]
    assert files(folder) == ["bad/0.json"]
    assert (folder / "bad" / "0.json").read_bytes() == content
    assert "set aside" in caplog.text


def test_the_file_that_bad_ones_are_made_from_is_good(connection: Connection, folder: Path) -> None:
    publish(connection, "other")
    (folder / "queues" / "orders" / "0.json").write_bytes(json.dumps(VALID).encode())

    assert take(connection) == 1


def test_half_written_files_are_never_seen(
    connection: Connection, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen_at_rename: list[list[str]] = []
    rename = os.replace

    def look_then_rename(source: str, target: str) -> None:
        seen_at_rename.append(files(folder / "queues"))
        assert len(Path(source).read_bytes()) > 1_000_000
        rename(source, target)

    connection.default_channel.queue_declare("orders")
    monkeypatch.setattr("entitycelery.transports.spool.os.replace", look_then_rename)
    publish(connection, "x" * 1_000_000)

    assert seen_at_rename == [[]]
    assert take(connection) == "x" * 1_000_000


def test_leftovers_of_killed_publishers_are_removed_at_the_next_connect(folder: Path) -> None:
    (folder / "incoming").mkdir(parents=True)
    old, young = folder / "incoming" / "old", folder / "incoming" / "young"
    old.write_text("{")
    young.write_text("{")
    os.utime(old, (1, 1))

    with open_connection(folder) as connection:
        connection.connect()

    assert files(folder) == ["incoming/young"]


# --- consuming


def test_message_published_after_an_idle_look_is_heard(connection: Connection, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second ring within one tick of the filesystem's clock leaves the bell's mtime as it was."""
    channel = connection.channel()
    got: list[int] = []
    fine_bell, tick_ns = channel._spool.bell, 30_000_000
    monkeypatch.setattr(channel._spool, "bell", lambda: fine_bell() // tick_ns * tick_ns)
    producer = connection.Producer()

    with connection.Consumer(
        Queue("orders"), channel=channel, callbacks=[lambda body, message: got.append(body)], no_ack=True
    ):
        drain_once(connection)
        channel._sweep_at = time.monotonic() + 3600  # without the safety net
        for number in range(500):
            producer.publish(number, exchange="", routing_key="orders")
            assert drain_once(connection, timeout_s=3), f"message {number} was never heard"
            with pytest.raises(Empty):
                channel.drain_events()

    assert got == list(range(500))


def test_quiet_bell_spares_looking_into_every_queue(connection: Connection, monkeypatch: pytest.MonkeyPatch) -> None:
    channel = connection.channel()
    consumer = connection.Consumer(
        [Queue(f"q{number}") for number in range(QUEUES)], channel=channel, on_message=lambda message: None
    )
    listed = Counter[str]()
    names = channel._spool.names

    with consumer:
        eventually(lambda: not drain_once(connection) and channel._heard)
        channel._sweep_at = time.monotonic() + 3600
        monkeypatch.setattr(channel._spool, "names", lambda path: (listed.update([path]), names(path))[1])
        assert not drain_once(connection, timeout_s=0.3)

    assert listed.total() == 0


def test_no_message_is_delivered_beyond_the_prefetch_limit(connection: Connection) -> None:
    got: list[Any] = []
    for number in range(3):
        publish(connection, number)

    with connection.Consumer(Queue("orders"), on_message=got.append, prefetch_count=2):
        eventually(lambda: len(got) == 2 or (drain_once(connection) and False))
        assert not drain_once(connection)
        got[0].ack()
        assert drain_once(connection)

    assert [message.decode() for message in got] == [0, 1, 2]


def test_busy_queue_does_not_starve_another(connection: Connection) -> None:
    got: list[str] = []
    for number in range(200):
        publish(connection, number, "busy")

    with connection.Consumer(
        [Queue("busy"), Queue("calm")],
        on_message=lambda message: got.append(message.delivery_info["routing_key"]),
        no_ack=True,
    ):
        drain_once(connection)
        publish(connection, 0, "calm")
        eventually(lambda: drain_once(connection) and "calm" in got, every_s=0.005)

    assert len(got) < 150


def test_removed_folder_is_made_anew_for_its_consumer(connection: Connection, folder: Path) -> None:
    exchange = Exchange("news", type="fanout")
    got: list[object] = []

    with connection.Consumer(
        Queue("reader", exchange), callbacks=[lambda body, message: got.append(body)], no_ack=True
    ):
        drain_once(connection)
        os.rename(folder, folder.with_name("gone"))
        eventually(lambda: drain_once(connection) or (folder / "queues" / "reader").is_dir())
        connection.Producer(exchange=exchange).publish("still here")
        eventually(lambda: drain_once(connection) and got)

    assert got == ["still here"]


# --- exchanges


def test_fanout_reaches_every_consumer_once(connection: Connection, folder: Path) -> None:
    exchange = Exchange("news", type="fanout")
    got: list[str] = []
    with open_connection(folder) as one, open_connection(folder) as two:
        for name, reader in (("one", one), ("two", two)):
            reader.Consumer(
                Queue(name, exchange), on_message=lambda m, name=name: got.append(name), no_ack=True
            ).consume()

        # A publisher that never declared the exchange still knows its type.
        connection.Producer().publish("extra", exchange="news", routing_key="anything")

        eventually(lambda: drain_once(one) | drain_once(two) or len(got) == 2)
        assert not drain_once(one)
        assert not drain_once(two)
        assert sorted(got) == ["one", "two"]


def test_topic_and_direct_exchanges_route_by_key(connection: Connection) -> None:
    topic, direct = Exchange("t", type="topic"), Exchange("d", type="direct")
    channel = connection.channel()
    Queue("errors", topic, routing_key="*.error")(channel).declare()
    Queue("one", direct, routing_key="1")(channel).declare()
    producer = connection.Producer()

    producer.publish("disk", exchange="t", routing_key="disk.error")
    producer.publish("fine", exchange="t", routing_key="disk.info")
    producer.publish("first", exchange="d", routing_key="1")
    producer.publish("second", exchange="d", routing_key="2")

    assert [take(connection, "errors"), take(connection, "errors")] == ["disk", None]
    assert [take(connection, "one"), take(connection, "one")] == ["first", None]


def test_binding_twice_makes_one_entry_and_unbind_removes_it(connection: Connection) -> None:
    channel = connection.channel()
    channel.exchange_declare("news", "fanout")
    channel.queue_declare("reader")
    for _ in range(2):
        channel.queue_bind("reader", "news", "key")
    assert channel.get_table("news") == [("key", "", "reader")]

    channel.queue_unbind("reader", "news", "key")

    assert channel.get_table("news") == []


def test_cancelled_auto_delete_queue_leaves_no_file(connection: Connection, folder: Path) -> None:
    reply = Queue("reply", Exchange("replies", type="direct"), routing_key="r", auto_delete=True, expires=10)

    with connection.Consumer(reply):
        connection.Producer().publish("answer", exchange="replies", routing_key="r")
        assert len(files(folder)) == 3  # message, lease, binding
    connection.Producer().publish("too late", exchange="replies", routing_key="r")

    assert files(folder) == []
    assert list((folder / "queues").iterdir()) == []


def test_queue_of_a_killed_consumer_goes_with_the_next_message(connection: Connection, folder: Path) -> None:
    exchange = Exchange("news", type="fanout")
    Queue("dead", exchange, expires=10)(connection.channel()).declare()
    Queue("alive", exchange, expires=10)(connection.channel()).declare()
    producer = connection.Producer(exchange=exchange)
    producer.publish(1)
    os.utime(folder / "queues" / "dead" / "lease", (1, 1))

    producer.publish(2)

    assert not (folder / "queues" / "dead").exists()
    assert [take(connection, "alive") for _ in range(3)] == [1, 2, None]


def test_living_consumer_renews_its_lease(connection: Connection, folder: Path) -> None:
    with connection.Consumer(Queue("mine", expires=10)):
        lease = folder / "queues" / "mine" / "lease"
        os.utime(lease, (1, 1))

        eventually(lambda: drain_once(connection) or lease.stat().st_mtime > 1)


# --- many processes


def publish_many(folder: Path, publisher: int) -> None:
    with open_connection(folder) as connection:
        producer = connection.Producer()
        for number in range(MESSAGES_EACH):
            body = [publisher, number, time.time(), "x" * 2000]
            producer.publish(body, exchange="", routing_key=f"q{number % QUEUES}")


def consume_many(folder: Path, stop: Any, results: Any) -> None:
    """Send every (publisher, number, latency in s) back; a crash shows as the exit code."""
    got: list[tuple[int, int, float]] = []

    def note(body: list[Any], message: Any) -> None:
        got.append((body[0], body[1], time.time() - body[2]))
        message.ack()

    with (
        open_connection(folder) as connection,
        connection.Consumer([Queue(f"q{n}") for n in range(QUEUES)], callbacks=[note]),
    ):
        while drain_once(connection, timeout_s=0.1) or not stop.is_set():
            pass
    results.put(got)


def test_each_of_many_messages_comes_exactly_once(folder: Path) -> None:
    stop, results = SPAWN.Event(), SPAWN.Queue()
    consumers = [SPAWN.Process(target=consume_many, args=(folder, stop, results)) for _ in range(2)]
    publishers = [SPAWN.Process(target=publish_many, args=(folder, n)) for n in range(PUBLISHERS)]
    started_s = time.monotonic()
    for process in consumers + publishers:
        process.start()

    for process in publishers:
        process.join(60)
    stop.set()
    shares = [results.get(timeout=60) for _ in consumers]
    for process in consumers:
        process.join(60)

    got = [entry for share in shares for entry in share]
    assert {process.exitcode for process in publishers + consumers} == {0}
    assert Counter((publisher, number) for publisher, number, _ in got) == Counter(
        (publisher, number) for publisher in range(PUBLISHERS) for number in range(MESSAGES_EACH)
    )
    assert all(shares), "one consumer did everything: the two never raced"
    assert files(folder) == []
    median_ms = statistics.median(latency for *_, latency in got) * 1000
    print(f"{len(got)} messages in {time.monotonic() - started_s:.1f} s, latency p50 {median_ms:.0f} ms")


def test_no_warning_and_no_file_for_a_queue_nobody_bound(connection: Connection, folder: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        connection.Producer().publish(1, exchange="nowhere", routing_key="x")

    assert files(folder) == []
