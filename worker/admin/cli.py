"""The `ris` application: registers commands and turns typed errors into clear exits."""

from __future__ import annotations

import json
import os
import signal
import sys
from typing import NoReturn

import typer
from pydantic import ValidationError

from models.session import DatabaseUnavailable
from worker.admin import (
    backup,
    changes,
    demo,
    erase,
    evaluation,
    feed,
    index,
    keys,
    query,
    services,
    video,
)
from worker.admin.output import notes
from worker.config import settings
from worker.errors import InputInvalid, RisError, ServiceUnavailable
from worker.logs import configure_logging

EXIT_ERROR = 1
EXIT_INTERRUPTED = 130

app = typer.Typer(
    name="ris",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Region-to-Image Search: draw a box on one camera picture, find every other appearance.",
)
app.command()(demo.demo)
app.command()(services.up)
app.command()(services.down)
app.command()(services.api)
app.command()(keys.keys)
app.command()(video.ingest)
app.command()(query.query)
app.command()(changes.changes)
app.command()(video.cameras)
app.add_typer(feed.app, name="feed")
app.command()(index.backbones)
app.command()(index.reindex)
app.command()(index.generations)
app.command()(index.seal)
app.command()(index.offload)
app.command()(index.verify)
app.command()(index.repair)
app.command()(erase.erase)
app.command()(erase.erasures)
app.command()(erase.retention)
app.command()(backup.backup)
app.command()(backup.restore)
app.command()(services.doctor)
app.command(name="eval")(evaluation.evaluate)


def main() -> NoReturn:
    """Run a command; exit 0, 1 with an error that says what and what to do, or 130 on Ctrl-C."""
    signal.signal(signal.SIGTERM, _interrupt)
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


def _interrupt(_number: int, _frame: object) -> None:
    raise KeyboardInterrupt


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
