"""What every command does with the terminal: bars, errors in one line, exit codes."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import typer

from embedtune.errors import EmbedtuneError
from embedtune.files import is_disk_full
from embedtune.memory import is_out_of_memory


@contextmanager
def show_progress(quiet: bool) -> Iterator[None]:
    from embedtune.console import choose_progress, make_console
    from embedtune.progress import use_progress

    progress = choose_progress(make_console(stderr=True), quiet=quiet)
    with use_progress(progress) if progress else nullcontext():
        yield


@contextmanager
def report_errors(debug: bool) -> Iterator[None]:
    """Turn what a user can put right into one line and exit code 2; Ctrl-C into a line and 130."""
    try:
        yield
    except KeyboardInterrupt:
        typer.echo("\nStopped. The same command goes on from here.", err=True)
        raise typer.Exit(130) from None
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise typer.Exit(1) from None
    except Exception as error:
        if debug or not (isinstance(error, EmbedtuneError | OSError) or is_out_of_memory(error)):
            raise
        typer.echo(f"error: {_explain(error)}", err=True)
        raise typer.Exit(2) from None


def _explain(error: Exception) -> str:
    if is_out_of_memory(error) and not isinstance(error, EmbedtuneError):
        return (
            "memory ran out: close other programs, or set batch_tokens, finetune.batch_size or max_length lower, "
            "and give the same command again; what was finished is kept."
        )
    if isinstance(error, OSError) and not isinstance(error, EmbedtuneError):
        where = f" ({error.filename})" if error.filename else ""
        if is_disk_full(error):
            return (
                f"the disk is full{where}: free some space and give the same command again; nothing was lost."
            )
        return f"{error.strerror or error}{where}: check that the path exists and that you may use it."
    return " ".join(str(error).split())


def command() -> str:
    return shlex.join(["embedtune", *sys.argv[1:]])
