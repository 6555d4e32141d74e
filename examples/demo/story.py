"""The story that the demo tells: one service, from its first commit on, and what becomes of it.

Each chapter says what happens, does it with the commands that an operator would type, and checks that it
came as told. Requests are counted all along; the last chapter reckons up.
"""

from collections import Counter
from pathlib import Path

from clients import VISITORS, Clients
from failover import failover
from stage import ADDRESS, BACKEND_PORT, PATIENCE, ROOT, Stage, expect

from tests.support.objects import DROPS, SAME, changed
from tests.support.wait import until

LOOK = 4.0  # seconds that a board is shown for
GRACE = 12  # seconds for connections to leave a draining backend
DRAIN = f"""\
defaults:
  drain: {{grace: {GRACE}s, then: flush}}

pools:
"""
WEB3 = "web3: {address: 10.1.2.103, port: 8080, weight: 50}"
WEB2 = "web2: {address: 10.1.2.102, port: 8080}"


class Story:
    def __init__(self, stage: Stage, clients: Clients) -> None:
        self.stage, self.clients = stage, clients
        self.say = stage.screen.say
        self.expected_failures = 0

    # ---- chapters

    def spreading(self) -> None:
        self._chapter(f"Requests to http://{ADDRESS}/ spread by weight; web3 has half a share")
        answers = self._look()
        expect(set(answers) == {"web1", "web2", "web3"}, "all three answer")

    def draining(self) -> None:
        self._chapter("web3 needs a new kernel: a commit drains it")
        self.stage.edit("pools:\n", DRAIN)
        self.stage.edit(WEB3, WEB3.replace("}", ", state: drain, reason: kernel upgrade}"))
        self._commit("drain web3 for its kernel")
        self.say("  no new connection goes to it; those that it has may finish:")
        left = until(self._drain, PATIENCE, what="a drain in the status")
        while left:
            self.say(f"    web3: {left['flows_left']} flows left, {left['seconds_left']:.0f} s")
            if not left["flows_left"]:
                break
            self.stage.screen.rest(2.0)
            left = self._drain()
        answers = self._look()
        expect("web3" not in answers, "web3 is idle, and nobody was cut off")

    def returning(self) -> None:
        self._chapter("The kernel is new: `git revert`")
        self.stage.repository.revert()
        self._landed("applied")
        expect("web3" in self._look(), "web3 answers again")

    def dying(self) -> None:
        self._chapter("web3's server is killed; after three failed checks it is down")
        before = len(self.clients.failures)
        self.stage.lab.kill_server(self.stage.backend("web3"))
        self.stage.wait_for_health({"web3": "DOWN"})
        self.stage.screen.rest(0.5)  # for who was on its way to it
        noticed = len(self.clients.failures)
        self.expected_failures += noticed - before
        self.say(f"  until then {noticed - before} requests to it failed")
        answers = self._look()
        expect(set(answers) == {"web1", "web2"}, "the other two answer")
        expect(len(self.clients.failures) == noticed, "and nobody is sent to web3 any more")
        self.say("web3's server is back; after two good checks it is up")
        self.stage.lab.serve(self.stage.backend("web3"), BACKEND_PORT)
        self.stage.wait_for_health({"web3": "up"})
        expect("web3" in self._look(), "web3 answers again")

    def predicting(self) -> None:
        self._chapter("web2 is to get a little less. What would that move?")
        self.stage.edit(WEB2, WEB2.replace("}", ", weight: 90}"))
        self._shell("reconciler --dry-run --config lb.yaml", *self._dry(), most=30)
        self._commit("web2 takes a little less")
        self._look()

    def refusing(self) -> None:
        self._chapter("A commit with a mistake in it")
        self.stage.edit("pools: [web]", "pools: [wbe]")
        self.stage.commit("tidy up")
        self._landed("rejected")
        self._shell("reconciler validate lb.yaml", "reconciler", "validate", str(self.stage.file))
        self._shell("reconciler status", "reconciler", "status", *self.stage.place, most=12)
        answers = self._look()
        expect(set(answers) == {"web1", "web2", "web3"}, "traffic goes on by the last good commit")
        self.say("$ git revert HEAD")
        self.stage.repository.revert()
        self._landed("applied")
        expect(self._valid(), "the file is valid again")

    def replacing(self) -> None:
        self._chapter(
            "A new version of the program, under load. This one drops what it should forward"
        )
        failures = len(self.clients.failures)
        running = self.stage.program()
        self._upgrade("bad.o", changed(self.stage.folder, "bad", DROPS))
        expect(self.stage.program() == running, "it was tried beside the running one, and refused")
        self._chapter("This one treats every packet alike")
        self._upgrade("good.o", changed(self.stage.folder, "good", SAME))
        expect(self.stage.program() != running, "it took over")
        self._look()
        self._shell("reconciler upgrade --undo", "reconciler", "upgrade", "--undo", *self._node())
        expect(self.stage.program() == running, "and back")
        expect(len(self.clients.failures) == failures, "no request was lost")

    def _upgrade(self, shown: str, program: Path) -> None:
        self._shell(
            f"reconciler upgrade --object {shown}",
            *("reconciler", "upgrade", "--object", str(program), *self._node()),
        )

    def reckoning(self) -> None:
        lost = len(self.clients.failures) - self.expected_failures
        self._chapter(
            f"In all: {self.clients.requests} requests on {self.clients.connections} connections;"
            f" {self.expected_failures} met a dead server before the checks had noticed, {lost} were lost"
        )
        expect(lost == 0, "nothing was lost")

    # ---- how it is told

    def _chapter(self, title: str) -> None:
        self.say(f"\n== {title}")

    def _look(self) -> Counter[str]:
        return self.stage.show(self.clients, LOOK)

    def _shell(self, shown: str, program: str, *arguments: str, most: int = 20) -> None:
        """A command as one would type it, and what it says."""
        self.say(f"$ {shown}")
        lines = self.stage.run(program, *arguments).replace(f"{ROOT}/", "").splitlines()
        for line in lines[:most]:
            self.say(f"  {line.replace(f'{self.stage.folder}/lb/', '')}")
        if len(lines) > most:
            self.say(f"  ... {len(lines) - most} lines more")
        self.stage.screen.rest(0.0 if self.stage.hurry else LOOK)

    def _node(self) -> tuple[str, ...]:
        return ("--node", str(self.stage.node), *self.stage.place)

    def _dry(self) -> tuple[str, ...]:
        return ("reconciler", "--dry-run", "--config", str(self.stage.file), *self._node())

    def _commit(self, subject: str) -> None:
        commit = self.stage.commit(subject)
        self.say(f'$ git commit -m "{subject}"    {commit[:12]}')
        self._landed("applied")

    def _landed(self, result: str) -> None:
        self.stage.wait_for_status(f"the commit {result}", result)
        applied = self.stage.status()["applied"]
        self.say(
            f"  the commit is {result}; generation {applied['generation']} of commit"
            f" {applied['commit'][:12]} forwards"
        )

    def _drain(self) -> dict[str, float]:
        return next(iter(self.stage.status()["drains"]), {})

    def _valid(self) -> bool:
        conditions = self.stage.status()["conditions"]
        return all(c["well"] for c in conditions if c["type"] == "ConfigValid")


