"""The folder transport: a kombu broker made of plain files, for one machine without a broker.

    app.conf.update(configure(app.conf, Path("/var/lib/shop/broker")))

sets

- `broker_url = "folder:///var/lib/shop/broker"`: absolute, percent-encoded; the worker's banner shows it,
- `broker_transport = "entitycelery.transports.folder:Transport"`: else Celery does not know `folder://`,
- `broker_transport_options = {"polling_interval": 0.02}`: in seconds.

`CELERY_BROKER_URL` or `-b` may name another folder. The files are described in spool.

A message appears whole, by rename, and belongs to the one consumer whose unlink succeeds: nothing is torn,
nothing comes twice. What a killed process had taken is lost. Needs a local, case-sensitive filesystem.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import secrets
import shutil
import time
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from queue import Empty
from typing import Any
from urllib.parse import quote, unquote, urlsplit

from kombu.exceptions import ChannelError
from kombu.transport import virtual
from kombu.utils.json import dumps, loads

from entitycelery.exceptions import ConfigurationError
from entitycelery.transports.spool import Binding, Declared, Spool

POLLING_INTERVAL_S = 0.02
# Safety net under the bell: every queue is listed, and every lease renewed, at least this often.
SWEEP_INTERVAL_S = 1.0
# An mtime is as fine as the kernel's tick: a young one may stand for another, unseen ring: not trusted.
SETTLE_NS = 50_000_000

_serial = itertools.count()


def configure(conf: Mapping[str, Any], folder: Path) -> dict[str, object]:
    """Return the Celery settings that make `folder` the broker; options already in `conf` win."""
    return {
        "broker_url": f"folder://{quote(str(folder.absolute()))}",
        "broker_transport": f"{__name__}:Transport",
        "broker_transport_options": {
            "polling_interval": POLLING_INTERVAL_S,
            **(conf.get("broker_transport_options") or {}),
        },
    }


class Channel(virtual.Channel):
    """A channel that keeps the names it has seen, and looks again only when the bell has rung."""

    supports_fanout = True

    def __init__(self, connection: Transport, **kwargs: Any) -> None:
        super().__init__(connection, **kwargs)
        self._spool = connection.spool
        self._declared = connection.declared
        self._pid = os.getpid()
        self._polling_interval_s = connection.polling_interval or 0.0
        self._waiting: dict[str, deque[str]] = {}
        self._heard: int | None = None
        self._look_at = self._sweep_at = 0.0

    def _poll(self, cycle: Any, callback: Callable[..., None], timeout: float | None = None) -> None:
        if time.monotonic() >= self._look_at or not any(self._waiting.values()):
            self._look()
        if not any(self._waiting.values()):
            raise Empty
        cycle.get(callback)

    def _look(self) -> None:
        # Clock, then bell, then folders: what comes after its folder was listed rings after we read the bell.
        now_ns, bell, now = time.time_ns(), self._spool.bell(), time.monotonic()
        sweep = now >= self._sweep_at
        if bell is not None and bell == self._heard and not sweep:
            return
        for queue in set(self._active_queues):
            if sweep:
                self._spool.renew(queue, self._declared.get(queue, Declared()))
            self._waiting[queue] = deque(self._spool.names(self._spool.queue(queue)))
        self._look_at = now + self._polling_interval_s
        self._sweep_at = now + SWEEP_INTERVAL_S if sweep else self._sweep_at
        self._heard = bell if bell is not None and now_ns - bell > SETTLE_NS else None

    def _get_and_deliver(self, queue: str, callback: Callable[..., None]) -> None:
        waiting = self._waiting.get(queue, deque())
        while waiting:
            message = self._claim(f"{self._spool.queue(queue)}/{waiting.popleft()}")
            if message is not None:
                callback(message, queue)
                return
        raise Empty

    def _get(self, queue: str, timeout: float | None = None) -> dict[str, Any]:
        folder = self._spool.queue(queue)
        for name in self._spool.names(folder):
            message = self._claim(f"{folder}/{name}")
            if message is not None:
                return message
        raise Empty

    def _claim(self, path: str) -> dict[str, Any] | None:
        try:
            with open(path, "rb") as file:
                message, expired = self._parse(file.read())
            os.unlink(path)
        except FileNotFoundError:
            return None  # another consumer was faster
        except (ValueError, TypeError, KeyError, AttributeError, PermissionError, IsADirectoryError) as exc:
            self._spool.set_aside(path, exc)
            return None
        return None if expired else message

    def _parse(self, data: bytes) -> tuple[dict[str, Any], bool]:
        message = loads(data.decode())
        properties = message["properties"]
        properties["delivery_tag"], properties["delivery_info"]["exchange"]  # kombu would fail on these later
        self.decode_body(message["body"] or "", properties.get("body_encoding"))
        expiration_ms = properties.get("expiration")
        if expiration_ms is None:
            return message, False
        return message, time.time_ns() > properties["put_ns"] + int(expiration_ms) * 1_000_000

    def _inplace_augment_message(self, message: dict[str, Any], exchange: Any, routing_key: Any) -> None:
        super()._inplace_augment_message(message, exchange, routing_key)
        # Kept when a message is restored, so that it goes back to its place and expires in time.
        message["properties"]["put_ns"] = time.time_ns()

    def _put(self, queue: str, message: dict[str, Any], **kwargs: Any) -> None:
        properties = message["properties"]
        named_by_publisher = not properties["delivery_info"].get("exchange")
        name = f"{properties['put_ns']:020d}-{next(_serial) % 10**9:09d}-{secrets.token_hex(4)}.json"
        try:
            if not named_by_publisher and self._spool.lapsed(queue):
                self._spool.delete(queue)
                return
            # A bound queue without a folder was deleted after the table was read: nowhere to go.
            path = f"{self._spool.queue(queue)}/{name}"
            self._spool.write(path, dumps(message).encode(), create=named_by_publisher)
        except OSError as exc:
            raise ChannelError(f"cannot publish to queue {queue!r}: {exc}") from exc

    def _put_fanout(self, exchange: str, message: dict[str, Any], routing_key: str, **kwargs: Any) -> None:
        for queue in {binding.queue for binding in self._spool.bindings(exchange)}:
            self._put(queue, message)

    def _size(self, queue: str) -> int:
        return len(self._spool.names(self._spool.queue(queue)))

    def _purge(self, queue: str) -> int:
        purged, folder = 0, self._spool.queue(queue)
        for name in self._spool.names(folder):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(f"{folder}/{name}")
                purged += 1
        return purged

    def _has_queue(self, queue: str, **kwargs: Any) -> bool:
        return os.path.isdir(self._spool.queue(queue))

    def prepare_queue_arguments(self, arguments: dict[str, Any] | None, **kwargs: Any) -> dict[str, Any]:
        expires_s = kwargs.get("expires")
        return {**(arguments or {}), **({} if expires_s is None else {"x-expires": int(expires_s * 1000)})}

    def _new_queue(self, queue: str, auto_delete: bool = False, **kwargs: Any) -> None:
        declared = self._declared.setdefault(queue, Declared())
        declared.auto_delete = auto_delete
        declared.expires_ms = (kwargs.get("arguments") or {}).get("x-expires")
        self._spool.declare(queue, declared)

    def queue_delete(self, queue: str, if_unused: bool = False, if_empty: bool = False, **kwargs: Any) -> None:
        if not (if_empty and self._size(queue)):
            self._delete(queue)

    def _delete(self, queue: str, *args: Any, **kwargs: Any) -> None:
        self._declared.pop(queue, None)
        self._spool.delete(queue)

    def queue_bind(
        self,
        queue: str,
        exchange: str | None = None,
        routing_key: str = "",
        arguments: Any = None,
        **kwargs: Any,
    ) -> None:
        exchange = exchange or "amq.direct"
        kind = self.typeof(exchange)
        key, pattern, _ = kind.prepare_bind(queue, exchange, routing_key or "", arguments)
        bound = exchange, Binding(key, pattern or "", queue, kind.type)
        declared = self._declared.setdefault(queue, Declared())
        if bound not in declared.bindings:
            declared.bindings.append(bound)
        self._spool.declare(queue, declared)

    def queue_unbind(
        self,
        queue: str,
        exchange: str | None = None,
        routing_key: str = "",
        arguments: Any = None,
        **kwargs: Any,
    ) -> None:
        exchange = exchange or "amq.direct"
        self._spool.unbind(exchange, queue, routing_key or "")
        if declared := self._declared.get(queue):
            gone = exchange, routing_key or ""
            declared.bindings = [b for b in declared.bindings if (b[0], b[1].routing_key) != gone]

    def exchange_delete(self, exchange: str, if_unused: bool = False, nowait: bool = False) -> None:
        (self.state.exchanges or {}).pop(exchange, None)
        shutil.rmtree(self._spool.exchange(exchange), ignore_errors=True)

    def get_table(self, exchange: str) -> list[tuple[str, str, str]]:
        return [binding[:3] for binding in self._spool.bindings(exchange)]

    def typeof(self, exchange: str, default: str = "direct") -> Any:
        # Event dispatchers publish to exchanges that only their receivers declare.
        if exchange not in (self.state.exchanges or {}):
            default = next((binding.kind for binding in self._spool.bindings(exchange)), default)
        return super().typeof(exchange, default)

    def basic_consume(self, *args: Any, **kwargs: Any) -> Any:
        self._heard, self._look_at = None, 0.0
        return super().basic_consume(*args, **kwargs)

    def basic_cancel(self, consumer_tag: str) -> None:
        queue = self._tag_to_queue.get(consumer_tag)
        super().basic_cancel(consumer_tag)
        if queue is not None and queue not in self._active_queues:
            self._waiting.pop(queue, None)
            # A forked child closes its copies of the parent's channels: the queue is not its to delete.
            if os.getpid() == self._pid and self._declared.get(queue, Declared()).auto_delete:
                self._delete(queue)


class Transport(virtual.Transport):
    """What `broker_transport` names. Processes share nothing but the folder that the URL gives."""

    Channel = Channel
    can_parse_url = True
    default_port = 0
    driver_type = driver_name = "folder"
    polling_interval: float | None = POLLING_INTERVAL_S
    implements = virtual.Transport.implements.extend(exchange_type=frozenset(["direct", "topic", "fanout"]))

    def __init__(self, client: Any, **kwargs: Any) -> None:
        super().__init__(client, **kwargs)
        self.spool = Spool(_folder_of(client.hostname))
        self.declared: dict[str, Declared] = {}

    def establish_connection(self) -> Transport:
        self.spool.clear_leftovers()
        super().establish_connection()
        return self

    def as_uri(self, uri: str, include_password: bool = False, mask: str = "**") -> str:
        return uri

    def driver_version(self) -> str:
        return "N/A"


def _folder_of(url: str) -> str:
    parts = urlsplit(url or "")
    folder = unquote(parts.path)
    if parts.scheme != "folder" or parts.netloc or not os.path.isabs(folder) or folder == "/":
        raise ConfigurationError(f"broker_url must be folder:///absolute/path with this broker_transport, got {url!r}")
    return folder.rstrip("/")
