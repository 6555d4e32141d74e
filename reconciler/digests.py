"""What a node tells its peers about itself, from its status, and back again. Pure.

A small document, so that asking costs neither side much: schemas/digests.schema.json.
"""

from typing import Any

from reconciler.agreement import Answer, Identity
from reconciler.printable import printable
from reconciler.status import Status

FORMAT = "1.0"


def identity(status: Status) -> Identity:
    applied = status.applied
    tables = {table.name: table.digest for pool in status.pools for table in pool.tables}
    if applied is None:
        return Identity("", "", tables)
    return Identity(applied.digest, applied.commit, tables)


def document(status: Status) -> dict[str, Any]:
    found = identity(status)
    return {
        "format_version": FORMAT,
        "instance": status.instance,
        "digest": found.digest,
        "commit": found.commit,
        "tables": dict(found.tables),
    }


def parse(content: object) -> Answer:
    """Of a peer's document, whatever it is."""
    if not isinstance(content, dict) or not isinstance(content.get("format_version"), str):
        return Answer(trouble="its answer is not what a reconciler says")
    if content["format_version"].partition(".")[0] != FORMAT.partition(".")[0]:
        return Answer(
            trouble=f"it speaks format {printable(content['format_version'])[:9]}, we {FORMAT}"
        )
    digest, commit, tables = (content.get(name) for name in ("digest", "commit", "tables"))
    if not isinstance(digest, str) or not isinstance(commit, str) or not isinstance(tables, dict):
        return Answer(trouble="its answer lacks digest, commit or tables")
    named = {printable(str(name)): printable(str(value)) for name, value in tables.items()}
    return Answer(Identity(printable(digest), printable(commit), named))
