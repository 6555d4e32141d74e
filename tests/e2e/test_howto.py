"""What the how-to pages say, done word by word: their files, and their commands on the balancer and the backends."""

from collections.abc import Iterator

import pytest

from tests.support.balancer import Balancer
from tests.support.howto import Page
from tests.support.namespace import Namespace
from tests.support.traffic import Connection

# Their pages' commands need no module that a kernel may lack; those of ipip and gue do.
SERVICES = {"nat": ("192.0.2.10", 80), "fullnat": ("192.0.2.20", 9000), "dsr": ("192.0.2.30", 443)}


class Site(Balancer):
    """The lab before anybody has read the page: backends know neither a route nor a service."""

    def __init__(self, page: Page) -> None:
        super().__init__()
        self.page = page
        self.address, self.port = SERVICES[page.name]
        self.arms = 1 if page.name == "dsr" else 2

    def _build(self) -> None:
        super()._build()
        self.config.write_text(self.page.config())
        self.node.write_text(self.page.node())
        for backend in self.lab.backends:
            self.lab.kill_server(backend)
            self.lab.serve(backend, self.port)
        if self.page.name != "dsr":  # whose backends answer clients by routes of their own
            for backend in self.lab.backends:
                self.lab.forget_routes(backend)
        self._type("On the balancer", self.lab.balancer)
        for backend in self.lab.backends:
            self._type("On the backends", backend.namespace)

    def _type(self, heading: str, place: Namespace) -> None:
        for command in self.page.commands(heading):
            if command[:3] != ("ip", "addr", "add") or command[3].split("/")[0] != "10.1.2.2":
                self._run(place, command)  # the lab has fullnat's source address already

    def _run(self, place: Namespace, command: tuple[str, ...]) -> None:
        if command[0] == "sysctl":
            place.sysctl(*command[2:])
        else:
            place.run(*command)


@pytest.fixture(params=SERVICES)
def site(request: pytest.FixtureRequest) -> Iterator[Site]:
    with Site(Page.of(request.param)) as made:
        made.start()
        yield made


def test_a_reader_of_the_page_is_served(site: Site) -> None:
    got = set()
    for _ in range(20):
        with Connection(site.lab.client, site.address, site.port) as connection:
            got.add(connection.get().backend)
    assert got == {"b1", "b2"}
