"""When kernels are compiled: once, for Numba keeps what it has made on the disk."""

import contextlib
from collections.abc import Callable, Iterator

COMPILING = "compiling the kernel (first run only)"


@contextlib.contextmanager
def telling_of_compilation(tell: Callable[[str], None]) -> Iterator[None]:
    """Say so if a kernel has to be compiled in here, which takes seconds."""
    from numba.core import event

    class Teller(event.Listener):  # type: ignore[misc]
        """Hears of a function that is neither in memory nor on the disk."""

        def on_start(self, _event: object) -> None:
            tell(COMPILING)

        def on_end(self, _event: object) -> None:
            pass

    with event.install_listener("numba:compile", Teller()):
        yield
