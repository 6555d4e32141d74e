"""What the pages of ipip and gue say, typed word by word on backends, and an upload through the balancer.

They need the kernel's own tunnel devices, and load modules: so `make kernels` runs them, in a VM, and nobody's machine.
"""

import hashlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator

import pytest

from bpf.abi import Verdict
from bpf.kernel import Instance
from tests.support.balancer import Balancer
from tests.support.howto import Page
from tests.support.lab import BALANCER, ROOT, Backend
from tests.support.server import body
from tests.support.traffic import Connection
from tests.support.wait import PATIENCE, until

SIZE = 1_000_000
UPLOADS = 12
PORT = 443
SERVICES = {  # of the pages
    "ipip": {4: "192.0.2.40", 6: "2001:db8::40"},
    "gue": {4: "192.0.2.41", 6: "2001:db8::41"},
}
MODULES = {"ipip": ("ipip", "sit", "ip6_tunnel"), "gue": ("fou", "ipip", "sit", "ip6_tunnel")}
FAMILIES = (4, 6)
CHECK = "checks:\n  way: {type: http, path: /, via: service}\n"
PASSES, FAILS = 0, 2  # exit codes of `healthcheck probe`
# As distributions have it, of all devices that there are and will be: the page has to say what to do about it.
STRICT = ("net.ipv4.conf.all.rp_filter=1", "net.ipv4.conf.default.rp_filter=1")


class Site(Balancer):
    """The lab before anybody has read the page; `family` is that of the backends' addresses."""

    def __init__(self, name: str, family: int) -> None:
        super().__init__()
        self.page, self.family, self.services = Page.of(name), family, SERVICES[name]

    def _build(self) -> None:
        super()._build()
        self.config.write_text(self.page.config(family=self.family))
        self.node.write_text(self.page.node())
        for backend in self.lab.backends:
            self.lab.kill_server(backend)
            self.lab.serve(backend, PORT)
            backend.namespace.sysctl(*STRICT)
        for block in self.page.blocks("On the backends"):
            self.type(*block)

    def type(self, *lines: str) -> None:
        """Into a shell on each backend."""
        for backend in self.lab.backends:
            for line in lines:
                backend.namespace.run("sh", "-ec", line)

    def send_less(self) -> None:
        """What the page says for paths that cannot carry more, at this lab's router."""
        for line in self.page.blocks("MTU")[0]:
            self.type(line.replace("ROUTER6", BALANCER[6]).replace("ROUTER", BALANCER[4]))

    def told(self) -> int:
        """How often clients were told that a packet is too big."""
        with Instance.open(self.name, read_only=True) as instance:
            counted = instance.maps.cpus.get(0)
        return counted.verdict[Verdict.TOO_BIG_ANSWERED].packets if counted else 0

    def upload(self, inner: int) -> str:
        """Who got it whole."""
        with Connection(self.lab.client, self.services[inner], PORT) as connection:
            answer = connection.post(body(SIZE))
        assert answer.body.decode() == hashlib.sha256(body(SIZE)).hexdigest()
        return answer.backend

    def check_through(self) -> None:
        """Backends are to be checked by the way that clients' packets take."""
        text = self.config.read_text().replace("    backends:", "    check: way\n    backends:")
        self.config.write_text(text.replace("pools:", f"{CHECK}pools:", 1))
        targets = self.run_dir / "targets.json"
        until(lambda: re.search(r'"mark": *[1-9]', targets.read_text()), what="marks for checks")

    def probe(self, backend: Backend) -> int:
        """The exit code of the page's command."""
        name = f"far/{backend.name}"
        place = ("--run-dir", str(self.run_dir), "probe", "--timeout", str(2 * PATIENCE), name)
        command = self.host.inside(sys.executable, "-m", "healthcheck", *place)
        return subprocess.run(command, cwd=ROOT, capture_output=True, check=False).returncode

    def forget_paths(self) -> None:
        """The client believes again that 1500 bytes fit."""
        for family in FAMILIES:
            self.lab.client.run("ip", f"-{family}", "route", "flush", "cache")


@pytest.fixture(
    scope="module",
    params=[(name, family) for name in SERVICES for family in FAMILIES],
    ids=lambda param: f"{param[0]}-in{param[1]}",
)
def site(request: pytest.FixtureRequest) -> Iterator[Site]:
    name, family = request.param
    if "MAY_LOAD_MODULES" not in os.environ:
        pytest.skip("would load modules into this machine's kernel: make kernels runs it in a VM")
    if absent := [module for module in MODULES[name] if not _there(module)]:
        pytest.skip(f"needs a kernel with {', '.join(absent)}: another of make kernels has them")
    with Site(name, family) as made:
        made.start()
        yield made


def _there(module: str) -> bool:
    tool = shutil.which("modprobe")
    return (
        bool(tool)
        and not subprocess.run(
            (str(tool), "--dry-run", "--quiet", module), capture_output=True, check=False
        ).returncode
    )


@pytest.mark.parametrize("inner", FAMILIES)
def test_uploads_of_who_read_the_page_arrive_whole(site: Site, inner: int) -> None:
    before = site.told()
    assert {site.upload(inner) for _ in range(UPLOADS)} == {"b1", "b2"}
    assert site.told() > before


@pytest.mark.parametrize("inner", FAMILIES)
def test_with_the_pages_routes_clients_send_what_fits(site: Site, inner: int) -> None:
    site.send_less()
    site.forget_paths()
    before = site.told()
    assert {site.upload(inner) for _ in range(UPLOADS)} == {"b1", "b2"}
    assert site.told() == before


def test_a_check_by_the_way_of_clients_passes_for_who_has_the_services_address(site: Site) -> None:
    site.check_through()
    first, second = site.lab.backends
    assert [site.probe(first), site.probe(second)] == [PASSES, PASSES]
    first.namespace.ip(f"addr del {site.services[site.family]} dev lo\n")
    assert [site.probe(first), site.probe(second)] == [FAILS, PASSES]
