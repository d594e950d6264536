"""What decides which split an image takes: always the same one, or `runtime_edge.policy.dynamic_split.DynamicSplit`."""

from __future__ import annotations

from typing import Optional, Protocol

from runtime_edge.policy.dynamic_split import Decision
from runtime_edge.policy.link_estimate import LinkEstimate
from runtime_edge.policy.times import Times


class Chooser(Protocol):
    """Chooses a split per image and is told what came of it; see `runtime_edge.policy.dynamic_split.DynamicSplit`.

    Attributes:
        link: what is known of the link.
    """

    link: LinkEstimate

    def choose(self, now_ns: int, server: bool) -> Optional[Decision]:
        """The split to run next; ``None`` where no choice does without the server that is away: another stands in."""

    def observe(
        self, now_ns: int, split: str, sent_bytes: int, edge_ns: int, net_ns: int, queue_ns: int, server_ns: int
    ) -> None:
        """A request was answered."""

    def failed(self, now_ns: int, sent_bytes: int, waited_ns: int) -> None:
        """A request was given up."""

    def local(self, split: str, edge_ns: int) -> None:
        """An image needed no server."""

    def probe(self, now_ns: int, rtt_ns: int) -> None:
        """A health probe came back."""

    def predicted_ns(self, split: str) -> Optional[int]:
        """End to end time of a split now, where that is known."""
        ...


class FixedSplit:
    """The split that the user named; no choice while there is no server and the local split stands in.

    Args:
        split: id.
        local: id of the split that stands in; ``None`` where none does, and the named one is run without a server too.
        local_ns: what that takes, in ns.
    """

    def __init__(self, split: str, local: Optional[str], local_ns: float) -> None:
        self.link = LinkEstimate()
        self._split = split
        self._local = local
        self._times = Times({} if local is None else {local: local_ns})

    def choose(self, now_ns: int, server: bool) -> Optional[Decision]:
        """See `Chooser.choose`."""
        if server or self._local in (None, self._split):
            return Decision(self._split, None, None, "as asked for")
        return None

    def observe(
        self, now_ns: int, split: str, sent_bytes: int, edge_ns: int, net_ns: int, queue_ns: int, server_ns: int
    ) -> None:
        """See `Chooser.observe`."""
        self.link.observe(now_ns, sent_bytes, net_ns)

    def failed(self, now_ns: int, sent_bytes: int, waited_ns: int) -> None:
        """See `Chooser.failed`."""

    def local(self, split: str, edge_ns: int) -> None:
        """See `Chooser.local`."""
        if split == self._local:
            self._times.observe(split, edge_ns)

    def probe(self, now_ns: int, rtt_ns: int) -> None:
        """See `Chooser.probe`."""
        self.link.probe(now_ns, rtt_ns)

    def predicted_ns(self, split: str) -> Optional[int]:
        """See `Chooser.predicted_ns`; known of the local split only."""
        return round(self._times[split]) if split == self._local else None
