"""Keeps tracebacks off the screen for what `Checkpoints` says in one line."""

import functools
import logging
import sys


@functools.cache
def quieten_orbax() -> None:
    """Silences Orbax and what runs in its event loops, in this process from now on.

    Orbax raises what goes wrong, and `Checkpoints` turns that into one line. But it also
    logs it, and when the reading or writing of one array fails, those under way beside it
    end in an event loop that is closed, or with errors that nobody asks for.
    """
    logging.getLogger("orbax").setLevel(logging.CRITICAL)
    logging.getLogger("absl").addFilter(lambda record: "/orbax/" not in record.pathname)
    logging.getLogger("asyncio").addFilter(
        lambda record: "exception was never retrieved" not in record.getMessage()
    )
    print_traceback = sys.unraisablehook

    def hook(what: "sys.UnraisableHookArgs") -> None:
        if str(what.exc_value) != "Event loop is closed":
            print_traceback(what)

    sys.unraisablehook = hook
