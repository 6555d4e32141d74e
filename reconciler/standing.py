"""What the maps were made from, on disk: the last file that was applied, or what stands in for parts of it.

`applied.yaml` is the last file that was applied whole. While services are blocked,
`partly.json` beside it has the newer file, which of its services are not what it
says, and the files that these are still from. Decides nothing.
"""

import hashlib
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bpf import abi
from reconciler import config as configuration
from reconciler import published
from reconciler.admission import Blocked, Blocks, Why, mix
from reconciler.follow import Accepted
from reconciler.model import Address, Config
from reconciler.problems import Rejected
from reconciler.revision import Revision

FORMAT = "1.0"
WHOLE, PARTLY = "applied.yaml", "partly.json"
log = logging.getLogger("reconciler")


@dataclass(frozen=True, slots=True)
class Standing:
    """A configuration as it is in the maps, and where its parts are from."""

    config: Config
    path: str
    text: str
    digest: bytes
    blocked: Blocks = field(default_factory=dict)
    held: Mapping[str, tuple[str, str]] = field(default_factory=dict)  # service -> path, text


def after(before: Standing | None, revision: Revision, config: Config, blocked: Blocks) -> Standing:
    """What stands once `config` is in the maps: the revision, but for the blocked ones."""
    held = {
        name: before.held.get(name, (before.path, before.text))
        for name in blocked
        if before is not None and name in before.config.services
    }
    return Standing(config, revision.path, revision.text, revision.digest, blocked, held)


def write(folder: Path, standing: Standing) -> None:
    """For whoever comes next: names, and what blocked services are to stay."""
    if standing.blocked:
        published.publish_json(folder / PARTLY, _document(standing))
        return
    (folder / PARTLY).unlink(missing_ok=True)
    published.publish(folder / WHOLE, standing.text)


def read(folder: Path, known: Accepted | None = None) -> Standing | None:
    """None when nothing was applied, or nothing can be made of what is there.

    `known` is a file that need not be read once more if it is the one that was applied.
    """
    path = folder / PARTLY
    try:
        return _partly(json.loads(path.read_text()))
    except FileNotFoundError:
        pass
    except (OSError, Rejected, KeyError, TypeError, ValueError) as error:
        log.error("%s: %r", path, error)  # noqa: TRY400
    return _whole(folder / WHOLE, known)


def _whole(path: Path, known: Accepted | None) -> Standing | None:
    try:
        text = path.read_text()
        digest = digest_of(text)
        same = known is not None and known.revision.digest == digest
        config = known.config if known and same else configuration.load(text, str(path))
    except (OSError, Rejected):
        return None
    return Standing(config, str(path), text, digest)


def is_of(standing: Standing | None, meta: abi.Meta | None) -> bool:
    """Whether the maps say that they were made from just this."""
    return standing is not None and meta is not None and bytes(meta.digest) == standing.digest


def addresses(standing: Standing | None) -> set[Address]:
    """Of backends that only services have that stay what they were."""
    if standing is None or not standing.held:
        return set()
    pools = standing.config.pools
    used = {name for service in standing.config.services.values() for name in service.pools}
    return {one.address for name in used for one in pools[name].backends.values()}


def digest_of(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()


def _document(standing: Standing) -> dict[str, Any]:
    texts = {digest_of(text).hex(): [path, text] for path, text in standing.held.values()}
    return {
        "format_version": FORMAT,
        "path": standing.path,
        "text": standing.text,
        "digest": standing.digest.hex(),
        "blocked": {
            name: [why.why.value, why.message, why.frozen] for name, why in standing.blocked.items()
        },
        "held": {name: digest_of(text).hex() for name, (_, text) in standing.held.items()},
        "texts": texts,
    }


def _partly(document: Mapping[str, Any]) -> Standing:
    config = configuration.load(document["text"], document["path"])
    blocked = {
        name: Blocked(name, Why(why), message, frozen)
        for name, (why, message, frozen) in document["blocked"].items()
    }
    texts = {digest: (path, text) for digest, (path, text) in document["texts"].items()}
    held = {name: texts[digest] for name, digest in document["held"].items()}
    mixed, _ = mix(config, _olden(held), blocked)
    digest = bytes.fromhex(document["digest"])
    return Standing(mixed, document["path"], document["text"], digest, blocked, held)


def _olden(held: Mapping[str, tuple[str, str]]) -> Config:
    """The services that stay, each with its pools as the file says that it is from."""
    files = {one: configuration.load(one[1], one[0]) for one in set(held.values())}
    services = {name: files[one].services[name] for name, one in sorted(held.items())}
    pools = {
        pool: files[held[name]].pools[pool]
        for name, service in services.items()
        for pool in service.pools
    }
    return Config(services, pools)
