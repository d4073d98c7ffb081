"""``dyn-probe``: the commands, and the one place that turns our errors into a line on standard error."""

from __future__ import annotations

import sys
import warnings
from typing import Annotated, Any, NoReturn

import typer
from dyn_probe_cli.check import check
from dyn_probe_cli.data import data
from dyn_probe_cli.export import export
from dyn_probe_cli.generate import generate
from dyn_probe_cli.grid import grid
from dyn_probe_cli.heatmap import heatmap
from dyn_probe_cli.methods import methods
from dyn_probe_cli.pairs import pairs
from dyn_probe_cli.record import record
from dyn_probe_cli.report import report
from dyn_probe_cli.reproduce import reproduce
from dyn_probe_cli.scan import scan
from dyn_probe_cli.summary import summary
from dyn_probe_cli.try_ import try_
from dyn_probe_cli.watch import watch

from dyn_probe import __version__
from dyn_probe.errors import DynProbeError, check_versions, escaped, on_one_line

app = typer.Typer(
    name="dyn-probe",
    help="Exact per-pair gradient dynamics of preference training: record a run, then read the report.",
    invoke_without_command=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)

CommandLineError: Any = next(kind for kind in typer.BadParameter.__mro__ if kind.__name__ == "ClickException")
"""What typer raises for a command line it cannot parse, whichever click it uses."""

COMMANDS = (
    data, record, scan, grid, report, summary, pairs, watch, check,
    export, heatmap, generate, try_, reproduce, methods,
)  # fmt: skip

for command in COMMANDS:
    app.command(command.__name__.rstrip("_"))(command)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(__version__)
        raise typer.Exit()


@app.callback()
def start(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """Exact per-pair gradient dynamics of preference training: record a run, then read the report."""
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())
        raise typer.Exit(2)


def main() -> None:
    """Run the command line.

    Exit codes: 0; 1 where training stopped early or a file could not be written; 2 where the command cannot be carried
    out; 3 where a run is beyond a limit of ``check``; 130 after Ctrl-C, 143 after SIGTERM and 129 after SIGHUP.
    """
    warnings.showwarning = _print_warning  # type: ignore[assignment]
    try:
        check_versions()
        sys.exit(app(standalone_mode=False) or 0)
    except CommandLineError as error:
        _fail(f"{error.format_message()} See: {_command_of(error)} --help", 2)
    except DynProbeError as error:
        _fail(str(error), getattr(error, "exit_code", 2))
    except OSError as error:  # a name that is too long, a folder that may not be entered, a disk that fails
        _fail(on_one_line(error), 1)
    except (typer.Abort, KeyboardInterrupt) as stop:
        signal = stop if isinstance(stop, KeyboardInterrupt) else stop.__cause__
        _fail(f"stopped by {str(signal or '') or 'Ctrl-C'}", getattr(signal, "exit_code", 130))


def _fail(message: str, code: int) -> NoReturn:
    typer.echo(f"dyn-probe: {_printable(message)}", err=True)
    sys.exit(code)


def _printable(message: str) -> str:
    """A message for a terminal: what it quotes from files and arguments cannot steer the terminal."""
    return escaped(message, kept="\n")


def _command_of(error: Exception) -> str:
    context = getattr(error, "ctx", None)
    return context.command_path if context is not None else "dyn-probe"


def _print_warning(message: Warning | str, category: type[Warning], *_: object) -> None:
    """Our warnings as one line; those of libraries are dropped."""
    if issubclass(category, RuntimeWarning):
        typer.echo(f"dyn-probe: warning: {_printable(str(message))}", err=True)
