"""Of the command lines themselves: an option is heeded or refused, and every help has what it promises."""

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
