"""Of the command lines themselves: an option is heeded or refused, and every help has what it promises."""

import re

import pytest

from reconciler import cli


@pytest.mark.parametrize(
    "words",
    [
        ("--instance", "edge", "teardown"),
        ("--instance=edge", "status"),
        ("--dry-run", "upgrade"),
        ("--config", "lb.yaml", "validate"),
    ],
)
def test_an_option_before_a_command_is_refused_and_not_forgotten(
    words: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(words)
    assert ended.value.code == 64
    said = capsys.readouterr().err
    assert f"say `reconciler COMMAND {words[0]} ...`" in said


COMMANDS = re.findall(r"^    ([a-z]+)  ", cli.parser().format_help(), re.MULTILINE)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_help_has_what_it_does_examples_and_exit_codes(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main([command, "--help"])
    assert ended.value.code == 0
    said = capsys.readouterr().out
    assert re.search(r"^[A-Z].*\.$", said, re.MULTILINE), "what it does"
    assert re.search(rf"^examples?:\n(.*\n)*?  .*reconciler {command}\b", said, re.MULTILINE)
    assert re.search(r"^exit codes: 0 ", said, re.MULTILINE)


def test_the_commands_are_found_in_the_help() -> None:
    assert {"teardown", "schema", "status", "upgrade"} <= set(COMMANDS)
