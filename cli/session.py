"""One run of the command line: which app and store are meant, and how to print."""

from __future__ import annotations

import os
import sys
import traceback
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import click

from entitycelery.exceptions import EntityError

from .exits import USAGE, CommandFailed

if TYPE_CHECKING:
    from entitycelery import EntityCelery

KEY = "entitycelery.session"
DATABASE_VARIABLE = "ENTITY_DATABASE_URL"

pass_session = click.decorators.pass_meta_key(KEY, doc_description="the session")


@dataclass
class Session:
    """What the global options said. The app is loaded at first use and closed with the command."""

    app_name: str | None = None
    celery_app: Any = None
    under_celery: bool = False
    database_url: str | None = None
    cluster: str | None = None
    output: str = "text"
    verbose: bool = False
    _entities: EntityCelery | None = field(default=None, repr=False)

    @property
    def has_app(self) -> bool:
        return self.app_name is not None or self.celery_app is not None

    def entities(self) -> EntityCelery:
        """The entities of the app, with all its modules imported.

        Raises:
            CommandFailed: No app was named, or it cannot be loaded.
        """
        if self._entities is None:
            if not self.has_app:
                example = "celery -A bank entity ..." if self.under_celery else "entitycelery -A bank ..."
                raise CommandFailed(USAGE, f"which Celery app? Name its module: {example}")
            self._keep(self._load())
        assert self._entities is not None
        return self._entities

    def store_entities(self) -> EntityCelery:
        """The entities of the app, or where none is named, of the named store alone.

        Raises:
            CommandFailed: Neither is named.
        """
        if self.has_app or self._entities is not None:
            return self.entities()
        url = self.database_url or os.environ.get(DATABASE_VARIABLE)
        if not url:
            raise CommandFailed(USAGE, f"which store? Give --database-url or {DATABASE_VARIABLE}, or the app with -A")
        from entitycelery.app import store_only  # noqa: PLC0415 - lazy: SQLAlchemy and Celery

        entities = store_only(url)
        entities.override(cluster=self.cluster)
        self._keep(entities)
        return entities

    def _keep(self, entities: EntityCelery) -> None:
        self._entities = entities
        context = click.get_current_context(silent=True)
        # While a shell completes there is none, and the process ends at once.
        if context is not None:
            context.call_on_close(entities.close)

    def _load(self) -> EntityCelery:
        from entitycelery.app import entities_of, find_entities  # noqa: PLC0415 - lazy: SQLAlchemy and Celery

        if os.getcwd() not in sys.path:
            sys.path.insert(0, os.getcwd())
        try:
            entities = find_entities(self.app_name) if self.app_name is not None else entities_of(self.celery_app)
            entities.override(database_url=self.database_url, cluster=self.cluster)
            entities.app.loader.import_default_modules()
        except EntityError:
            raise
        except Exception as exc:
            name = self.app_name or getattr(self.celery_app, "main", None)
            # Celery looks for a module of the whole name where the module has no such attribute.
            cause = exc.__context__ if isinstance(exc.__context__, AttributeError) else exc
            sentence = f"the app {name!r} cannot be loaded: {type(cause).__name__}: {cause}"
            raise CommandFailed(USAGE, sentence, "".join(traceback.format_exception(exc))) from exc
        return entities
