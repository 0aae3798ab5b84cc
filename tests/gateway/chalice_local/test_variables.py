"""The shell's variables, which Chalice's configuration has overwritten."""

from pathlib import Path

from gateway.chalice_local.variables import shell_variables

CONFIGURED = {"B": "configured", "C": "configured"}
ENVIRON = {"A": "shell", **CONFIGURED}


def test_the_shells_values_of_configured_names_come_from_the_kernel(tmp_path: Path) -> None:
    initial = tmp_path / "environ"
    initial.write_text("A=old\0B=shell\0")
    assert shell_variables(ENVIRON, CONFIGURED, initial) == {"A": "shell", "B": "shell"}


def test_configured_names_are_left_out_where_the_kernel_shows_no_environment() -> None:
    assert shell_variables(ENVIRON, CONFIGURED, Path("/nowhere")) == {"A": "shell"}
