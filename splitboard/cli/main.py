"""The entry point: commands, exit codes, errors in one line. Everything heavy is imported inside the commands."""

from __future__ import annotations

import re
import signal
import sys
import traceback
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import typer

from splitboard.cli import (
    bench_commands,
    board_commands,
    commands,
    deploy_commands,
    flash_commands,
    legal_commands,
    trtexec_commands,
)
from splitboard.contract.errors import EXIT_BUG, EXIT_PASS, EXIT_USER_ERROR, SplitboardError, UserError

_EXIT_INTERRUPTED = 130
"""128 + SIGINT, as shells have it."""

_UsageError: type[Exception] = typer.BadParameter.__bases__[0]
"""The base of all errors of usage. Typer carries its own copy of click and exports only the leaves."""

app = typer.Typer(
    name="splitboard",
    help="Cut a trained multi-task network, run its INT8 half on the board, measure every split.",
    epilog="Exit codes: 0 pass, 1 a gate failed, 2 inconclusive, 3 wrong input, 70 a bug of ours.",
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)
commands.register(app)
bench_commands.register(app)
board_commands.register(app)
deploy_commands.register(app)
flash_commands.register(app)
legal_commands.register(app)
trtexec_commands.register(app)


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs one command and exits with the documented code. SIGTERM ends it as Ctrl-C does, with all cleaned up."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    sys.exit(run(sys.argv[1:] if arguments is None else arguments))


def run(arguments: Sequence[str]) -> int:
    """Runs one command.

    Args:
        arguments: of the command line, without the program's name.

    Returns:
        The exit code.
    """
    try:
        result = app(list(arguments) or ["--help"], prog_name="splitboard", standalone_mode=False)
    except SplitboardError as error:
        sys.stderr.write(f"{error}\n")
        if error.exit_code == EXIT_BUG:
            traceback.print_exc()
        return error.exit_code
    except _UsageError as error:  # click's own exit code for these is 2, which means inconclusive here
        sys.stderr.write(f"{_in_our_words(error, arguments)}\n")
        return EXIT_USER_ERROR
    except typer.Exit as error:
        return int(error.exit_code)
    except (KeyboardInterrupt, typer.Abort):
        return _EXIT_INTERRUPTED
    except Exception:  # whatever else comes is a bug of ours, and is shown as one
        traceback.print_exc()
        return EXIT_BUG
    return result if isinstance(result, int) else EXIT_PASS


def _in_our_words(error: Any, arguments: Sequence[str]) -> UserError:
    """A usage error of the command-line library in the form of all our errors: the offending value in quotes."""
    command = error.ctx.command_path if error.ctx is not None else "splitboard"
    message = error.format_message().replace("'", '"')
    message = re.sub(r"(?<=option: )(\S+)|(?<=argument\(s\) )\((.*)\)", r'"\1\2"', message)
    options = getattr(getattr(error, "param", None), "opts", ())
    # Of an option that is given twice the last one counts.
    given = next((value for option, value in reversed([*pairwise(arguments)]) if option in options), None)
    if given is not None and f'"{given}"' not in message:
        message = f'{message}, found "{given}"'
    return UserError(message, [f"{command} --help"])


if __name__ == "__main__":
    main()