def beginning(stage: Stage) -> None:
    """Before there is anything to talk to."""
    say = stage.screen.say
    say(
        f"a client, a balancer and {stage.backends} web servers, each in a namespace of this machine"
    )
    say("\n== One file in a git repository says what is balanced to where")
    text = (stage.example / "lb.yaml").read_text()
    for line in text.splitlines()[1:]:
        say(f"  {line}".rstrip())
    stage.repository.commit(text, "www is three web servers")
    stage.screen.rest(0.0 if stage.hurry else LOOK)
    say("\n== What would it do to this machine? A dry run says, and changes nothing")
    shown = "reconciler --dry-run --from-git lb"
    say(f"$ {shown}")
    said = stage.run(
        "reconciler", "--dry-run", *stage.source, "--node", str(stage.node), *stage.place
    )
    for line in said.splitlines():
        say(f"  {line.replace(f'{stage.folder}/', '')}")
    stage.screen.rest(0.0 if stage.hurry else LOOK)
    say("\n== The two daemons start: reconciler --from-git lb --every 1; healthcheck")
    stage.start()


def quickstart(*, hurry: bool) -> None:
    with Stage("quickstart", 3, hurry=hurry) as stage:
        beginning(stage)
        with stage.clients(VISITORS) as clients:
            story = Story(stage, clients)
            for chapter in (
                story.spreading,
                story.draining,
                story.returning,
                story.dying,
                story.predicting,
                story.refusing,
                story.replacing,
                story.reckoning,
            ):
                chapter()
        failover(stage.screen, hurry=hurry)
        if not hurry:
            on_and_on(stage)


def on_and_on(stage: Stage) -> None:
    stage.screen.say("\nThe first balancer goes on and on, until Ctrl-C")
    with stage.clients(VISITORS) as clients:
        while True:
            stage.show(clients, 10, keep=not stage.screen.live)
