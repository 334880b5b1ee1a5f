"""Ctrl-C that always arrives.

Solvers written in C, such as SCS, put a handler of their own in place while they run; an interrupt that falls into that
time ends the small problem at hand and is forgotten. So the signal is blocked everywhere, and one thread waits for it.
"""

from __future__ import annotations

import _thread
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

INTERRUPTED = 130
"""The exit code of a command that Ctrl-C ended, as shells have it."""


@contextmanager
def prompt_interrupts() -> Iterator[None]:
    """Within it, SIGINT raises KeyboardInterrupt in the main thread whatever handler a library has installed.

    Enter it before libraries are imported that start threads: these inherit that the signal is blocked. Where the
    system has no such thing (Windows), or outside the main thread, nothing is changed.
    """
    if not hasattr(signal, "pthread_sigmask") or threading.current_thread() is not threading.main_thread():
        yield
        return
    ending = threading.Event()

    def pass_on() -> None:
        while True:
            signal.sigwait({signal.SIGINT})
            if ending.is_set():
                return
            _thread.interrupt_main()

    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    waiter = threading.Thread(target=pass_on, name="interrupts", daemon=True)
    waiter.start()
    try:
        yield
    finally:
        ending.set()
        signal.pthread_kill(waiter.ident or 0, signal.SIGINT)
        waiter.join()
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
