"""Read the next page of recipients while the current one is being sent."""

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Executor, Future

from chalicelib.delivery.parcel import Parcel
from chalicelib.errors import Unavailable


class ReadAhead:
    """Reads one page ahead, in another thread.

    `ended` is set after the last page. `error` is what ended the pages early, if anything did.
    """

    def __init__(
        self,
        pages: Iterable[Sequence[Parcel]],
        readers: Executor,
        on_page: Callable[[], None],
    ) -> None:
        """Start to read. The reader's thread calls `on_page` when a page has been read."""
        self._pages = iter(pages)
        self._readers = readers
        self._on_page = on_page
        self.ended = False
        self.error: Exception | None = None
        self._next = self._read()

    def take(self) -> Sequence[Parcel] | None:
        """Return the next page; None when it has not been read yet, and at the end."""
        if self.ended or not self._next.done():
            return None
        try:
            page = self._next.result()
        except Exception as error:  # a bug, too: the pages before it are delivered all the same
            page, self.error = None, error
        if page is None:
            self.ended = True
        else:
            self._next = self._read()
        return page

    def give_up(self) -> None:
        """End the pages, since the next one did not come in time."""
        self.ended = True
        self.error = Unavailable("the audience could not be read to its end in time")

    def _read(self) -> "Future[Sequence[Parcel] | None]":
        future = self._readers.submit(next, self._pages, None)
        future.add_done_callback(lambda _: self._on_page())
        return future
