"""Certificates for tests, made by openssl: valid, or long expired."""

import subprocess
from dataclasses import dataclass
from pathlib import Path

VALID = ("20200101000000Z", "20990101000000Z")
EXPIRED = ("20200101000000Z", "20200102000000Z")

_CA = """\
[ca]
default_ca = here
[here]
database = {directory}/index
new_certs_dir = {directory}
rand_serial = yes
default_md = sha256
policy = any
copy_extensions = copy
unique_subject = no
[any]
commonName = supplied
"""


@dataclass(frozen=True, slots=True)
class Certificate:
    """Signed by itself: who trusts it names it as CA."""

    chain: Path
    key: Path


def make(directory: Path, names: str, valid: tuple[str, str] = VALID) -> Certificate:
    """`names` as openssl has them: DNS:www.example,IP:127.0.0.1."""
    directory.mkdir(parents=True)
    made = Certificate(directory / "chain.pem", directory / "key.pem")
    (directory / "ca.cnf").write_text(_CA.format(directory=directory))
    (directory / "index").touch()
    asked = directory / "asked.pem"
    key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    subject = ["-subj", "/CN=evenkeel test", "-addext", f"subjectAltName={names}"]
    _openssl("req", "-new", *key, "-keyout", str(made.key), "-out", str(asked), *subject)
    dates = ["-startdate", valid[0], "-enddate", valid[1]]
    files = ["-in", str(asked), "-keyfile", str(made.key), "-out", str(made.chain), "-notext"]
    _openssl("ca", "-selfsign", "-batch", "-config", str(directory / "ca.cnf"), *files, *dates)
    return made


def _openssl(*arguments: str) -> None:
    subprocess.run(["openssl", *arguments], check=True, capture_output=True)
