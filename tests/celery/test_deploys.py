"""Deployments: two releases of an app, and of the library, on one store at once, each with a real worker."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest import mock

import pytest

from entitycelery.exceptions import UnknownEntityType
from entitycelery.message import Status
from tests.celery.banks import Bank
from tests.celery.conftest import OpenBank
from tests.celery.workers import ROOT, Worker
from tests.storage.support import query
from tests.waiting import eventually

SHOP = "tests.celery.apps.shop"
PUT_OFF = "put off, since this code does not know it"

ADDED = {
    "postgresql": "ALTER TABLE message ADD COLUMN colour text;",
    "sqlite": "ALTER TABLE message ADD COLUMN colour TEXT;",
}


class Shop:
    """The two releases of apps/shop.py on the store and the broker of a bank."""

    def __init__(self, bank: Bank) -> None:
        self.bank = bank
        self.old, self.new = self._client("1"), self._client("2")

    def _client(self, release: str) -> ModuleType:
        name = f"shop_{release}_{id(self)}"
        spec = importlib.util.spec_from_file_location(name, ROOT / "tests/celery/apps/shop.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        with mock.patch.dict(os.environ, {**self.bank.environment(), "SHOP_RELEASE": release}):
            spec.loader.exec_module(module)
        return module

    def worker(self, release: str, *, folder: Path | None = None, **conf: Any) -> Worker:
        """Start a worker of one release; `folder` with a library of its own."""
        environment = {**self.bank.environment(**conf), "SHOP_RELEASE": release, "C_FORCE_ROOT": "1"}
        name = f"release{release}-{len(self.bank.workers)}"
        options = ["-P", "prefork", "-c", "1", "-l", "INFO"]
        worker = Worker(name, folder or self.bank.folder, *options, module=SHOP, environment=environment)
        self.bank.workers.append(worker)
        return worker

    def name_hosted_by(self, worker: Worker) -> str | None:
        """A name of stock whose shard this worker hosts, if there is one."""
        for name in map(str, range(100)):
            owner = self.new.entities.owner_of(self.new.Stock.ref(name))
            if owner is not None and owner.address == worker.node:
                return name
        return None

    def dead_letters(self) -> list[Any]:
        return query(self.old.entities.store, "SELECT id, reason FROM {dead_letter} ORDER BY seq")  # type: ignore[return-value]


@pytest.fixture
def new_shop(new_bank: OpenBank) -> Iterator[Any]:
    with ExitStack() as stack:

        def open_one(broker: str, **conf: Any) -> Shop:
            shop = Shop(new_bank(broker, **conf))
            for module in (shop.old, shop.new):
                stack.enter_context(closing(module.entities))
            shop.old.entities.migrate_if_allowed()
            return shop

        yield open_one


def times(text: str, worker: Worker) -> int:
    return worker.log().count(text)


def test_mail_for_new_code_that_reaches_an_old_worker_is_handled_by_a_new_one(new_shop: Any) -> None:
    shop = new_shop("amqp")
    old = shop.worker("1").await_ready()
    Cart, Basket, Coupon = shop.old.Cart, shop.new.Basket, shop.new.Coupon
    assert Cart.ref("c0").add.ask("tea") == 1

    sent = [Basket.ref(f"c{n}").count.send() for n in range(3)]
    sent += [Basket.ref(f"c{n}").add.send("milk", note="!") for n in range(3)]
    sent += [Coupon.ref("x").use.send() for _ in range(3)]
    # Of an unknown type only the first is looked at: the others keep their place behind it.
    eventually(lambda: times(PUT_OFF, old) >= 7)
    new = shop.worker("2").await_ready()

    assert [one.result(timeout_s=60) for one in sent] == [1, 0, 0, 2, 1, 1, 1, 2, 3]
    # Both go on side by side, whoever sends.
    more = [Cart.ref("d").add.send("tea"), Basket.ref("e").add.send("tea", note="!"), Coupon.ref("x").use.send()]
    assert [one.result(timeout_s=60) for one in more] == [1, 1, 4]
    assert (old.process.poll(), new.process.poll()) == (None, None)
    assert shop.dead_letters() == []


def test_renamed_classes_and_handlers_are_the_same_entities_and_operations(new_shop: Any) -> None:
    shop = new_shop("amqp")
    shop.worker("1").await_ready()
    new_worker = shop.worker("2").await_ready()
    name = eventually(lambda: shop.name_hosted_by(new_worker))
    old, new = shop.old.Stock.ref(name), shop.new.Stock.ref(name)

    sent = [(old.put if n % 2 else new.store).send(1) for n in range(40)]

    assert sorted(one.result(timeout_s=60) for one in sent) == list(range(1, 41))
    assert shop.new.entities.state(new).place == "cellar"
    # A field that only the new code knows survives the turns of the old code.
    new_worker.stop()
    for _ in range(10):
        old.put.ask(1)
    assert (shop.new.entities.state(new).pieces, shop.new.entities.state(new).place) == (50, "cellar")
    assert shop.dead_letters() == []


def test_after_a_rollback_upgraded_entities_wait_for_the_new_code_and_others_go_on(new_shop: Any) -> None:
    shop = new_shop("folder")
    new = shop.worker("2").await_ready()
    assert shop.new.Basket.ref("c").add.ask("tea", note="!") == 1
    assert new.stop() == 0

    old = shop.worker("1").await_ready()
    waits = [shop.old.Cart.ref("c").add.send(item) for item in ("milk", "bread")]
    eventually(lambda: times(PUT_OFF, old) >= 1)
    assert "was written as version 2, this code knows versions up to 1" in old.log()
    assert shop.old.Cart.ref("untouched").add.ask("tea") == 1
    assert shop.new.entities.state(shop.new.Basket.ref("c")).rows == ["tea!"]

    shop.worker("2").await_ready()
    assert [one.result(timeout_s=60) for one in waits] == [2, 3]
    assert shop.new.entities.state(shop.new.Basket.ref("c")).rows == ["tea!", "milk", "bread"]


def test_what_no_worker_knows_in_time_is_a_dead_letter_that_the_log_names(new_shop: Any) -> None:
    shop = new_shop("folder", entity_deploy_window_s=1)
    Coupon = shop.new.Coupon
    old = shop.worker("1").await_ready()

    sent = Coupon.ref("x").use.send()

    with pytest.raises(UnknownEntityType):
        sent.result(timeout_s=60)
    assert shop.old.entities.reply(sent.id).status is Status.DEAD
    assert shop.dead_letters() == [(sent.id, UnknownEntityType.reason)]
    eventually(lambda: "message given up, it is a dead letter now" in old.log())
    # Nothing is lost: with the new code there, somebody has it tried again.
    assert old.stop() == 0
    shop.worker("2").await_ready()
    assert shop.new.entities.retry_dead(sent.id)
    assert sent.result(timeout_s=60) == 1


def test_two_releases_of_the_library_share_a_store_on_either_side_of_its_upgrade(new_shop: Any, tmp_path: Path) -> None:
    shop = new_shop("amqp", entity_auto_migrate=False)
    entities = shop.old.entities
    entities.store.schema.upgrade()
    library = next_release(tmp_path / "next")
    old = shop.worker("1").await_ready()

    # Before the upgrade: the new library refuses to start and says why, the old one serves.
    refused = shop.worker("1", folder=library)
    assert refused.exit_code() == 1
    assert "the store lacks 9999_colour; run: entitycelery db upgrade" in refused.log()
    assert shop.old.Cart.ref("c").add.ask("tea") == 1

    upgrade_with(library, shop)

    # After it: the old one serves on, and may even start; the new one starts.
    assert shop.old.Cart.ref("c").add.ask("milk") == 2
    shop.worker("1", folder=library).await_ready()
    assert old.stop() == 0
    assert shop.old.Cart.ref("c").add.ask("bread") == 3
    shop.worker("1").await_ready()
    assert sorted(shop.old.Cart.ref(f"c{n}").add.ask("salt") for n in range(10)) == [1] * 10
    entities.store.schema.verify()


def next_release(folder: Path) -> Path:
    """A folder with a library in it that has one migration more than this one."""
    shutil.copytree(ROOT / "entitycelery", folder / "entitycelery", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / "cli", folder / "entitycelery" / "cli", ignore=shutil.ignore_patterns("__pycache__"))
    for database, statement in ADDED.items():
        migrations = folder / "entitycelery" / "storage" / "migrations" / database
        (migrations / "9999_colour.sql").write_text(f"-- What no release before this one knows.\n{statement}\n")
    return folder


def upgrade_with(library: Path, shop: Shop) -> None:
    conf = shop.bank.conf
    options = ["--database-url", conf["entity_database_url"], "--cluster", conf["entity_cluster"]]
    done = subprocess.run(
        [sys.executable, "-m", "entitycelery.cli", *options, "db", "upgrade"],
        cwd=library,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "9999_colour" in done.stdout
