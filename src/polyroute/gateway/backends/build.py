"""The backends of a configuration."""

from __future__ import annotations

from pathlib import Path

from polyroute.errors import ConfigError
from polyroute.gateway.backends.http import HttpBackend
from polyroute.gateway.backends.local import LocalBackend, LocalSettings
from polyroute.gateway.backends.replay import ReplayBackend
from polyroute.gateway.backends.status import Backend
from polyroute.gateway.config import Config, LocalConfig, ModelConfig
from polyroute.gateway.config_faults import is_path
from polyroute.gateway.transport import Transport
from polyroute.pull import locate


def build_backends(config: Config, transport: Transport, *, models: Path, logs: Path) -> dict[str, Backend]:
    """One backend for each model of the pool, by id. Nothing is started and no server is asked.

    models: folder of model files. logs: folder for the output of workers. A local model whose file is not there is
    built all the same: its status tells how to get it.
    Raises: ConfigError (a table or URL that is none), UnknownNameError (a model the catalogue does not have),
    MissingExtraError (a replay table without pyarrow).
    """
    return {
        model.id: backend_of(model, f"models[{i}]", config.local, transport, models, logs)
        for i, model in enumerate(config.models)
    }


def backend_of(
    model: ModelConfig, where: str, local: LocalConfig, transport: Transport, models: Path, logs: Path
) -> Backend:
    """The backend of one entry. where: the entry's place, for errors."""
    if model.backend == "local":
        return local_backend(model, local, transport, models, logs)
    if model.backend == "replay":
        if model.table is None:
            raise ConfigError(f"{where}.table", got=None, expected="a Parquet table of recorded answers")
        return ReplayBackend.from_table(model.id, model.table, model.served_name, name=model.id)
    if model.url is None:
        raise ConfigError(f"{where}.url", got=None, expected="a URL such as http://127.0.0.1:8000/v1")
    return HttpBackend(model.id, model.url, transport, api_key=model.api_key.reveal() if model.api_key else None)


def local_backend(model: ModelConfig, local: LocalConfig, transport: Transport, models: Path, logs: Path) -> Backend:
    """A GGUF file by its path, or by its name in the catalogue."""
    context = min(model.context or local.context, local.context)  # as the router is told
    if model.file is not None and is_path(model.file):
        file, name, template = Path(model.file).expanduser(), None, None
    else:
        file, name, template = locate(model.file or model.id, models)
    settings = LocalSettings(threads=local.threads, context=context, slots=local.slots, chat_template=template)
    return LocalBackend(model.id, file, transport, settings, pull_name=name, log_folder=logs)
