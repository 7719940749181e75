"""Build work directories: configuration in, one directory per model out."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from lmtp_replicate.building.checkpoint import choose
from lmtp_replicate.building.config import BuildConfig, ModelConfig
from lmtp_replicate.building.plan import Plan, plan_work_directory
from lmtp_replicate.building.repository import Repository, open_repository
from lmtp_replicate.building.wheel import OwnPackage, own_package
from lmtp_replicate.building.workdir import MARKER, apply
from lmtp_replicate.errors import ConfigError

logger = logging.getLogger(__name__)


def build(
    config: BuildConfig, names: Sequence[str], work: Path, *, wheel: Path | None = None
) -> list[Path]:
    """Make or update ``work/NAME`` for the named models, or for all when `names` is empty.

    `wheel` is this package as the image gets it; by default it is built from the checkout, or
    named by its released version. Returns the directories. Raises ConfigError or TransportError,
    with the model's name; directories that are complete by then stay.
    """
    models = config.select(names)
    package = own_package(wheel)
    directories = []
    with _sole_writer(work):
        for name, model in models.items():
            image = f"{config.destination}/{name}" if config.destination else None
            _build_one(model, work / name, package, image)
            directories.append(work / name)
    return directories


def _build_one(model: ModelConfig, directory: Path, package: OwnPackage, image: str | None) -> None:
    repo = model.huggingface.repo
    if isinstance(repo, Path) and repo.is_relative_to(directory.resolve()):
        raise ConfigError(f"{directory.name}: {repo} is part of what is to be built")
    try:
        repository = open_repository(repo, model.huggingface.version)
        plan = _plan(repository, model, package, image)
    except ConfigError as error:
        raise ConfigError(f"{directory.name}: {repo}: {error}") from error
    except OSError as error:
        raise ConfigError(f"{directory.name}: {repo} cannot be read: {error}") from error
    was_complete = (directory / MARKER).exists()
    changed = apply(plan, directory)
    if not changed:
        logger.info("%s: up to date", directory)
    elif was_complete:
        logger.info("%s: updated %s", directory, ", ".join(changed))
    else:
        logger.info("%s: made", directory)


def _plan(
    repository: Repository, model: ModelConfig, package: OwnPackage, image: str | None
) -> Plan:
    checkpoint = choose(
        repository.names(),
        lambda name: repository.fetch([name])[name].read_bytes(),
        allow_pickle=model.options.allow_pickle,
        remote_code=model.options.trust_remote_code,
    )
    return plan_work_directory(
        checkpoint,
        repository.fetch(checkpoint.files),
        source={"repo": repository.name, "revision": repository.commit},
        options=model.options,
        package=package,
        image=image,
    )


@contextmanager
def _sole_writer(work: Path) -> Iterator[None]:
    """Hold `work` against other builds. The lock ends with the process, however it ends."""
    import fcntl

    try:
        work.mkdir(parents=True, exist_ok=True)
        lock = (work / ".lock").open("a")
    except OSError as error:
        raise ConfigError(f"{work} cannot be written: {error}") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(f"another build is writing to {work}; wait until it ends") from None
        yield
