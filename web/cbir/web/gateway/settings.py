"""How the page is served: where it listens, under which names it answers, and what it lets in."""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import ip_address

from cbir.core.errors import ConfigurationError

__all__ = ["Settings"]


@dataclass(frozen=True)
class Settings:
    """The settings of one page.  Sizes are in bytes, times in seconds.

    Attributes:
        host: Name or address to listen on.
        port: 0 takes any free one.
        insecure: Whether an address beyond this machine may be listened on, though the page lets everybody in.
        names: Names, besides those of this machine, under which browsers may ask for the page.
        upload: Largest picture that is taken.
        uploads: Most that all pictures kept take together; those that were used longest ago go first.
        kept: How long a picture is kept after it was last used.
        reading: How long a browser may take to send a request.
        searches: Searches that run at once.
        pictures: Thumbnails that are fetched at once.
        originals: Whole images that are fetched, and pictures that are sent here, at once.
        waiting: How many of each may wait for their turn; one more is refused.
        connections: Most connections.
    """

    host: str = "127.0.0.1"
    port: int = 8080
    insecure: bool = False
    names: tuple[str, ...] = ()
    upload: int = 32 * 2**20
    uploads: int = 256 * 2**20
    kept: float = 3600.0
    reading: float = 60.0
    searches: int = 16
    pictures: int = 16
    originals: int = 4
    waiting: int = 256
    connections: int = 512

    def __post_init__(self) -> None:
        if not self.is_local and not self.insecure:
            raise ConfigurationError(
                f"--host {self.host} can be reached from other machines, and the page asks nobody who they are: leave "
                "--host out and put a proxy that asks in front of it (docs/web.md), or say --insecure",
                reason="INSECURE",
                host=self.host,
            )

    @property
    def is_local(self) -> bool:
        """Whether only this machine can reach the page."""
        return self.host == "localhost" or (_is_address(self.host) and ip_address(self.host).is_loopback)

    def answers_to(self, name: str) -> bool:
        """Whether a browser may ask under this name.

        Another site can point a name of its own at this machine and then read what it is answered (DNS rebinding).  So
        unknown names are refused; an address cannot be pointed elsewhere.
        """
        return name == "localhost" or _is_address(name) or name in self.names


def _is_address(text: str) -> bool:
    try:
        ip_address(text)
    except ValueError:
        return False
    return True
