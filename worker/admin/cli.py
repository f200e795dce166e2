"""The `ris` application: registers commands and turns typed errors into clear exits."""

from __future__ import annotations

import importlib
import json
import os
import sys
from typing import Any, NoReturn

import typer
from pydantic import ValidationError
from typer.core import TyperGroup

from models.session import DatabaseUnavailable
from worker.admin.interrupts import heed_interrupts
from worker.admin.output import notes
from worker.config import settings
from worker.errors import InputInvalid, RisError, ServiceUnavailable
from worker.logs import configure_logging

EXIT_ERROR = 1
EXIT_INTERRUPTED = 130

COMMANDS = {
    "demo": "demo:demo",
    "up": "services:up",
    "down": "services:down",
    "api": "services:api",
    "keys": "keys:keys",
    "ingest": "video:ingest",
    "query": "query:query",
    "evidence": "evidence:app",
    "changes": "changes:changes",
    "cameras": "video:cameras",
    "feed": "feed:app",
    "watch": "watch:app",
    "mask": "mask:mask",
    "standing": "standing:app",
    "webhook": "webhook:app",
    "backbones": "index:backbones",
    "reindex": "index:reindex",
    "generations": "index:generations",
    "seal": "index:seal",
    "offload": "index:offload",
    "verify": "index:verify",
    "repair": "index:repair",
    "erase": "erase:erase",
    "erasures": "erase:erasures",
    "retention": "erase:retention",
    "backup": "backup:backup",
    "restore": "backup:restore",
    "doctor": "services:doctor",
    "eval": "evaluation:evaluate",
}
"""Each command's module below ``worker.admin`` and what it holds there: a function or an app."""


class Commands(TyperGroup):
    """Imports a command when it is asked for: `ris cameras` waits for no search engine."""

    def list_commands(self, ctx: Any) -> list[str]:
        """All names, in the order of the help."""
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """The command of that name, None if there is none."""
        if cmd_name not in COMMANDS:
            return None
        module, name = COMMANDS[cmd_name].split(":")
        found = getattr(importlib.import_module(f"worker.admin.{module}"), name)
        if not isinstance(found, typer.Typer):
            alone = typer.Typer(add_completion=False)
            alone.command(cmd_name)(found)
            found = alone
        command = typer.main.get_command(found)
        command.name = cmd_name
        return command


app = typer.Typer(
    name="ris",
    cls=Commands,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


@app.callback()
def ris() -> None:
    """Region-to-Image Search: draw a box on one camera picture, find every other appearance."""


def main() -> NoReturn:
    """Run a command; exit 0, 1 with an error that says what and what to do, or 130 on Ctrl-C."""
    heed_interrupts()
    os.umask(0o077)  # whatever is written here or by what is started here shows footage
    try:
        configure_logging("WARNING" if settings().log_level == "INFO" else settings().log_level)
        app(prog_name="ris")
    except RisError as error:
        _fail(error)
    except DatabaseUnavailable as error:
        _fail(ServiceUnavailable(f"Postgres: {error}; `ris doctor` shows what runs"))
    except KeyboardInterrupt:
        notes.print("stopped")
        _leave(EXIT_INTERRUPTED)
    except SystemExit as ended:  # how typer ends every command, Ctrl-C included
        if ended.code == EXIT_INTERRUPTED:
            notes.print("stopped")
        _leave(ended.code if isinstance(ended.code, int) else EXIT_ERROR * bool(ended.code))
    except ValidationError as error:
        # pydantic's report of a bad RIS_* variable is readable as it is
        notes.print(f"[bold red]settings[/]: {error}", markup=True)
        _leave(EXIT_ERROR)
    except OSError as error:
        _fail(InputInvalid(f"{error.filename or 'a file'}: {error.strerror or error}"))
    except Exception as error:
        if settings().log_level == "DEBUG":
            raise
        _fail(RisError(f"{type(error).__name__}: {error} (RIS_LOG_LEVEL=DEBUG shows where)"))
    _leave(0)


def _fail(error: RisError) -> NoReturn:
    if "--json" in sys.argv:
        sys.stdout.write(json.dumps({"error": {"code": error.code, "detail": str(error)}}) + "\n")
    else:
        notes.print(f"[bold red]error[/] ({error.code}): ", end="")
        notes.print(str(error), markup=False)
    _leave(EXIT_ERROR)


def _leave(code: int) -> NoReturn:
    sys.stdout.flush()
    sys.stderr.flush()
    # Skips the slow teardown of native libraries; everything durable is already committed.
    os._exit(code)
